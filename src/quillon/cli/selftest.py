"""`quillon selftest -c FILE --domain D`: which broken peers this configuration would send mail to."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.model import Config
from quillon.lab import selftest
from quillon.lab.faults import BrokenPeer
from quillon.lab.trial import TrialResult


def add(commands: Any) -> None:
    parser = commands.add_parser("selftest")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument("--domain", action="append", required=True, metavar="DOMAIN", help="may be given several times")
    parser.add_argument("--binding", default="default", metavar="NAME", help="the binding that sends")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 0 if nothing broken gets mail, 3 if something does."""
    config = read(given.config)
    if config is None:
        return FAULTY
    bindings = config.outbound.bindings()
    if given.binding not in bindings:
        print(f"quillon selftest: there is no binding {given.binding!r}", file=sys.stderr)
        return 1
    found = {}
    for domain in given.domain:
        found[domain] = _results(config, bindings[given.binding], given.binding, domain.lower())
    if given.json:
        print(json.dumps({domain: _as_json(results) for domain, results in found.items()}, indent=2))
    else:
        for domain, results in found.items():
            _print(domain, results)
    return 3 if any(selftest.lets_through(*row) for results in found.values() for row in results) else 0


def _results(config: Config, group: str, binding: str, domain: str) -> list[tuple[BrokenPeer, TrialResult]]:
    routing = config.outbound.routing(group, binding, domain)
    settings, tls = config.outbound.delivery(group, binding, routing.domain, routing.via)
    with tempfile.TemporaryDirectory(prefix="quillon-selftest-") as folder:
        return asyncio.run(selftest.run(Path(folder), settings, [tls]))[0]


def _as_json(results: list[tuple[BrokenPeer, TrialResult]]) -> list[dict[str, Any]]:
    return [
        {
            "peer": fault.name,
            "about": fault.about,
            "delivered": result.delivered,
            "way": result.seen.way,
            "verified": result.seen.verified,
            "cause": result.seen.cause,
            "let_through": selftest.lets_through(fault, result),
        }
        for fault, result in results
    ]


def _print(domain: str, results: list[tuple[BrokenPeer, TrialResult]]) -> None:
    through = [fault for fault, result in results if selftest.lets_through(fault, result)]
    print(f"{domain}:")
    for fault, result in results:
        mark = "!" if fault in through else " "
        print(f" {mark} {fault.name:25} {result!s:40} {fault.about}")
    broken = sum(bool(fault.cause) for fault, _ in results)
    print(f"{domain}: mail went to {len(through)} of {broken} peers whose TLS is broken (marked !)")
