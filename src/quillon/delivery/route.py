"""Hosts for a routing domain, in the order in which they are tried. Pure: lookups are asked for and given.

Order (RFC 5321 5.1): lowest preference first, equal ones in random order. A domain without MX is its own host; a null
MX (RFC 7505) accepts no mail. `Routes` replaces that, by its items in their order or by the preference they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from quillon.config.routes import Target, is_ip, parse_route, split_gateway
from quillon.mail.address import literal_address


@dataclass(frozen=True, slots=True)
class Host:
    """One address to connect to; `name` is what its certificate is compared with. Hosts of one `rank` are equally good,
    those of a higher one are for when they fail. `bases` are the names under which TLSA records may stand, where DANE
    is wanted and DNS was secure so far, `dane_failed` tells why that is not known; `named_securely` that the MX records
    validate, or the operator names the host."""

    name: str
    ip: str
    port: int
    rank: int = field(default=0, compare=False)
    bases: tuple[str, ...] = field(default=(), compare=False)
    dane_failed: str = field(default="", compare=False)
    named_securely: bool = field(default=False, compare=False)

    @property
    def peer(self) -> str:
        """Address and port."""
        return f"{self.ip} {self.port}"


def targets(domain: str, routes: Sequence[str]) -> list[Target]:
    """What to look up for a routing domain, best first."""
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


def order(records: Iterable[tuple[int, str]], shuffle: Callable[[list[str]], object]) -> list[tuple[int, str]]:
    """MX records in the order in which they are tried: by preference, equal ones shuffled."""
    groups: dict[int, list[str]] = {}
    for preference, host in records:
        groups.setdefault(preference, []).append(host)
    out: list[tuple[int, str]] = []
    for preference in sorted(groups):
        hosts = groups[preference]
        if len(hosts) > 1:
            shuffle(hosts)
        out += [(preference, host) for host in hosts]
    return out


def null_mx(records: Sequence[tuple[int, str]]) -> bool:
    """RFC 7505: a single MX whose target is the root."""
    return len(records) == 1 and records[0][1] in ("", ".")


def best_only(records: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The records of the lowest preference (only_use_best_mx_for_relay_domains)."""
    best = min(preference for preference, _ in records)
    return [record for record in records if record[0] == best]
