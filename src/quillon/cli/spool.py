"""`quillon spool`: what waits, listed, shown, written to files and checked, beside a running server or without one;
messages out of files put into it, and damage repaired, while no server has it."""

from __future__ import annotations

import argparse
import datetime
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from quillon.app.privileges import PrivilegeError, identity, make_folder
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.mail import header
from quillon.mail.message import Message
from quillon.mail.shown import line as one_line
from quillon.mail.shown import printable
from quillon.reception.from_files import ImportFault, bring, files, front, letter
from quillon.spool.errors import SpoolError
from quillon.spool.inspect import Spool, Wanted
from quillon.spool.repair import repair


def add(commands: Any) -> None:
    parser = commands.add_parser("spool")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, help_text, run in (
        ("ls", "list messages, the oldest first", _ls),
        ("show", "one message: envelope, state, contexts and header section", _show),
        ("export", "write messages to files, as they would be sent", _export),
        ("check", "look for what is broken; status 1 if anything is", _check),
        ("repair", "repair what can be repaired, while no server runs", _repair),
    ):
        action = actions.add_parser(name, help=help_text)
        action.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="names the spool")
        action.add_argument("--spool", metavar="DIR", help="the spool itself, as SpoolBase names it")
        action.set_defaults(run=_with_spool(run))
        if run is _show:
            action.add_argument("id", metavar="ID", help="of a message, as the logs have it")
        if run in (_ls, _export):
            action.add_argument("--sender", default="", metavar="TEXT", help="only with this in the sender")
            action.add_argument("--recipient", default="", metavar="TEXT", help="only with this in the recipient")
            action.add_argument("--domain", default="", metavar="NAME", help="only to this domain or gateway")
        if run is _ls:
            action.add_argument("--limit", type=int, default=0, metavar="N", help="no more than so many")
            action.add_argument("--json", action="store_true", help="print a JSON object a line")
        if run is _export:
            action.add_argument("folder", type=Path, metavar="DIR", help="where to: made if it is not there")
            action.add_argument("--maildir", action="store_true", help="a maildir instead of .eml files")

    action = actions.add_parser("import", help="put messages out of files into the spool, for the next start")
    action.add_argument(
        "-c", "--config", default=DEFAULT, metavar="FILE", help="names the spool, and says where mail goes"
    )
    action.add_argument("files", nargs="+", type=Path, metavar="PATH", help="a file, a folder of .eml files, a maildir")
    action.add_argument("--sender", metavar="ADDRESS", help="of all of them, <> for none; else what export has written")
    action.add_argument("--recipient", metavar="ADDRESS", help="of all of them; else what export has written")
    action.set_defaults(run=_import)


def _with_spool(run: Callable[[argparse.Namespace, Spool], int]) -> Callable[[argparse.Namespace], int]:
    def opened(given: argparse.Namespace) -> int:
        base = given.spool
        if base is None:
            config = read(given.config)
            if config is None:
                return FAULTY
            base = config.node().spoolbase
        spool = Spool(Path(base))
        if not spool.folders():
            print(f"quillon: no spool is in {base}", file=sys.stderr)
            return 1
        try:
            return run(given, spool)
        except (OSError, sqlite3.Error) as error:
            print(f"quillon: {base}: {error}", file=sys.stderr)
            return 1

    return opened


def _wanted(given: argparse.Namespace) -> Wanted:
    return Wanted(given.sender, given.recipient, given.domain)


def _ls(given: argparse.Namespace, spool: Spool) -> int:
    found = spool.messages(_wanted(given))
    for one in islice(found, given.limit or None):
        row = _row(one.message)
        if given.json:
            print(json.dumps({**row, "worker": one.folder.name}))
        else:
            wait = max(one.message.next_at - time.time(), 0)
            state = f"next in {wait:.0f} s" if wait else "may leave"
            said = f": {one_line(row['last_reply'])}" if row["last_reply"] else ""
            print(
                f"{row['id']}  <{row['sender']}> -> <{row['recipient']}>  {row['size']} octets, tried {row['tries']}"
                f" times, {state}{said}"
            )
    return 0


