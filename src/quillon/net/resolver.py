"""DNS lookup by dnspython, with a cache of our own that keeps to the TTL within the configured bounds.

Answers are values; an expected failure is one too. `secure` repeats the AD bit, which counts only where all servers are
trusted to have validated: those on a loopback address, and those that `trusted` names.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dns.asyncresolver
import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from quillon.net.clock import Clock

NEGATIVE_TTL = 60
FAILURE_TTL = 5  # seconds for which a question that found no answer is not asked again
_CACHE_SIZE = 65536
_PATIENCE = 10.0  # seconds
PROBE = 5.0  # seconds for a server to say whether it validates
# types whose records rule how others are believed: they hold no longer than they say
_AS_LONG_AS_SAID = frozenset({"TLSA", "CNAME"})
_COUNTED_DOWN = frozenset({"TLSA", "TXT"})  # of which it is asked how long they hold from now on


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is ok, nodata, nxdomain or failed. `records` are (preference, text), preference 0 but for MX.

    `secure` tells of answers that there is nothing, too. `canonical` is the name at the end of `aliases` CNAME records,
    "" where there are none.
    """

    status: str
    records: tuple[tuple[int, str], ...] = ()
    ttl: int = NEGATIVE_TTL
    secure: bool = False
    detail: str = ""
    canonical: str = ""
    aliases: int = 0


