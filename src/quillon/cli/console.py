"""`quillon console [-c FILE | --socket PATH] [--json] [COMMAND...]`: ask a running Quillon, or talk at a prompt."""

from __future__ import annotations

import argparse
import os
import pydoc
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quillon.cli.configuration import DEFAULT
from quillon.config.load import load
from quillon.control.commands import COMMANDS
from quillon.control.console import LOCAL_PATIENCE
from quillon.control.rendering import CONFIRM, ERROR

JSON_ERROR = '{"error": '  # how JSON begins that is no answer
LEAVE = ("quit", "exit", "\\quit")


def add(commands: Any) -> None:
    parser = commands.add_parser("console")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="names the socket")
    parser.add_argument("--socket", metavar="PATH", help="the socket itself")
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
    path, as_json = given.socket or _socket_of(given.config), given.json
    if path is None:
        return 1
    if words:
        return _say(path, shlex.join(words), as_json=as_json, out=sys.stdout.write)
    if sys.stdin.isatty():
        return _talk(path, as_json=as_json)
    lines = [line for line in map(str.strip, sys.stdin) if line and not line.startswith("#")]
    return max(_say(path, line, as_json=as_json, out=sys.stdout.write) for line in lines or ["help"])


def _own_options(given: argparse.Namespace) -> list[str]:
    """The words of the command, without options of ours that stand behind it. Raises ValueError."""
    left, words = list(given.words), []
    while left:
        word = left.pop(0)
        if word == "--json":
            given.json = True
        elif word in ("-c", "--config", "--socket"):
            if not left:
                raise ValueError(f"{word} wants a value")
            setattr(given, "socket" if word == "--socket" else "config", left.pop(0))
        else:
            words.append(word)
    return words


def _socket_of(config: str) -> str | None:
    """The first socket of Control_Listener; None if there is none, which is told."""
    # a server that runs is to be asked even while its file is being edited
    loaded = load(config)
    sockets = loaded.tree.stanzas.control_sockets()
    if sockets:
        return sockets[0].path
    none = f'there is no Control_Listener {{ Listen "/path" {{ }} }} in {config}'
    for text in [str(fault) for fault in loaded.errors] or [none]:
        print(f"quillon console: {text}", file=sys.stderr)
    return None


def _ask(path: str, line: str) -> str:
    """The answer to one command. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LOCAL_PATIENCE)
        sock.connect(path)
        sock.sendall(f"{line}\n".encode())
        said = b""
        while data := sock.recv(65536):
            said += data
    return said.decode("utf-8", "replace")


def _say(path: str, line: str, *, as_json: bool, out: Callable[[str], object]) -> int:
    """Ask, and print what is answered; the exit status."""
    try:
        text = _ask(path, f"json {line}" if as_json else line)
    except OSError as error:
        print(f"quillon console: {path}: {error.strerror or error}", file=sys.stderr)
        return 1
    if text.startswith(ERROR):
        print(f"quillon console: {text.removeprefix(ERROR)}", end="", file=sys.stderr)
        return 1
    out(text)
    return 1 if as_json and text.startswith(JSON_ERROR) else 0


# the prompt ---------------------------------------------------------------------------------------------------------


def _talk(path: str, *, as_json: bool) -> int:
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
            line = session.prompt(f"{time.strftime('%H:%M:%S')} {path}> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return 0
        if line in LEAVE:
            return 0
        if line:
            _answer(path, line, as_json=as_json, confirm=confirm)


def _answer(path: str, line: str, *, as_json: bool, confirm: Callable[[str], bool]) -> None:
    """One command of the prompt; an order that was counted only is done once it is confirmed."""
    if not as_json:
        try:
            text = _ask(path, line)
        except OSError as error:
            print(f"{path}: {error.strerror or error}")
            return
        if not text.rstrip().endswith(CONFIRM):
            _show(text)
            return
        if not confirm(text.removeprefix(ERROR).partition(";")[0] + "."):
            return
        line += " --yes"
    _say(path, line, as_json=as_json, out=_show)


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

    tree: dict[str, Any] = dict.fromkeys(LEAVE)
    for command in COMMANDS:
        place = tree
        for word in command.name.split():
            place = place.setdefault(word, {})
        for word in command.words.replace("[", " ").replace("]", " ").replace("|", " ").split():
            if word.startswith("--"):
                place.setdefault(word, {})
    return NestedCompleter.from_nested_dict(tree)
