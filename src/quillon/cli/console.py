"""`quillon console [-c FILE | --socket PATH] COMMAND...`: ask a running Quillon."""

from __future__ import annotations

import argparse
import socket
import sys
from typing import Any

from quillon.config.load import load


def add(commands: Any) -> None:
    parser = commands.add_parser("console", help="ask a running server; `quillon console help` lists what")
    parser.add_argument("-c", "--config", default="ecelerity.conf", metavar="FILE", help="names the socket")
    parser.add_argument("--socket", metavar="PATH", help="the socket itself")
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="such as: tls show cache")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    path = given.socket
    if path is None:
        loaded = load(given.config)
        if loaded.config is None:
            for fault in loaded.errors:
                print(fault, file=sys.stderr)
            return 2
        sockets = loaded.config.control_sockets()
        if not sockets:
            print('quillon console: there is no Control_Listener { Listen "/path" { } }', file=sys.stderr)
            return 1
        path = sockets[0].path
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(15)
            sock.connect(path)
            sock.sendall((" ".join(given.words) + "\n").encode())
            while data := sock.recv(65536):
                sys.stdout.write(data.decode("utf-8", "replace"))
    except OSError as error:
        print(f"quillon console: {path}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
