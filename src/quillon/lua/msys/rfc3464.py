"""`msys.rfc3464`: delivery status notifications made by a script (RFC 3464)."""

from __future__ import annotations

import re
from email import message_from_bytes
from email.utils import formatdate, make_msgid

from quillon.lua.msys.api import Api, Library, Object
from quillon.lua.msys.message import new_message
from quillon.mail import header
from quillon.mail.address import NULL_PATH
from quillon.policy.addresses import mailbox_of
from quillon.policy.hook import Call
from quillon.policy.mime import new_boundary

library = Library()

ACTIONS = {0: "failed", 1: "delayed", 2: "delivered", 3: "relayed", 4: "expanded"}
_STATUS = {0: "5.0.0", 1: "4.0.0", 2: "2.0.0", 3: "2.0.0", 4: "2.0.0"}


def delivery_status(call: Call, action: int, hostname: str) -> str:
    """The fields of message/delivery-status (RFC 3464 2.1). Raises ValueError for an unknown action."""
    if action not in ACTIONS:
        raise ValueError(f"{action!r} is no action: FAILED, DELAYED, DELIVERED, RELAYED, EXPANDED")
    reply = call.view.reply
    status = (reply.enhanced if reply else "") or _STATUS[action]
    lines = [
        f"Reporting-MTA: dns; {hostname}",
        "",
        f"Final-Recipient: rfc822; {call.view.recipient}",
        f"Action: {ACTIONS[action]}",
        f"Status: {status}",
    ]
    if reply is not None:
        lines.append(f"Diagnostic-Code: smtp; {reply}")
    return "\r\n".join(lines) + "\r\n"


def notification(call: Call, action: int, hostname: str) -> bytes:
    """The whole message, to the sender of the one it is about (RFC 3464 2)."""
    status = delivery_status(call, action, hostname)
    boundary = new_boundary()
    word = ACTIONS[action]
    fields = {
        "From": f"Mail Delivery System <MAILER-DAEMON@{hostname}>",
        "To": call.view.sender,
        "Subject": f"Delivery status notification: {word}",
        "Date": formatdate(),
        "Message-ID": make_msgid(domain=hostname),
        "Auto-Submitted": "auto-replied",
        "MIME-Version": "1.0",
        "Content-Type": f'multipart/report; report-type=delivery-status; boundary="{boundary}"',
    }
    head = b"".join(header.encoded(name, value) for name, value in fields.items())
    text = f"The message to {call.view.recipient} has been {word}.\r\n"
    original = call.view.content.head
    parts = (
        (b"text/plain; charset=utf-8", text.encode()),
        (b"message/delivery-status", status.encode("utf-8")),
        (b"text/rfc822-headers", original if original.endswith(b"\r\n") else original + b"\r\n"),
    )
    mark = b"--" + boundary.encode("ascii")
    body = b"".join(mark + b"\r\nContent-Type: " + kind + b"\r\n\r\n" + data + b"\r\n" for kind, data in parts)
    return head + b"\r\n" + body + mark + b"--\r\n"


def _fields(text: str) -> dict[str, str]:
    """Fields by name; of several recipients, the first."""
    found: dict[str, str] = {}
    for line in re.sub(r"\r?\n[ \t]+", " ", text).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


@library.of_api("msys.rfc3464.compute_delivery_status")
def compute(api: Api, call: Call, action: int) -> dict[str, str]:
    """The fields of a delivery status by their names."""
    return _fields(delivery_status(call, action, api.environment.hostname))


@library.function("msys.rfc3464.extract_delivery_status")
def extract(call: Call) -> dict[str, str] | None:
    """The fields of the delivery status in a message by their names; nil where it is no notification."""
    for part in message_from_bytes(call.view.content.whole).walk():
        if part.get_content_type() == "message/delivery-status":
            groups = part.get_payload()
            return _fields("\n".join(map(str, groups)) if isinstance(groups, list) else str(groups)) or None
    return None


@library.of_api("msys.rfc3464.compute_delivery_status_string")
def compute_string(api: Api, call: Call, action: int) -> str:
    """The fields of a delivery status as text."""
    return delivery_status(call, action, api.environment.hostname)


@library.of_api("msys.rfc3464.create_mdn")
def create(api: Api, call: Call, action: int) -> Object:
    """A notification as a message."""
    made = new_message(api)
    made.view.content.whole = notification(call, action, api.environment.hostname)
    made.view.recipient = call.view.sender
    return Object("msg", made)


@library.of_api("msys.rfc3464.send_mdn")
async def send(api: Api, call: Call, action: int) -> int:
    """Send a notification to the sender: 1, or 0 where there is none, for bounces are not answered."""
    if not call.view.sender:
        return 0
    await api.environment.inject(
        NULL_PATH, [mailbox_of(call.view.sender)], notification(call, action, api.environment.hostname)
    )
    return 1
