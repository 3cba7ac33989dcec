"""`quillon console [-c FILE | --socket PATH] COMMAND...`: ask a running Quillon."""

from __future__ import annotations

import argparse
import socket
import sys
from typing import Any

from quillon.cli.configuration import DEFAULT
from quillon.config.load import load
from quillon.control.commands import ERROR
from quillon.control.console import LOCAL_PATIENCE


def add(commands: Any) -> None:
    parser = commands.add_parser("console")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="names the socket")
    parser.add_argument("--socket", metavar="PATH", help="the socket itself")
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="such as: tls show cache")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    path = given.socket
    if path is None:
        # a server that runs is to be asked even while its file is being edited
        loaded = load(given.config)
        sockets = loaded.tree.stanzas.control_sockets()
        if not sockets:
            none = f'there is no Control_Listener {{ Listen "/path" {{ }} }} in {given.config}'
            for text in [str(fault) for fault in loaded.errors] or [none]:
                print(f"quillon console: {text}", file=sys.stderr)
            return 1
        path = sockets[0].path
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LOCAL_PATIENCE)
            sock.connect(path)
            sock.sendall((" ".join(given.words) + "\n").encode())
            said = b""
            while data := sock.recv(65536):
                said += data
    except OSError as error:
        print(f"quillon console: {path}: {error.strerror or error}", file=sys.stderr)
        return 1
    text = said.decode("utf-8", "replace")
    if text.startswith(ERROR):
        print(f"quillon console: {text.removeprefix(ERROR)}", end="", file=sys.stderr)
        return 1
    print(text, end="")
    return 0