def _row(message: Message) -> dict[str, Any]:
    batch = message.batch
    return {
        "id": str(message.id),
        "batch_id": str(batch.id),
        "sender": printable(str(batch.sender)),
        "recipient": printable(str(message.recipient)),
        "binding_group": message.binding_group,
        "binding": message.binding,
        "destination": message.destination,
        "received_at": batch.received_at,
        "size": batch.size,
        "tries": message.tries,
        "next_at": message.next_at,
        "last_reply": message.last_reply,
        "tls_demanded": str(message.demand) if message.demand is not None else "",
    }


def _show(given: argparse.Namespace, spool: Spool) -> int:
    found = next(spool.messages(Wanted(id=given.id)), None)
    if found is None:
        print(f"quillon: no message {given.id} is in the spool", file=sys.stderr)
        return 1
    message = found.message
    rows = _row(message)
    rows["received_at"], rows["next_at"] = (
        _when(rows["received_at"]),
        _when(rows["next_at"]) if rows["next_at"] else "now",
    )
    rows["worker"] = found.folder.name
    for name, value in rows.items():
        print(f"{name:>15}: {one_line(str(value))}")
    for kind, context in (("connection", message.batch.connection_context), ("message", message.variables())):
        for name, value in sorted(context.items()):
            print(f"{kind + ' context':>19}: {one_line(name)} = {one_line(value)}")
    print()
    print(printable_head(header.section(spool.body(found))))
    return 0


def printable_head(head: bytes) -> str:
    """A header section for a terminal."""
    text = head.decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n")
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _export(given: argparse.Namespace, spool: Spool) -> int:
    folder: Path = given.folder
    target = folder / "new" if given.maildir else folder
    for name in ("tmp", "new", "cur") if given.maildir else ("",):
        (folder / name).mkdir(parents=True, exist_ok=True)
    count = missing = 0
    for found in spool.messages(_wanted(given)):
        try:
            body = spool.body(found)
        except FileNotFoundError as error:
            missing += 1
            print(f"quillon: message {found.message.id} is left out: {error}", file=sys.stderr)
            continue
        name = str(found.message.id).replace("/", ".")
        file = target / (name if given.maildir else f"{name}.eml")
        message = found.message
        required = message.batch.tls_request == "requiretls"
        file.write_bytes(front(message.batch.sender, message.recipient, body, requiretls=required) + body)
        count += 1
    print(f"{count} messages written to {folder}")
    return 1 if missing else 0


def _import(given: argparse.Namespace) -> int:
    config = read(given.config)
    if config is None:
        return FAULTY
    try:
        letters = [letter(f.read_bytes(), str(f), given.sender, given.recipient) for f in files(given.files)]
        make_folder(Path(config.node().spoolbase), identity(config.security()))  # before the first start
        folder = bring(letters, config)
    except (ImportFault, SpoolError, PrivilegeError, OSError) as error:
        print(f"quillon: {error}", file=sys.stderr)
        return 1
    print(f"{len(letters)} messages written to {folder}; the server takes them over when it starts next")
    return 0


def _repair(_: argparse.Namespace, spool: Spool) -> int:
    done: list[str] = []
    status = 0
    for folder in spool.folders():
        try:
            repair(folder, done.append)
        except SpoolError as error:
            print(f"quillon: {error}", file=sys.stderr)
            status = 1
    if done or not status:
        print("\n".join(done) if done else f"there is nothing to repair in {spool.base}")
    return status


def _check(_: argparse.Namespace, spool: Spool) -> int:
    faults = list(spool.faults())
    for fault in faults:
        print(f"{fault.file}: {one_line(fault.words)}")
    if not faults:
        print(f"nothing is wrong in {spool.base}")
    return 1 if faults else 0
