"""Brings queues, connections and outcomes together. Shell.

The scheduler says which queue gets a connection, `hosts` where it leads, `Attempt` what to try, a `Connection` does it.
What comes of each message is settled here in one place: `_settle` logs it, tells the spool, and has a notification
written before a message that failed for good is let go.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from quillon.config.model import Config, lookup_name
from quillon.config.settings import DeliverySettings, OutboundTls, share
from quillon.config.values import Throttle
from quillon.delivery import ruling
from quillon.delivery.attempt import Attempt, TryHost
from quillon.delivery.bounce import Bouncer
from quillon.delivery.connection import Connection, Surroundings
from quillon.delivery.hosts import HostFinder
from quillon.delivery.pool import Pool
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import certificate_names
from quillon.mail import reply as replies
from quillon.mail.event import Attempted, Event, Panic, TlsFacts
from quillon.mail.message import Message
from quillon.mail.outcome import Outcome, PermanentFailure, Stage, TransientFailure
from quillon.mail.reply import parse_reply
from quillon.policy.hook import Hook
from quillon.policy.tls import TlsHooks
from quillon.queue.backlog import Key, key_of
from quillon.queue.scheduler import Delay, Fail, Limits, Scheduler
from quillon.queue.throttle import Bucket
from quillon.reception.door import Residents
from quillon.spool.store import Store
from quillon.tls.context import Contexts

TICK = 0.25  # seconds between looks at delayed queues
UNLIMITED = 2**31
MAX_RESTING = 4096  # addresses noted before those that rest no more are dropped
ASKED_AT_ONCE = 100  # messages that are out of their queue while a policy is asked about them
PATIENCE = 60.0  # seconds that a policy may take for one of them
RETRY_NOTICE = 60.0  # seconds until a notification that could not be stored is tried again


@dataclass
class Share:
    """This worker's part of what is limited for the whole node."""

    workers: int = 1

    def of(self, limit: int) -> int:
        """0 and -1 stand for no limit."""
        return share(max(limit, 0), self.workers) or UNLIMITED


