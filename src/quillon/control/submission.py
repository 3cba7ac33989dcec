"""Mail in by HTTP: from what a client posts to a message, and over to a worker that takes it.

The answer of a worker is that of SMTP; what became of a request with an Idempotency-Key is answered again for a day, as
long as this process lives.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from email.errors import MessageError
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple

from quillon.listener.intake import NAME

_NAME = re.compile(r"[!-9;-~]{1,200}")  # RFC 5322 3.6.8
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
    return [_one(given, addresses, json.loads(values)) for values, addresses in alike.items()]


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
        for key, value in values.items():
            found = found.replace("{{" + key + "}}", value)
        return found

    message = EmailMessage(policy=SMTP)
    try:
        message["From"] = text("from") or text("sender")
        to = given.get("to") or recipients
        message["To"] = ", ".join(_addresses("to", to))
        if given.get("cc"):
            message["Cc"] = ", ".join(_addresses("cc", given["cc"]))
        for name in ("reply_to", "subject"):
            if text(name):
                message[name.replace("_", "-").title()] = text(name)
        headers = given.get("headers", {})
        if not isinstance(headers, dict):
            raise BadMessage("headers: an object is expected")
        for name, value in headers.items():
            if _NAME.fullmatch(str(name)) is None or str(name).lower().startswith(("content-", "mime-")):
                raise BadMessage(f"headers: {name!r:.60} is no name of a field, or one that is not for you to set")
            message[str(name)] = str(value)
        if "date" not in message:
            message["Date"] = formatdate(localtime=True)
        message.set_content(text("text"))
        if text("html"):
            if given.get("text"):
                message.add_alternative(text("html"), subtype="html")
            else:
                message.set_content(text("html"), subtype="html")
        for attachment in given.get("attachments", []):
            _attach(message, attachment)
        data = message.as_bytes()
    except (ValueError, MessageError, TypeError) as error:
        raise BadMessage(str(error)) from None
    return raw(str(given.get("sender", "")), recipients, data)


def _addresses(name: str, found: Any) -> list[str]:
    if not isinstance(found, list):
        raise BadMessage(f"{name}: a list of addresses is expected")
    return [one if isinstance(one, str) else _substitutions(one)[0] for one in found]


def _attach(message: EmailMessage, given: Any) -> None:
    if not isinstance(given, dict) or not {"name", "type", "data"} == given.keys():
        raise BadMessage('attachments: {"name": ..., "type": "application/pdf", "data": BASE64} each')
    main, slash, sub = str(given["type"]).partition("/")
    if not slash:
        raise BadMessage(f"attachments: {given['type']!r:.60} is no media type")
    try:
        data = base64.b64decode(str(given["data"]), validate=True)
    except binascii.Error:
        raise BadMessage("attachments: data are not base64") from None
    message.add_attachment(data, maintype=main, subtype=sub, filename=str(given["name"]))


class Workers:
    """The sockets of the workers below a SpoolBase, which take messages in turn."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._turn = 0
        self._known: OrderedDict[tuple[str, str], tuple[float, list[dict[str, Any]]]] = OrderedDict()

    async def submit(
        self, posted: Iterable[Posted], listen: str, client: str, user: str, key: str = ""
    ) -> list[dict[str, Any]]:
        """What the workers say of each message. With a `key` that a user has given before, what was said then. Raises
        OSError where no worker takes one."""
        known = self._known.get((user, key)) if key else None
        if known is not None and known[0] > time.monotonic():
            return known[1]
        replies = [await self._hand_over(one, listen, client, user) for one in posted]
        if key and all(reply["code"] < 400 or reply["code"] >= 500 for reply in replies):
            self._known[user, key] = (time.monotonic() + DAY, replies)
            while len(self._known) > MOST_KEYS:
                self._known.popitem(last=False)
        return replies

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
