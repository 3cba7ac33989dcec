"""From a destination to a connection that takes messages: finds its hosts and goes from one to the next until one is
ready, under the demand of the destination.

Hosts that rest after a failure, and those with as many connections as a Host stanza allows, are left out; if there is
no other, the destination waits until the first of them may be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

from quillon.config.model import Config
from quillon.config.outbound import lookup_name
from quillon.delivery import tls_reporting
from quillon.delivery.attempt import Attempt, Obstacle, TryHost
from quillon.delivery.connection import Connection, ConnectionServices, Obstructed, Owner
from quillon.delivery.demand import Demand, Published, Refused
from quillon.delivery.host_memory import HostMemory
from quillon.delivery.hosts import HostFinder
from quillon.delivery.route import Host
from quillon.delivery.siblings import Siblings
from quillon.delivery.standards import Standards, plain
from quillon.delivery.throttles import Throttles
from quillon.delivery.tls_policy import OURS, certificate_names
from quillon.mail.event import Event, HostFailed, TlsFacts
from quillon.mail.outcome import TransientFailure
from quillon.queue.destination import DestinationQueue, Key, Rules
from quillon.queue.trail import Failed, Trail
from quillon.smtp.client import ClientLogin
from quillon.standards.tlsrpt import DataPoint


class Ready(NamedTuple):
    """A connection that takes messages, and where the way to it has led."""

    connection: Connection
    trail: Trail


class Wait(NamedTuple):
    """No host may be tried before a time; `host` names one that is at its limit of connections, which may change
    before."""

    until: float
    why: str
    host: str = ""


class Nothing(NamedTuple):
    """All hosts have failed, or there is none. `site` tells that this concerns whatever waits for the destination,
    `obstacle` what kept the last host from taking mail, None where none was tried; `unreachable` that none has
    answered."""

    failed: Failed
    site: bool
    obstacle: Obstacle | None = None
    unreachable: bool = False


Opening = Ready | Wait | Nothing


class Opener:
    """`share` splits a limit of the node, as `limit.split` does; `freed` is told the name of a host that a connection
    did not come about with. `share_site` has a destination share its limit of connections with all that
    lead to the same hosts, and tells whether there is room. `connect` makes a connection."""

    def __init__(
        self,
        config: Config,
        finder: HostFinder,
        services: ConnectionServices,
        memory: HostMemory,
        freed: Callable[[str], object],
        owner: Owner,
        share: Callable[[int], tuple[int, int]],
        throttles: Throttles,
        log: Callable[[Event], object],
        siblings: Siblings,
        share_site: Callable[[DestinationQueue[Connection], tuple[str, ...], float], bool],
        standards: Standards,
        connect: Callable[..., Connection] = Connection,
    ) -> None:
        self._standards = standards
        self._siblings = siblings
        self._share_site = share_site
        self._connect = connect
        self.services = services
        self.reconfigure(config)
        self._finder = finder
        self._memory = memory
        self._freed = freed
        self._owner = owner
        self._share = share
        self._throttles = throttles
        self._log = log

    def reconfigure(self, config: Config) -> None:
        """Another configuration rules from now on."""
        self.config = config
        self._migrates = config.node().migrate_connections_between_sibling_domains

    async def open(
        self, queue: DestinationQueue[Connection], trail: Trail | None, ehlo_name: str, login: ClientLogin | None
    ) -> Opening:
        """A connection for a destination; `trail` is that of messages that have been to some of its hosts."""
        # whatever a reload changes meanwhile: a connection is made under what it was looked up for, or not used
        key, rules, services = queue.key, queue.rules, self.services
        now = services.clock.now
        settings = await self._standards.wanted(rules.settings, key.request) if key.request else rules.settings
        found = await self._finder.find(key.domain, settings)
        if not isinstance(found, list):
            return Nothing(Failed(found), site=True)
        if rules.settings.mx_rollup:
            names = tuple(sorted({f"{host.name}:{host.port}" for host in found}))
            if not self._share_site(queue, names, now()):
                return Wait(now(), "as many connections as are allowed to its hosts")
        published: Published | None = None
        if settings.looks_up:
            requiretls = key.request == "requiretls"
            about = await self._standards.of_domain(
                key.domain,
                settings,
                requiretls=requiretls,
                routed=tls_reporting.is_routed(queue),
                tell=tls_reporting.is_counted(queue),
            )
            if isinstance(about, TransientFailure):
                return Nothing(Failed(about), site=True)
            published = about
        attempt = self._attempt(key, rules, found, trail)
        if isinstance(attempt, Wait):
            return attempt
        takes_over = self._migrates and not settings.looks_up
        if takes_over and (idle := self._siblings.find(queue, attempt.best(), ehlo_name)) is not None:
            return Ready(idle, trail or Trail())
        return await self._try(queue, rules, services, attempt, published, ehlo_name, login, first=trail is None)

    async def _try(
        self,
        queue: DestinationQueue[Connection],
        rules: Rules,
        services: ConnectionServices,
        attempt: Attempt,
        published: Published | None,
        ehlo_name: str,
        login: ClientLogin | None,
        *,
        first: bool,
    ) -> Opening:
        """Go from host to host until one takes messages; `published` is None where nothing is looked up."""
        key = queue.key
        facts: TlsFacts | None = None
        obstacle: Obstacle | None = None
        unreachable = True
        while (step := attempt.next_step()) is not None:
            if (wait := self._no_turn(queue, step.host)) is not None:
                return wait
            names = certificate_names(rules.tls, step.host.name, key.domain, key.via)
            demand: Demand | Refused = plain(rules.tls, names)
            if published is not None:
                domain = lookup_name(key.domain)
                demand = await self._standards.of_host(step.host, names, rules.tls, domain, published)
            if isinstance(demand, Refused):
                failed = Failed(demand.outcome(step.host.ip), None, step.host.name)
                opened: Connection | Obstructed = Obstructed(Obstacle.BARRED, failed)
            else:
                opened = await self._open(key, rules, services, demand, step, ehlo_name, login)
            if published is not None:
                self._tell_handshake(queue, step, demand, opened, published)
            if not isinstance(opened, Obstructed):
                if step.in_clear and facts is not None:
                    # in clear after a failed negotiation with this host: the log tells what failed, and nothing of TLS
                    opened.facts = TlsFacts(cause=facts.cause, detail=facts.detail)
                return Ready(opened, attempt.trail)
            obstacle, failed = opened
            facts = failed.facts
            unreachable = unreachable and obstacle is Obstacle.UNREACHABLE
            attempt.failed(step, obstacle, failed, demand.tls if isinstance(demand, Demand) else rules.tls)
            if not attempt.goes_clear:
                self._let_rest(key, rules, step.host, opened)
            now = services.clock.now()
            self._log(HostFailed(now, key.domain, failed.host, failed.outcome, failed.facts, failed.local_ip))
        assert attempt.trail.failed is not None, "an attempt without hosts has a trail of its own"
        return Nothing(attempt.trail.failed, first, obstacle, unreachable)

    def _tell_handshake(
        self,
        queue: DestinationQueue[Connection],
        step: TryHost,
        demand: Demand | Refused,
        opened: Connection | Obstructed,
        published: Published,
    ) -> None:
        """A data point for reports of SMTP TLS, where they are made."""
        point = self._standards.point
        if point is None or step.in_clear or not tls_reporting.is_counted(queue):
            return
        domain, now = lookup_name(queue.key.domain), self.services.clock.now()
        if isinstance(demand, Refused):
            found: DataPoint | None = tls_reporting.refused(demand, step.host, domain, now)
        elif isinstance(opened, Obstructed):
            failed = opened.failed
            cause = failed.outcome.cause
            found = tls_reporting.failed(demand, opened.obstacle, cause, step.host, failed.local_ip, domain, now)
        else:
            found = tls_reporting.opened(
                demand,
                published,
                opened.facts,
                opened.verdict,
                opened.certificates,
                step.host,
                opened.local_ip,
                domain,
                now,
            )
        if found is not None:
            point(found)

    def _no_turn(self, queue: DestinationQueue[Connection], host: Host) -> Wait | None:
        """Why no connection to a host may be made now, if so."""
        now = self.services.clock.now()
        if not self.has_room(host):
            return Wait(now + 60.0, "as many connections as its Host allows", host.name)
        if self.config.outbound.throttles_hosts and (when := self._throttles.host_turn(queue, host.name, now)) > now:
            return Wait(when, "outbound_throttle_connections of its Host")
        return None

    async def _open(
        self,
        key: Key,
        rules: Rules,
        services: ConnectionServices,
        demand: Demand,
        step: TryHost,
        ehlo_name: str,
        login: ClientLogin | None,
    ) -> Connection | Obstructed:
        """Bring a connection to the point where it takes messages; why it does not, if so."""
        domain = lookup_name(key.domain)
        connection = self._connect(
            services,
            rules.settings,
            demand,
            domain,
            ehlo_name,
            login=login,
            owner=self._owner,
            leaves_from=key.leaves_from,
        )
        self._memory.opening(step.host.name)
        try:
            obstructed = await connection.open(step)
        except BaseException:
            self._freed(step.host.name)
            raise
        if obstructed is not None:
            self._freed(step.host.name)
            return obstructed
        self._memory.opened(step.host.peer)
        return connection

    def _attempt(self, key: Key, rules: Rules, found: list[Host], trail: Trail | None) -> Attempt | Wait:
        """Those hosts that may be tried now; or when the first may be."""
        now = self.services.clock.now()
        tried = trail.tried if trail is not None else frozenset[str]()
        left = [host for host in found if host.peer not in tried]
        whose = _whose(key, rules)
        awake = [host for host in left if not self._memory.rests_until(host, whose, now)]
        free = [host for host in awake if self.has_room(host)]
        settings = rules.settings
        if free or not left or (trail is not None and not awake):
            return Attempt(
                free,
                trail,
                sessions=settings.max_hosts_per_attempt,
                addresses=settings.max_addresses_per_attempt,
            )
        if awake:
            return Wait(now + 60.0, "as many connections as its Host allows", awake[0].name)
        until = min(self._memory.rests_until(host, whose, now) for host in left)
        return Wait(until, "its hosts rest after a failure")

    def has_room(self, host: Host) -> bool:
        """Whether a Host stanza lets one more connection to it stand."""
        configured = self.config.outbound.host_connections(host.name)
        if configured < 0:
            return True
        limit = self._memory.limit(host.name)
        limit.rule(*self._share(configured))
        return limit.used < limit.most

    def _let_rest(self, key: Key, rules: Rules, host: Host, obstructed: Obstructed) -> None:
        """Let a host that failed rest: for this destination alone where TLS was tried, which may be at fault."""
        obstacle, failed = obstructed
        now, seconds = self.services.clock.now(), rules.settings.host_failure_retry
        if self._memory.stands(host.peer):
            pass  # it takes no further connection, which is no reason to leave it alone
        elif obstacle is Obstacle.UNREACHABLE or (obstacle is Obstacle.UNWILLING and failed.facts is None):
            self._memory.rest(host, seconds, now)
        elif obstacle not in (Obstacle.OURS, Obstacle.LOGIN, Obstacle.BARRED) and failed.outcome.cause != OURS:
            self._memory.rest(host, seconds, now, _whose(key, rules))


def _whose(key: Key, rules: Rules) -> Hashable:
    """Who is to leave a host alone after a TLS failure: certificates are compared with names of the destination, so
    another one may fare better with the same host."""
    return rules.tls, key.domain, key.via, key.request
