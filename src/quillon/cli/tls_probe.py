"""`quillon tls-probe HOST[:PORT]`: what a host does with TLS, and what each setting would make of it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from typing import Any

from quillon.app import compose
from quillon.cli import listen_probe
from quillon.cli.certificates import certificate_row
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.load import empty
from quillon.config.model import Config
from quillon.config.routes import is_ip
from quillon.config.settings import DeliverySettings
from quillon.control import demands
from quillon.delivery import survey
from quillon.delivery.connection import ConnectionServices
from quillon.delivery.demand import Demand, Refused
from quillon.delivery.hosts import HostFinder
from quillon.delivery.probe import VALUES, HostReport, probe
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import certificate_names
from quillon.modules import load as policies
from quillon.net.clock import Deadlines, SystemClock
from quillon.policy.tls import TlsHooks
from quillon.tls import identity
from quillon.tls.causes import ALERT, CAUSES
from quillon.tls.certificate import printable
from quillon.tls.context import Contexts
from quillon.tls.engine import SYSTEM_TRUST

PATIENCE = 15  # seconds


def add(commands: Any) -> None:
    parser = commands.add_parser("tls-probe")
    parser.add_argument("host", nargs="?", metavar="HOST[:PORT]", help="without it: the hosts of --domain")
    parser.add_argument("--domain", metavar="DOMAIN", help="the recipient's domain; by default the host")
    parser.add_argument("--binding", default="default", metavar="NAME", help="the binding that sends")
    parser.add_argument("--listen", metavar="ADDRESS", help='instead: a Listen of the configuration, such as ":25"')
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="the configuration file; by default ecelerity.conf, if it is there"
    )
    parser.add_argument("--ca", metavar="FILE", help='trust this instead of TLS_CA; or "system"')
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 0 if mail would be delivered over TLS that verified, else 1; 2 for a faulty configuration."""
    if given.config is None and os.path.exists(DEFAULT):
        given.config = DEFAULT
    config = read(given.config) if given.config else empty()
    if config is None:
        return FAULTY
    if not given.config and not given.json:
        print(f"there is no {DEFAULT} here: the built-in settings are used", file=sys.stderr)
    if given.ca and given.ca != SYSTEM_TRUST:
        given.ca = os.path.abspath(given.ca)
    try:
        if given.listen:
            return asyncio.run(listen_probe.run(config, given.listen, as_json=given.json))
        return asyncio.run(_run(config, given))
    except (ValueError, policies.LoadError) as error:
        print(f"quillon tls-probe: {error}", file=sys.stderr)
        return 1


async def _run(config: Config, given: argparse.Namespace) -> int:
    if not given.host and not given.domain:
        raise ValueError("give a host, --domain or --listen")
    bindings = config.outbound.bindings()
    if given.binding not in bindings:
        raise ValueError(f"there is no binding {given.binding!r}; there are {', '.join(sorted(bindings))}")
    group, domain = bindings[given.binding], (given.domain or _literal(_host_port(given.host)[0])).lower()
    routing = config.outbound.routing(group, given.binding, domain)
    settings, tls = config.outbound.delivery(group, given.binding, routing.domain, routing.via)
    clock = SystemClock()
    deadlines = Deadlines(clock, 0.05)
    deadlines.start()
    if given.ca:
        tls = dataclasses.replace(tls, tls_ca=given.ca)
    resolver = compose.resolver(config.node(), clock)
    found = await _hosts(config, given.host, routing.domain, settings, HostFinder(resolver, config.node(), clock))
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    standards = compose.standards(config.node(), resolver, clock, say, writes=False)
    known = await survey.of_hosts(config, group, given.binding, domain, found, settings, standards)
    # somebody sits in front of it
    settings = dataclasses.replace(settings, connect_timeout=PATIENCE, ehlo_timeout=PATIENCE)
    loaded = await compose.load_to_look(config, clock, lambda text: print(text, file=sys.stderr))
    policy = loaded.policy
    services = ConnectionServices(clock, deadlines, Contexts(clock.now), TlsHooks(policy, config.folder))
    ehlo = compose.hostname(config.node())
    reports = []
    for host, demand in known.hosts:
        names = certificate_names(tls, host.name, routing.domain, routing.via)
        sni = demand.tlsa_names[0] if isinstance(demand, Demand) and demand.tlsa_names else ""
        reports.append(await probe(host, names, settings, tls, services, ehlo, sni))
    deadlines.stop()
    rows = [
        _as_json(report, tls) | _demanded(report, demand)
        for report, (_, demand) in zip(reports, known.hosts, strict=True)
    ]
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        if known.problem or known.sts is not None:
            print("\n".join(demands.lines(survey.as_row(known._replace(hosts=())))))
        for report, row in zip(reports, rows, strict=True):
            _print(report, row, config=bool(given.config))
        if given.config and not given.domain:
            print(f"The settings are those of the domain {domain}; --domain names another.")
    return 0 if any(map(_is_good, reports, rows)) else 1


def _is_good(report: HostReport, row: dict[str, Any]) -> bool:
    """Whether mail would go over TLS that has verified."""
    if row["published"]["standard"]:
        return bool(row["published"]["verified"])
    return report.judgement is not None and bool(report.judgement.verified)


def _demanded(report: HostReport, demand: Demand | Refused) -> dict[str, Any]:
    """What DNS and the domain's policy make of a host."""
    row = survey.host_row(report.host, demand)
    shown = {name: row.get(name, "") for name in ("standard", "refused", "reasons", "tlsa")}
    outcome, verified = "", False
    if isinstance(demand, Refused):
        outcome = f"held: {demand.cause}"
    elif not report.problem:
        foreseen = report.under(demand)
        outcome, verified = str(foreseen), bool(foreseen.verified)
    return {"published": {**shown, "dnssec": row["dnssec"], "outcome": outcome, "verified": verified}}


