"""`quillon`: serve, check, explain, demo. Exit status 0 for success, 2 for a faulty configuration, 1 for the rest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from quillon import __version__
from quillon.cli import check, console, demo, explain, fault_farm, password, policy, record, selftest, serve, tls_probe


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    status: int = given.run(given)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quillon", description="A mail transfer agent that enforces TLS and can prove it."
    )
    parser.add_argument("--version", action="version", version=f"quillon {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (serve, console, check, explain, policy, record, tls_probe, selftest, fault_farm, password, demo):
        module.add(commands)
    return parser


def script() -> None:
    """Entry point of the installed command."""
    try:
        sys.exit(main())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
