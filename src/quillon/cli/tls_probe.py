"""`quillon tls-probe HOST[:PORT]`: what a host does with TLS, and what each setting would make of it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from typing import Any

from quillon.app import compose
from quillon.cli import listen_probe
from quillon.cli.certificates import certificate_row
from quillon.config.load import empty, load
from quillon.config.model import Config, lookup_name
from quillon.config.routes import split_gateway
from quillon.delivery.connection import Surroundings
from quillon.delivery.hosts import HostFinder
from quillon.delivery.probe import VALUES, Report, probe
from quillon.net.clock import Deadlines, SystemClock
from quillon.policy.tls import TlsHooks
from quillon.tls.causes import CAUSES
from quillon.tls.context import Contexts


def add(commands: Any) -> None:
    parser = commands.add_parser("tls-probe", help="tell what a host does with TLS")
    parser.add_argument("host", nargs="?", metavar="HOST[:PORT]", help="without it: the hosts of --domain")
    parser.add_argument("--domain", metavar="DOMAIN", help="the recipient's domain; by default the host")
    parser.add_argument("--binding", default="default", metavar="NAME", help="the binding that sends")
    parser.add_argument("--listen", metavar="ADDRESS", help='instead: a Listen of the configuration, such as ":25"')
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration file; by default an empty one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 0 if mail would be delivered over TLS that verified, else 1; 2 for a faulty configuration."""
    config = empty()
    if given.config:
        loaded = load(given.config)
        if loaded.config is None:
            for fault in loaded.errors:
                print(fault, file=sys.stderr)
            return 2
        config = loaded.config
    try:
        if given.listen:
            return asyncio.run(listen_probe.run(config, given.listen, as_json=given.json))
        return asyncio.run(_run(config, given))
    except (ValueError, compose.ComposeError) as error:
        print(f"quillon tls-probe: {error}", file=sys.stderr)
        return 1


async def _run(config: Config, given: argparse.Namespace) -> int:
    if not given.host and not given.domain:
        raise ValueError("give a host, --domain or --listen")
    bindings = config.bindings()
    if given.binding not in bindings:
        raise ValueError(f"there is no binding {given.binding!r}; there are {', '.join(sorted(bindings))}")
    group, domain = bindings[given.binding], (given.domain or split_gateway(given.host)[0]).lower()
    routing = config.routing(group, given.binding, domain)
    settings, tls = config.delivery(group, given.binding, routing.domain, routing.via)
    clock = SystemClock()
    deadlines = Deadlines(clock, 0.05)
    deadlines.start()
    wanted = settings
    if given.host:
        name, port = split_gateway(given.host)
        route = f"smtp://[{name}]" if ":" in name else f"smtp://{name}"
        wanted = dataclasses.replace(settings, routes=(f"{route}?port={port or settings.remote_smtp_port}&type=a",))
    finder = HostFinder(compose.resolver(config.node(), clock), config.node(), clock)
    found = await finder.find(routing.domain, wanted)
    if not isinstance(found, list):
        raise ValueError(f"{given.host or domain}: {found.reply}")
    policy = compose.policy(config, clock, lambda text: print(text, file=sys.stderr))
    around = Surroundings(clock, deadlines, Contexts(clock.now), TlsHooks(policy, config.folder))
    ehlo = compose.hostname(config.node())
    reports = []
    for host in found:
        names = tuple(dict.fromkeys((host.name, lookup_name(routing.domain), routing.via or domain)))
        reports.append(await probe(host, names, settings, tls, around, ehlo))
    deadlines.stop()
    rows = [_as_json(report, tls) for report in reports]
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        for report, row in zip(reports, rows, strict=True):
            _print(report, row, config=bool(given.config))
    good = any(report.judgement is not None and report.judgement.verified for report in reports)
    return 0 if good else 1


def _as_json(report: Report, tls: Any) -> dict[str, Any]:
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
        "verified": judgement.verified if judgement is not None else None,
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


def _print(report: Report, row: dict[str, Any], *, config: bool) -> None:
    print(f"{row['host']} [{row['ip']}]:{row['port']}")
    if report.problem:
        print(f"  problem    {report.problem}")
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
    print(f"  wanted     {' or '.join(row['names_wanted'])}")
    if row["verified"]:
        print("  verdict    verified: the chain is trusted and names the host")
    elif row["cause"]:
        cause = CAUSES.get(row["cause"])
        words = f"{cause.meaning} {cause.remedy}" if cause else "The other side ended the handshake with this alert."
        print(f"  verdict    {row['cause']}: {words}")
        if row["detail"]:
            print(f"             {row['detail']}")
    if config:
        now = row["configured"]
        print(f"  now        TLS = {now['tls']}, TLS_Verify = {now['tls_verify']}: {now['outcome']}")
    for value, verifies in row["outcomes"].items():
        for verify, outcome in verifies.items():
            shown = f"TLS = {value}" + (f", TLS_Verify = {verify}" if verify else "")
            print(f"  {shown:44} {outcome}")
