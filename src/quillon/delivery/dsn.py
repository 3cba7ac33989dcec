"""Delivery status notifications (RFC 3464, RFC 6522). Pure: values in, a message out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quillon.mail.message import Message
from quillon.mail.outcome import PermanentFailure

_LINE = 76


WORDS = "Your message could not be delivered to:"


@dataclass(frozen=True, slots=True)
class Notice:
    """What a notification needs to know of its surroundings. Dates are RFC 5322 text."""

    hostname: str
    sender: str
    recipient: str
    message_id: str
    date: str
    arrival_date: str
    original: str
    words: str = WORDS


def failure_notice(notice: Notice, message: Message, outcome: PermanentFailure, original: bytes) -> bytes:
    """A multipart/report that tells the sender of `message` why it was not delivered.

    `notice.original` is none, headers or all; `original` is the message, or as much of it as is to be returned.
    """
    boundary = f"==quillon-{message.id.number:x}=="
    reply = outcome.reply
    said = f"{reply} ({outcome.cause})" if outcome.cause else str(reply)
    lines = [
        f"From: Mail Delivery System <{notice.sender}>",
        f"To: <{notice.recipient}>",
        "Subject: Mail Delivery Failure",
        f"Date: {notice.date}",
        f"Message-ID: <{notice.message_id}@{notice.hostname}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{boundary}"',
        "",
        f"--{boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        f"This is the mail system at {notice.hostname}.",
        "",
        *re.split(r"\r?\n", notice.words),
        f"    {message.recipient}",
        "",
        *_wrapped(said),
        "",
        f"--{boundary}",
        "Content-Type: message/delivery-status",
        "",
        f"Reporting-MTA: dns; {notice.hostname}",
        f"Arrival-Date: {notice.arrival_date}",
        "",
        f"Final-Recipient: rfc822; {message.recipient}",
        "Action: failed",
        f"Status: {status_of(outcome)}",
        *([f"Remote-MTA: dns; [{outcome.remote_ip}]"] if outcome.remote_ip else []),
        *_folded(f"Diagnostic-Code: smtp; {said}"),
        "",
    ]
    body = "\r\n".join(lines).encode("ascii", "replace") + b"\r\n"
    if notice.original != "none":
        kind = b"message/rfc822" if notice.original == "all" else b"text/rfc822-headers"
        part = original if original.endswith(b"\r\n") else original + b"\r\n"
        body += b"--" + boundary.encode() + b"\r\nContent-Type: " + kind + b"\r\n\r\n" + part
    return body + b"\r\n--" + boundary.encode() + b"--\r\n"


def status_of(outcome: PermanentFailure) -> str:
    """The enhanced status code: that of the reply if its class fits, else a plain one of class 5."""
    enhanced = outcome.reply.enhanced
    return enhanced if enhanced.startswith("5.") else "5.0.0"


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
