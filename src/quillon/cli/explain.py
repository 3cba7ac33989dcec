"""`quillon explain`: each effective option of a path, where it was set, the scope that won, and what it beat."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import sys
from collections.abc import Iterable
from typing import Any

from quillon.app import compose
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config import provenance
from quillon.config.model import Config
from quillon.config.nearest import did_you_mean
from quillon.config.scope import Resolution
from quillon.control import demands
from quillon.delivery import survey
from quillon.delivery.hosts import HostFinder
from quillon.modules.load import LoadError
from quillon.net.clock import SystemClock


def add(commands: Any) -> None:
    parser = commands.add_parser("explain")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument("--domain", metavar="DOMAIN", help="outbound: the recipient's domain")
    parser.add_argument("--binding", default="default", metavar="NAME", help="outbound: the binding")
    parser.add_argument("--listen", metavar="ADDRESS", help='inbound: a Listen, such as ":25"')
    parser.add_argument("--peer", default="127.0.0.1", metavar="IP", help="inbound: the client")
    parser.add_argument("--option", metavar="NAME", help="only options whose name holds this")
    parser.add_argument("--set", action="store_true", help="leave out options at their default")
    parser.add_argument("--no-dns", action="store_true", help="do not look up what domains publish (DANE, MTA-STS)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if bool(given.domain) == bool(given.listen):
        return _fail("give either --domain (outbound) or --listen (inbound)")
    config = read(given.config)
    if config is None:
        return FAULTY
    try:
        title, rows = _rows(config, given)
    except ValueError as error:
        return _fail(str(error))
    if given.option:
        rows = [row for row in rows if given.option.lower() in row.option.name]
    if given.set:
        rows = [row for row in rows if row.entry is not None]
    if not rows:
        return _fail(f"no option matches{did_you_mean((given.option or '').lower(), config.table.options)}")
    rows = sorted(rows, key=lambda row: row.option.name)
    published = asyncio.run(_published(config, given)) if given.domain and not given.no_dns else None
    if given.json:
        shown: dict[str, Any] = {**title, "options": [provenance.row(row) for row in rows]}
        if published is not None:
            shown["published"] = survey.as_row(published)
        print(json.dumps(shown, indent=2))
    else:
        _print(title, rows)
        if published is not None:
            print("\n".join(["", *demands.lines(survey.as_row(published))]))
    return 0


async def _published(config: Config, given: argparse.Namespace) -> survey.Survey | None:
    """What the domain has published and what comes of it for each host; None where the configuration looks for nothing,
    or has no resolver."""
    group, domain = config.outbound.bindings()[given.binding], given.domain.lower()
    routing = config.outbound.routing(group, given.binding, domain)
    settings, _ = config.outbound.delivery(group, given.binding, routing.domain, routing.via)
    if not (settings.use_dane != "false" or settings.use_mta_sts):
        return None
    clock, node = SystemClock(), config.node()
    try:
        resolver = compose.resolver(node, clock)
    except LoadError as error:
        return survey.Survey(routing.domain, str(error))
    finder = HostFinder(resolver, node, clock, compose.own(config))
    standards = compose.standards(node, resolver, clock, lambda text: print(text, file=sys.stderr), writes=False)
    return await survey.survey(config, group, given.binding, domain, finder, standards)


def _fail(text: str) -> int:
    print(f"quillon explain: {text}", file=sys.stderr)
    return 1


def _rows(config: Config, given: argparse.Namespace) -> tuple[dict[str, str], list[Resolution]]:
    """What is explained, and its options. Raises ValueError."""
    if given.domain:
        bindings = config.outbound.bindings()
        if given.binding not in bindings:
            known = ", ".join(sorted(bindings))
            raise ValueError(f"there is no binding {given.binding!r}; there are {known}")
        group, domain = bindings[given.binding], given.domain.lower()
        routing = config.outbound.routing(group, given.binding, domain)
        title = {"direction": "outbound", "binding_group": group, "binding": given.binding, "domain": domain}
        title["routing_domain"] = routing.domain
        return title, config.outbound.explain(group, given.binding, domain)
    node = config.inbound.listen_node(given.listen)
    if node is None:
        known = ", ".join(listen.name for listen in config.inbound.listens()) or "none"
        raise ValueError(f"there is no Listen {given.listen!r}; there are {known}")
    client = ipaddress.ip_address(given.peer)
    title = {"direction": "inbound", "listen": node.label, "peer": str(client)}
    identities = config.inbound.identity_nodes(node, client)
    if identities:
        title["tls_identities"] = "; ".join(f'"{stanza.label}" {stanza.position}' for stanza in identities)
    return title, config.inbound.explain(node, client)


def _print(title: dict[str, str], rows: Iterable[Resolution]) -> None:
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in title.items()))
    for row in rows:
        if row.entry is None or row.node is None:
            print(f"{row.option.name} = {_shown(row.option.default)}    default")
        else:
            status = "" if row.option.status == "honoured" else f" ({row.option.status}, without effect)"
            value = provenance.text(row, row.entry)
            print(f"{row.option.name} = {value}    {row.entry.position} in {row.node.path}{status}")
        for node, entry in row.beaten:
            print(f"    beats {provenance.text(row, entry)}    {entry.position} in {node.path}")


def _shown(default: str | None) -> str:
    return "(not set)" if default is None else default or '""'
