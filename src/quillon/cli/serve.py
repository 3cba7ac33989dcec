"""`quillon serve -c FILE`: run in the foreground until SIGTERM; SIGHUP reloads and reopens the logs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from quillon.app.supervisor import FaultyError, StartError, Supervisor
from quillon.cli.configuration import DEFAULT, FAULTY
from quillon.config.load import load


def add(commands: Any) -> None:
    parser = commands.add_parser("serve")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    loaded = load(given.config)
    for fault in loaded.faults:
        print(fault, file=sys.stderr, flush=True)
    if loaded.config is None:
        return FAULTY
    try:
        return Supervisor(loaded.config, _say).run()
    except StartError as error:
        print(f"quillon: {error}", file=sys.stderr, flush=True)
        return FAULTY if isinstance(error, FaultyError) else 1


def _say(text: str) -> None:
    print(f"quillon: {text}", file=sys.stderr, flush=True)
