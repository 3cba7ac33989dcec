"""Mail in by HTTP: from what a client posts to a message, and over to a worker that takes it.

The answer of a worker is that of SMTP. A request with an Idempotency-Key is carried out once: sent again, it gets the
same answers for a day, as long as this process lives, and only what was not taken is tried once more.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.errors import MessageError
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple

from quillon.listener.intake import NAME

_NAME = re.compile(r"[!-9;-~]{1,200}")  # RFC 5322 3.6.8
_PLACE = re.compile(r"\{\{([^{}]{1,100})\}\}")
_MEDIA = re.compile(r"([A-Za-z0-9!#$&^_.+-]{1,100})/([A-Za-z0-9!#$&^_.+-]{1,100})")  # RFC 6838 4.2
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
LARGEST = 64 << 20  # octets of the messages of one request
LONGEST = 2000  # characters of a field
LONGEST_NAME = 255  # characters of the name of a file
MOST_SHOWN = 50  # addresses of a field
MOST_RECIPIENTS = 900_000  # octets of their addresses, which go to a worker in one line
DAY = 86400.0
MOST_KEYS = 100_000
PATIENCE = 60.0  # seconds for a worker to take a message
FIELDS = {"sender", "recipients", "from", "to", "cc", "reply_to", "subject", "text", "html", "headers", "attachments"}


class BadMessage(Exception):
    """What was posted is no message; the words say why."""


class Posted(NamedTuple):
    """A message for one transaction: reverse-path, recipients, mail data with CR LF."""

    sender: str
    recipients: list[str]
    data: bytes


def raw(sender: str, recipients: list[str], data: bytes) -> Posted:
    """A message as it was posted, with line ends that SMTP can carry. Raises BadMessage."""
    if not recipients:
        raise BadMessage("name at least one recipient")
    if sum(map(len, recipients)) > MOST_RECIPIENTS // 2:
        raise BadMessage("too many recipients for one message: send it in several requests")
    if b"\0" in data:
        raise BadMessage("the message has octets of zero")
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return Posted(sender, recipients, lines.rstrip(b"\n").replace(b"\n", b"\r\n") + b"\r\n")


def from_json(given: Any) -> list[Posted]:
    """The messages of a JSON body: one, or one for each recipient where substitutions differ. Raises BadMessage."""
    if not isinstance(given, dict):
        raise BadMessage("an object is expected")
    unknown = given.keys() - FIELDS
    if unknown:
        raise BadMessage(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(FIELDS))}")
    recipients = given.get("recipients") or given.get("to")
    if not isinstance(recipients, list) or not recipients:
        raise BadMessage("recipients: a list of addresses is expected")
    alike: dict[str, list[str]] = {}
    for one in recipients:
        address, values = (one, {}) if isinstance(one, str) else _substitutions(one)
        alike.setdefault(json.dumps(values, sort_keys=True), []).append(address)
    found, size = [], 0
    for text, addresses in alike.items():
        found.append(_one(given, addresses, json.loads(text)))
        size += len(found[-1].data)
        if size > LARGEST:
            raise BadMessage(f"the messages of one request are larger than {LARGEST >> 20} MiB: send them in several")
    return found


def _substitutions(one: Any) -> tuple[str, dict[str, str]]:
    if (
        not isinstance(one, dict)
        or not isinstance(one.get("address"), str)
        or one.keys() - {"address", "substitutions"}
    ):
        raise BadMessage('recipients: an address, or {"address": ..., "substitutions": {...}}')
    values = one.get("substitutions", {})
    if not isinstance(values, dict):
        raise BadMessage("substitutions: an object is expected")
    return one["address"], {str(key): str(value) for key, value in values.items()}


def _one(given: Mapping[str, Any], recipients: list[str], values: Mapping[str, str]) -> Posted:
    def text(name: str) -> str:
        found = given.get(name, "")
        if not isinstance(found, str):
            raise BadMessage(f"{name}: a text is expected")
        if name not in ("text", "html") and len(found) > LONGEST:
            raise BadMessage(f"{name}: longer than {LONGEST} characters")
        filled = _PLACE.sub(lambda match: values.get(match[1], match[0]), found)
        if len(filled) > (LARGEST if name in ("text", "html") else LONGEST):
            raise BadMessage(f"{name}: too long, once values are filled in")
        return filled

    message = EmailMessage(policy=SMTP)
    try:
        message["From"] = text("from") or text("sender")
        message["To"] = _to(given, recipients)
        if given.get("cc"):
            message["Cc"] = ", ".join(_addresses("cc", given["cc"]))
        for name in ("reply_to", "subject"):
            if text(name):
                message[name.replace("_", "-").title()] = text(name)
        for name, value in _own_fields(given):
            message[name] = value
        if "date" not in message:
            message["Date"] = formatdate(localtime=True)
        _check_fields(message)
        _fill(message, text("text"), text("html"))
        for attachment in given.get("attachments", []):
            _attach(message, attachment)
        data = message.as_bytes()
    except (ValueError, MessageError, TypeError) as error:
        raise BadMessage(str(error)) from None
    return raw(str(given.get("sender", "")), recipients, data)


def _to(given: Mapping[str, Any], recipients: list[str]) -> str:
    """The To field: what was given beside the recipients, or those of this message, unless there are many."""
    if given.get("recipients") and given.get("to"):
        return ", ".join(_addresses("to", given["to"]))
    return ", ".join(recipients) if len(recipients) <= MOST_SHOWN else "undisclosed-recipients:;"


def _own_fields(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    headers = given.get("headers", {})
    if not isinstance(headers, dict):
        raise BadMessage("headers: an object is expected")
    for name, value in headers.items():
        if _NAME.fullmatch(str(name)) is None or str(name).lower().startswith(("content-", "mime-")):
            raise BadMessage(f"headers: {name!r:.60} is no name of a field, or one that is not for you to set")
        if len(str(value)) > LONGEST:
            raise BadMessage(f"headers: {name}: longer than {LONGEST} characters")
        yield str(name), str(value)


def _check_fields(message: EmailMessage) -> None:
    """Raises BadMessage for a field whose encoded words hold what a line may not."""
    for name, value in message.items():
        if len(str(value).splitlines()) > 1 or _CONTROL.search(str(value)):
            raise BadMessage(f"{name}: a line without control characters is expected")


def _fill(message: EmailMessage, text: str, html: str) -> None:
    """The text, HTML beside it, or HTML alone."""
    if text or not html:
        message.set_content(text)
        if html:
            message.add_alternative(html, subtype="html")
    else:
        message.set_content(html, subtype="html")


def _addresses(name: str, found: Any) -> list[str]:
    if not isinstance(found, list):
        raise BadMessage(f"{name}: a list of addresses is expected")
    if len(found) > MOST_SHOWN or any(len(str(one)) > LONGEST for one in found):
        raise BadMessage(f"{name}: at most {MOST_SHOWN} addresses are shown")
    return [one if isinstance(one, str) else _substitutions(one)[0] for one in found]


def _attach(message: EmailMessage, given: Any) -> None:
    if not isinstance(given, dict) or not {"name", "type", "data"} == given.keys():
        raise BadMessage('attachments: {"name": ..., "type": "application/pdf", "data": BASE64} each')
    name, match = str(given["name"]), _MEDIA.fullmatch(str(given["type"]))
    if match is None or match[1].lower() in ("multipart", "message"):
        raise BadMessage(f"attachments: {given['type']!r:.60} is no media type of a file")
    if not name.isprintable() or len(name) > LONGEST_NAME or "=?" in name:
        raise BadMessage(f"attachments: {name!r:.60} is no name of a file")
    try:
        data = base64.b64decode(str(given["data"]), validate=True)
    except binascii.Error:
        raise BadMessage("attachments: data are not base64") from None
    message.add_attachment(data, maintype=match[1], subtype=match[2], filename=name)


@dataclass
class _Known:
    """A request with a key: what it was, and the answer to each of its messages, None for one that is still open.
    `lock` has two that come together wait for each other."""

    until: float
    digest: bytes
    replies: list[dict[str, Any] | None]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Workers:
    """The sockets of the workers below a SpoolBase, which take messages in turn."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._turn = 0
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    async def submit(
        self, posted: Sequence[Posted], listen: str, client: str, user: str, key: str = "", digest: bytes = b""
    ) -> list[dict[str, Any]]:
        """What the workers say of each message. With a `key` that a user has given before, what was said then of those
        that were taken or refused for good; `digest` is of the request. Raises BadMessage for a key of another request,
        OSError where no worker takes a message."""
        known = self._known.get((user, key)) if key else None
        if known is None or known.until < time.monotonic():
            known = _Known(time.monotonic() + DAY, digest, [None] * len(posted))
            if key:
                self._known[user, key] = known
                while len(self._known) > MOST_KEYS:
                    self._known.popitem(last=False)
        if known.digest != digest:
            raise BadMessage("this Idempotency-Key was that of another request")
        async with known.lock:
            for number, one in enumerate(posted):
                reply = known.replies[number]
                if reply is None or 400 <= reply["code"] < 500:
                    known.replies[number] = await self._hand_over(one, listen, client, user)
        return [reply for reply in known.replies if reply is not None]

    async def _hand_over(self, one: Posted, listen: str, client: str, user: str) -> dict[str, Any]:
        sockets = sorted(await asyncio.to_thread(lambda: list(self._base.glob(f"worker-*/{NAME}"))))
        self._turn += 1
        for at in range(len(sockets)):
            path = sockets[(self._turn + at) % len(sockets)]
            try:
                reader, writer = await asyncio.open_unix_connection(path)
            except OSError:
                continue  # a worker that is gone; no octet of the message has been given away
            return await self._say(reader, writer, one, listen, client, user)
        raise OSError("no worker takes messages")

    async def _say(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        one: Posted,
        listen: str,
        client: str,
        user: str,
    ) -> dict[str, Any]:
        given = {"listen": listen, "client": client, "user": user, "sender": one.sender, "recipients": one.recipients}
        try:
            writer.write(json.dumps({**given, "size": len(one.data)}).encode() + b"\n")
            writer.write(one.data)
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
                line = await reader.readline()
            found: dict[str, Any] = json.loads(line)
        except (TimeoutError, ValueError) as error:
            raise OSError(f"a worker did not answer: {error}; the message may have been taken") from None
        finally:
            writer.close()
        return {**found, "recipients": one.recipients}
