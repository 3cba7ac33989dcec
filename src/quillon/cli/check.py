"""`quillon check -c FILE`: every fault of a configuration at once, as file:line:column: message."""

from __future__ import annotations

import argparse
from typing import Any

from quillon.app import compose
from quillon.config.load import load
from quillon.net.clock import SystemClock


def add(commands: Any) -> None:
    parser = commands.add_parser("check", help="check a configuration and the files it names")
    parser.add_argument("-c", "--config", default="ecelerity.conf", metavar="FILE", help="the configuration file")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    loaded = load(given.config)
    for fault in loaded.faults:
        print(fault)
    if loaded.config is None:
        return 2
    problems = compose.try_out(loaded.config, SystemClock())
    for problem in problems:
        print(problem)
    if problems:
        return 2
    print("Configuration valid")
    return 0
