"""`quillon record`: have a running server write its sessions to a file, for `quillon replay`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from quillon.cli import console
from quillon.cli.configuration import DEFAULT


def add(commands: Any) -> None:
    parser = commands.add_parser("record")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="names the console's socket")
    parser.add_argument("--socket", metavar="PATH", help="the socket itself")
    parser.add_argument("--out", required=True, metavar="FILE", help="where to: a name in the server's Record_Folder")
    parser.add_argument("--seconds", type=float, metavar="N", help="how long; else until interrupted")
    parser.add_argument("--bodies", action="store_true", help="keep mail bodies too, not only header sections")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 1 if the server cannot be asked."""
    path = os.path.abspath(given.out) if "/" in given.out else given.out
    if any(character.isspace() for character in path):
        print("quillon record: a path with spaces cannot be given to the console", file=sys.stderr)
        return 1
    start = ["record", "start", path, *(["bodies"] if given.bodies else [])]
    if console.run(argparse.Namespace(config=given.config, socket=given.socket, words=start)) != 0:
        return 1
    print(f"recording to {path}; sessions are written when they end")
    try:
        time.sleep(given.seconds if given.seconds is not None else 10**9)
    except KeyboardInterrupt:
        print()
    return console.run(argparse.Namespace(config=given.config, socket=given.socket, words=["record", "stop"]))
