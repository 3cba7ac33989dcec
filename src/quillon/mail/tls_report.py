"""A report of SMTP TLS as a mail (RFC 8460 5.3). Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from email import policy
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime

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
