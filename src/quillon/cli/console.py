"""`quillon console [-c FILE | --socket PATH | --url URL] [COMMAND...]`: ask a running Quillon, or talk at a prompt."""

from __future__ import annotations

import argparse
import getpass
import os
import pydoc
import shlex
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from quillon.cli.configuration import DEFAULT
from quillon.cli.follow import FOLLOW, follow
from quillon.cli.message_export import EXPORT, export
from quillon.control.rendering import CONFIRM, ERROR

JSON_ERROR = ('{"error":', '{"type":')  # how JSON begins that is no answer
PATIENCE = 300.0  # seconds for an answer; a reload may try a configuration out for long
LEAVE = ("quit", "exit", "\\quit")


def add(commands: Any) -> None:
    parser = commands.add_parser("console")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="names the socket")
    parser.add_argument("--socket", metavar="PATH", help="the socket itself")
    parser.add_argument(
        "--url", metavar="URL", help="that of an HTTP_Listener instead, such as https://mx1.bank.fi:8443"
    )
    parser.add_argument("--user", metavar="NAME", help="for --url; the password is asked for, or in QUILLON_PASSWORD")
    parser.add_argument("--cert", metavar="FILE", help="for --url: PEM of a client certificate with its key")
    parser.add_argument("--ca", metavar="FILE", help="for --url: PEM of who vouches for the server")
    parser.add_argument("--json", action="store_true", help="answers as JSON")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND", help="such as: mailq; without one there is a prompt"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    try:
        words = _own_options(given)
    except ValueError as error:
        print(f"quillon console: {error}", file=sys.stderr)
        return 2
    server = _server(given)
    if server is None:
        return 1
    as_json = given.json
    if words:
        return _say(server, shlex.join(words), as_json=as_json, out=sys.stdout.write)
    if sys.stdin.isatty():
        return _talk(server, as_json=as_json)
    lines = [line for line in map(str.strip, sys.stdin) if line and not line.startswith("#")]
    return max(_say(server, line, as_json=as_json, out=sys.stdout.write) for line in lines or ["help"])


def _own_options(given: argparse.Namespace) -> list[str]:
    """The words of the command, without options of ours that stand behind it. Raises ValueError."""
    left, words = list(given.words), []
    while left:
        word = left.pop(0)
        if word == "--json":
            given.json = True
        elif word in ("-c", "--config", "--socket", "--url"):
            if not left:
                raise ValueError(f"{word} wants a value")
            setattr(given, "config" if word == "-c" else word.removeprefix("--"), left.pop(0))
        else:
            words.append(word)
    return words


def _socket_of(config: str) -> str | None:
    """The first socket of Control_Listener; None if there is none, which is told."""
    from quillon.config.load import load  # noqa: PLC0415 - only for those who do not name the socket

    # a server that runs is to be asked even while its file is being edited
    loaded = load(config)
    sockets = loaded.tree.stanzas.control_sockets()
    if sockets:
        return sockets[0].path
    none = f'there is no Control_Listener {{ Listen "/path" {{ }} }} in {config}'
    for text in [str(fault) for fault in loaded.errors] or [none]:
        print(f"quillon console: {text}", file=sys.stderr)
    return None


class ConsoleServer(NamedTuple):
    """Whom to ask: `ask` gives the answer to a line. Raises OSError."""

    name: str
    ask: Callable[[str], str]


def _server(given: argparse.Namespace) -> ConsoleServer | None:
    """The server that the options name; None if there is none, which is told."""
    if given.url:
        password = os.environ.get("QUILLON_PASSWORD") if given.user else None
        if given.user and password is None:
            password = getpass.getpass(f"Password of {given.user}: ")
        login = (given.user, password or "") if given.user else None
        return ConsoleServer(given.url, partial(_ask_http, given.url, login, given.cert, given.ca))
    path = given.socket or _socket_of(given.config)
    return ConsoleServer(path, partial(_ask_socket, path)) if path is not None else None


