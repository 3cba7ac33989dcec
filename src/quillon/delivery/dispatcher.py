"""Brings destinations and connections together. Shell.

`Queues` says whose turn it is; a destination with an idle connection gets its next messages, another one a connection.
`opener` finds it, `Connection` does the talking, `settlement` says what becomes of each message. A message that a host
does not take for now goes to the next host in the same attempt, as its trail says.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

from quillon.config.model import Config
from quillon.config.settings import share
from quillon.delivery import override
from quillon.delivery.admission import Admission, fault_of
from quillon.delivery.attempt import Obstacle
from quillon.delivery.bounce import Bouncer
from quillon.delivery.connection import Connection, ConnectionServices, Sent
from quillon.delivery.halts import Halts
from quillon.delivery.host_memory import HostMemory
from quillon.delivery.hosts import HostFinder
from quillon.delivery.inquiry import Inquiry
from quillon.delivery.opener import Nothing, Opener, Ready, Wait
from quillon.delivery.places import Places
from quillon.delivery.settlement import Prove, Settlement, at_once
from quillon.delivery.siblings import Siblings
from quillon.delivery.sorting import Sorting
from quillon.delivery.standards import Standards
from quillon.delivery.throttles import CONNECTIONS, MESSAGES, Throttles
from quillon.mail import reply as replies
from quillon.mail.event import Attempted, Event, Panic
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, Outcome, PermanentFailure, Stage, TransientFailure
from quillon.net.slices import in_slices
from quillon.net.turns import SHARE
from quillon.policy.tls import TlsHooks
from quillon.queue import retry
from quillon.queue.curfew import Curfew
from quillon.queue.destination import DestinationQueue
from quillon.queue.limit import UNLIMITED, split
from quillon.queue.ready import Queues
from quillon.queue.suspension import Suspensions
from quillon.queue.trail import Failed, Trail
from quillon.reception.accept import ResidentBodies
from quillon.spool.store import Store
from quillon.tls.context import Contexts

PATIENCE = 60.0  # seconds for which a destination rests whose turn has ended in a defect
SHORTEST_REST = 1.0  # seconds between two attempts to reach a site, whatever the options say
LONGEST_SLEEP = 3600.0  # seconds after which the timer looks again, whatever it was set to

Queue = DestinationQueue[Connection]


@dataclass
class Share:
    """This worker's part of what is limited for the whole node."""

    workers: int = 1

    def of(self, limit: int) -> int:
        """At least one; 0 and -1 stand for no limit."""
        return share(max(limit, 0), self.workers) or UNLIMITED

    def split(self, limit: int) -> tuple[int, int]:
        """What is certain, and what is on lease for all workers."""
        return split(limit, self.workers)


