"""`quillon password USER`: a line for a file of users that holds no password."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import Any

from quillon.smtp.sasl import digest_hash, scram_record, scram_secret

ITERATIONS = 10000


def add(commands: Any) -> None:
    parser = commands.add_parser("password")
    parser.add_argument("user", metavar="USER")
    parser.add_argument(
        "--digest", metavar="REALM", help="make a line for digest://, of this realm, instead of scram://"
    )
    parser.add_argument("--iterations", type=int, default=ITERATIONS, metavar="N", help="rounds of SCRAM-SHA-256")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Asks for the password, or reads it from what is piped in; exit status 2 for a name with a colon."""
    if ":" in given.user or not given.user.isprintable() or given.iterations < 4096:
        print("quillon password: a user has no colon in the name, and 4096 rounds are the least", file=sys.stderr)
        return 2
    password = sys.stdin.readline().rstrip("\n") if _piped() else getpass.getpass("Password: ")
    if given.digest:
        print(f"{given.user}:{given.digest}:{digest_hash(given.user, given.digest, password).hex()}")
    else:
        print(f"{given.user}:{scram_record(scram_secret(password, os.urandom(16), given.iterations))}")
    return 0


def _piped() -> bool:
    try:
        return not os.isatty(sys.stdin.fileno())
    except (OSError, ValueError):
        return False
