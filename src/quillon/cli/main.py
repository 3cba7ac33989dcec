"""`quillon`: serve, check, explain, demo. Exit status 0 for success, 2 for a faulty configuration, 1 for the rest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from quillon import __version__
from quillon.config.nearest import did_you_mean

# each command, the module of this package that has it, and what it is for; a module is imported when it is asked for,
# since most of them bring the TLS engines along
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "write a configuration to begin with, for a role"),
    "serve": ("serve", "run in the foreground"),
    "console": ("console", "ask a running server; `quillon console help` lists what"),
    "check": ("check", "check a configuration and the files it names"),
    "find": ("find", "tell where a message is, or what became of it"),
    "spool": ("spool", "look into the spool, put mail into it, repair it"),
    "explain": ("explain", "tell where each effective option comes from"),
    "policy": ("policy", "look at the policies of a configuration, try them on a dialog"),
    "replay": ("policy", "play recorded sessions again, and print those that end otherwise"),
    "record": ("record", "write the sessions of a running server to a file, for replay"),
    "prove": ("proof", "show what was demanded, proven and done for a message, so that others can verify it"),
    "proof": ("proof", "verify the log of evidence and add up; its key; delete whom a message was for"),
    "posture": ("posture", "tell what a partner did with TLS day by day, out of the evidence"),
    "dry-run": ("posture", "tell what stricter settings would have held back, out of the evidence"),
    "contract": ("contract", "list what has been agreed on with partners of TLS; report whether it was kept"),
    "tls-probe": ("tls_probe", "tell what a host does with TLS"),
    "acme": ("acme", "certificates that an ACME server gives: list them, have them renewed now"),
    "tls-setup": ("tls_setup", "print what a domain of yours should publish of its TLS, and check what it does"),
    "selftest": ("selftest", "run a configuration's deliveries against broken peers"),
    "fault-farm": ("fault_farm", "run peers that are broken in one way each"),
    "password": ("password", "make a line for a file of users, for AUTH"),
    "completion": ("shell", "print a completion for a shell"),
    "man": ("shell", "print the manual page"),
    "demo": ("demo", "run Quillon on loopback and send a message through it"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = next((word for word in words if not word.startswith("-")), "")
    given = _parser(asked).parse_args(words)
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


def _parts() -> str:
    """What is to be known of this installation."""
    try:
        import_module("quillon.smtp._octets")
        import_module("quillon.spool._writer")
    except ImportError:
        return ", without compiled parts"
    by_mypyc = not str(import_module("quillon.mail.reply").__file__).endswith(".py")
    return ", compiled" if by_mypyc else ""


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    (commands,) = [action for action in _parser(name)._actions if isinstance(action, argparse._SubParsersAction)]
    parser: argparse.ArgumentParser = commands.choices[name]
    return parser


def _parser(asked: str) -> argparse.ArgumentParser:
    """A parser that knows all commands by name, and the options of the one that is asked for."""
    parser = _Parser(prog="quillon", description="A mail transfer agent that enforces TLS and can prove it.")
    parser.add_argument("--version", action="version", version=f"quillon {__version__}{_parts()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, words) in COMMANDS.items():
        if COMMANDS.get(asked, ("", ""))[0] != module:
            commands.add_parser(name, help=words)
    if asked in COMMANDS:
        import_module(f"quillon.cli.{COMMANDS[asked][0]}").add(commands)
    return parser


def script() -> None:
    """Entry point of the installed command."""
    try:
        sys.exit(main())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