@dataclass
class Dispatcher:
    """`hostname` is the name in EHLO. `log` takes events."""

    config: Config
    store: Store
    resident_bodies: ResidentBodies
    finder: HostFinder
    standards: Standards
    bouncer: Bouncer
    services: ConnectionServices
    hostname: str
    share: Share
    log: Callable[[Event], object]
    say: Callable[[dict[str, Any]], object] = lambda _: None  # to the node
    connect: Callable[..., Connection] = Connection
    prove: Prove = at_once
    put_off: Callable[[Attempted], object] | None = None  # who records what one host of several made of a message
    trouble: Callable[[], str] | None = None  # what is wrong with this server, so that nothing may leave
    curfew: InitVar[Curfew] = Curfew()  # noqa: RUF009 - it is not changed
    suspensions: InitVar[Suspensions | None] = None
    memory: HostMemory = field(default_factory=HostMemory)
    _of: dict[Connection, Queue] = field(default_factory=dict)  # whose connection it is, as long as it stands
    _trails: dict[Connection, Trail] = field(default_factory=dict)  # the way to it, or that of its messages
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _pumping: bool = False
    _stopping: bool = False
    _timer: asyncio.TimerHandle | None = None

    def __post_init__(self, curfew: Curfew, suspensions: Suspensions | None) -> None:
        self.halts = Halts(curfew, suspensions or Suspensions(), self.log, self.trouble)
        self.places = Places(self, self.memory, self.say)
        self.throttles = Throttles(self.config, self.share.workers)
        self.admission = Admission(self.config, self.services.hooks, self.share.split, self.log, self._is_suspended)
        self.queues: Queues[Connection] = Queues(
            self.admission.rules,
            self._total(),
            self.places.lessee.ask,
            self.places.lessee.released,
            self.places.make_room,
        )
        self.siblings = Siblings()
        self.inquiry = Inquiry(self)
        self.sorting = Sorting(self)
        self.opener = Opener(
            self.config,
            self.finder,
            self.services,
            self.memory,
            self.places.freed,
            self,
            self.share.split,
            self.throttles,
            self.log,
            self.siblings,
            self.queues.share,
            self.standards,
            self.connect,
        )
        self.settlement = Settlement(
            config=self.config,
            policy=self.services.hooks.policy,
            store=self.store,
            resident_bodies=self.resident_bodies,
            bouncer=self.bouncer,
            clock=self.services.clock,
            requeue=self.sorting.requeue,
            log=self.log,
            prove=self.prove,
        )

    def _is_suspended(self, domain: str) -> bool:
        return self.halts.suspensions.names(domain)

    def _total(self) -> int:
        node = self.config.node()
        limits = (node.server_max_outbound_connections, self.config.outbound.connections_in_all)
        return min(map(self.share.of, limits))

    # life -----------------------------------------------------------------------------------------------------

    def start(self, recovered: AsyncIterator[list[Message]]) -> None:
        """Begin, with the messages of an earlier life, which go into their queues beside everything else."""
        self._spawn(self.sorting.recover(recovered))
        self.kick()

    def submit(self, messages: list[Message]) -> None:
        """New messages, which the spool has."""
        for message in messages:
            self.sorting.admit(message)  # a reload may have come while it was committed
        self.kick()

    async def reconfigure(
        self, config: Config, contexts: Contexts, hooks: TlsHooks, curfew: Curfew | None = None
    ) -> Counter[str]:
        """Other settings for what begins from now on; idle connections are closed. Gives how many messages wait for a
        demand that is lost, or go with less, by words. The new settings hold at once; messages are sorted anew in
        slices, each destination before it acts again."""
        self.config = config
        self.services = replace(self.services, contexts=contexts, hooks=hooks)
        self.admission.reconfigure(config, hooks)
        self.opener.services = self.services
        self.opener.reconfigure(config)
        self.settlement.config, self.settlement.policy = config, hooks.policy
        self.throttles.reconfigure(config)
        self.halts.reconfigure(curfew or Curfew())
        self.memory.forget_rests()
        self.queues.epoch += 1
        now = self.services.clock.now()
        self.queues.set_total(self._total(), now)
        self.inquiry.cancel()  # the new policy is asked
        return await self.sorting.sort_outdated()

    async def stop(self, seconds: float) -> None:
        """Begin nothing new, and give what runs so long to end. What is not done stays in the spool."""
        self._stopping = self.settlement.stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self.inquiry.cancel()
        for queue in self.queues:
            self.dismiss_idle(queue)
        end = self.services.clock.now() + seconds
        while (self._of or self._tasks) and self.services.clock.now() < end:  # noqa: ASYNC110 - two sets to empty
            await asyncio.sleep(0.02)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def connections(self) -> list[tuple[Connection, Queue]]:
        """Those that stand, with the destination that each is for."""
        return list(self._of.items())

    # turns ----------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Something has changed: give destinations their turns, soon."""
        if not self._pumping and not self._stopping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Give destinations their turns, for a share of this round of the loop; then sleep until the next is due."""
        self._pumping = False
        if self._stopping:
            return
        now = self.services.clock.now()
        end = time.perf_counter() + SHARE
        while (queue := self.queues.next(now)) is not None:
            try:
                self._serve(queue, now)
            except Exception as error:
                queue.pause(now + PATIENCE, "a defect")
                self.unexpected(error)
            self.queues.touch(queue, now)
            if time.perf_counter() >= end:
                self.kick()
                return
        if not self.sorting.busy:
            self.admission.tell(now)  # of messages that were on their way during a reload
        self.halts.tell(now)
        self._sleep(now)

    def _sleep(self, now: float) -> None:
        due = min((when for when in (self.queues.due(), self.halts.due(now)) if when is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            seconds = min(max(due - now, 0.0), LONGEST_SLEEP)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._pump)

    def _serve(self, queue: Queue, now: float) -> None:
        """One turn of a destination."""
        if queue.epoch != self.queues.epoch:
            self._spawn(self.sorting.sort(self.sorting.renew(queue)))
            return
        if isinstance(queue.key.override, override.Pending):
            self.inquiry.ask(queue)
            return
        fault = fault_of(queue.key)
        if fault is not None:
            self._fail_site(queue, Nothing(Failed(fault), site=True))
            return
        halt = self.halts.of(queue.key, now)
        if halt is not None:
            queue.pause(halt.until, halt.why, messages=True)
            return
        connection = next((line for line in queue.idle if queue.fits(line.peer)), None)
        if connection is not None:
            self.siblings.wake(connection)
            self.queues.wake(queue, connection)
            self.free(connection)
        elif queue.idle and (queue.full or self.queues.full):
            self.dismiss(queue, queue.idle[0])  # it leads where the messages have been
        elif self.throttles.let(queue, CONNECTIONS, now):
            self.queues.opening(queue)
            self._spawn(self._open(queue))

    # connections ----------------------------------------------------------------------------------------------

    async def _open(self, queue: Queue) -> None:
        """Get a connection for a destination, or fail what waits in it."""
        opened: Ready | Wait | Nothing | None = None
        services, trail, began = self.services, queue.astray(), self.services.clock.now()
        login = queue.key.override.login if isinstance(queue.key.override, override.Override) else None
        try:
            opened = await self.opener.open(queue, trail, self._ehlo_name(queue), login)
        finally:
            if not isinstance(opened, Ready):
                if opened is not None and self.services is not services:
                    pass  # what was found by a configuration that is gone says nothing
                elif isinstance(opened, Wait):
                    self._wait(queue, opened)
                elif isinstance(opened, Nothing):
                    self._nothing(queue, opened, trail, began)
                else:
                    queue.pause(self.services.clock.now() + PATIENCE, "a defect")
                self.queues.not_connected(queue, self.services.clock.now())
                self.kick()
        if isinstance(opened, Ready):
            before = self._of.get(opened.connection)
            if before is not None:  # it is of another domain, which does not need it
                self._leave_to_others(opened.connection, before)
                opened.connection.since = self.services.clock.now()  # it has a turn of its own
            self.memory.answered(queue.site.key)
            queue.unreachable = False
            self.queues.connected(queue)
            self._of[opened.connection] = queue
            if opened.trail.failed is not None:
                self._trails[opened.connection] = opened.trail
            self._feed(opened.connection, queue, self.services.clock.now())
            self.kick()

    def _leave_to_others(self, connection: Connection, queue: Queue) -> None:
        """A connection is its destination's no longer."""
        self.siblings.wake(connection)
        self.queues.closed(queue, connection, self.services.clock.now())

    def _wait(self, queue: Queue, wait: Wait) -> None:
        queue.pause(wait.until, wait.why)
        if wait.host:
            self.places.wait_for(queue, wait.host)

    def _nothing(self, queue: Queue, nothing: Nothing, trail: Trail | None, began: float) -> None:
        """No connection came about. Where others stand or are on their way, only this one is refused; else all mail of
        the destination waits: for another attempt where no host could be reached for a short time only, or else
        delayed."""
        if not nothing.site:
            for message in queue.take_astray(trail):
                self.settlement.settle(message, *nothing.failed)
            return
        others = queue.standing + queue.connecting - 1
        if nothing.obstacle in (Obstacle.UNREACHABLE, Obstacle.UNWILLING):
            # what fails for another reason says nothing of connections of other settings, or of other domains
            others = max(others, queue.site.standing)
        if others and not isinstance(nothing.failed.outcome, PermanentFailure):
            queue.site.window.refused(others, self.services.clock.now())
            return
        queue.site.window.failed()
        now, settings = self.services.clock.now(), queue.rules.settings
        if not nothing.unreachable:
            self.memory.answered(queue.site.key)
        elif not self.memory.silent(queue.site.key, began, now, settings):
            why = f"no host can be reached: {nothing.failed.outcome.reply}"
            queue.pause(now + max(settings.host_failure_retry, SHORTEST_REST), why)
            if not queue.unreachable:
                queue.unreachable = True
                self._spawn(self._release_bodies(queue))
            return
        self._fail_site(queue, nothing)

    async def _release_bodies(self, queue: Queue) -> None:
        """Make room in memory for mail that leaves soon."""
        async for message in in_slices(queue.snapshot()):
            if queue.unreachable:
                self.resident_bodies.release(message.batch)

    def _fail_site(self, queue: Queue, nothing: Nothing) -> None:
        """Settle what waits in a destination by one failure of the whole site."""

        async def settle(messages: list[Message]) -> None:
            async for message in in_slices(messages):
                self.settlement.settle(message, *nothing.failed)

        self._spawn(settle(queue.drain()))

    def _ehlo_name(self, queue: Queue) -> str:
        name = queue.rules.settings.ehlo_hostname
        if name == "__message__":
            first = next(queue.messages(), None)
            return (first.batch.sender.domain if first is not None else "") or self.hostname
        return self.hostname if name == "__hostname__" else name

    def dismiss_idle(self, queue: Queue) -> None:
        """End all idle connections of a destination."""
        for connection in list(queue.idle):
            self.dismiss(queue, connection)

    def dismiss(self, queue: Queue, connection: Connection) -> None:
        """End an idle connection."""
        self.siblings.wake(connection)
        self.queues.wake(queue, connection)
        connection.quit()

    # messages out ---------------------------------------------------------------------------------------------

    def free(self, connection: Connection) -> None:
        """A connection may take its next messages."""
        queue = self._of.get(connection)
        if queue is None:
            return
        try:
            self._feed(connection, queue, self.services.clock.now())
        except Exception as error:
            self.unexpected(error)
            connection.quit()
        self.kick()

    def _feed(self, connection: Connection, queue: Queue, now: float) -> None:
        """Give a connection its next messages, or let it rest or end."""
        rules = queue.rules
        # the rules of a destination change with the services only: whoever was opened under others is another one, from
        # another address or with other TLS or credentials
        unfit = connection.services is not self.services or queue.epoch != self.queues.epoch
        unfit = unfit or (connection.tls is not rules.tls and connection.tls != rules.tls)
        unfit = unfit or connection.exhausted or not connection.usable
        unfit = unfit or any(limit.used > limit.most for limit in queue.limits)
        if self._stopping or unfit or rules.suspended or self.halts.of(queue.key, now):
            connection.quit()
            return
        if self.places.gives_way(connection, queue, now):
            connection.quit()
            return
        limit = self.memory.recipients(connection.remote_ip, rules.settings.max_recipients_per_batch, now)
        while queue.waiting and self.throttles.let(queue, MESSAGES, now, connection.host_name):
            taken, trail = queue.take(limit, connection.peer)
            messages = self._deliverable(connection, taken, now)
            if messages:
                if trail is not None:
                    self._trails.setdefault(connection, trail)
                self._send(connection, messages)
                return
            if not taken:
                break
        self._trails.pop(connection, None)
        if not rules.settings.idle_timeout or self.queues.crowded or self.places.others_wait(queue):
            connection.quit()
            return
        self.siblings.rest(connection, queue)
        self.queues.rest(queue, connection, now)
        connection.rest(rules.settings.idle_timeout)

    def _deliverable(self, connection: Connection, messages: list[Message], now: float) -> list[Message]:
        """Those that are to be tried; the others are settled here."""
        out = []
        for message in messages:
            own = self.config.outbound.for_message(message)
            outcome = retry.unattempted(own, message, now)
            if outcome is None and own.blackhole == "internal":
                outcome = PermanentFailure(replies.BLACKHOLED, Stage.IDLE)
            elif outcome is None and not str(message.recipient).isascii():
                outcome = PermanentFailure(replies.SMTPUTF8_NEEDED, Stage.IDLE)
            elif outcome is None and own.transform_8bitmime_content == "strict" and message.batch.eight_bit:
                lacking = not connection.takes_eight_bit
                outcome = PermanentFailure(replies.EIGHT_BIT_NEEDED, Stage.IDLE) if lacking else None
            if outcome is None:
                out.append(message)
            else:
                self.settlement.settle(message, outcome)
        return out

    def _send(self, connection: Connection, messages: list[Message]) -> None:
        batch = messages[0].batch
        if batch.path:
            connection.deliver(messages, str(self.store.body_path(batch)))
        elif batch.body is not None:
            connection.deliver(messages, batch.body)
        else:
            self._spawn(self._load_and_send(connection, messages))

    async def _load_and_send(self, connection: Connection, messages: list[Message]) -> None:
        """Read a body that is not resident, off the event loop."""
        outcome: Outcome
        services = self.services
        try:
            body = await self.store.body(messages[0].batch)
        except Exception as error:
            # the disk, not the message, is at fault: keep it and try again later
            self.log(Panic(self.services.clock.now(), f"spool: cannot read {messages[0].batch.id}: {error}"))
            outcome, body = TransientFailure(replies.SPOOL_FAILED, Stage.IDLE), None
        else:
            outcome = PermanentFailure(replies.BODY_MISSING, Stage.IDLE)
        if body is None:
            self._trails.pop(connection, None)
            for message in messages:
                self.settlement.settle(message, outcome)
            self.free(connection)
        elif self.services is not services or not connection.usable or connection not in self._of:
            # reading took its time: the connection may be gone, or a reload may want other TLS
            self.sorting.put_back(messages, self._trails.pop(connection, None))
            connection.quit()
        else:
            connection.deliver(messages, body)

    def sent(self, connection: Connection, sent: Sent) -> None:
        """A transaction has ended: settle what is decided, and send the rest to another host, or on its way again."""
        now = self.services.clock.now()
        queue = self._of.get(connection)
        trail = self._trails.pop(connection, None)
        same = connection.services is self.services
        if sent.refused and queue is not None and (working := self._working(connection, queue)):
            # it takes mail over others, and no more of them: that costs the messages nothing
            queue.site.window.refused(working, now)
            self.sorting.put_back([message for message, _ in sent.results] + sent.untried, trail, same_rules=same)
            return
        if sent.only:
            self.memory.takes_only(connection.remote_ip, sent.only, now)
        elsewhere: list[tuple[Message, TransientFailure]] = []
        for message, outcome in sent.results:
            if isinstance(outcome, TransientFailure) and outcome.stage is not Stage.IDLE:
                elsewhere.append((message, outcome))
                if self.put_off is not None:
                    self.put_off(self._refused_by(connection, message, outcome, now))
                continue
            if isinstance(outcome, Delivered) and queue is not None:
                queue.site.window.succeeded(now, queue.rules.connections + queue.rules.spare)
            try:
                facts, host, source = connection.facts, connection.host_name, connection.local_ip
                self.settlement.settle(message, outcome, facts, host, source, connection.demand.reasons)
            except Exception as error:  # the others of the transaction are to be settled all the same
                self.unexpected(error)
        self.sorting.put_back(sent.untried, trail, same_rules=same)
        if sent.refused and queue is not None:
            self._leave_alone(connection, queue, now)
        for outcome in dict.fromkeys(outcome for _, outcome in elsewhere):
            failed = Failed(outcome, connection.facts, connection.host_name, connection.local_ip)
            messages = [message for message, its in elsewhere if its == outcome]
            after = (trail or Trail()).after(connection.peer, failed, session=True)
            self.sorting.put_back(messages, after, same_rules=same)
        if queue is not None:
            self.queues.touch(queue, now)  # the window may have grown

    def _refused_by(self, connection: Connection, message: Message, outcome: TransientFailure, now: float) -> Attempted:
        """What one host made of a message that goes to the next one."""
        demand = message.demand or override.demand_of(message, self.config)
        facts, reasons = connection.facts, connection.demand.reasons
        return Attempted(now, message, outcome, demand, facts, connection.host_name, connection.local_ip, reasons)

    def _working(self, connection: Connection, queue: Queue) -> int:
        """Over how many other connections of the same site a host takes mail."""
        others = ((c, q) for c, q in self._of.items() if c is not connection and q.site is queue.site)
        return sum(c.took > 0 and c.peer == connection.peer for c, _ in others)

    def _leave_alone(self, connection: Connection, queue: Queue, now: float) -> None:
        """A host takes no mail of a destination for now: no more connections, or none of this destination where it
        takes that of others."""
        queue.site.window.failed()
        seconds = queue.rules.settings.host_failure_retry
        if any(c.took and c.peer == connection.peer for c in self._of if c is not connection):
            queue.pause(now + seconds, f"{connection.host_name} takes no mail of it for now")
        elif connection.host is not None:
            self.memory.rest(connection.host, seconds, now)

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        queue = self._of.pop(connection, None)
        self._trails.pop(connection, None)
        self.siblings.wake(connection)
        if queue is not None:
            self.queues.closed(queue, connection, self.services.clock.now())
            self.places.freed(connection.host_name, connection.peer)
            self.kick()

    # tasks ----------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.unexpected(error)

    def unexpected(self, error: BaseException) -> None:
        self.log(Panic(self.services.clock.now(), f"delivery: unexpected {error!r}"))