def _ask_socket(path: str, line: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sock.sendall(f"{line}\n".encode())
        said = []
        while data := sock.recv(1 << 20):
            said.append(data)
    return b"".join(said).decode("utf-8", "replace")


def _ask_http(url: str, login: tuple[str, str] | None, cert: str | None, ca: str | None, line: str) -> str:
    import httpx  # noqa: PLC0415 - it takes a while, which a Unix socket need not wait for

    as_json = line.startswith("json ")
    verify = ssl.create_default_context(cafile=ca)
    if cert:
        verify.load_cert_chain(cert)
    try:
        auth = httpx.BasicAuth(*login) if login else None
        with httpx.Client(verify=verify, timeout=PATIENCE, auth=auth) as client:
            answer = client.post(
                f"{url.rstrip('/')}/api/v1/commands",
                json={"command": line.removeprefix("json ")},
                headers={"Accept": "application/json" if as_json else "text/plain"},
            )
    except httpx.HTTPError as error:
        raise OSError(str(error)) from None
    if answer.status_code == 200 or as_json:
        return answer.text
    try:
        return f"{ERROR}{answer.json()['title']}\n"
    except (ValueError, KeyError, TypeError):
        return ERROR + answer.text


def _say(server: ConsoleServer, line: str, *, as_json: bool, out: Callable[[str], object]) -> int:
    """Ask, and print what is answered; the exit status."""
    if line.startswith(FOLLOW):
        return follow(server.ask, line.removeprefix(FOLLOW), as_json=as_json, name=server.name)
    if line.startswith(EXPORT) and not as_json:
        return export(server.ask, line.removeprefix(EXPORT), name=server.name)
    try:
        text = server.ask(f"json {line}" if as_json else line)
    except OSError as error:
        print(f"quillon console: {server.name}: {error.strerror or error}", file=sys.stderr)
        return 1
    if text.startswith(ERROR):
        print(f"quillon console: {text.removeprefix(ERROR)}", end="", file=sys.stderr)
        return 1
    out(text)
    return 1 if as_json and text.startswith(JSON_ERROR) else 0


# the prompt ---------------------------------------------------------------------------------------------------------


def _talk(server: ConsoleServer, *, as_json: bool) -> int:
    """Commands at a prompt, until there are no more."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - it takes a while, which single commands need not wait
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415
    from prompt_toolkit.shortcuts import confirm  # noqa: PLC0415

    file = _history_file()
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(file)) if file is not None else InMemoryHistory(), completer=_completer()
    )
    while True:
        try:
            line = session.prompt(f"{time.strftime('%H:%M:%S')} {server.name}> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return 0
        if line in LEAVE:
            return 0
        if line:
            _answer(server, line, as_json=as_json, confirm=confirm)


def _answer(server: ConsoleServer, line: str, *, as_json: bool, confirm: Callable[[str], bool]) -> None:
    """One command of the prompt; an order that was counted only is done once it is confirmed."""
    if not as_json and not line.startswith(FOLLOW):
        try:
            text = server.ask(line)
        except OSError as error:
            print(f"{server.name}: {error.strerror or error}")
            return
        if not text.rstrip().endswith(CONFIRM):
            _show(text)
            return
        if not confirm(text.removeprefix(ERROR).partition(";")[0] + "."):
            return
        line += " --yes"
    _say(server, line, as_json=as_json, out=_show)


def _show(text: str) -> None:
    """What is longer than the terminal comes in pages."""
    if text.count("\n") >= shutil.get_terminal_size().lines:
        pydoc.pager(text)
    else:
        print(text, end="")


def _history_file() -> Path | None:
    """Where commands are remembered; None where that cannot be."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = Path(base).expanduser() / "quillon"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder / "console_history"


def _completer() -> Any:
    """Completes the names of commands and their options, word by word."""
    from prompt_toolkit.completion import NestedCompleter  # noqa: PLC0415

    from quillon.control.commands import COMMANDS  # noqa: PLC0415

    tree: dict[str, Any] = dict.fromkeys(LEAVE)
    for command in COMMANDS:
        place = tree
        for word in command.name.split():
            place = place.setdefault(word, {})
        for word in command.words.replace("[", " ").replace("]", " ").replace("|", " ").split():
            if word.startswith("--"):
                place.setdefault(word, {})
    return NestedCompleter.from_nested_dict(tree)
