"""From a routing domain to addresses: asks the resolver what `route` says to ask. Shell.

An MX lookup that fails `mx_failures_fallback_to_a` times in a row is followed by the address of the domain; after
`dns_failures_to_purge` failures in a row the domain has failed for good.

A host that is this server is left out with all of the same and of worse preference, for they would bring the mail back
here (RFC 5321 5.1); where nothing else is left, it fails at once. Several addresses of one host are tried in random
order.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from quillon.config.routes import Target, is_ip
from quillon.config.scope import glob_matches
from quillon.config.settings import DeliverySettings, Network, NodeSettings
from quillon.delivery import route
from quillon.delivery.route import Host
from quillon.mail import reply as replies
from quillon.mail.address import is_routing_name
from quillon.mail.outcome import PermanentFailure, Stage, TransientFailure
from quillon.net.clock import Clock
from quillon.net.local import is_local
from quillon.net.resolver import Resolver
from quillon.standards import dane

Found = list[Host] | TransientFailure | PermanentFailure


@dataclass(frozen=True, slots=True)
class Own:
    """What this server is: its name, and the (address, port) that it listens on, "0.0.0.0" and "::" for all of the
    machine's."""

    name: str = ""
    endpoints: frozenset[tuple[str, int]] = frozenset()

    def is_at(self, ip: str, port: int) -> bool:
        """Whether a connection to `ip` and `port` would come here."""
        address = _target(ip)
        if (str(address), port) in self.endpoints:
            return True
        anywhere = ("0.0.0.0", port) if address.version == 4 else ("::", port)  # noqa: S104 - what Listen means
        return anywhere in self.endpoints and is_local(str(address))


