"""Items of Routes and Gateway: what a host with a port looks like. Pure.

An item of Routes is a host, an IP, `__mx__`, or `smtp://host?pref=&ttl=&port=&type=mx|a` (manual, routes page).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit


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
    if not text.lower().startswith("smtp://"):
        host, port = split_gateway(text)
        return Target(host.lower(), port, mx=not is_ip(host), preference=number)
    parts = urlsplit(text)
    query = parse_qs(parts.query, keep_blank_values=True)
    host = (parts.hostname or "").lower()
    if not host:
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


def split_gateway(text: str) -> tuple[str, int]:
    """Host and port of a routing domain; 0 where it names no port. `[::1]:2600` gives `::1`."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest[1:]) if rest[1:].isdigit() else 0
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() else (text, 0)


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
