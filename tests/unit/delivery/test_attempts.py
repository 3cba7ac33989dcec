"""Delivery against hosts that do what hosts do, on a clock of its own: who is tried next, who waits, and that each
recipient ends once."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quillon.config.load import load
from quillon.config.model import Config
from quillon.delivery.attempt import Obstacle, TryHost
from quillon.delivery.connection import ConnectionServices, Obstructed, Sent
from quillon.delivery.dispatcher import Dispatcher, Share
from quillon.delivery.hosts import Found
from quillon.delivery.route import Host
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.event import Attempted, Event, HostFailed, Panic
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, Origin
from quillon.mail.outcome import Delivered, PermanentFailure, Stage, TransientFailure
from quillon.mail.reply import parse_reply
from quillon.policy.hook import NO_POLICY, Hook, Policy
from quillon.policy.tls import TlsHooks
from quillon.queue.trail import Failed
from quillon.reception.accept import ResidentBodies
from tests.support.compiled import pure_only
from tests.support.scripts import Answers
from tests.support.virtual import VirtualClock, VirtualLoop, run

pytestmark = pure_only  # connections here are none

IDS = IdSource(7)


@dataclass
class Peer:
    """What a host does: `connect` says why a connection does not come about, `answer` what a transaction ends with for
    each recipient (None for 250). At most `most` connections stand at once, and a transaction takes `recipients`."""

    connect: Callable[[], Obstructed | None] = lambda: None
    answer: Callable[[list[Message]], list[str | None]] = lambda messages: [None] * len(messages)
    most: int = 1000
    most_at_mail: int = 1000  # connections beyond are taken, and told 421 at MAIL
    recipients: int = 1000
    seconds: float = 0.1
    standing: int = 0
    connects: int = 0
    highest: int = 0


class FakeConnection:
    """A connection to a `Peer`, by the rules of the real one."""

    def __init__(self, world: World, *args: Any, owner: Any, **_: Any) -> None:
        self.services, self.settings, self.demand, self.domain, self.ehlo_name = args
        self.tls, self.names = self.demand.configured, self.demand.names
        self.world = world
        self.owner = owner
        self.facts = None
        self.host: Host | None = None
        self.host_name = self.remote_ip = self.local_ip = self.peer = ""
        self.usable = True
        self.takes_eight_bit = True
        self.since = world.clock.now()
        self.delivered = self.took = 0
        self._resting: asyncio.TimerHandle | None = None

    @property
    def exhausted(self) -> bool:
        limit = self.settings.max_deliveries_per_connection
        return bool(limit) and self.delivered >= limit

    async def open(self, step: TryHost) -> Obstructed | None:
        peer = self.world.peers[step.host.ip]
        self.host, self.host_name, self.remote_ip = step.host, step.host.name, step.host.ip
        self.peer = step.host.peer
        peer.connects += 1
        await asyncio.sleep(peer.seconds)
        found = peer.connect()
        if found is None and peer.standing >= peer.most:
            found = obstructed("421 4.7.0 too many connections", Obstacle.UNWILLING)
        if found is not None:
            outcome = dataclasses.replace(found.failed.outcome, remote_ip=self.remote_ip)
            return Obstructed(found.obstacle, Failed(outcome, None, self.host_name))
        peer.standing += 1
        peer.highest = max(peer.highest, peer.standing)
        self.place = peer.standing
        return None

    def deliver(self, messages: list[Message], body: bytes | str) -> None:
        if self._resting is not None:
            self._resting.cancel()
        asyncio.get_running_loop().call_later(self.world.peers[self.remote_ip].seconds, self._answer, messages)

    def _answer(self, messages: list[Message]) -> None:
        peer = self.world.peers[self.remote_ip]
        taken, left = messages[: peer.recipients], messages[peer.recipients :]
        results: list[tuple[Message, Any]] = []
        refused = False
        texts = peer.answer(taken) if self.place <= peer.most_at_mail else ["421 4.7.0 too many"] * len(taken)
        for message, text in zip(taken, texts, strict=True):
            reply = parse_reply(text) if text else replies.OK
            refused = refused or reply.code == 421
            self.took += reply.positive
            kind = PermanentFailure if reply.permanent else TransientFailure
            failed = kind(reply, Stage.AFTER_MAIL if reply.code == 421 else Stage.READING_CONFIRMATION, self.remote_ip)
            results.append((message, Delivered(reply, self.remote_ip) if reply.positive else failed))
        kept, self.delivered = self.delivered > 0, self.delivered + 1
        if refused and kept:
            self.owner.sent(self, Sent([], messages))
        else:
            self.owner.sent(self, Sent(results, left, refused, peer.recipients if left else 0))
        if refused:
            self.quit()
        else:
            self.owner.free(self)

    def turn_to(self, names: tuple[str, ...], domain: str) -> bool:
        self.names, self.domain = names, domain
        return True

    def rest(self, seconds: float) -> None:
        self._resting = asyncio.get_running_loop().call_later(seconds, self.quit)

    def quit(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        if self.usable:
            self.usable = False
            asyncio.get_running_loop().call_soon(self._gone)

    def _gone(self) -> None:
        self.world.peers[self.remote_ip].standing -= 1
        self.owner.gone(self)


def obstructed(text: str, obstacle: Obstacle = Obstacle.UNREACHABLE, cause: str = "") -> Obstructed:
    return Obstructed(obstacle, Failed(TransientFailure(parse_reply(text), Stage.NOT_CONNECTED, cause=cause)))


class _Store:
    """A spool that forgets nothing it was told."""

    def __init__(self) -> None:
        self.removed: Counter[int] = Counter()

    def update(self, message: Message) -> None:
        assert not self.removed[message.id.number], "a message that is done waits"

    async def body(self, _: Batch) -> bytes:
        return b"hello"

    def remove(self, message: Message) -> None:
        self.removed[message.id.number] += 1
        message.batch.left -= 1


class _Bouncer:
    def __init__(self) -> None:
        self.told: list[tuple[Message, PermanentFailure, str]] = []
        self.late_told: list[tuple[Message, TransientFailure]] = []

    def late(self, message: Message, outcome: TransientFailure) -> None:
        self.late_told.append((message, outcome))

    def failed(
        self, message: Message, outcome: PermanentFailure, done: Callable[[bool], None], _: Any, last: str = ""
    ) -> None:
        self.told.append((message, outcome, last))
        asyncio.get_running_loop().call_soon(done, True)


@dataclass
class World:
    """Hosts of each routing domain, in the order in which they are tried."""

    loop: VirtualLoop
    config: Config
    peers: dict[str, Peer]
    routes: dict[str, list[str]]
    events: list[Event] = field(default_factory=list)
    workers: int = 1
    said: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = VirtualClock(self.loop)
        self.store, self.bouncer = _Store(), _Bouncer()
        self.resident_bodies = ResidentBodies(0)
        hooks = self.hooks = TlsHooks(NO_POLICY, "/")
        self.dispatcher = Dispatcher(
            config=self.config,
            store=self.store,  # type: ignore[arg-type]
            resident_bodies=self.resident_bodies,
            finder=self,  # type: ignore[arg-type]
            standards=None,  # type: ignore[arg-type]
            bouncer=self.bouncer,  # type: ignore[arg-type]
            services=ConnectionServices(self.clock, None, None, hooks),  # type: ignore[arg-type]
            hostname="mx.quillon.test",
            share=Share(self.workers),
            say=self.said.append,
            log=self.events.append,
            connect=lambda *args, **kw: FakeConnection(self, *args, **kw),  # type: ignore[arg-type]
        )
        self.dispatcher.start(_nothing())

    async def find(self, domain: str, _: Any) -> Found:
        return [Host(f"mx{n}.{domain}", ip, 25) for n, ip in enumerate(self.routes[domain], 1)]

    def send(
        self,
        domain: str,
        recipients: int = 1,
        *,
        submit: bool = True,
        change: Callable[[Message], None] = lambda _: None,
    ) -> list[Message]:
        now = self.clock.now()
        batch = Batch(IDS.next(now), Mailbox("a", "x.test"), Origin("192.0.2.9", "esmtp", NULL_ID), now, 5, b"hello")
        batch.left = recipients
        self.resident_bodies.admit(batch)
        found = [Message(IDS.next(now), batch, Mailbox(f"b{n}", domain)) for n in range(recipients)]
        for message in found:
            message.demand = self.config.outbound.demand("default", "default", domain)
            change(message)
        if submit:
            self.dispatcher.submit(found)
        return found

    def outcomes(self, kind: type) -> list[Attempted]:
        return [event for event in self.events if isinstance(event, Attempted) and isinstance(event.outcome, kind)]

    def panics(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Panic)]


def simulate(
    main: Callable[[World], Any],
    peers: dict[str, Peer],
    routes: dict[str, list[str]],
    config: str = "",
    workers: int = 1,
) -> World:
    """Run `main` in a world of such hosts."""
    loaded = _config("Retry_Spread = 0\n" + config)
    worlds: list[World] = []

    async def work(loop: VirtualLoop) -> None:
        worlds.append(World(loop, loaded, peers, routes, workers=workers))
        await main(worlds[0])
        await worlds[0].dispatcher.stop(5.0)

    run(work)
    assert not worlds[0].panics()
    return worlds[0]


@cache
def _config(text: str) -> Config:
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(text)
        file.flush()
        loaded = load(file.name)
    assert loaded.config is not None, loaded.errors
    return loaded.config


REFUSED = "451 4.4.1 [internal] No valid hosts"
A, B = "192.0.2.1", "192.0.2.2"
AT_ONCE = "Connect_Timeout_To_Delay = 0"


@pytest.mark.parametrize(
    ("obstacle", "cause"),
    [
        (Obstacle.UNREACHABLE, ""),
        (Obstacle.UNWILLING, ""),
        (Obstacle.LOGIN, ""),
        (Obstacle.NEGOTIATION, "handshake_eof"),
        (Obstacle.REJECTED, "expired"),
        (Obstacle.REJECTED, "no_starttls"),
    ],
)
def test_the_next_host_takes_what_the_first_cannot(obstacle: Obstacle, cause: str) -> None:
    async def main(world: World) -> None:
        world.send("y.test")
        await asyncio.sleep(5)

    world = simulate(
        main, {A: Peer(connect=lambda: obstructed(REFUSED, obstacle, cause)), B: Peer()}, {"y.test": [A, B]}
    )
    (event,) = world.outcomes(Delivered)
    assert (event.message.tries, event.host) == (1, "mx2.y.test")
    (failed,) = [event for event in world.events if isinstance(event, HostFailed)]
    assert (failed.host, failed.outcome.cause) == ("mx1.y.test", cause)


def test_mail_for_hosts_that_do_not_answer_takes_no_place_in_memory() -> None:
    answers = False
    bodies: list[bytes | None] = []

    async def main(world: World) -> None:
        nonlocal answers
        waiting = [*world.send("y.test"), *world.send("y.test")]
        await asyncio.sleep(5)
        waiting += world.send("y.test")
        bodies.extend(message.batch.body for message in waiting)
        assert world.resident_bodies.count == 0
        answers = True
        await asyncio.sleep(600)
        (prompt,) = world.send("y.test")
        bodies.append(prompt.batch.body)
        await asyncio.sleep(5)

    peers = {A: Peer(connect=lambda: None if answers else obstructed(REFUSED, Obstacle.UNREACHABLE))}
    world = simulate(main, peers, {"y.test": [A]})
    assert bodies == [None, None, None, b"hello"]
    assert len(world.outcomes(Delivered)) == 4


@pytest.mark.parametrize("text", ["451 4.3.0 later", "421 4.3.2 closing", "450 4.2.0 greylisted"])
def test_a_message_that_a_host_does_not_take_for_now_goes_to_the_next(text: str) -> None:
    async def main(world: World) -> None:
        for _ in range(20):
            world.send("y.test")
        await asyncio.sleep(60)

    peers = {A: Peer(answer=lambda messages: [text] * len(messages)), B: Peer()}
    world = simulate(main, peers, {"y.test": [A, B]})
    assert len(world.outcomes(Delivered)) == 20
    assert {event.message.tries for event in world.outcomes(Delivered)} == {1}
    if text.startswith("421"):
        assert peers[A].connects <= 5, "a host that takes nothing is left alone"


def test_what_no_host_takes_waits_with_the_words_of_a_host() -> None:
    async def main(world: World) -> None:
        world.send("y.test")
        await asyncio.sleep(5)

    peers = {
        A: Peer(answer=lambda messages: ["450 4.2.0 greylisted"] * len(messages)),
        B: Peer(connect=lambda: obstructed(REFUSED)),
    }
    world = simulate(main, peers, {"y.test": [A, B]})
    (event,) = world.outcomes(TransientFailure)
    assert str(event.outcome.reply) == "450 4.2.0 greylisted"
    assert event.message.tries == 1
    assert event.message.next_at - event.time == 1200


def test_a_host_that_takes_five_connections_delays_nobody() -> None:
    async def main(world: World) -> None:
        for _ in range(300):
            world.send("y.test")
        await asyncio.sleep(300)

    peers = {A: Peer(most=5)}
    world = simulate(main, peers, {"y.test": [A]})
    assert len(world.outcomes(Delivered)) == 300
    assert not world.outcomes(TransientFailure)
    assert peers[A].connects < 25


def test_a_host_that_takes_mail_over_some_connections_only_delays_nobody() -> None:
    """The sixth and further ones are told 421 at MAIL."""

    async def main(world: World) -> None:
        for _ in range(300):
            world.send("y.test")
        await asyncio.sleep(300)

    peers = {A: Peer(most_at_mail=5)}
    world = simulate(main, peers, {"y.test": [A]}, "Connection_Allocation_Aggressiveness = high")
    delivered = world.outcomes(Delivered)
    assert len(delivered) == 300
    assert max(event.time - event.message.batch.received_at for event in delivered) < 30


def test_a_host_that_refuses_all_is_not_met_with_a_connection_a_message() -> None:
    async def main(world: World) -> None:
        for _ in range(500):
            world.send("y.test")
        await asyncio.sleep(100)

    peers = {A: Peer(answer=lambda messages: ["421 4.3.2 closing"] * len(messages))}
    world = simulate(main, peers, {"y.test": [A]})
    assert peers[A].connects <= 5
    assert len(world.outcomes(TransientFailure)) <= 5


def test_a_kept_connection_that_ends_costs_its_message_nothing() -> None:
    count = Counter[str]()

    def answer(messages: list[Message]) -> list[str | None]:
        count["n"] += 1
        return ["421 4.3.2 enough of this session" if count["n"] % 3 == 0 else None] * len(messages)

    async def main(world: World) -> None:
        for _ in range(50):
            world.send("y.test")
        await asyncio.sleep(900)

    world = simulate(main, {A: Peer(answer=answer)}, {"y.test": [A]}, "Max_Outbound_Connections = 1")
    assert len(world.outcomes(Delivered)) == 50
    assert not world.outcomes(TransientFailure)


def test_a_host_with_a_limit_of_recipients_gets_the_rest_at_once_and_the_limit_is_learned() -> None:
    sizes: list[int] = []

    def answer(messages: list[Message]) -> list[str | None]:
        sizes.append(len(messages))
        return [None] * len(messages)

    async def main(world: World) -> None:
        world.send("y.test", recipients=30)
        await asyncio.sleep(5)

    peers = {A: Peer(answer=answer, recipients=7)}
    world = simulate(main, peers, {"y.test": [A]})
    assert len(world.outcomes(Delivered)) == 30
    assert sizes == [7, 7, 7, 7, 2]
    assert peers[A].connects <= 2


def test_the_broken_one_of_two_equal_hosts_holds_nobody() -> None:
    async def main(world: World) -> None:
        for _ in range(100):
            world.send("y.test")
            await asyncio.sleep(1)

    peers = {A: Peer(connect=lambda: obstructed(REFUSED, Obstacle.REJECTED, "expired")), B: Peer()}
    world = simulate(main, peers, {"y.test": [A, B]})
    assert len(world.outcomes(Delivered)) == 100
    assert max(event.time - event.message.batch.received_at for event in world.outcomes(Delivered)) < 2


def test_a_site_that_is_down_costs_one_attempt_for_all_and_comes_back() -> None:
    up = [False]

    async def main(world: World) -> None:
        for _ in range(1000):
            world.send("y.test")
        await asyncio.sleep(600)
        up[0] = True
        await asyncio.sleep(1500)

    peers = {A: Peer(connect=lambda: None if up[0] else obstructed(REFUSED))}
    world = simulate(main, peers, {"y.test": [A]}, AT_ONCE)
    assert len(world.outcomes(TransientFailure)) == 1000
    assert len(world.outcomes(Delivered)) == 1000
    assert peers[A].connects < 60


def down_for(seconds: float, configuration: str = "") -> World:
    """Mail to a site of which nothing answers for so long, until that is over."""
    peer = Peer()

    async def main(world: World) -> None:
        begun = world.clock.now()
        peer.connect = lambda: None if world.clock.now() >= begun + seconds else obstructed(REFUSED)
        for _ in range(100):
            world.send("y.test")
        await asyncio.sleep(1100)

    return simulate(main, {A: peer}, {"y.test": [A]}, "Max_Outbound_Connections = 1 " + configuration)


def test_a_partner_that_restarts_costs_its_mail_no_retry_interval() -> None:
    world = down_for(200)
    assert not world.outcomes(TransientFailure)
    waits = [event.time - event.message.batch.received_at for event in world.outcomes(Delivered)]
    assert len(waits) == 100
    assert 240 <= min(waits) <= max(waits) < 255  # the third attempt; the host rests 120 s after each
    assert sum(isinstance(event, HostFailed) for event in world.events) == 2


@pytest.mark.parametrize(
    ("configuration", "attempts", "seconds"),
    [
        ("", 9, 960),  # the first that ends after connect_timeout_to_delay = 900
        ("Connect_Timeout_To_Delay = 300", 4, 360),
        ("Connect_Timeout_To_Delay = 0", 1, 0),
        ("MX_Failures_To_Delay = 3", 3, 240),
        ('Domain "y.test" { MX_Failures_To_Delay = 3 }', 3, 240),
        ("MX_Failures_To_Delay = 0", 9, 960),
        ("MX_Failures_To_Delay = 2 Host_Failure_Retry = 0", 2, 1),
    ],
)
def test_a_site_that_stays_down_delays_all_its_mail(configuration: str, attempts: int, seconds: int) -> None:
    world = down_for(100_000, configuration)
    first = world.outcomes(TransientFailure)[:100]
    assert len({event.message.id for event in first}) == 100
    waits = {event.time - event.message.batch.received_at for event in first}
    assert all(seconds <= wait < seconds + 10 for wait in waits)
    failed = [event for event in world.events if isinstance(event, HostFailed) and event.time <= first[0].time]
    assert len(failed) == attempts


def test_a_site_that_has_been_down_long_keeps_nobody_waiting_again() -> None:
    peer = Peer(connect=lambda: obstructed(REFUSED))

    async def main(world: World) -> None:
        world.send("y.test")
        await asyncio.sleep(1100)
        world.send("y.test")
        await asyncio.sleep(60)

    world = simulate(main, {A: peer}, {"y.test": [A]}, "Retry_Interval = 7200")
    assert len(world.outcomes(TransientFailure)) == 2


def test_one_answer_in_between_begins_the_count_anew() -> None:
    connects = [0]

    def connect() -> Obstructed | None:
        connects[0] += 1
        return None if connects[0] == 3 else obstructed(REFUSED)

    async def main(world: World) -> None:
        world.send("y.test")
        await asyncio.sleep(400)
        world.send("y.test")
        await asyncio.sleep(130)
        assert not world.outcomes(TransientFailure)
        await asyncio.sleep(500)

    world = simulate(main, {A: Peer(connect=connect)}, {"y.test": [A]}, "MX_Failures_To_Delay = 3")
    assert len(world.outcomes(Delivered)) == 1
    assert len(world.outcomes(TransientFailure)) == 1
    assert connects[0] == 6


def test_what_a_host_has_said_delays_at_once() -> None:
    async def main(world: World) -> None:
        world.send("y.test")
        await asyncio.sleep(10)

    refusal = obstructed("421 4.3.2 closed for the night", Obstacle.UNWILLING)
    peers = {A: Peer(connect=lambda: refusal), B: Peer(connect=lambda: obstructed(REFUSED))}
    world = simulate(main, peers, {"y.test": [A, B]})
    (failure,) = world.outcomes(TransientFailure)
    assert str(failure.outcome.reply) == "421 4.3.2 closed for the night"


def test_connections_stay_below_their_limits() -> None:
    async def main(world: World) -> None:
        for n in range(200):
            world.send(("y.test", "z.test")[n % 2])
        await asyncio.sleep(200)

    peers = {A: Peer(), B: Peer()}
    routes = {"y.test": [A], "z.test": [B]}
    limits = "Connection_Allocation_Aggressiveness = high Domain y.test { Max_Outbound_Connections = 3 }"
    world = simulate(main, peers, routes, limits)
    assert (peers[A].highest, peers[B].highest) == (3, 32)
    assert len(world.outcomes(Delivered)) == 200


def test_a_limit_of_a_host_holds_for_all_domains_that_lead_to_it() -> None:
    async def main(world: World) -> None:
        for n in range(120):
            world.send(f"d{n % 12}.test")
        await asyncio.sleep(200)

    peers = {A: Peer()}
    routes = {f"d{n}.test": [A] for n in range(12)}
    world = simulate(main, peers, routes, 'Host "/^mx1/" { Max_Outbound_Connections = 2 }')
    assert len(world.outcomes(Delivered)) == 120
    assert peers[A].highest == 24, "each name is a host of its own"

    async def shared(world: World) -> None:
        world.find = lambda domain, _: _one(Host("mx.shared.test", A, 25))  # type: ignore[method-assign]
        await main(world)

    peers = {A: Peer()}
    world = simulate(shared, peers, routes, "Host mx.shared.test { Max_Outbound_Connections = 2 }")
    assert len(world.outcomes(Delivered)) == 120
    assert peers[A].highest == 2


async def _nothing() -> AsyncIterator[list[Message]]:
    if False:  # an iterator that ends at once
        yield []


async def _one(host: Host) -> Found:
    return [host]


def test_a_throttle_is_kept_exactly_and_wakes_one_at_a_time() -> None:
    async def main(world: World) -> None:
        for n in range(60):
            world.send(f"d{n}.test")
        await asyncio.sleep(70)

    routes = {f"d{n}.test": [A] for n in range(60)}
    world = simulate(main, {A: Peer()}, routes, "Outbound_Throttle_Messages = 1")
    times = sorted(event.time for event in world.outcomes(Delivered))
    assert len(times) == 60
    assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(times))


def _override(name: str) -> Callable[[Message], None]:
    """Gives messages a queue of their own beside others of the domain, as TLS of a policy does."""

    def change(message: Message) -> None:
        kind, user, password = (f"outbound_smtp_auth_{word}" for word in ("type", "user", "pass"))
        message.context = {kind: "PLAIN", user: name, password: name}

    return change


def test_queues_of_one_site_share_its_limit_and_take_turns() -> None:
    async def main(world: World) -> None:
        for n in range(200):
            world.send("y.test", change=_override("ab"[n % 2]))
        await asyncio.sleep(300)

    peers = {A: Peer()}
    world = simulate(main, peers, {"y.test": [A]}, "Max_Outbound_Connections = 1")
    users = [event.message.context["outbound_smtp_auth_user"] for event in world.outcomes(Delivered)]
    assert len(users) == 200
    assert peers[A].highest == 1
    assert users.index("b") < 50, "the second queue has its turn while the first has mail"


def test_a_destination_with_endless_mail_lets_others_have_their_turn() -> None:
    async def main(world: World) -> None:
        for _ in range(2000):
            world.send("y.test")
        await asyncio.sleep(1)
        world.send("z.test")
        await asyncio.sleep(60)
        assert [e for e in world.outcomes(Delivered) if e.message.destination == "z.test"]

    peers = {A: Peer(), B: Peer()}
    simulate(main, peers, {"y.test": [A], "z.test": [B]}, "Server_Max_Outbound_Connections = 1")
    assert peers[A].highest + peers[B].highest == 2


def test_destinations_that_need_no_connection_do_not_wait_for_one() -> None:
    """Mail that is held for a lost demand, while another destination has the only connection of the server."""

    async def main(world: World) -> None:
        (held,) = world.send("held.test", submit=False)
        held.binding = "gone"
        for _ in range(50):
            world.send("y.test")
        await asyncio.sleep(1)
        world.dispatcher.submit([held])
        await asyncio.sleep(2)
        (event,) = world.outcomes(TransientFailure)
        assert isinstance(event.outcome, TransientFailure)
        assert event.outcome.cause == "demand_lost"

    simulate(main, {A: Peer()}, {"y.test": [A]}, "Server_Max_Outbound_Connections = 1")


def test_a_window_grows_while_mail_waits() -> None:
    async def main(world: World) -> None:
        for _ in range(1000):
            world.send("y.test")
        await asyncio.sleep(30)

    peers = {A: Peer()}
    world = simulate(main, peers, {"y.test": [A]})
    assert peers[A].highest == 32
    assert len(world.outcomes(Delivered)) == 1000


def test_a_reload_changes_limits_and_throttles_of_destinations_that_exist() -> None:
    async def main(world: World) -> None:
        for _ in range(4000):
            world.send("y.test")
        for _ in range(5):
            world.send("slow.test")
        await asyncio.sleep(5)
        assert peers[A].standing == 32
        other = _config("Retry_Spread = 0 Max_Outbound_Connections = 2")
        await world.dispatcher.reconfigure(other, world.dispatcher.services.contexts, world.hooks)
        await asyncio.sleep(20)
        assert peers[A].standing <= 2
        assert len([e for e in world.outcomes(Delivered) if e.message.destination == "slow.test"]) == 5

    peers = {A: Peer(), B: Peer()}
    throttled = "Domain slow.test { Outbound_Throttle_Messages = 1/3600 }"
    simulate(main, peers, {"y.test": [A], "slow.test": [B]}, f"Max_Outbound_Connections = 32 {throttled}")


def test_a_fallback_to_clear_text_does_not_let_the_host_rest() -> None:
    async def main(world: World) -> None:
        for _ in range(10):
            world.send("y.test")
            await asyncio.sleep(20)

    tries = Counter[str]()

    def connect() -> Obstructed | None:
        tries["n"] += 1
        return obstructed("451 4.7.5 [internal] TLS", Obstacle.NEGOTIATION, "not_tls") if tries["n"] % 2 else None

    world = simulate(main, {A: Peer(connect=connect)}, {"y.test": [A]}, "TLS = ifavailable")
    waits = [event.time - event.message.batch.received_at for event in world.outcomes(Delivered)]
    assert len(waits) == 10
    assert max(waits) < 2


def test_one_address_with_two_ports_is_two_hosts() -> None:
    async def main(world: World) -> None:
        world.find = lambda *_: _hosts(Host("mx1", A, 25), Host("mx1", A, 2525))  # type: ignore[method-assign]
        world.send("y.test")
        await asyncio.sleep(5)

    peers = {A: Peer(answer=lambda messages: ["450 4.2.0 later"] * len(messages))}
    world = simulate(main, peers, {"y.test": [A]})
    assert peers[A].connects == 2
    assert [event.message.tries for event in world.outcomes(TransientFailure)] == [1]


async def _hosts(*hosts: Host) -> Found:
    return list(hosts)


def test_a_module_is_not_asked_again_for_the_next_host() -> None:
    """With a hook that says what to authenticate with, a host that answers 451 was met without end."""
    policy = Policy([Answers(Hook.OUTBOUND_AUTH, lambda *_: None)], lambda _: None)

    async def main(world: World) -> None:
        await world.dispatcher.reconfigure(world.config, world.dispatcher.services.contexts, TlsHooks(policy, "/"))
        world.send("y.test")
        await asyncio.sleep(60)

    peers = {A: Peer(answer=lambda messages: ["451 4.3.0 later"] * len(messages))}
    world = simulate(main, peers, {"y.test": [A]})
    assert peers[A].connects == 1
    assert len(world.outcomes(TransientFailure)) == 1


@pytest.mark.parametrize("option", ["Outbound_Throttle_Messages", "Outbound_Throttle_Connections"])
def test_a_throttle_of_a_host_holds_for_all_domains_that_lead_to_it(option: str) -> None:
    async def main(world: World) -> None:
        world.find = lambda domain, _: _hosts(Host("mx.shared.test", A, 25))  # type: ignore[method-assign]
        for n in range(40):
            world.send(f"d{n % 10}.test")
        await asyncio.sleep(95)

    more = "Max_Deliveries_Per_Connection = 1" if "Connections" in option else ""
    world = simulate(main, {A: Peer()}, {}, f"{more} Host mx.shared.test {{ {option} = 2/10 }}")
    times = [event.time - 1_000_000 for event in world.outcomes(Delivered)]
    assert 18 <= len(times) <= 21
    assert sum(when < 50 for when in times) <= 12


def test_a_spool_that_cannot_be_read_further_is_named_and_the_rest_goes_on() -> None:
    async def broken() -> AsyncIterator[list[Message]]:
        yield []
        raise OSError("disk I/O error")

    async def main(world: World) -> None:
        world.dispatcher.start(broken())
        world.send("y.test")
        await asyncio.sleep(5)
        assert len(world.outcomes(Delivered)) == 1
        (said,) = world.panics()
        assert said == "spool: reading stopped: disk I/O error; mail that was not read waits for the next start"
        world.events.clear()

    simulate(main, {A: Peer()}, {"y.test": [A]})


TEXTS = [
    None,
    None,
    None,
    "250 2.0.0 ok",
    "421 4.3.2 closing",
    "451 4.3.0 later",
    "450 4.2.0 greylisted",
    "550 5.1.1 no",
]
OBSTACLES = [None, None, *Obstacle]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_each_recipient_ends_once(seed: int) -> None:
    """Whatever hosts do: delivered, or failed with word to its sender."""
    chance = random.Random(seed)

    def peer() -> Peer:
        def connect() -> Obstructed | None:
            obstacle = chance.choice(OBSTACLES)
            return None if obstacle is None else obstructed(REFUSED, obstacle)

        def answer(messages: list[Message]) -> list[str | None]:
            if not chance.randrange(10):
                return ["421 4.3.2 closing"] * len(messages)
            return [chance.choice(TEXTS) for _ in messages]

        return Peer(connect, answer, chance.randint(1, 4), chance.randint(1, 9), chance.randint(1, 5))

    ips = [A, B, "192.0.2.3"]
    routes = {domain: chance.sample(ips, 3) for domain in ("y.test", "z.test")}
    sent: list[Message] = []
    same_hosts, config = chance.random() < 0.5, chance.choice(["", "MX_Rollup = true "])
    config += chance.choice(["", "Max_Outbound_Connections = 1", "Max_Outbound_Connections = 3"])

    async def main(world: World) -> None:
        if same_hosts:
            world.find = lambda domain, _: _hosts(*(Host(f"mx{ip}", ip, 25) for ip in routes[domain]))  # type: ignore[method-assign]
        for _ in range(chance.randint(1, 12)):
            sent.extend(world.send(chance.choice(["y.test", "z.test"]), chance.randint(1, 6)))
            await asyncio.sleep(chance.choice([0, 1, 400]))
            if not chance.randrange(10):
                await world.dispatcher.reconfigure(
                    world.config, world.dispatcher.services.contexts, TlsHooks(NO_POLICY, "/")
                )
        await asyncio.sleep(200_000)
        assert not list(world.dispatcher.queues.messages())
        assert len(world.dispatcher.queues) == 0
        assert world.dispatcher.queues.opened == 0
        assert not world.dispatcher.queues._sites
        assert not world.dispatcher.siblings._idle

    world = simulate(main, {ip: peer() for ip in ips}, routes, config)
    assert world.store.removed == Counter({message.id.number: 1 for message in sent})
    delivered = Counter(event.message.id for event in world.outcomes(Delivered))
    failed = Counter(event.message.id for event in world.outcomes(PermanentFailure))
    assert delivered + failed == Counter(message.id for message in sent)
    assert Counter(message.id for message, _, _ in world.bouncer.told) == failed


def test_mail_takes_the_idle_connection_of_another_domain_to_the_same_host() -> None:
    async def main(world: World) -> None:
        world.find = lambda *_: _hosts(Host("mx1", A, 25), Host("mx2", B, 25, 1))  # type: ignore[method-assign]
        for domain in ("one.test", "two.test", "three.test"):
            world.send(domain)
            await asyncio.sleep(1)

    for migrate, connects in (("true", 1), ("false", 3)):
        peers = {A: Peer(), B: Peer()}
        routes = {domain: [A, B] for domain in ("one.test", "two.test", "three.test")}
        config = f"Migrate_Connections_Between_Sibling_Domains = {migrate}"
        world = simulate(main, peers, routes, config)
        assert len(world.outcomes(Delivered)) == 3
        assert (peers[A].connects, peers[B].connects) == (connects, 0)


@pytest.mark.parametrize(
    "other",
    [
        "TLS = required",
        "TLS = ifavailable",
        "Max_Deliveries_Per_Connection = 1000",
        "EHLO_Hostname = other.test",
        'Outbound_SMTP_AUTH_Type = plain Outbound_SMTP_AUTH_User = u Outbound_SMTP_AUTH_Pass = "p"',
    ],
)
def test_no_mail_takes_a_connection_that_was_opened_otherwise(other: str) -> None:
    async def main(world: World) -> None:
        world.find = lambda *_: _hosts(Host("mx1", A, 25))  # type: ignore[method-assign]
        for domain in ("one.test", "two.test"):
            world.send(domain)
            await asyncio.sleep(1)

    peers = {A: Peer()}
    world = simulate(main, peers, {"one.test": [A], "two.test": [A]}, f"Domain two.test {{ {other} }}")
    assert len(world.outcomes(Delivered)) == 2
    assert peers[A].connects == 2


def test_an_idle_connection_to_a_worse_host_is_not_taken() -> None:
    """It stands to what is the best host of one domain, and the second of another."""

    async def main(world: World) -> None:
        world.find = lambda domain, _: _hosts(  # type: ignore[method-assign]
            *([Host("mx2", B, 25, 10)] if domain == "one.test" else [Host("mx1", A, 25, 10), Host("mx2", B, 25, 20)])
        )
        for domain in ("one.test", "two.test"):
            world.send(domain)
            await asyncio.sleep(1)

    peers = {A: Peer(), B: Peer()}
    simulate(main, peers, {})
    assert (peers[A].connects, peers[B].connects) == (1, 1)


DOMAINS = [f"d{n}.test" for n in range(60)]


def _to_all(seconds: float) -> Callable[[World], Any]:
    async def main(world: World) -> None:
        world.find = lambda domain, _: _hosts(Host("mx.shared.test", A, 25))  # type: ignore[method-assign]
        for domain in DOMAINS:
            for _ in range(3):
                world.send(domain)
        await asyncio.sleep(seconds)

    return main


def test_domains_of_the_same_hosts_share_a_limit() -> None:
    peers = {A: Peer()}
    world = simulate(_to_all(60), peers, {}, "MX_Rollup = true Max_Outbound_Connections = 4")
    assert len(world.outcomes(Delivered)) == 180
    assert peers[A].highest == 4
    assert not list(world.dispatcher.queues), "nothing is left of them"
    assert not world.dispatcher.queues._sites

    peers = {A: Peer()}
    simulate(_to_all(60), peers, {}, "Max_Outbound_Connections = 4")
    assert peers[A].highest > 4, "without it each domain has a limit of its own"


def test_domains_of_the_same_hosts_learn_together_what_a_host_takes() -> None:
    peers = {A: Peer(most=3)}
    world = simulate(_to_all(120), peers, {}, "MX_Rollup = true")
    assert len(world.outcomes(Delivered)) == 180
    assert {event.message.tries for event in world.outcomes(Delivered)} == {1}
    assert peers[A].highest == 3


def test_a_reload_takes_domains_apart_that_no_longer_share() -> None:
    async def main(world: World) -> None:
        world.find = lambda domain, _: _hosts(Host("mx.shared.test", A, 25))  # type: ignore[method-assign]
        for domain in DOMAINS[:20]:
            world.send(domain, recipients=2)
        await asyncio.sleep(0.15)
        assert peers[A].highest == 2
        hooks = world.hooks
        await world.dispatcher.reconfigure(_config("Max_Outbound_Connections = 2"), None, hooks)  # type: ignore[arg-type]
        await asyncio.sleep(60)
        assert not world.dispatcher.queues._sites

    peers = {A: Peer()}
    world = simulate(main, peers, {}, "MX_Rollup = true Max_Outbound_Connections = 2")
    assert len(world.outcomes(Delivered)) == 40
    assert peers[A].highest > 2


def test_one_address_by_two_names_is_two_hosts_for_connections() -> None:
    """Each name stands in a certificate of its own, and may have a Host stanza of its own."""

    async def main(world: World) -> None:
        for domain in ("one.test", "two.test"):
            world.send(domain)
            await asyncio.sleep(1)

    peers = {A: Peer()}
    world = simulate(main, peers, {"one.test": [A], "two.test": [A]})
    assert peers[A].connects == 2
    assert {event.host for event in world.outcomes(Delivered)} == {"mx1.one.test", "mx1.two.test"}


@pytest.mark.parametrize(
    "config",
    [
        "MX_Rollup = true Max_Outbound_Connections = 1",
        "Host mx.shared { Max_Outbound_Connections = 1 }",
        "Server_Max_Outbound_Connections = 1",
        "Scope_Max_Outbound_Connections = 1",
    ],
)
def test_an_idle_connection_does_not_keep_others_from_its_place(config: str) -> None:
    """Whatever it is a place under; here under TLS that keeps the second from taking the connection."""

    async def main(world: World) -> None:
        world.find = lambda *_: _hosts(Host("mx.shared", A, 25))  # type: ignore[method-assign]
        world.send("one.test")
        await asyncio.sleep(1)
        world.send("two.test")
        await asyncio.sleep(1)
        assert len(world.outcomes(Delivered)) == 2

    peers = {A: Peer()}
    simulate(main, peers, {}, f"Idle_Timeout = 60 {config} Domain two.test {{ TLS = required }}")
    assert peers[A].highest == 1


def test_places_that_are_given_up_by_sharing_go_to_who_waits_for_them() -> None:
    """Two queues of one domain, of which one comes to share a limit with others; and a domain that gets another MX."""

    async def main(world: World) -> None:
        names = {"one.test": "mx.shared", "two.test": "mx.shared"}
        world.find = lambda domain, _: _hosts(Host(names[domain], A, 25))  # type: ignore[method-assign]
        for _ in range(3):
            world.send("one.test")
            world.send("two.test")
        await asyncio.sleep(0.15)
        names["one.test"] = "mx.other"
        for _ in range(3):
            world.send("one.test")
        await asyncio.sleep(60)
        assert len(world.outcomes(Delivered)) == 9

    simulate(main, {A: Peer()}, {}, "MX_Rollup = true Max_Outbound_Connections = 1 Max_Deliveries_Per_Connection = 1")


def test_one_domain_that_cannot_be_looked_up_costs_those_of_its_site_nothing() -> None:
    async def main(world: World) -> None:
        lost: list[str] = []

        async def find(domain: str, _: Any) -> Found:
            if domain in lost:
                return TransientFailure(parse_reply("451 4.4.0 no answer"), Stage.NOT_CONNECTED)
            return [Host("mx.shared", A, 25)]

        world.find = find  # type: ignore[method-assign]
        for _ in range(20):
            world.send("one.test")
        world.send("two.test")
        await asyncio.sleep(5)
        lost.append("two.test")
        for _ in range(400):
            world.send("one.test")
        await asyncio.sleep(0.5)
        before = peers[A].standing
        world.send("two.test")
        await asyncio.sleep(1)
        assert peers[A].standing >= before > 5
        assert [event.message.recipient.domain for event in world.outcomes(TransientFailure)] == ["two.test"]

    peers = {A: Peer()}
    simulate(main, peers, {}, "MX_Rollup = true Domain two.test { TLS = required }")
