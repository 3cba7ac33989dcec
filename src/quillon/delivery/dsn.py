"""Delivery status notifications (RFC 3464, RFC 6522). Pure: values in, a message out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = 76
_LONGEST = 998  # octets of a line without its end (RFC 5322 2.1.1)

FAILED = "Your message could not be delivered to:"
DELAYED = "Your message has not been delivered yet to the following, and delivery is still being tried:"


@dataclass(frozen=True, slots=True)
class DsnRecipient:
    """What is told of one recipient. `reply` is the reply that decided, as one line; `last` what the host had said at
    the last attempt, where the message was given up for time or number; `tls` words on the TLS that was demanded."""

    recipient: str
    status: str
    reply: str
    remote_ip: str = ""
    last: str = ""
    tls: str = ""


@dataclass(frozen=True, slots=True)
class DsnFacts:
    """What a notification needs to know of its surroundings. Dates are RFC 5322 text; `until` is set where delivery
    goes on, and says how long. `original` is none, headers or all."""

    hostname: str
    sender: str
    recipient: str
    boundary: str
    message_id: str
    date: str
    arrival_date: str
    original: str
    words: str = FAILED
    until: str = ""


def render(notice: DsnFacts, entries: Sequence[DsnRecipient], original: bytes) -> bytes:
    """A multipart/report on recipients of one message; `original` is that message, or as much of it as is returned."""
    returned = _returned(notice.original, original)
    eight_bit = not returned.isascii()
    subject = "Mail Delivery Delayed" if notice.until else "Mail Delivery Failure"
    lines = [
        f"From: Mail Delivery System <{notice.sender}>",
        f"To: <{notice.recipient}>",
        f"Subject: {subject}",
        f"Date: {notice.date}",
        f"Message-ID: <{notice.message_id}@{notice.hostname}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{notice.boundary}"',
        *(["Content-Transfer-Encoding: 8bit"] if eight_bit else []),
        "",
        f"--{notice.boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        f"This is the mail system at {notice.hostname}.",
        "",
        *_told(notice, entries),
        f"--{notice.boundary}",
        "Content-Type: message/delivery-status",
        "",
        f"Reporting-MTA: dns; {notice.hostname}",
        f"Arrival-Date: {notice.arrival_date}",
        "",
    ]
    for entry in entries:
        lines += _fields(notice, entry)
    body = "\r\n".join(part for line in lines for part in _cut(line)).encode("ascii", "replace") + b"\r\n"
    if notice.original != "none":
        kind = b"message/rfc822" if notice.original == "all" else b"text/rfc822-headers"
        encoding = b"\r\nContent-Transfer-Encoding: 8bit" if eight_bit else b""
        body += b"--" + notice.boundary.encode() + b"\r\nContent-Type: " + kind + encoding + b"\r\n\r\n" + returned
    return body + b"\r\n--" + notice.boundary.encode() + b"--\r\n"


def _told(notice: DsnFacts, entries: Sequence[DsnRecipient]) -> list[str]:
    """The part for people: recipients that fared alike stand together."""
    lines = re.split(r"\r?\n", notice.words)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        alike.setdefault((entry.reply, entry.last, entry.tls), []).append(entry.recipient)
    for (reply, last, tls), recipients in alike.items():
        lines += [*(f"    {recipient}" for recipient in recipients), "", *_wrapped(reply)]
        if last:
            lines += ["", "The last attempt ended with:", *_wrapped(last)]
        if tls:
            lines += ["", *_wrapped(tls)]
        lines.append("")
    if notice.until:
        lines += [f"It will be tried until {notice.until}. You need not send it again.", ""]
    return lines


def _fields(notice: DsnFacts, entry: DsnRecipient) -> list[str]:
    """The fields of one recipient (RFC 3464 2.3), and the blank line behind them."""
    said = entry.last or entry.reply
    kind = "x-quillon" if "[internal]" in said else "smtp"  # RFC 3464 2.3.6: smtp is for what a host has said
    return [
        f"Final-Recipient: rfc822; {entry.recipient}",
        f"Action: {'delayed' if notice.until else 'failed'}",
        f"Status: {entry.status}",
        *([f"Remote-MTA: dns; [{entry.remote_ip}]"] if entry.remote_ip else []),
        *_folded(f"Diagnostic-Code: {kind}; {said}"),
        *([f"Will-Retry-Until: {notice.until}"] if notice.until else []),
        "",
    ]


def status_of(enhanced: str, kind: str) -> str:
    """The enhanced status code of a reply if its class is `kind` (4 or 5), else a plain one of that class."""
    return enhanced if enhanced.startswith(f"{kind}.") else f"{kind}.0.0"


def _returned(wanted: str, original: bytes) -> bytes:
    """What is returned of a message, with no line over the limit of RFC 5322, whatever the original had."""
    if wanted == "none":
        return b""
    lines = original.removesuffix(b"\r\n").split(b"\r\n")
    out: list[bytes] = []
    in_head = True
    for line in lines:
        in_head = in_head and line != b""
        fold = b" " if in_head else b""
        out.append(line[:_LONGEST])
        room = _LONGEST - len(fold)
        out += [fold + line[at : at + room] for at in range(_LONGEST, len(line), room)]
    return b"\r\n".join(out) + b"\r\n"


def _cut(line: str) -> list[str]:
    """A line in pieces that may stand in a message: an address alone can be longer than a line."""
    return [line[at : at + _LONGEST] for at in range(0, len(line), _LONGEST)] or [""]


def _wrapped(text: str) -> list[str]:
    out, line = [], "   "
    for word in text.split():
        if len(line) + len(word) > _LINE and line.strip():
            out.append(line)
            line = "   "
        line += f" {word}"
    return [*out, line]


def _folded(text: str) -> list[str]:
    """A header field folded at spaces (RFC 5322 2.2.3)."""
    out, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) > _LINE:
            out.append(line)
            line = f" {word}"
        else:
            line = f"{line} {word}" if line else word
    return [*out, line]
