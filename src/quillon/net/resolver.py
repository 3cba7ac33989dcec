"""DNS lookup by dnspython, with a cache of our own that keeps to the TTL within the configured bounds.

Answers are values; an expected failure is one too. `secure` repeats the AD bit, which counts only where the resolver
is one that we trust: one on a loopback address.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.name
import dns.rdatatype
import dns.resolver

from quillon.net.clock import Clock

NEGATIVE_TTL = 60
FAILURE_TTL = 5  # seconds for which a question that found no answer is not asked again
_CACHE_SIZE = 65536


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is ok, nodata, nxdomain or failed. `records` are (preference, text), preference 0 but for MX."""

    status: str
    records: tuple[tuple[int, str], ...] = ()
    ttl: int = NEGATIVE_TTL
    secure: bool = False
    detail: str = ""


class Resolver:
    """`servers` are (ip, port) and go before those of `resolv_conf`. Raises OSError where that file is not readable."""

    def __init__(
        self,
        clock: Clock,
        servers: Sequence[tuple[str, int]],
        resolv_conf: str,
        *,
        min_ttl: int = 0,
        max_ttl: int = 2**32 - 1,
    ) -> None:
        self._clock = clock
        self._bounds = (min_ttl, max_ttl)
        self._running: dict[tuple[str, str, str], asyncio.Task[Answer]] = {}
        self._cache: dict[tuple[str, str, str], tuple[float, Answer]] = {}
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        if servers:
            self._resolver.nameservers = [ip for ip, _ in servers]
            self._resolver.nameserver_ports = dict(servers)
        else:
            try:
                self._resolver.read_resolv_conf(resolv_conf)
            except dns.resolver.NoResolverConfiguration as error:
                raise OSError(f"{resolv_conf} names no resolver: {error}") from None
        self._resolver.search = []
        self._resolver.lifetime = 10.0
        self._resolver.use_edns(0, dns.flags.DO, 1232)
        self._resolver.flags = dns.flags.RD | dns.flags.AD
        self._others: dict[str, dns.asyncresolver.Resolver] = {}
        self._servers = ", ".join(str(server) for server in self._resolver.nameservers)
        self._trusted = all(_loopback(str(server)) for server in self._resolver.nameservers)

    async def lookup(self, name: str, kind: str, server: str = "") -> Answer:
        """`kind` is MX, A, AAAA, TXT, NS or PTR, for which `name` may be an address; `server` asks another resolver.

        Names come in lower case without a trailing dot, "" for a null MX. Raises ValueError for a server that is none.
        """
        if kind == "PTR":
            name = _reverse(name)
        question = dns_name(name)
        if question is None:
            return Answer("nxdomain", detail="no such name can exist")
        key = (name, kind, server)
        now = self._clock.now()
        known = self._cache.get(key)
        if known is not None and known[0] > now:
            return known[1]
        task = self._running.get(key)
        if task is None:
            # many messages for one domain ask one question
            task = self._running[key] = asyncio.ensure_future(self._ask(question, kind, self._resolver_of(server)))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        answer = await asyncio.shield(task)
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        low, high = self._bounds
        ttl = FAILURE_TTL if answer.status == "failed" else min(max(answer.ttl, low), high)
        self._cache[key] = (now + ttl, answer)
        return answer

    def forget(self, name: str) -> int:
        """Ask anew for a name when it is wanted next; gives how many answers were known."""
        found = [key for key in self._cache if key[0] == name]
        for key in found:
            del self._cache[key]
        return len(found)

    def cached(self, name: str, kind: str) -> tuple[float, Answer] | None:
        """What is known of a name, and until when; None if that is nothing."""
        known = self._cache.get((name, kind, ""))
        return known if known is not None and known[0] > self._clock.now() else None

    def __len__(self) -> int:
        """Answers that are kept, with those whose time is over."""
        return len(self._cache)

    def _resolver_of(self, server: str) -> dns.asyncresolver.Resolver:
        if not server:
            return self._resolver
        found = self._others.get(server)
        if found is None:
            ipaddress.ip_address(server)
            found = self._others[server] = dns.asyncresolver.Resolver(configure=False)
            found.nameservers, found.search, found.lifetime = [server], [], self._resolver.lifetime
        return found

    async def _ask(self, name: dns.name.Name, kind: str, resolver: dns.asyncresolver.Resolver) -> Answer:
        try:
            found = await resolver.resolve(name, kind, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            return Answer("nxdomain")
        except dns.exception.Timeout:
            return Answer("failed", detail=f"timeout of {self._servers}")
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            return Answer("failed", detail=f"{type(error).__name__} of {self._servers}")
        if found.rrset is None:
            return Answer("nodata")
        secure = self._trusted and resolver is self._resolver and bool(found.response.flags & dns.flags.AD)
        records = []
        for item in found.rrset:
            if kind == "MX":
                records.append((int(item.preference), str(item.exchange).rstrip(".").lower()))
            elif kind == "TXT":
                records.append((0, b"".join(item.strings).decode("utf-8", "replace")))
            elif kind in ("NS", "PTR"):
                records.append((0, str(item.target).rstrip(".").lower()))
            else:
                records.append((0, str(item.address)))
        if kind not in ("A", "AAAA"):
            records.sort()  # of addresses the resolver's order counts
        return Answer("ok", tuple(records), int(found.rrset.ttl), secure)


def dns_name(text: str) -> dns.name.Name | None:
    """A name as DNS has it; None for one that cannot exist: an empty label, one over 63 octets, over 253 in all.

    The octets stand for themselves: a backslash escapes nothing, and no mapping of letters makes another name of it.
    """
    labels = [label.encode("utf-8", "replace") for label in text.removesuffix(".").split(".")]
    try:
        return dns.name.Name([*labels, b""]) if all(labels) else None
    except dns.exception.DNSException:
        return None


def _reverse(name: str) -> str:
    """The name to ask PTR for: that of an address, or the name itself."""
    try:
        return ipaddress.ip_address(name).reverse_pointer
    except ValueError:
        return name


def _loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return False
