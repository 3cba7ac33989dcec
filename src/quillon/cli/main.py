"""`quillon`: serve, check, explain, demo. Exit status 0 for success, 2 for a faulty configuration, 1 for the rest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from quillon import __version__
from quillon.cli import check, console, demo, explain, fault_farm, password, policy, record, selftest, serve, tls_probe
from quillon.config.nearest import did_you_mean


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    status: int = given.run(given)
    return status


class _Parser(argparse.ArgumentParser):
    """Suggests the option or command that was meant. Takes no abbreviations: a later version may have others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given, rest = super().parse_known_args(args, namespace)
        unknown = next((word for word in rest if word.startswith("-")), None)
        if unknown is not None:
            name = unknown.partition("=")[0]
            self.error(f"there is no option {name}{did_you_mean(name, self._option_string_actions)}")
        return given, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            meant = did_you_mean(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"there is no {value}{meant}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="quillon", description="A mail transfer agent that enforces TLS and can prove it.")
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
