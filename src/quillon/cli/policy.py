"""`quillon policy check -c FILE`: load the policies of a configuration, and tell what each module is asked."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from quillon.app import policies
from quillon.cli.configuration import FAULTY, read
from quillon.net.clock import SystemClock


def add(commands: Any) -> None:
    parser = commands.add_parser("policy", help="look at the policies of a configuration")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", help="load the policies, and list what each module is asked")
    check.add_argument("-c", "--config", default="ecelerity.conf", metavar="FILE", help="the configuration file")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_check)


def run_check(given: argparse.Namespace) -> int:
    """Exit status 2 if the configuration or a policy does not load."""
    config = read(given.config)
    if config is None:
        return FAULTY
    try:
        policy = policies.load(config, SystemClock(), lambda text: print(text, file=sys.stderr)).policy
    except policies.ComposeError as error:
        print(error, file=sys.stderr)
        return 2
    called = policy.called()
    policy.close()
    if given.json:
        print(json.dumps([{"module": name, "callouts": names} for name, names in called], indent=2))
        return 0
    if not called:
        print("no policy is configured")
    for name, names in called:
        print(f"{name}: {', '.join(names) or 'nothing'}")
    return 0
