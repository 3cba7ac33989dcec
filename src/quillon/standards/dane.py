"""What DNS says of the certificates of a host: where TLSA records may be asked for, and which there are (RFC 7672).

DANE counts where each step is secure: the MX records, or their absence, or the operator's own word; the addresses of
the host; and the TLSA records. `Validator` tells whether the resolver can be relied on for that at all. Shell.
"""

from __future__ import annotations

from typing import NamedTuple

from quillon.net.clock import Clock
from quillon.net.resolver import Answer, Resolver
from quillon.tls.tlsa import Tlsa, tlsa, usable

_GOOD_FOR = 30.0  # seconds that a resolver found good is relied on
MOST_RECORDS = 64  # of a host that are looked at: nobody has reason for more
_BAD_FOR = 15.0  # seconds until one found bad is asked again


LOOK_AGAIN = 300  # seconds after which it is looked again whether there are any


class TlsaFound(NamedTuple):
    """The TLSA records of a host: `name` is where they stand, `base` the name that a certificate may bear for them.

    `records` is empty where DANE does not apply. `failed` tells why nothing is known, in which case the host must not
    be used (RFC 7672 2.1.1). `ttl` in seconds.
    """

    name: str = ""
    base: str = ""
    records: tuple[Tlsa, ...] = ()
    ttl: int = 0
    failed: str = ""

    @property
    def usable(self) -> tuple[Tlsa, ...]:
        return usable(self.records)


async def bases(resolver: Resolver, name: str, answer: Answer) -> tuple[tuple[str, ...], str]:
    """The names under which TLSA records of a host may stand, in the order in which they are asked for, by the answer
    to the question for its addresses; none where that is not secure (RFC 7672 2.2.2 and 2.2.3). And why it cannot be
    told, if so: then the host must not be used."""
    if answer.secure:
        return ((answer.canonical, name) if answer.aliases else (name,)), ""
    if answer.aliases:
        alias = await resolver.lookup(name, "CNAME")
        if alias.status == "failed":
            return (), f"CNAME: {alias.detail}"
        if alias.status == "ok" and alias.secure:
            return (name,), ""
    return (), ""


async def find(resolver: Resolver, names: tuple[str, ...], port: int) -> TlsaFound:
    """The TLSA records of a host, of the first of its `bases` that has secure ones."""
    ttl = LOOK_AGAIN
    for base in names:
        name = f"_{port}._tcp.{base}"
        answer = await resolver.lookup(name, "TLSA")
        if answer.status == "failed":
            return TlsaFound(name, base, failed=answer.detail)
        if answer.status == "ok" and answer.secure:
            records = tuple(tlsa(bytes.fromhex(text)) for _, text in answer.records[:MOST_RECORDS])
            return TlsaFound(name, base, records, answer.ttl)
        ttl = min(ttl, answer.ttl)
    return TlsaFound(ttl=ttl)


class Validator:
    """Whether the AD bit of the resolver may be relied on, asked again from time to time."""

    def __init__(self, resolver: Resolver, clock: Clock) -> None:
        self._resolver = resolver
        self._clock = clock
        self._until = 0.0
        self.problem = ""  # as it was found last

    async def ask(self) -> str:
        """Why it may not be, "" if it may."""
        now = self._clock.now()
        if now >= self._until:
            self.problem = await self._resolver.validates()
            self._until = now + (_BAD_FOR if self.problem else _GOOD_FOR)
        return self.problem
