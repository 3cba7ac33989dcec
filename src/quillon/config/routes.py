"""Items of Routes and Gateway: what a host with a port looks like. Pure.

An item of Routes is a host, an IP, `__mx__`, or `smtp://host?pref=&ttl=&port=&type=mx|a` (manual, routes page).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qs, urlsplit

from quillon.mail.address import is_name


@dataclass(frozen=True, slots=True)
class Target:
    """A name to look up. `mx` tells to look for MX records first; port 0 is the configured one."""

    name: str
    port: int
    mx: bool
    preference: int = 0


class RouteError(ValueError):
    """An item of Routes cannot be read."""


def parse_route(text: str, number: int, domain: str) -> Target:
    """One item of Routes; `number` is its place, which is its preference unless it says otherwise."""
    if text == "__mx__":
        return Target(domain, 0, mx=True, preference=number)
    return _parsed(text, number)


@lru_cache(maxsize=4096)
def _parsed(text: str, number: int) -> Target:
    if not text.lower().startswith("smtp://"):
        host, port = named_host(text)
        return Target(host, port, mx=not is_ip(host), preference=number)
    try:
        parts = urlsplit(text)
        query = parse_qs(parts.query, keep_blank_values=True)
        host = (parts.hostname or "").lower()
    except ValueError:
        raise RouteError(f"{text!r} is no URL") from None
    if not is_ip(host) and not is_name(host):
        raise RouteError(f"{text!r} names no host")
    try:
        port = int(query.get("port", ["0"])[0]) or (parts.port or 0)
        preference = int(query.get("pref", [str(number)])[0])
    except ValueError:
        raise RouteError(f"{text!r}: port and pref are numbers") from None
    kind = query.get("type", ["mx"])[0].lower()
    unknown = set(query) - {"port", "pref", "ttl", "type"}
    if unknown or kind not in ("mx", "a") or not 0 <= port < 65536:
        raise RouteError(f"{text!r}: what is understood is pref, ttl, port and type (mx or a)")
    return Target(host, port, mx=kind == "mx" and not is_ip(host), preference=preference)


@lru_cache(maxsize=1024)
def split_gateway(text: str) -> tuple[str, int]:
    """Host and port of a routing domain; 0 where it names no port. `[::1]:2600` gives `::1`, as `::1` alone does."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest[1:]) if _PORT.fullmatch(rest[1:]) else 0
    if text.count(":") > 1:
        return text, 0
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon and _PORT.fullmatch(port) else (text, 0)


_PORT = re.compile(r"[0-9]{1,5}")
_ITEM = re.compile(r"(?:\[(?P<literal>[^\[\]]+)\]|(?P<host>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?")


def named_host(text: str) -> tuple[str, int]:
    """A host with an optional port, as an operator writes it in Gateway and Routes: a name, an IPv4 address, or an IPv6
    address, in brackets if a port follows. Raises RouteError for what is none."""
    if is_ip(text):
        return str(ipaddress.ip_address(text)), 0
    match = _ITEM.fullmatch(text)
    literal = re.sub(r"(?i)\Aipv6:", "", match["literal"]) if match is not None and match["literal"] else ""
    good = match is not None and (is_ip(literal) if literal else is_name(match["host"]))
    if match is None or not good or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise RouteError(
            f"{text!r} names no host: write a host name or an IP address, with :port or not; IPv6 in brackets"
        )
    host = str(ipaddress.ip_address(literal)) if literal else match["host"].lower()
    return host, int(match["port"] or 0)


@lru_cache(maxsize=1024)
def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
