"""Hosts for a routing domain, in the order in which they are tried. Pure: lookups are asked for and given.

Order (RFC 5321 5.1): lowest preference first, equal ones in random order. A domain without MX is its own host; a null
MX (RFC 7505) accepts no mail. `Routes` replaces that: items in their order, each host, IP, `__mx__`, or
`smtp://host?pref=&ttl=&port=&type=mx|a`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from quillon.config.model import split_gateway
from quillon.mail.address import literal_address


@dataclass(frozen=True, slots=True)
class Target:
    """A name to look up. `mx` tells to look for MX records first; port 0 is the configured one."""

    name: str
    port: int
    mx: bool
    preference: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """One address to connect to; `name` is what its certificate is compared with."""

    name: str
    ip: str
    port: int


class RouteError(ValueError):
    """An item of Routes cannot be read."""


def targets(domain: str, routes: Sequence[str]) -> list[Target]:
    """What to look up for a routing domain, best first. Raises RouteError."""
    if not routes:
        return [gateway_target(domain)]
    found = [parse_route(text, number, domain) for number, text in enumerate(routes)]
    return sorted(found, key=lambda target: target.preference)


def gateway_target(domain: str) -> Target:
    """A routing domain, which may be an address literal, an IP, or a gateway with a port."""
    literal = literal_address(domain)
    if literal is not None and not domain.rpartition("]")[2]:
        return Target(literal, 0, mx=False)
    host, port = split_gateway(domain)
    return Target(host, port, mx=not is_ip(host))


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


def order(records: Iterable[tuple[int, str]], shuffle: Callable[[list[str]], None]) -> list[str]:
    """MX hosts in the order in which they are tried: by preference, equal ones shuffled."""
    groups: dict[int, list[str]] = {}
    for preference, host in records:
        groups.setdefault(preference, []).append(host)
    out: list[str] = []
    for preference in sorted(groups):
        hosts = groups[preference]
        if len(hosts) > 1:
            shuffle(hosts)
        out += hosts
    return out


def null_mx(records: Sequence[tuple[int, str]]) -> bool:
    """RFC 7505: a single MX whose target is the root."""
    return len(records) == 1 and records[0][1] in ("", ".")


def best_only(records: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The records of the lowest preference (only_use_best_mx_for_relay_domains)."""
    best = min(preference for preference, _ in records)
    return [record for record in records if record[0] == best]


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
