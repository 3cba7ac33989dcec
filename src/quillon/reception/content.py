"""Rules for the content of a message, and the fields put in front of it. Pure.

A relayed message is never rewritten: what Quillon adds stands before it (Received, and Date or Message-ID where the
configuration says to add a missing one), what it dislikes it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from quillon.config.settings import ReceptionSettings
from quillon.mail import header
from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.policy.context import Context
from quillon.policy.message import Content

MAX_LINE = 998  # octets without CRLF, RFC 5322 2.1.1
_NOT_IN_COMMENT = re.compile(r"[()\\\x00-\x1f\x7f]")
# RFC 5322 2.2: a field name is printable ASCII without a colon
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")


class Trace(NamedTuple):
    """What a Received field tells (RFC 5321 4.4). `protocol` is a with-keyword of RFC 3848; `tls` may be empty."""

    client_ip: str
    client_port: int
    helo: str
    hostname: str
    sender: str
    protocol: str
    tls: str
    message_id: str
    date: str


def fault(head: bytes, settings: ReceptionSettings) -> Reply | None:
    """What is wrong with a header section, if anything."""
    if settings.rfc2822_missing_headers == "reject" and not _FIELD.match(head):
        return replies.HEADERS_MISSING
    if settings.rfc2822_date_header == "pedantic" and not header.has(head, b"date"):
        return replies.DATE_MISSING
    limit = line_limit(settings)
    if limit and longer_than(head, limit):
        return replies.HEADER_LINE_TOO_LONG
    if settings.max_received_headers and header.more_than(head, b"received", settings.max_received_headers):
        return replies.MAIL_LOOP
    return None


def line_limit(settings: ReceptionSettings) -> int:
    """The longest line taken, in octets without CRLF; 0 for any length."""
    value = settings.rfc2822_max_line_length.lower()
    if value == "ignore":
        return 0
    if value == "pedantic":
        return MAX_LINE
    return int(value) if settings.rfc2822_max_line_length_policy == "reject" else 0


def longer_than(data: bytes, limit: int) -> bool:
    """Whether a line of `data` has more than `limit` octets. Time grows with the size: each step goes from one line
    end to the last one that a line of allowed length can reach."""
    at, size = 0, len(data)
    while size - at > limit:
        end = at + limit + 1
        line_end = max(data.rfind(b"\n", at, end), data.rfind(b"\r", at, end))
        if line_end < 0:
            return True
        at = line_end + 1
    return False


class LineMeter:
    """Whether a line is too long, in mail data that come in pieces."""

    def __init__(self, limit: int) -> None:
        self.exceeded = False
        self._limit = limit
        self._open = 0  # octets of the line that the last piece left open

    def add(self, data: bytes) -> None:
        """Look at one more piece."""
        first = min((at for at in (data.find(b"\n"), data.find(b"\r")) if at >= 0), default=len(data))
        if self._open + first > self._limit or longer_than(data, self._limit):
            self.exceeded = True
        last = max(data.rfind(b"\n"), data.rfind(b"\r"))
        self._open = len(data) - last - 1 if last >= 0 else self._open + len(data)


def trace_field(
    settings: ReceptionSettings, trace: Trace, received_text: Callable[[bytes], bytes] = lambda field: field
) -> bytes:
    """The Received field, as `received_text` leaves it; empty where there is to be none."""
    return received_text(received_field(trace)) if settings.rfc2822_trace_headers else b""


def missing_fields(head: bytes, settings: ReceptionSettings, trace: Trace) -> bytes:
    """Date and Message-ID, where a header section lacks them and the configuration says to add them."""
    out = b""
    if settings.rfc2822_date_header == "ifneeded" and not header.has(head, b"date"):
        out += f"Date: {trace.date}\r\n".encode("ascii")
    if settings.rfc2822_messageid_header == "ifneeded" and not header.has(head, b"message-id"):
        local = trace.message_id.replace("/", ".").replace("-", ".")
        out += f"Message-ID: <{local}@{trace.hostname}>\r\n".encode("ascii")
    return out


def received_field(trace: Trace) -> bytes:
    if ":" in trace.client_ip:
        ip = f"IPv6:{trace.client_ip}"
        endpoint = f"[{ip}]:{trace.client_port}"  # else nobody could tell the port from the address
    else:
        ip, endpoint = trace.client_ip, f"[{trace.client_ip}:{trace.client_port}]"
    tls = f"\r\n\t({trace.tls})" if trace.tls else ""
    return (
        f"Received: from [{ip}] ({endpoint} helo={_comment(trace.helo)})\r\n"
        f"\tby {trace.hostname} (envelope-from <{_comment(trace.sender)}>)"
        f" (Quillon) with {trace.protocol}{tls}\r\n"
        f"\tid {trace.message_id}; {trace.date}\r\n"
    ).encode("ascii", "replace")


def as_received(text: str, usual: bytes) -> bytes:
    """A Received field as policy wrote it, name and line ends added where it left them out; `usual` if it is none."""
    value = text.strip("\r\n")
    value = re.sub(r"\Areceived[ \t]*:", "", value, flags=re.IGNORECASE)
    try:
        return header.encoded("Received", value.strip())
    except ValueError:
        return usual


def _comment(text: str) -> str:
    """Text fit for a comment: without what would end or escape it (RFC 5322 3.2.2)."""
    return _NOT_IN_COMMENT.sub("?", text)


def authentication_results(authserv_id: str, context: Context) -> bytes:
    """The Authentication-Results field (RFC 8601), where anything was found out, and other fields of modules."""
    found = list(context.results)
    status = context.connection.get("auth_status")
    if status is not None:
        user = context.connection.get("auth_user", "")
        prop = f" smtp.auth={header.pvalue(user)}" if user and status == "pass" else ""
        word = {"pass": "pass", "fail": "fail"}.get(status, "temperror")
        found.insert(0, f"auth={word} ({_comment(context.connection.get('auth_name', ''))}){prop}")
    own = b"".join(header.encoded(*_split(field)) for field in context.fields)
    if not found or not authserv_id:
        return own
    lines = [f"Authentication-Results: {authserv_id}", *(f"\t{result}" for result in found)]
    return own + (";\r\n".join(lines) + "\r\n").encode("ascii", "replace")


def _split(field: str) -> tuple[str, str]:
    name, _, value = field.partition(":")
    return name, re.sub(r"[\x00-\x1f\x7f]", "?", value.strip())


def without_results(content: Content, authserv_ids: Collection[str]) -> Content:
    """Without Authentication-Results fields that claim to be ours (RFC 8601 5)."""
    if not authserv_ids or b"authentication-results" not in content.head.lower():
        return content
    ours = {name.lower() for name in authserv_ids}

    def forged(name: str, octets: bytes) -> bool:
        if name.lower() != "authentication-results":
            return False
        value = header.without_comments(octets.partition(b":")[2].decode("latin-1").replace("\r\n", "")).strip()
        return re.split(r"[\s;]", value, maxsplit=1)[0].lower() in ours

    head = header.drop(content.head, forged)
    if head == content.head:
        return content
    clean = content.copy()
    clean.head = head
    return clean


_TLS_REQUIRED_NO = re.compile(rb"^tls-required[ \t]*:[ \t]*no[ \t]*(?:\r\n(?![ \t])|\Z)", re.IGNORECASE | re.MULTILINE)


def tls_request(head: bytes, *, requiretls: bool) -> str:
    """What the sender wants of the way of a message: requiretls, which the client has said; no, by the field
    TLS-Required: No, which is void beside it (RFC 8689 3 and 5); else nothing."""
    if requiretls:
        return "requiretls"
    return "no" if b"tls-required" in head.lower() and _TLS_REQUIRED_NO.search(head) is not None else ""