class Resolver:
    """`servers` are (ip, port) and go before those of `resolv_conf`; `trusted` are networks of servers whose AD bit
    counts, beside those of this machine. Raises OSError where that file is not readable."""

    def __init__(
        self,
        clock: Clock,
        servers: Sequence[tuple[str, int]],
        resolv_conf: str,
        *,
        min_ttl: int = 0,
        max_ttl: int = 2**32 - 1,
        trusted: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = (),
        asked: Counter[str] | None = None,
    ) -> None:
        self._clock = clock
        self.asked = asked if asked is not None else Counter()  # questions to servers by type, and `hits` of the cache
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
        self._resolver.lifetime = _PATIENCE
        self._resolver.use_edns(0, dns.flags.DO, 1232)
        self._resolver.flags = dns.flags.RD | dns.flags.AD
        self._others: dict[str, dns.asyncresolver.Resolver] = {}
        addresses = [str(server) for server in self._resolver.nameservers]
        self._servers = ", ".join(addresses)
        self.untrusted = tuple(server for server in addresses if not _is_trusted(server, trusted))

    async def lookup(self, name: str, kind: str, server: str = "") -> Answer:
        """`kind` is MX, A, AAAA, TXT, NS, CNAME, TLSA (records in hexadecimal digits) or PTR, for which `name` may
        be an address; `server` asks another resolver.

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
            until, answer = known
            self.asked["hits"] += 1
            return replace(answer, ttl=max(int(until - now), 0)) if kind in _COUNTED_DOWN else answer
        task = self._running.get(key)
        if task is None:
            # many messages for one domain ask one question
            self.asked[kind] += 1
            task = self._running[key] = asyncio.ensure_future(self._ask(question, kind, self._resolver_of(server)))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        answer = await asyncio.shield(task)
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[key] = (now + self._life(kind, answer), answer)
        return answer

    def _life(self, kind: str, answer: Answer) -> int:
        """Seconds for which an answer is good."""
        if answer.status == "failed":
            return FAILURE_TTL
        low, high = self._bounds
        return min(answer.ttl if kind in _AS_LONG_AS_SAID else max(answer.ttl, low), high)

    async def validates(self) -> str:
        """Why the AD bit of the servers must not be relied on, "" if it may be: the root is signed, so a server that
        validates says so of it."""
        if self.untrusted:
            return f"{', '.join(self.untrusted)} is not trusted to have validated: it is not on this machine"
        detail, good = "", False
        for server in self._resolver.nameservers:
            # each by itself: a name that does not validate with one is asked of the next one
            alone = dns.asyncresolver.Resolver(configure=False)
            alone.nameservers, alone.search, alone.lifetime = [server], [], PROBE
            alone.nameserver_ports = self._resolver.nameserver_ports
            alone.use_edns(0, dns.flags.DO, 1232)
            alone.flags = self._resolver.flags
            try:
                found = await alone.resolve(dns.name.root, "NS", raise_on_no_answer=False)
            except (dns.exception.DNSException, OSError) as error:
                detail = f"no answer of {server}: {type(error).__name__}"
                continue
            if not found.response.flags & dns.flags.AD:
                return f"{server} does not validate: the NS records of the root come without AD"
            good = True
        return "" if good else detail

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

    @property
    def pending(self) -> int:
        """Questions that are not answered yet."""
        return len(self._running)

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
        if kind == "TLSA":
            return await self._ask_tlsa(name, resolver)
        try:
            found = await resolver.resolve(name, kind, raise_on_no_answer=False)
            return self._read(found.response, name, kind, resolver)
        except dns.resolver.NXDOMAIN as error:
            responses = list(error.kwargs.get("responses", {}).values())
            return Answer("nxdomain", secure=bool(responses) and self._is_secure(responses[0], resolver))
        except dns.exception.Timeout:
            return Answer("failed", detail=f"timeout of {self._servers}")
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            return Answer("failed", detail=f"{type(error).__name__} of {self._servers}")

    async def _ask_tlsa(self, name: dns.name.Name, resolver: dns.asyncresolver.Resolver) -> Answer:
        """TLSA records, of which one may be malformed: dnspython's resolver takes an answer with such a one for none,
        but the record is there, and counts as one that is not usable."""
        detail = "no server"
        for server in resolver.nameservers:
            address = str(server)
            port = resolver.nameserver_ports.get(address, resolver.port)
            try:
                async with asyncio.timeout(_PATIENCE):
                    wire = await _exchange(name, address, port)
                    response = dns.message.from_wire(wire, continue_on_error=True, ignore_trailing=True)
                if response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    return self._read(response, name, "TLSA", resolver, malformed=len(response.errors))
                detail = dns.rcode.to_text(response.rcode())
            except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
                detail = "timeout" if isinstance(error, TimeoutError) else type(error).__name__
        return Answer("failed", detail=f"{detail} of {self._servers}")

    def _is_secure(self, response: dns.message.Message, resolver: dns.asyncresolver.Resolver) -> bool:
        return not self.untrusted and resolver is self._resolver and bool(response.flags & dns.flags.AD)

    def _read(
        self,
        response: dns.message.Message,
        name: dns.name.Name,
        kind: str,
        resolver: dns.asyncresolver.Resolver,
        malformed: int = 0,
    ) -> Answer:
        """What a response says. `malformed` counts records of which nothing could be read."""
        assert isinstance(response, dns.message.QueryMessage)
        found = dns.resolver.Answer(name, dns.rdatatype.from_text(kind), dns.rdataclass.IN, response)
        secure = self._is_secure(response, resolver)
        aliases = len(found.chaining_result.cnames)
        canonical = _text(found.chaining_result.canonical_name) if aliases else ""
        records = [(0, "")] * malformed + [_record(kind, item) for item in found.rrset or ()]
        if not records:
            ttl = min(int(found.chaining_result.minimum_ttl), NEGATIVE_TTL)
            status = "nxdomain" if response.rcode() == dns.rcode.NXDOMAIN else "nodata"
            return Answer(status, (), ttl, secure, canonical=canonical, aliases=aliases)
        if kind not in ("A", "AAAA"):
            records.sort()  # of addresses the resolver's order counts
        ttl = int(found.chaining_result.minimum_ttl) if found.rrset is not None else NEGATIVE_TTL
        return Answer("ok", tuple(records), ttl, secure, canonical=canonical, aliases=aliases)


def _record(kind: str, item: Any) -> tuple[int, str]:
    """One record as `lookup` gives it."""
    if kind == "MX":
        return int(item.preference), _text(item.exchange)
    if kind == "TXT":
        return 0, b"".join(item.strings).decode("utf-8", "replace")
    if kind in ("NS", "PTR", "CNAME"):
        return 0, _text(item.target)
    if kind == "TLSA":
        return 0, item.to_wire().hex()
    return 0, str(item.address)


def _text(name: dns.name.Name) -> str:
    return str(name).rstrip(".").lower()


async def _exchange(name: dns.name.Name, address: str, port: int) -> bytes:
    """The answer of a server to a question for TLSA records, over TCP. Raises OSError, EOFError, ValueError."""
    query = dns.message.make_query(name, "TLSA", use_edns=0, want_dnssec=True, flags=dns.flags.RD | dns.flags.AD)
    reader, writer = await asyncio.open_connection(address, port)
    try:
        wire = query.to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    finally:
        writer.close()
    if answer[:2] != wire[:2]:
        raise ValueError("an answer to another question")
    return answer


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


def _is_trusted(server: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    return address.is_loopback or any(address.version == n.version and address in n for n in networks)