async def _hosts(
    config: Config, host: str | None, domain: str, settings: DeliverySettings, finder: HostFinder
) -> list[Host]:
    """The host that was named, or those of the domain. Raises ValueError."""
    if host:
        name, port = _host_port(host)
        if is_ip(name):
            return [Host(name, name, port or settings.remote_smtp_port)]
        route = f"smtp://{name}?port={port or settings.remote_smtp_port}&type=a"
        settings = dataclasses.replace(settings, routes=(route,))
    found = await finder.find(domain, settings)
    if not isinstance(found, list):
        raise ValueError(f"{host or domain}: {found.reply}")
    return found


def _literal(host: str) -> str:
    """The domain that stands for a host: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _host_port(text: str) -> tuple[str, int]:
    """Name and port of HOST, HOST:PORT, an IPv6 address or [IPv6]:PORT; port 0 if none is said. Raises ValueError."""
    if is_ip(text.strip("[]")):
        return text.strip("[]"), 0
    name, colon, port = text.rpartition(":")
    if not colon:
        return text, 0
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r}: {port!r} is no port")
    return name.strip("[]"), int(port)


def _as_json(report: HostReport, tls: Any) -> dict[str, Any]:
    facts, judgement = report.facts, report.judgement
    cause = judgement.cause if judgement is not None else report.observed.cause
    if not report.observed.offered and not report.problem:
        cause = "no_starttls"
    row: dict[str, Any] = {
        "host": report.host.name,
        "ip": report.host.ip,
        "port": report.host.port,
        "problem": report.problem,
        "starttls": report.observed.offered,
        "protocol": facts.protocol if facts else "",
        "cipher": facts.cipher if facts else "",
        "bits": facts.bits if facts else 0,
        "group": facts.group if facts else "",
        "trusted": report.ca,
        "chain": [certificate_row(certificate) for certificate in report.chain],
        "names_wanted": list(report.names),
        "names": _names(report),
        "verified": judgement.verified if judgement is not None else None,
        "level": judgement.level if judgement is not None else "none",
        "matched": judgement.matched if judgement is not None else "",
        "cause": cause,
        "detail": (judgement.detail if judgement is not None else "") or (facts.detail if facts else ""),
    }
    if not report.problem:
        row["configured"] = {"tls": tls.tls, "tls_verify": tls.tls_verify, "outcome": str(report.foresee(tls))}
        outcomes = {"no": {"": str(report.foresee(dataclasses.replace(tls, tls="no")))}}
        for value, verify in VALUES:
            changed = dataclasses.replace(tls, tls=value, tls_verify=verify)
            outcomes.setdefault(value, {})[verify] = str(report.foresee(changed))
        row["outcomes"] = outcomes
    return row


def _names(report: HostReport) -> list[str]:
    """What the host's certificate claims to be: its alternative names, or its common name where it has none."""
    certificate = report.observed.verdict.certificate if report.observed.verdict is not None else None
    if certificate is None:
        return []
    dns, addresses = identity.names(certificate)
    return [printable(name) for name in dns + addresses]


def _print_published(row: dict[str, Any]) -> None:
    if row["standard"] or row["refused"]:
        for reason in row["reasons"]:
            print(f"  published  {reason}")
        print(f"  {row['standard'] or 'refused':9}  {row['refused'] or row['outcome']}")


def _print(report: HostReport, row: dict[str, Any], *, config: bool) -> None:
    print(f"{row['host']} [{row['ip']}]:{row['port']}")
    if report.problem:
        print(f"  problem    {report.problem}")
        if "no banner" in report.problem or "connection closed" in report.problem:
            print("             A port with TLS from the first octet (465) does not greet; this probe is for STARTTLS.")
        return
    print(f"  STARTTLS   {'offered' if row['starttls'] else 'not offered'}")
    if row["protocol"]:
        print(f"  handshake  {row['protocol']} {row['cipher']}, {row['bits']} bits, group {row['group'] or 'unknown'}")
    for n, certificate in enumerate(row["chain"]):
        print(f"  {'chain' if n == 0 else '':9}  {n} {certificate['subject']}, issued by {certificate['issuer']}")
        print(
            f"             {certificate['key']} bits, {certificate['signature']},"
            f" {certificate['not_before'][:10]} to {certificate['not_after'][:10]}"
        )
    print(f"  trusted    {row['trusted']}{'' if config else ' (no configuration given)'}")
    if row["names"]:
        print(f"  names      {', '.join(row['names'])}")
    print(f"  wanted     {' or '.join(row['names_wanted'])}")
    if row["verified"]:
        print(f"  verdict    verified: the chain is trusted and names {row['matched'] or 'the host'}")
    elif row["cause"]:
        cause = CAUSES.get(row["cause"])
        words = f"{cause.meaning} {cause.remedy}" if cause else ALERT
        print(f"  verdict    {row['cause']}: {words}")
        if row["detail"]:
            print(f"             {row['detail']}")
    if config:
        now = row["configured"]
        _print_published(row["published"])
        print(f"  now        TLS = {now['tls']}, TLS_Verify = {now['tls_verify']}: {now['outcome']}")
    for value, verifies in row["outcomes"].items():
        for verify, outcome in verifies.items():
            shown = f"TLS = {value}" + (f", TLS_Verify = {verify}" if verify else "")
            print(f"  {shown:44} {outcome}")
