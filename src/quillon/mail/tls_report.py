"""A report of SMTP TLS as a mail (RFC 8460 5.3), made and read. Pure."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime

MOST_OCTETS = 16 * 1024 * 1024  # of a mail that is looked at
MOST_UNPACKED = 16 * 1024 * 1024  # of the report within
_MOST_PARTS = 100
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


def extract(mail: bytes) -> bytes:
    """The JSON of the report in a mail, which is known by its type or, as some send it, by the name of its file. Raises
    ValueError."""
    if len(mail) > MOST_OCTETS:
        raise ValueError(f"the mail has more than {MOST_OCTETS} octets")
    for number, part in enumerate(message_from_bytes(mail).walk()):
        if number >= _MOST_PARTS:
            break
        if _is_report(part):
            payload = part.get_payload(decode=True)
            octets = payload if isinstance(payload, bytes) else b""
            return _unpacked(octets) if octets.startswith(_GZIP) else octets
    raise ValueError("there is no report in it")


def _is_report(part: Message) -> bool:
    if part.is_multipart():
        return False
    name = (part.get_filename() or "").lower()
    return part.get_content_type() in ("application/tlsrpt+gzip", "application/tlsrpt+json") or name.endswith(
        (".json.gz", ".json")
    )


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