class HostFinder:
    def __init__(self, resolver: Resolver, node: NodeSettings, clock: Clock, own: Own = Own()) -> None:
        self._resolver = resolver
        self._node = node
        self._clock = clock
        self._own = own
        self._failures: dict[str, tuple[int, float]] = {}

    def reconfigure(self, resolver: Resolver, node: NodeSettings, own: Own) -> None:
        self._resolver, self._node, self._own = resolver, node, own

    async def find(self, domain: str, settings: DeliverySettings) -> Found:
        """Hosts in the order in which they are tried, or why there are none."""
        if is_routing_name(domain) and not settings.routes:
            return TransientFailure(replies.NO_ROUTE.because(domain), Stage.NOT_CONNECTED)
        wanted = route.targets(domain, settings.routes)
        hosts: list[Host] = []
        problem: TransientFailure | PermanentFailure | None = None
        for target in wanted:
            found = await self._target(target, settings)
            if isinstance(found, list):
                hosts += [replace(host, rank=host.rank + (target.preference << 16)) for host in found]
            else:
                problem = problem or found
        if not hosts:
            return problem or self._failed(domain, settings)
        self._failures.pop(domain, None)
        return self._permitted(hosts)

    def _permitted(self, hosts: list[Host]) -> Found:
        skip, prohibited = self._node.skip_hosts, self._node.prohibited_hosts
        if not skip and not prohibited:
            return hosts
        left = [host for host in hosts if not within(host.ip, skip)]
        allowed = [host for host in left if not within(host.ip, prohibited)]
        if allowed:
            return allowed
        if left:
            return PermanentFailure(replies.PROHIBITED_HOST, Stage.NOT_CONNECTED)
        return TransientFailure(replies.NO_VALID_HOSTS, Stage.NOT_CONNECTED)

    async def _target(self, target: Target, settings: DeliverySettings) -> Found:
        """The hosts of one target. Where DANE counts, an MX lookup that fails is followed by no address: whoever keeps
        the answer away would choose the host (RFC 7672 2.2.1)."""
        by_dane = settings.dane != "false"
        port = target.port or settings.remote_smtp_port
        if is_ip(target.name):
            if self._own.is_at(target.name, port):
                return PermanentFailure(replies.LEADS_HERE.because(target.name), Stage.NOT_CONNECTED)
            return [Host(target.name, target.name, port)]
        records = [(0, target.name)]
        named = False  # by an MX record, and not by the operator
        secure = by_dane  # as the operator's own word is
        if target.mx:
            answer = await self._resolver.lookup(target.name, "MX")
            secure = by_dane and answer.secure
            if answer.status == "ok":
                if route.null_mx(answer.records):
                    return PermanentFailure(replies.NULL_MX, Stage.NOT_CONNECTED)
                records, named = list(answer.records), True
                if self._best_only(target.name):
                    records = route.best_only(records)
            elif answer.status == "nxdomain":
                return PermanentFailure(replies.LOOKUP_FAILED, Stage.NOT_CONNECTED)
            elif answer.status == "failed":
                failures = self._count(target.name, settings)
                if by_dane or failures < settings.mx_failures_fallback_to_a:
                    return self._failure(target.name, settings, answer.detail)
        return await self._hosts(target.name, records, port, settings, named=named, secure=secure)

    async def _hosts(
        self,
        domain: str,
        records: list[tuple[int, str]],
        port: int,
        settings: DeliverySettings,
        *,
        named: bool,
        secure: bool,
    ) -> Found:
        """The addresses of MX records, in the order in which they are tried. With `secure` it is found out where TLSA
        records of them may stand."""
        hosts: list[tuple[int, Host]] = []
        here: list[tuple[int, str]] = []  # those that are this server
        detail = ""
        for preference, name in route.order(records, self._clock.shuffle):
            found, why = await self._addresses(name, port, secure=secure)
            if (named and name == self._own.name) or any(self._own.is_at(host.ip, port) for host in found):
                here.append((preference, name))
            hosts += [(preference, replace(host, rank=preference)) for host in found]
            detail = detail or why
        if here:
            nearest = min(preference for preference, _ in here)
            hosts = [(preference, host) for preference, host in hosts if preference < nearest]
            if not hosts:
                return PermanentFailure(replies.LEADS_HERE.because(here[0][1]), Stage.NOT_CONNECTED)
        if self._node.prefer_ipv6_mxs:
            hosts.sort(key=lambda one: (one[0], ":" not in one[1].ip))
        return [host for _, host in hosts] or self._failed(domain, settings, detail)

    def _best_only(self, domain: str) -> bool:
        node = self._node
        if not node.only_use_best_mx_for_relay_domains:
            return False
        return glob_matches(node.relay_domains, domain) or glob_matches(node.bounce_domains, domain)

    async def _addresses(self, name: str, port: int, *, secure: bool) -> tuple[list[Host], str]:
        """Addresses of a host, and why a lookup got no answer, if so."""
        if is_ip(name):
            return [Host(name, name, port)], ""
        kinds = ("AAAA", "A") if self._node.use_ipv6 else ("A",)
        addresses: list[str] = []
        bases: dict[str, tuple[tuple[str, ...], str]] = {}
        detail = ""
        for kind in kinds:
            answer = await self._resolver.lookup(name, kind)
            if answer.status == "ok":
                found = [ip for _, ip in answer.records]
                addresses += found
                if secure:
                    bases |= dict.fromkeys(found, await dane.bases(self._resolver, name, answer))
            elif answer.status == "failed":
                detail = answer.detail
        self._clock.shuffle(addresses)
        hosts = []
        for ip in addresses:
            names, failed = bases.get(ip, ((), ""))
            hosts.append(Host(name, ip, port, bases=names, dane_failed=failed, named_securely=secure))
        return hosts, detail

    def _failed(self, domain: str, settings: DeliverySettings, detail: str = "") -> TransientFailure | PermanentFailure:
        self._count(domain, settings)
        return self._failure(domain, settings, detail)

    def _count(self, domain: str, settings: DeliverySettings) -> int:
        """Failures in a row, one per retry_interval: a short outage must not use them up, however much mail comes."""
        count, last = self._failures.get(domain, (0, 0.0))
        now = self._clock.now()
        if now - last >= settings.retry_interval:
            count, last = count + 1, now
            self._failures[domain] = (count, last)
        return count

    def _failure(self, domain: str, settings: DeliverySettings, detail: str) -> TransientFailure | PermanentFailure:
        limit = settings.dns_failures_to_purge
        if limit and self._failures.get(domain, (0, 0.0))[0] >= limit:
            self._failures.pop(domain, None)
            return PermanentFailure(replies.LOOKUP_FAILED, Stage.NOT_CONNECTED)
        reply = replies.NO_MX_OR_A.because(f"no answer from the resolver: {detail}") if detail else replies.NO_MX_OR_A
        return TransientFailure(reply, Stage.NOT_CONNECTED)


def within(ip: str, networks: tuple[Network, ...]) -> bool:
    """Whether a connection to an address goes into one of the networks, however the address is written."""
    addresses = {ipaddress.ip_address(ip), _target(ip)}
    return any(a.version == network.version and a in network for a in addresses for network in networks)


def _target(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Where the system connects to: an IPv4 address written as IPv6 one (RFC 4291 2.5.5.2) is an IPv4 address, and the
    unspecified address is this machine."""
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if address.version == 6 else None
    address = mapped or address
    if address.is_unspecified:
        return ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return address
