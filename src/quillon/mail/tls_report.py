"""A report of SMTP TLS as a mail (RFC 8460 5.3), made and read. Pure."""

from __future__ import annotations

import binascii
import re
import zlib
from datetime import UTC, datetime
from email import policy
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime

from quillon.mail import header

MOST_OCTETS = 4 * 1024 * 1024  # of a mail that is looked at
MOST_UNPACKED = 4 * 1024 * 1024  # of the report within
_MOST_PARTS = 20
_LONGEST_FIELD = 1000  # characters
_GZIP = b"\x1f\x8b"
_TEXT = """\
This is a report of {submitter} about TLS of the mail that it has sent to {domain} on {day}, after RFC 8460.
It is for programs to read; the attachment is JSON in gzip.
"""


def begin_of(day: str) -> int:
    """When a day, as 2026-11-29, begins (UTC), in seconds since the epoch."""
    return int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp())


def file_name(submitter: str, domain: str, day: str, report_id: str) -> str:
    """The name of a report's file (RFC 8460 5.1), with the day's begin and end in seconds."""
    begin = begin_of(day)
    return f"{submitter}!{domain}!{begin}!{begin + 86399}!{report_id}.json.gz"


def render(
    sender: str, recipient: str, submitter: str, domain: str, day: str, report_id: str, report: bytes, now: float
) -> bytes:
    """The mail data of a report, which is in gzip; lines end with CRLF. TLS that fails must not keep it back, for it is
    that of which it tells (RFC 8460 3, RFC 8689 5)."""
    mail = MIMEMultipart("report", policy=policy.SMTP.clone(max_line_length=0), report_type="tlsrpt")
    mail["From"] = sender
    mail["To"] = recipient
    mail["Subject"] = f"Report Domain: {domain} Submitter: {submitter} Report-ID: <{report_id}@{submitter}>"
    mail["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    mail["Message-ID"] = f"<{report_id}@{submitter}>"
    mail["TLS-Report-Domain"] = domain
    mail["TLS-Report-Submitter"] = submitter
    mail["TLS-Required"] = "No"
    mail["Auto-Submitted"] = "auto-generated"
    mail.attach(MIMEText(_TEXT.format(submitter=submitter, domain=domain, day=day), "plain", "us-ascii"))
    part = MIMEApplication(report, "tlsrpt+gzip")
    part.add_header("Content-Disposition", "attachment", filename=file_name(submitter, domain, day, report_id))
    mail.attach(part)
    return mail.as_bytes()


def extract(head: bytes, body: bytes) -> bytes:
    """The JSON of the report in a mail of one part, or in one of its parts; it is known by its type or, as some send
    it, by the name of its file. Raises ValueError.

    `head` is read as Quillon reads it everywhere, for what another reader sees in it may be no part of what was signed.
    Where Content-Type is not signed, whoever sends a signed mail again chooses where its parts begin: so the first
    boundary has to be the first line of the body, and parts have no parts of their own.
    """
    if len(head) + len(body) > MOST_OCTETS:
        raise ValueError(f"the mail has more than {MOST_OCTETS} octets")
    whole = _part(head)
    if whole.get_content_maintype() != "multipart":
        return _report(whole, body)
    boundary = whole.get_boundary() or ""
    if not re.fullmatch(r"[\x21-\x7e ]{1,70}", boundary):
        raise ValueError("it has parts, and no boundary between them")
    line = b"--" + boundary.encode("ascii")
    if not body.startswith(line):
        raise ValueError("its first part does not begin where its body does")
    for piece in (b"\r\n" + body).split(b"\r\n" + line)[1 : _MOST_PARTS + 1]:
        _, _, part = piece.partition(b"\r\n")
        own = header.section(part)
        try:
            return _report(_part(own), part[len(own) :])
        except _NoReportError:
            continue
    raise ValueError("there is no report in it")


class _NoReportError(ValueError):
    """A part is something else."""


def _part(head: bytes) -> Message:
    """What the fields of a header say of what is behind them. Raises ValueError."""
    found = Message()
    for name in ("Content-Type", "Content-Transfer-Encoding", "Content-Disposition"):
        values = header.raw_values(head, name)
        if len(values) > 1:
            raise ValueError(f"it has several fields {name}")
        if values and len(values[0]) <= _LONGEST_FIELD:
            found[name] = values[0]
    return found


def _report(part: Message, octets: bytes) -> bytes:
    """The report that a part is. Raises _NoReportError, ValueError."""
    name = (part.get_filename() or "").lower()
    kinds = ("application/tlsrpt+gzip", "application/tlsrpt+json")
    if part.get_content_type() not in kinds and not name.endswith((".json.gz", ".json")):
        raise _NoReportError("there is no report in it")
    encoding = str(part.get("Content-Transfer-Encoding", "")).strip().lower()
    if encoding == "base64":
        octets = binascii.a2b_base64(octets)
    elif encoding == "quoted-printable":
        octets = binascii.a2b_qp(octets)
    return _unpacked(octets) if octets.startswith(_GZIP) else octets


def _unpacked(octets: bytes) -> bytes:
    """What is in gzip, up to a limit: a small attachment may hold very much. Raises ValueError."""
    reader = zlib.decompressobj(31)
    try:
        found = reader.decompress(octets, MOST_UNPACKED)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked: {error}") from None
    if reader.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {MOST_UNPACKED} octets")
    if not reader.eof:
        raise ValueError("it cannot be unpacked: its end is missing")
    return found
