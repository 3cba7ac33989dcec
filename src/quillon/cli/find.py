"""`quillon find`: where a message is, and what evidence there is of one that is gone."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quillon.app import compose
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.cli.posture import since
from quillon.cli.proof import record_line
from quillon.evidence import proof
from quillon.evidence.files import DamagedError, LogFiles
from quillon.evidence.record import message_id, subject_hash, subject_of, who
from quillon.mail.shown import line
from quillon.spool.errors import SpoolError
from quillon.spool.inspect import Spool, Wanted

Row = dict[str, Any]


def add(commands: Any) -> None:
    parser = commands.add_parser("find")
    parser.add_argument("--id", default="", metavar="ID", help="of a message or a batch, as the logs have it")
    parser.add_argument("--message-id", default="", metavar="TEXT", help="the field Message-ID")
    parser.add_argument("--subject", default="", metavar="TEXT", help="the whole subject")
    parser.add_argument("--recipient", default="", metavar="ADDRESS", help="the whole address")
    parser.add_argument("--sender-domain", default="", metavar="DOMAIN", help="the sender's")
    parser.add_argument("--since", default="30d", metavar="TIME", help="days, as 30d, or a date; 30d by default")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 0 where something was found."""
    config = read(given.config)
    if config is None:
        return FAULTY
    given.message_id = given.message_id.strip("<> ")
    if not (given.id or given.message_id or given.subject or given.recipient or given.sender_domain):
        print("quillon find: say what: --id, --message-id, --subject, --recipient, --sender-domain", file=sys.stderr)
        return 1
    node = config.node()
    settings = config.stanzas.evidence(node.spoolbase, compose.hostname(node))
    try:
        waiting = list(_waiting(Spool(Path(node.spoolbase)), given))
        records = list(_records(Path(settings.folder), given)) if settings is not None else []
    except (SpoolError, DamagedError, OSError, ValueError) as error:
        print(f"quillon find: {error}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps({"waiting": waiting, "records": records}, indent=2))
    else:
        for row in records:
            print(record_line(row))
        for row in waiting:
            wait = max(row["next_at"] - time.time(), 0)
            state = f"tries it again in {wait:.0f} s" if wait else "may leave now"
            said = f": {row['last_reply']}" if row["last_reply"] else ""
            print(f"{row['id']} waits in {row['worker']} for {row['recipient']}, {state}{said}")
        if settings is None:
            print("no evidence is kept, so what has left is told by the logs alone", file=sys.stderr)
    return 0 if waiting or records else 1


def _waiting(spool: Spool, given: argparse.Namespace) -> Iterator[Row]:
    """Messages that wait and are meant. Raises SpoolError."""
    for found in spool.messages(Wanted(id=given.id)):
        message = found.message
        if given.recipient and str(message.recipient).lower() != given.recipient.lower():
            continue
        if given.sender_domain and message.batch.sender.domain.lower() != given.sender_domain.lower():
            continue
        if given.message_id or given.subject:
            body = spool.body(found)
            if given.message_id and message_id(body).strip("<>") != given.message_id:
                continue
            if given.subject and subject_hash(subject_of(body)) != subject_hash(given.subject):
                continue
        yield {
            "id": str(message.id),
            "batch": str(message.batch.id),
            "worker": found.folder.name,
            "sender": str(message.batch.sender),
            "recipient": str(message.recipient),
            "next_at": message.next_at,
            "last_reply": line(message.last_reply),
        }


def _records(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    """Records of messages that are meant: the receptions that fit, and all that followed of their batches. Raises
    DamagedError, OSError, ValueError."""
    begin = since(given.since)
    by_head = bool(given.message_id or given.subject)
    batches = {row["batch"] for row in _all(folder, begin) if row["kind"] == "reception" and _fits_head(row, given)}
    salts: dict[Path, bytes] = {}
    for log in proof.logs(folder):
        salts[log] = (log / "salts").read_bytes()
    for row in _all(folder, begin):
        if row["kind"] not in ("reception", "attempt") or (by_head and row["batch"] not in batches):
            continue
        if given.id and given.id not in (row["id"], row["batch"]):
            continue
        if given.sender_domain and row["sender_domain"].lower() != given.sender_domain.lower():
            continue
        if given.recipient:
            salt = proof.salt_at(salts[row["log"]], row["seq"])
            if not salt or who(given.recipient, salt) != row["recipient"]:
                continue
        yield {name: value for name, value in row.items() if name != "log"}


def _fits_head(row: Row, given: argparse.Namespace) -> bool:
    if given.message_id and row.get("message_id", "").strip("<>") != given.message_id:
        return False
    return not given.subject or row.get("subject_sha256") == subject_hash(given.subject)


def _all(folder: Path, begin: str) -> Iterator[Row]:
    """Records with the log that they stand in."""
    for log in proof.logs(folder):
        files = LogFiles(log)
        try:
            for _, octets in files.records():
                row: Row = json.loads(octets)
                if row["at"] >= begin:
                    yield {**row, "log": log}
        finally:
            files.close()
