"""What is demanded of each host, found out where the configuration says to look: TLSA records, MTA-STS. Shell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery import tls_reporting
from quillon.delivery.demand import NOTHING, Demand, Published, Refused, demand
from quillon.delivery.route import Host
from quillon.mail import reply as replies
from quillon.mail.address import is_routing_name, literal_address
from quillon.mail.outcome import Stage, TransientFailure
from quillon.net.clock import Clock
from quillon.net.resolver import Resolver
from quillon.standards import dane
from quillon.standards.dane import TlsaFound, Validator
from quillon.standards.sts_policies import StsFound, StsPolicies
from quillon.standards.tlsrpt import DataPoint

HOUR = 3600.0


@dataclass
class Standards:
    """`policies` are those of MTA-STS; `report` takes lines for the paniclog."""

    resolver: Resolver
    policies: StsPolicies
    clock: Clock
    report: Callable[[str], None]

    def __post_init__(self) -> None:
        self.validator = Validator(self.resolver, self.clock)
        self._told = ""
        self.point: Callable[[DataPoint], None] | None = None  # who hears of handshakes, where reports are made
        self._refresh_at = 0.0

    def reconfigure(self, resolver: Resolver, policies: StsPolicies) -> None:
        """Other servers rule from now on."""
        self.resolver, self.policies = resolver, policies
        self.validator = Validator(resolver, self.clock)

    async def check(self) -> str:
        """Why DANE cannot be relied on, "" if it can be; the paniclog has it once, and once when that is over."""
        problem = await self.validator.ask()
        if problem != self._told:
            words = f"mail that use_dane rules waits: {problem}" if problem else "the resolver validates again"
            self.report(f"dane: {words}")
            self._told = problem
        return problem

    async def look_after(self, *, dane: bool, policies: bool) -> None:
        """What is to be done from time to time, mail or not: with `dane` the resolver is looked at, with `policies`
        those of MTA-STS that are due are fetched again, which one worker does for all."""
        if dane:
            await self.check()
        if policies and self.clock.now() >= self._refresh_at:
            self._refresh_at = self.clock.now() + HOUR
            await self.policies.refresh_all()

    async def wanted(self, settings: DeliverySettings, request: str) -> DeliverySettings:
        """Settings with what is looked up for messages whose senders have a request of their own (RFC 8689)."""
        if request == "requiretls":
            dane = settings.dane
            if dane == "false" and not await self.validator.ask():
                dane = "true"
            return replace(settings, use_dane=dane, enable_dane=True, use_mta_sts=True, enable_mta_sts=True)
        if request == "no":
            dane = "mandatory" if settings.dane == "mandatory" else "false"
            return replace(settings, use_dane=dane, use_mta_sts=False)
        return settings

    async def of_domain(
        self,
        domain: str,
        settings: DeliverySettings,
        *,
        requiretls: bool = False,
        routed: bool = False,
        tell: bool = False,
    ) -> Published | TransientFailure:
        """What a domain has published for all its hosts; or why nothing may leave for it. `routed` tells that a gateway
        has brought mail there, `tell` whether a policy that cannot be had is a matter for reports."""
        if settings.dane != "false" and (problem := await self.check()):
            return TransientFailure(
                replies.NOT_VALIDATING.because(problem), Stage.NOT_CONNECTED, cause="resolver_not_validating"
            )
        mandatory, has_policy = settings.dane == "mandatory", not routed and _has_policy(domain, settings)
        if not settings.mta_sts or not has_policy:
            if not mandatory and not requiretls:
                return NOTHING
            return Published(mandatory=mandatory, requires_tls=requiretls, local=not has_policy)
        found = await self.policies.find(domain)
        if tell and found.result and self.point is not None:
            self.point(tls_reporting.not_found(found.result, found.detail, domain, self.clock.now()))
        until = self.clock.now() + found.ttl
        uncertain = found.failed or bool(self.validator.problem)
        return Published(
            mandatory=mandatory, sts=found.policy, sts_until=until, requires_tls=requiretls, uncertain=uncertain
        )

    async def of_host(
        self, host: Host, names: tuple[str, ...], tls: OutboundTls, domain: str, published: Published
    ) -> Demand | Refused:
        """What holds for one host, as `demand` says."""
        if host.dane_failed:
            published = replace(published, tlsa=TlsaFound(host.name, host.name, failed=host.dane_failed))
        elif host.bases:
            published = replace(published, tlsa=await dane.find(self.resolver, host.bases, host.port))
        return demand(tls, names, host, domain, published, self.clock.now())

    async def sts(self, domain: str, settings: DeliverySettings) -> StsFound | None:
        """The MTA-STS policy of a domain, for people; None where none is looked for."""
        if not settings.use_mta_sts or not _has_policy(domain, settings):
            return None
        return await self.policies.find(domain)


def plain(tls: OutboundTls, names: tuple[str, ...]) -> Demand:
    """What holds where nothing is looked up: the configuration's word."""
    return Demand(tls, tls, names)


def _has_policy(domain: str, settings: DeliverySettings) -> bool:
    """Whether mail to a domain goes to the hosts that the domain itself names: a route of the operator's is no matter
    of the domain's policy."""
    routed = settings.routes or is_routing_name(domain) or ":" in domain
    return not routed and literal_address(domain) is None