@dataclass
class Dispatcher:
    """`hostname` is the name in EHLO. `log` takes events."""

    config: Config
    store: Store
    residents: Residents
    finder: HostFinder
    bouncer: Bouncer
    around: Surroundings
    hostname: str
    share: Share
    log: Callable[[Event], None]
    _pool: Pool[Connection] = field(default_factory=Pool)
    _keys: dict[Connection, Key] = field(default_factory=dict)
    _resting: dict[str, float] = field(default_factory=dict)
    _buckets: dict[tuple[int, str], Bucket] = field(default_factory=dict)
    _opening: list[str] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _asking: set[asyncio.Task[ruling.Ruling | str | None]] = field(default_factory=set)
    _changed: Counter[str] = field(default_factory=Counter)  # messages of which something else is demanded, by words
    _pumping: bool = False
    _stopping: bool = False
    _timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self._default_suspended = self.config.node().default_binding == "suspended"
        self.scheduler = Scheduler(self._limits, self._total())

    def _total(self) -> int:
        return self.share.of(self.config.node().server_max_outbound_connections)

    # life -----------------------------------------------------------------------------------------------------

    def start(self, recovered: list[Message]) -> None:
        """Begin, with the messages of an earlier life."""
        now = self.around.clock.now()
        for message in recovered:
            try:
                self._admit(message, now)
            except Exception as error:
                # whatever a spool holds, the others of it go on
                self.log(Panic(now, f"delivery: message {message.id} of the spool cannot be queued: {error!r}"))
        self._tell_demands()
        asyncio.get_running_loop().call_soon(self._tick)

    def _tell_demands(self) -> Counter[str]:
        """A panic line for each demand that is lost, or weaker by the operator's word, with the number of messages."""
        for message in self.scheduler.messages():
            if isinstance(message.ruling, ruling.Held):
                self._changed[f"wait: {message.ruling.words}"] += 1
        return self._tell_changed()

    def _tell_changed(self) -> Counter[str]:
        found, self._changed = self._changed, Counter()
        for words, count in found.items():
            self.log(Panic(self.around.clock.now(), f"config: {count} messages {words}"))
        return found

    def _admit(self, message: Message, now: float) -> None:
        """Put a message into its queue, or settle at once what needs no attempt: a policy has refused it, or the
        configuration has mail of its domain vanish."""
        self._reroute(message)
        if self.config.for_message(message).blackhole == "internal" and not message.refused:
            _, tls = self._settings(key_of(message))
            self._settle(message, PermanentFailure(replies.BLACKHOLED, Stage.NOT_CONNECTED), tls, None, "")
        elif message.refused:
            _, tls = self._settings(key_of(message))
            try:
                refusal = parse_reply(message.refused)
            except ValueError:  # what stands in a spool ends no server
                refusal = replies.REFUSED
            self._settle(message, PermanentFailure(refusal, Stage.IDLE), tls, None, "")
        else:
            self.scheduler.enqueue(message, now)

    def _reroute(self, message: Message) -> None:
        """Whose stanza rules TLS behind a gateway, and what policy makes of it, is for what runs now to say. A demand
        that can't be found any more is not replaced by a weaker one: the message waits."""
        message.via = ruling.via_of(message, self.config)
        message.ruling = None
        settings, tls = self._settings(key_of(message))
        message.ruling = ruling.of(message, settings, tls, self.around.hooks)
        self._hold_if_lost(message)

    def _hold_if_lost(self, message: Message) -> None:
        now = ruling.demand_of(message, self.config)
        asks = self.around.hooks.asks(Hook.OUTBOUND_PARAMETERS)
        held = ruling.lost(message, self.config, now, by_policy=asks)
        if held is not None:
            message.ruling = held
        elif not isinstance(message.ruling, (str, ruling.Pending)):
            words = ruling.eased(message, now)
            if words:
                self._changed[f"go with less: {words}"] += 1
            message.demand = now

    def reconfigure(self, config: Config, contexts: Contexts, hooks: TlsHooks) -> Counter[str]:
        """Other settings for what begins from now on; idle connections are closed. Gives how many messages wait for a
        demand that is lost, or go with less, by words."""
        self.config = config
        self.around = Surroundings(self.around.clock, self.around.deadlines, contexts, hooks)
        self._default_suspended = config.node().default_binding == "suspended"
        self._buckets.clear()
        self._resting.clear()
        for connection in self._pool.drain():
            connection.quit()
        for task in self._asking:
            task.cancel()  # the new policy is asked
        self.scheduler.rekey(self._reroute, self.around.clock.now())
        self.scheduler.set_total(self._total())
        self._kick()
        return self._tell_demands()

    async def stop(self, seconds: float) -> None:
        """Begin nothing new, and give what runs so long to end. What is not done stays in the spool."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._asking:
            task.cancel()
        for connection in self._pool.drain():
            connection.quit()
        end = self.around.clock.now() + seconds
        while (self._keys or self._tasks) and self.around.clock.now() < end:  # noqa: ASYNC110 - two sets to empty
            await asyncio.sleep(0.02)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tick(self) -> None:
        if not self._stopping:
            self._tell_changed()  # of messages that were on their way during a reload
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
            self._pump()

    # messages in ----------------------------------------------------------------------------------------------

    def submit(self, messages: list[Message]) -> None:
        """New messages, which the spool has."""
        now = self.around.clock.now()
        for message in messages:
            self._admit(message, now)  # a reload may have come while it was committed
        self._kick()

    def delay_domain(self, domain: str, note: str) -> int:
        """Put the waiting messages of a domain off until their next retry (manual, mail_queue_delay_domain)."""
        settings, _ = self.config.delivery("default", "default", domain)
        until = self.around.clock.now() + settings.retry_interval
        delayed = self.scheduler.delay_all(domain, until, note)
        for message in delayed:
            self.store.update(message)
        return len(delayed)

    def _return(self, messages: list[Message]) -> None:
        """Put messages that were taken and not tried back into the queues that are theirs now."""
        for message in reversed(messages):
            self._reroute(message)
            self.scheduler.put_back(key_of(message), [message])

    def _kick(self) -> None:
        if not self._pumping and not self._stopping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._stopping:
            return
        for key in self._pool.waiting():
            while self.scheduler.backlog(key).active:
                _, tls = self._settings(key)
                connection, unfit = self._pool.take(key, tls)
                for other in unfit:
                    other.quit()
                if connection is None or not self._feed(connection, key):
                    break
        now = self.around.clock.now()
        for key in self.scheduler.next(now):
            if isinstance(key.ruling, ruling.Pending):
                self._ask(key)
                self.scheduler.closed(key, was_connected=False)  # to ask takes no connection
                continue
            task = asyncio.get_running_loop().create_task(self._open(key))
            self._tasks.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._unexpected(error)

    def _unexpected(self, error: BaseException) -> None:
        self.log(Panic(self.around.clock.now(), f"delivery: unexpected {error!r}"))

    # settings -------------------------------------------------------------------------------------------------

    def _settings(self, key: Key) -> tuple[DeliverySettings, OutboundTls]:
        settings, tls = self.config.delivery(key.binding_group, key.binding, key.domain, key.via)
        own = key.ruling.tls if isinstance(key.ruling, ruling.Ruling) else None
        return settings, own or tls

    def _limits(self, key: Key) -> Limits:
        settings, _ = self._settings(key)
        suspended = settings.suspend_delivery or (self._default_suspended and key.binding == "default")
        return Limits(self.share.of(settings.max_outbound_connections), suspended, settings)

    def _bucket(self, key: Key, option: str, throttle: Throttle | None) -> Bucket | None:
        """The counter of a throttle, which belongs to the stanza that set it."""
        if throttle is None or throttle.count == 0:
            return None
        node = self.config.outbound(option, key.binding_group, key.binding, key.domain).node
        name = (id(node), option)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(throttle.count / self.share.workers, throttle.seconds)
        return bucket

    def _ehlo_name(self, key: Key, settings: DeliverySettings) -> str:
        name = settings.ehlo_hostname
        if name == "__message__":
            active = self.scheduler.backlog(key).active
            return (active[0].batch.sender.domain if active else "") or self.hostname
        return self.hostname if name == "__hostname__" else name

    # connections ----------------------------------------------------------------------------------------------

    async def _open(self, key: Key) -> None:
        """Get a connection for a queue, or fail what waits in it."""
        connection: Connection | None = None
        try:
            connection = await self._connect(key)
        finally:
            if connection is None:
                self.scheduler.closed(key, was_connected=False)
            else:
                self.scheduler.connected(key)
                self._keys[connection] = key
        if connection is not None and not self._feed(connection, key):
            self._kick()

    async def _connect(self, key: Key) -> Connection | None:
        settings, tls = self._settings(key)
        now = self.around.clock.now()
        if isinstance(key.ruling, ruling.Held):
            held = TransientFailure(replies.DEMAND_LOST, Stage.NOT_CONNECTED, cause="demand_lost")
            self._site_failed(key, held, tls, None, "")
            return None
        if isinstance(key.ruling, str):
            outcome = TransientFailure(replies.POLICY_FAILED, Stage.NOT_CONNECTED, cause="policy_failed")
            self._site_failed(key, outcome, tls, None, "")
            return None
        login = key.ruling.login if isinstance(key.ruling, ruling.Ruling) else None
        if login is not None and not (login.user and login.password):
            outcome = TransientFailure(replies.AUTH_INCOMPLETE, Stage.NOT_CONNECTED)
            self._site_failed(key, outcome, tls, None, "")
            return None
        bucket = self._bucket(key, "outbound_throttle_connections", settings.outbound_throttle_connections)
        if bucket is not None and not bucket.take(now):
            self.scheduler.hold(key, bucket.ready_at(now))
            return None
        found = await self.finder.find(key.domain, settings)
        if not isinstance(found, list):
            self._site_failed(key, found, tls, None, "")
            return None
        hosts = self._awake(key, found)
        if not hosts:
            return None
        attempt = Attempt(tls, hosts)
        facts: TlsFacts | None = None
        host = ""
        while isinstance(step := attempt.next_step(), TryHost):
            connection = Connection(
                self.around,
                settings,
                tls,
                certificate_names(step.host.name, key.domain, key.via),
                lookup_name(key.domain),
                self._ehlo_name(key, settings),
                login=login,
                gone=self._gone,
            )
            if not self._has_room(step.host):
                attempt.unreachable(step, replies.NO_VALID_HOSTS.because("Host limit reached"))
                continue
            self._opening.append(step.host.name)
            try:
                is_open = await connection.open(attempt, step)
            finally:
                self._opening.remove(step.host.name)
            if is_open:
                if step.in_clear and facts is not None:
                    # in clear after a failed negotiation with this host: the log tells what failed, and nothing of TLS
                    connection.facts = TlsFacts(cause=facts.cause, detail=facts.detail)
                return connection
            facts, host = connection.facts or (facts if step.in_clear else None), step.host.name
            if connection.unreachable:
                self._rest(step.host.ip, settings.host_failure_retry)
        self._site_failed(key, step, tls, facts, host)
        return None

    def _ask(self, key: Key) -> None:
        """Have policy asked what the messages of a queue authenticate with, so many at once."""
        while len(self._asking) < ASKED_AT_ONCE:
            messages = self.scheduler.take(key, ASKED_AT_ONCE - len(self._asking))
            if not messages:
                break
            for message in messages:
                asked = ruling.asked(message, *self._settings(key_of(message)), self.around.hooks)
                task = asyncio.get_running_loop().create_task(asyncio.wait_for(asked, PATIENCE))
                self._asking.add(task)
                task.add_done_callback(partial(self._asked, message, self.around))

    def _asked(self, message: Message, around: Surroundings, task: asyncio.Task[ruling.Ruling | str | None]) -> None:
        """Policy has said what a message authenticates with: put it into the queue where it belongs then."""
        self._asking.discard(task)
        if task.cancelled() or self.around is not around:  # a reload, or the end
            self._return([message])
        else:
            error = task.exception()
            message.ruling = task.result() if error is None else f"unexpected {error!r}"
            if isinstance(error, TimeoutError):
                message.ruling = f"outbound_smtp_auth_config waited longer than {PATIENCE:.0f} s"
                self.log(Panic(self.around.clock.now(), f"policy: {message.ruling}"))
            elif error is not None:
                self._unexpected(error)
            self.scheduler.enqueue(message, self.around.clock.now())
        self._kick()

    def _rest(self, ip: str, seconds: int) -> None:
        now = self.around.clock.now()
        if len(self._resting) >= MAX_RESTING:
            self._resting = {ip: until for ip, until in self._resting.items() if until > now}
        self._resting[ip] = now + seconds

    def _awake(self, key: Key, found: list[Host]) -> list[Host]:
        """Hosts that do not rest after a failure and have room; with none, the queue waits for the first."""
        now = self.around.clock.now()
        hosts = [host for host in found if self._resting.get(host.ip, 0.0) <= now and self._has_room(host)]
        if not hosts:
            waits = [self._resting[host.ip] for host in found if self._resting.get(host.ip, 0.0) > now]
            self.scheduler.hold(key, min(waits, default=now + 1.0))
        return hosts

    def _has_room(self, host: Host) -> bool:
        limit = self.config.host_connections(host.name)
        if limit < 0:
            return True
        used = sum(c.host_name == host.name for c in self._keys) + self._opening.count(host.name)
        return used < self.share.of(limit)

    def _site_failed(
        self,
        key: Key,
        outcome: TransientFailure | PermanentFailure,
        tls: OutboundTls,
        facts: TlsFacts | None,
        host: str,
    ) -> None:
        """No connection was to be had. With others standing, the host just takes no more; else all mail waits."""
        if self.scheduler.backlog(key).connections and not outcome.cause:
            self.scheduler.too_many(key, self.around.clock.now())
            return
        for message in self.scheduler.drain(key):
            self._settle(message, outcome, tls, facts, host)

    def _gone(self, connection: Connection) -> None:
        key = self._keys.pop(connection, None)
        if key is not None:
            self._pool.discard(key, connection)
            self.scheduler.closed(key, was_connected=True)
            self._kick()

    # messages out ---------------------------------------------------------------------------------------------

    def _feed(self, connection: Connection, key: Key) -> bool:
        """Give a free connection its next messages; False if it got none and rests or ends."""
        settings, tls = self._settings(key)
        unfit = connection.exhausted or connection.tls != tls or not connection.usable
        unfit = unfit or _identity(connection.settings) != _identity(settings)
        if self._stopping or unfit or self._limits(key).suspended:
            connection.quit()
            return False
        now = self.around.clock.now()
        while messages := self.scheduler.take(key, settings.max_recipients_per_batch):
            messages = self._deliverable(messages, settings, tls, now)
            if not messages:
                continue
            bucket = self._bucket(key, "outbound_throttle_messages", settings.outbound_throttle_messages)
            if bucket is not None and not bucket.take(now):
                self._return(messages)
                self.scheduler.hold(key, bucket.ready_at(now))
                break
            self._send(connection, messages)
            return True
        self._pool.put(key, connection)
        connection.rest(settings.idle_timeout)
        return False

    def _deliverable(
        self, messages: list[Message], settings: DeliverySettings, tls: OutboundTls, now: float
    ) -> list[Message]:
        """Those that are to be tried; the others are settled here."""
        out = []
        for message in messages:
            own = self.config.for_message(message)
            outcome = self.scheduler.unattempted(message, now, own)
            if outcome is None and own.blackhole == "internal":
                outcome = PermanentFailure(replies.BLACKHOLED, Stage.IDLE)
            elif outcome is None and not str(message.recipient).isascii():
                outcome = PermanentFailure(replies.SMTPUTF8_NEEDED, Stage.IDLE)
            if outcome is None:
                out.append(message)
            else:
                self._settle(message, outcome, tls, None, "")
        return out

    def _send(self, connection: Connection, messages: list[Message]) -> None:
        batch = messages[0].batch
        if batch.path:
            self._deliver(connection, messages, str(self.store.body_path(batch)))
        elif batch.body is not None:
            self._deliver(connection, messages, batch.body)
        else:
            task = asyncio.get_running_loop().create_task(self._load_and_send(connection, messages))
            self._tasks.add(task)
            task.add_done_callback(self._opened)

    async def _load_and_send(self, connection: Connection, messages: list[Message]) -> None:
        """Read a body that is not resident, off the event loop."""
        outcome: Outcome
        around = self.around
        try:
            body = await self.store.body(messages[0].batch)
        except Exception as error:
            # the disk, not the message, is at fault: keep it and try again later
            self.log(Panic(self.around.clock.now(), f"spool: cannot read {messages[0].batch.id}: {error}"))
            outcome, body = TransientFailure(replies.SPOOL_FAILED, Stage.IDLE), None
        else:
            outcome = PermanentFailure(replies.BODY_MISSING, Stage.IDLE)
        if body is None:
            for message in messages:
                self._settle(message, outcome, connection.tls, None, "")
            self._free(connection)
        elif self.around is not around or not connection.usable or connection not in self._keys:
            # reading took its time: the connection may be gone, or a reload may want other TLS
            self._return(messages)
            connection.quit()
            self._kick()
        else:
            self._deliver(connection, messages, body)

    def _deliver(self, connection: Connection, messages: list[Message], body: bytes | str) -> None:
        def settle(message: Message, outcome: Outcome) -> None:
            self._settle(message, outcome, connection.tls, connection.facts, connection.host_name, connection.local_ip)

        connection.deliver(messages, body, settle, self._free)

    def _free(self, connection: Connection) -> None:
        key = self._keys.get(connection)
        if key is not None:
            self._feed(connection, key)

    def _settle(
        self,
        message: Message,
        outcome: Outcome,
        tls: OutboundTls,
        facts: TlsFacts | None,
        host: str,
        local_ip: str = "",
    ) -> None:
        """What becomes of a message: the one place where that is logged and the spool told."""
        now = self.around.clock.now()
        self._reroute(message)  # should it wait, then under the rules that hold now
        policy = self.around.hooks.policy
        settled = self.scheduler.settle(
            message,
            outcome,
            now,
            lambda when: ruling.next_attempt(message, when, now, policy),
            lambda: ruling.retries(message, self.config.for_message(message), policy),
        )
        if isinstance(settled, Fail):
            outcome = settled.outcome
        outcome = ruling.logged(message, outcome, now, policy)
        if isinstance(settled, Delay):
            ruling.requeued(message, now, policy)
        demand = message.demand or ruling.demand_of(message, self.config)
        self.log(Attempted(now, message, outcome, demand, facts, host, local_ip or self._source(message)))
        if isinstance(settled, Delay):
            self._kept(message)
        elif isinstance(settled, Fail):
            self._notify(message, settled.outcome)
        else:
            self._removed(message)

    def _source(self, message: Message) -> str:
        """The source address that the configuration wants for a message that no connection was there for."""
        address = self._settings(key_of(message))[0].bind_address
        return "" if address == "*" else address

    def _kept(self, message: Message) -> None:
        self.store.update(message)
        if message.tries >= self.config.for_message(message).drop_body_after_trans_fail:
            self.residents.release(message.batch)

    def _notify(self, message: Message, outcome: PermanentFailure) -> None:
        """Have the sender told, and let the message go once that is stored. A refused notice is tried again."""

        def told(done: bool) -> None:
            if done:
                self._removed(message)
            elif not self._stopping:
                asyncio.get_running_loop().call_later(RETRY_NOTICE, self._notify, message, outcome)

        self.bouncer.failed(message, outcome, told, self.around.hooks.policy)

    def _removed(self, message: Message) -> None:
        self.store.remove(message)
        if message.batch.left == 0:
            self.residents.release(message.batch)


def _identity(settings: DeliverySettings) -> tuple[str, ...]:
    """As whom a connection was opened: one from another address, or with other credentials, is another one."""
    return (
        settings.bind_address,
        settings.ehlo_hostname,
        settings.outbound_smtp_auth_type,
        settings.outbound_smtp_auth_user,
        settings.outbound_smtp_auth_pass,
    )
