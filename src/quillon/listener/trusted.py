"""What trusted clients may say: XCLIENT (Postfix), XREMOTEIP, XSETCONTEXT, XDUMPCONTEXT. Pure.

A session asks only where SMTP_Extensions lists the verb and Trusted_Clients holds the client's own address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.smtp.tables import XCLIENT_ATTRIBUTES

_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_UNKNOWN = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")
PREFIX_REFUSED = "tls"  # what a handshake found out is not for anybody to say


@dataclass(frozen=True, slots=True)
class Client:
    """Who a trusted client speaks for; None for what it left out, empty for what it took away."""

    ip: str | None = None
    port: int | None = None
    helo: str | None = None
    name: str | None = None
    login: str | None = None


def xtext(text: str) -> str:
    """RFC 3461 4: `+XX` stands for an octet."""
    octets = _XTEXT.sub(lambda match: chr(int(match[1], 16)), text)
    try:
        return octets.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return octets


def parse_xclient(argument: str) -> Client | Reply:
    """The attributes of XCLIENT, or the refusal (postfix.org/XCLIENT_README)."""
    found: dict[str, str] = {}
    for word in argument.split():
        name, equals, value = word.partition("=")
        if not equals or name.upper() not in XCLIENT_ATTRIBUTES or name.upper() in found:
            return replies.XCLIENT_SYNTAX
        text = xtext(value)
        found[name.upper()] = "" if text.upper() in _UNKNOWN else text
    if not found:
        return replies.XCLIENT_SYNTAX
    ip = None
    if found.get("ADDR"):
        ip = parse_ip(found["ADDR"])
        if ip is None:
            return replies.XCLIENT_SYNTAX
    port = found.get("PORT")
    if port and not (re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65536):
        return replies.XCLIENT_SYNTAX
    if any(not text.isprintable() for text in found.values()):
        return replies.XCLIENT_SYNTAX
    return Client(ip, int(port) if port else None, found.get("HELO"), found.get("NAME"), found.get("LOGIN"))


def parse_ip(text: str) -> str | None:
    """An address, also as `IPV6:2001:db8::1`; None for what is none."""
    if text[:5].upper() == "IPV6:":
        text = text[5:]
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def parse_context(argument: str) -> dict[str, str] | Reply:
    """The pairs of XSETCONTEXT, or the refusal."""
    found = {}
    for word in argument.split():
        name, equals, value = word.partition("=")
        key, text = xtext(name), xtext(value)
        refused = key.lower().startswith(PREFIX_REFUSED) or key.startswith("#")
        if not equals or not key or refused or not (key.isprintable() and text.isprintable()):
            return replies.XSETCONTEXT_SYNTAX
        found[key] = text
    return found or replies.XSETCONTEXT_SYNTAX


def dump(connection: Mapping[str, str], message: Mapping[str, str]) -> Reply:
    """Both contexts, a line each key (manual, esmtp_listener.extensions)."""
    lines = [f"[connection] {key} {value}" for key, value in connection.items()]
    lines += [f"[message] {key} {value}" for key, value in message.items()]
    shown = [re.sub(r"[^\x20-\x7e]", "?", line)[:500] for line in lines]
    return Reply(250, "", "\n".join([*shown, "XDUMPCONTEXT complete"]))
