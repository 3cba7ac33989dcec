"""`msys.bounce`: what an SMTP reply or a bounce message means, as one of the manual's classes."""

from __future__ import annotations

import re
from email import message_from_bytes

from quillon.lua.msys.api import Library
from quillon.mail import header
from quillon.policy.addresses import address_parts
from quillon.policy.hook import Call

library = Library()

CLASSES: dict[int, tuple[str, str]] = {
    1: ("BC_UNDETERMINED", "Undetermined"),
    10: ("BC_INVALID_RECIPIENT", "Invalid Recipient"),
    20: ("BC_SOFT_BOUNCE", "Soft Bounce"),
    21: ("BC_SOFT_DNS_FAILURE", "DNS Failure"),
    22: ("BC_SOFT_MAILBOX_FULL", "Mailbox Full"),
    23: ("BC_SOFT_TOO_LARGE", "Too Large"),
    24: ("BC_SOFT_TIMEOUT", "Timeout"),
    25: ("BC_SOFT_ADMIN_FAILURE", "Admin Failure"),
    30: ("BC_GENERIC_NO_RCPT", "Generic Bounce: No RCPT"),
    40: ("BC_GENERIC", "Generic Bounce"),
    50: ("BC_MAIL_BLOCK", "Mail Block"),
    51: ("BC_SPAM_BLOCK", "Spam Block"),
    52: ("BC_SPAM_CONTENT", "Spam Content"),
    53: ("BC_PROHIBITED_ATTACHMENT", "Prohibited Attachment"),
    54: ("BC_RELAYING_DENIED", "Relay Denied"),
    60: ("BC_AUTO_REPLY", "Auto-Reply"),
    70: ("BC_TRANSIENT_FAILURE", "Transient Failure"),
    100: ("BC_CHALLENGE_RESPONSE", "Challenge-Response"),
}
LONGEST = 65536  # characters that are looked at
# the first that is found decides; words before codes, for the words are more exact
_RULES: tuple[tuple[int, str], ...] = (
    (54, r"relay(ing)? (access )?(denied|not permitted|prohibited)|unable to relay|not permitted to relay"),
    (22, r"(mailbox|quota|inbox)[^.]{0,40}(full|exceeded|over)|over ?quota|\b[45]\.2\.2\b"),
    (23, r"(message|size)[^.]{0,40}(too (large|big)|exceeds?)|\b5\.[23]\.[34]\b"),
    (53, r"(attachment|file type|executable)[^.]{0,40}(not (allowed|accepted)|prohibited|blocked)"),
    (51, r"(spamhaus|barracuda|spamcop|blacklist|blocklist|\brbl\b|\bdnsbl\b|poor reputation|sender reputation)"),
    (52, r"(spam|content|virus)[^.]{0,40}(detected|rejected|refused|message)|looks like spam|\b5\.7\.(509|26)\b"),
    (21, r"(domain|host|dns)[^.]{0,40}(not found|lookup failed|unresolvable)|no mx|\b[45]\.(1\.2|4\.4)\b"),
    (24, r"tim(ed?|e) ?out|connection (reset|refused|closed)|\b4\.4\.[127]\b"),
    (10, r"(user|mailbox|recipient|account|address|rcpt)[^.]{0,60}(unknown|not (found|exist)|does(n't| not) exist)"),
    (10, r"(user|mailbox|recipient|account|address|rcpt)[^.]{0,60}no longer"),
    (10, r"(user|mailbox|recipient|account|address|rcpt)[^.]{0,60}(invalid|disabled|inactive|reject|unavailable)"),
    (
        10,
        r"no such (user|mailbox|recipient)|unknown (user|recipient)|is no longer used|\b5\.1\.(0|1|6|10)\b|\b5\.2\.1\b",
    ),
    (25, r"(configuration|system|internal|local) (error|problem)|administrat|\b[45]\.3\.[05]\b"),
    (50, r"(blocked|denied|refused|not allowed|rejected|policy|banned)|\b5\.7\.\d+\b"),
    (70, r"\A4\d\d|\b4\.\d\.\d+\b|try (again )?later|greylist|temporar"),
    (40, r"\A5\d\d|\b5\.\d\.\d+\b|undeliver|delivery (has )?failed"),
)
_COMPILED = tuple((code, re.compile(pattern, re.IGNORECASE)) for code, pattern in _RULES)
_AUTOMATIC = re.compile(r"auto.?(reply|response)|out of (the )?office|vacation", re.IGNORECASE)


def classify(text: str) -> int:
    """The class of a reply or of the words of a bounce."""
    text = text[:LONGEST]
    return next((code for code, pattern in _COMPILED if pattern.search(text)), 1)


def classify_message(data: bytes) -> tuple[int, str]:
    """The class of a bounce message, and the recipient that it is about."""
    message = message_from_bytes(data)
    for part in message.walk():
        if part.get_content_type() == "message/delivery-status":
            fields = {k.lower(): str(v) for block in _blocks(part) for k, v in block.items()}
            recipient = fields.get("final-recipient", fields.get("original-recipient", ""))
            text = f"{fields.get('diagnostic-code', '')} {fields.get('status', '')}"
            text = re.sub(r"^\s*smtp;\s*", "", text)
            return classify(text), recipient.partition(";")[2].strip()
    subject = str(message.get("Subject", ""))
    if message.get("Auto-Submitted", "no").lower().startswith("auto-replied") or _AUTOMATIC.search(subject):
        return 60, next(iter(address_parts(header.raw_values(header.section(data), "From"), "all")), "")
    body = message.get_payload(decode=True)
    return classify(body.decode("utf-8", "replace") if isinstance(body, bytes) else ""), ""


def _blocks(part: object) -> list[dict[str, str]]:
    payload = part.get_payload()  # type: ignore[attr-defined]
    return [dict(block.items()) for block in payload] if isinstance(payload, list) else []


@library.function("msys.bounce.classify_smtp_response")
def classify_smtp_response(text: str, domain: str = "") -> tuple[int, str, str]:
    """Code, symbol and description of an SMTP reply."""
    code = classify(text)
    return code, *CLASSES[code]


@library.function("msys.bounce.classify")
def classify_bounce(call: Call) -> tuple[int, str, str, str]:
    """Code, symbol, description and original recipient of a bounce message."""
    code, recipient = classify_message(call.view.content.whole)
    return code, *CLASSES[code], recipient
