"""`quillon demo`."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser("demo")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    return 0
