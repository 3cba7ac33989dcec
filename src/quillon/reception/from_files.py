"""Messages out of files, into a spool folder of their own that a server takes over at its next start.

What `quillon spool export` has written says in front who it is from and to, and comes back as it was. Of other files
the envelope has to be given. A message goes where the configuration wants it now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quillon.config.model import Config
from quillon.mail import header
from quillon.mail.address import NULL_PATH, AddressError, Mailbox, parse_mailbox
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, Origin
from quillon.reception import content
from quillon.reception.mail_data import MailData
from quillon.spool.bodies import sync
from quillon.spool.errors import SpoolError
from quillon.spool.store import Store

_FRONT = re.compile(
    rb"(?:Return-Path:[^\r\n]*\r\n)?X-Envelope-From: <([^\r\n]*)>\r\nX-Envelope-To: <([^\r\n]*)>\r\n"
    rb"(X-Envelope-TLS: requiretls\r\n)?"
)
_LINE_END = re.compile(rb"\r*\n|\r")


class ImportFault(ValueError):
    """A file that cannot be taken: the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message out of a file, with its envelope."""

    sender: Mailbox
    recipient: Mailbox
    body: bytes
    requiretls: bool = False


def front(sender: Mailbox, recipient: Mailbox, body: bytes, *, requiretls: bool = False) -> bytes:
    """What `letter` finds an envelope in, to stand in front of a message; with the Return-Path that a mailbox wants."""
    known = b"" if header.has(header.section(body), b"return-path") else f"Return-Path: <{sender}>\r\n".encode()
    demanded = b"X-Envelope-TLS: requiretls\r\n" if requiretls else b""
    envelope = f"X-Envelope-From: <{sender}>\r\nX-Envelope-To: <{recipient}>\r\n".encode("utf-8", "surrogateescape")
    return known + envelope + demanded


def letter(data: bytes, name: str, sender: str | None, recipient: str | None) -> Letter:
    """The message of a file. Sender and recipient, where given, go before what stands in it. Raises ImportFault."""
    body = _LINE_END.sub(b"\r\n", data)
    if body.startswith(b"From "):  # of an mbox
        body = body.partition(b"\r\n")[2]
    found = _FRONT.match(body)
    if found is not None:
        body = body[found.end() :]
    said = [part.decode("utf-8", "surrogateescape") for part in found.groups()[:2]] if found else [None, None]
    sender = said[0] if sender is None else sender
    recipient = said[1] if recipient is None else recipient
    if sender is None or recipient is None:
        raise ImportFault(f"{name}: it does not say from whom and to whom it goes: give --sender and --recipient")
    if not body.strip():
        raise ImportFault(f"{name}: there is no message in it")
    if b"\0" in body:
        raise ImportFault(f"{name}: it has octets of value 0, which no message may have (RFC 5322 4)")
    demanded = found is not None and found[3] is not None
    return Letter(_mailbox(sender, name, null=True), _mailbox(recipient, name), body, demanded)


def _mailbox(text: str, name: str, *, null: bool = False) -> Mailbox:
    if null and text in ("", "<>"):
        return NULL_PATH
    try:
        mailbox = parse_mailbox(text.removeprefix("<").removesuffix(">"))
    except AddressError as error:
        raise ImportFault(f"{name}: {text!r:.100} is no address: {error}") from None
    if not mailbox.domain:
        raise ImportFault(f"{name}: {text!r:.100} has no domain")
    return mailbox


def files(paths: list[Path]) -> Iterator[Path]:
    """The files that are named, those of maildirs, and .eml files of folders. Raises ImportFault."""
    for path in paths:
        if path.is_file():
            yield path
            continue
        inner = [path / "cur", path / "new"] if (path / "cur").is_dir() else []
        found = [file for folder in inner for file in sorted(folder.iterdir()) if _is_message(file)]
        found = found or [file for file in sorted(path.glob("*.eml")) if _is_message(file)]
        if not found:
            raise ImportFault(f"{path}: no file, no maildir, and no folder with .eml files")
        yield from found


def _is_message(file: Path) -> bool:
    """What lies in a folder that others write to may be a link to somebody's secret."""
    return file.is_file() and not file.is_symlink()


def bring(letters: list[Letter], config: Config) -> Path:
    """Store messages in a new folder below SpoolBase, which is given. All are taken or none. Raises SpoolError,
    OSError."""
    node = config.node()
    base = Path(node.spoolbase)
    # no server takes this one for a worker's, so it is whole, or not there
    begun = Path(tempfile.mkdtemp(prefix="import-", dir=base))
    try:
        reports: list[str] = []
        store = Store(begun, node.spool_mode, reports.append)
        store.open()
        errors = asyncio.run(_store_all(store, letters, config))
        if errors or reports:
            why = errors[0] if errors else reports[0]
            raise SpoolError(f"spool {base} cannot be written: {why}; nothing was taken")
        owner = base.stat()
        for path in [*begun.rglob("*"), begun]:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        begun.chmod(0o750)
        return _as_worker(begun)
    except BaseException:
        shutil.rmtree(begun)
        raise


def _as_worker(begun: Path) -> Path:
    """Give a folder the name of a worker that nobody has: the one that its number falls to takes it over."""
    base = begun.parent
    names = (re.fullmatch("worker-([0-9]+)", folder.name) for folder in base.iterdir())
    number = max([999, *(int(name[1]) for name in names if name)])
    while True:
        number += 1
        folder = base / f"worker-{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # nobody else has it now, and what is empty may be replaced
            os.rename(begun, folder)
            sync(base)
            return folder


async def _store_all(store: Store, letters: list[Letter], config: Config) -> list[Exception]:
    """Why it could not be done; nothing if it was."""
    store.start()
    ids = IdSource(os.getpid())
    now = time.time()
    origin = Origin("127.0.0.1", "import", NULL_ID)
    answers = []
    threshold = config.node().large_message_threshold
    for one in letters:
        number = ids.next(now)
        mail_data = MailData(store, number.number, threshold, lambda _: b"", 0)
        body, path, size = mail_data.copy(number.number, one.body, b"")
        batch = Batch(number, one.sender, origin, now, size, body, path, eight_bit=not one.body.isascii())
        batch.tls_request = content.tls_request(header.section(one.body), requiretls=one.requiretls)
        routing = config.outbound.routing("default", "default", one.recipient.domain)
        message = Message(ids.next(now), batch, one.recipient, routing_domain=routing.domain, via=routing.via)
        message.demand = config.outbound.demand("default", "default", routing.domain, routing.via)
        answer: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        store.insert(batch, [message], answer.set_result)
        answers.append(answer)
    errors = [error for error in await asyncio.gather(*answers) if error is not None]
    await store.close()
    return errors
