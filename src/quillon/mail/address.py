"""Addresses of the SMTP envelope.

A `Mailbox` is what stands between the angle brackets of MAIL FROM and RCPT TO. The null reverse-path is the
mailbox with two empty parts. Domains are kept in lower case; local parts are kept exactly as they came, since only
the host that delivers may interpret them (RFC 5321 2.3.11).
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

# RFC 5321 4.1.2 Dot-string, but for where its dots stand
_ATEXT_AND_DOTS = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~.]+\Z")
# RFC 5321 4.1.2 Quoted-string
_QUOTED_STRING = re.compile(r'"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\[\x20-\x7e])*"\Z')
# RFC 5321 4.1.2 Domain. An underscore is no letter of a host name, yet real mail domains carry it.
_DOMAIN = re.compile(
    r"(?=.{1,255}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?\Z"
)
# RFC 5321 4.1.2 A-d-l, the obsolete source route, which is accepted and ignored (appendix C).
_SOURCE_ROUTE = re.compile(r"(?:@[^,:@<>\s]+,)*@[^,:@<>\s]+:")
# Octets with the angle brackets. RFC 5321 4.5.3.1 has 64 for a local part and 256 for a path as what must be taken, and
# wants no limits where they can be avoided: senders write local parts of several hundred octets (VERP, SRS).
MAX_PATH = 1024


_TOO_LONG = f"address is longer than {MAX_PATH} octets"


class AddressError(ValueError):
    """The text is no mailbox; the message says why, in words for a reply or an operator."""


class Mailbox(NamedTuple):
    """`local@domain`; both parts empty for the null reverse-path, only the domain empty for `<Postmaster>`."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local

    @property
    def null(self) -> bool:
        return not self.local and not self.domain


NULL_PATH = Mailbox("", "")


def parse_mailbox(text: str, *, pedantic: bool = True) -> Mailbox:
    """Read a mailbox without angle brackets (RFC 5321 4.1.2). A bare local part gives an empty domain.

    Raises AddressError.
    """
    if text.startswith("@"):
        route = _SOURCE_ROUTE.match(text)
        if route is None:
            raise AddressError("malformed source route")
        text = text[route.end() :]
    if len(text) > MAX_PATH - 2:
        raise AddressError(_TOO_LONG)
    local, at, domain = text.rpartition("@")
    if not at:
        local, domain = text, ""
    _check_local(local, pedantic)
    return Mailbox(local, parse_domain(domain) if at else "")


def _check_local(local: str, pedantic: bool) -> None:
    if not local:
        raise AddressError("empty local part")
    if _ATEXT_AND_DOTS.match(local):
        # the loose form also takes "a..b" and "ab." (rfc2821_pedantic_address_rules = false)
        if not pedantic or not (".." in local or local.startswith(".") or local.endswith(".")):
            return
    elif _QUOTED_STRING.match(local):
        return
    raise AddressError("malformed local part")


@lru_cache(maxsize=4096)
def parse_domain(text: str) -> str:
    """Read a domain or an address literal; gives it in lower case without a trailing dot. Raises AddressError."""
    if text.startswith("["):
        return f"[{_literal(text)}]"
    if not _DOMAIN.match(text):
        raise AddressError("malformed domain")
    return text.rstrip(".").lower()


def _literal(text: str) -> str:
    """The inside of an address literal (RFC 5321 4.1.3), in canonical form."""
    if not text.endswith("]"):
        raise AddressError("malformed address literal")
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            return f"IPv6:{ipaddress.IPv6Address(inner[5:])}"
        return str(ipaddress.IPv4Address(inner))
    except ValueError:
        raise AddressError("malformed address literal") from None


_ROUTING_NAME = re.compile(r"#[A-Za-z0-9._-]{1,253}")


def is_routing_name(text: str) -> bool:
    """Whether it is a name for a way of delivery that a policy chooses, such as `#gold`: no domain, and in no DNS."""
    return _ROUTING_NAME.fullmatch(text) is not None


def is_domain(text: str) -> bool:
    """Whether the text is a domain name or an address literal."""
    try:
        parse_domain(text)
    except AddressError:
        return False
    return True


def is_name(text: str) -> bool:
    """Whether it is a domain name and no address literal: labels of letters, digits, hyphens and underscores."""
    return is_domain(text) and not text.startswith("[")


def literal_address(domain: str) -> str | None:
    """The IP address of an address literal `[192.0.2.1]` or `[IPv6:2001:db8::1]`, else None."""
    if not domain.startswith("["):
        return None
    inner = domain[1:-1]
    return inner[5:] if inner[:5].lower() == "ipv6:" else inner
