"""Retries by the manual's arithmetic, and which queue gets what."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.config.options import table
from quillon.config.scope import resolve
from quillon.config.settings import DeliverySettings, OutboundTls, build
from quillon.delivery import override
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, Origin
from quillon.mail.outcome import Delivered, Outcome, PermanentFailure, Stage, TransientFailure
from quillon.policy.hook import Hook, Policy
from quillon.queue import retry
from quillon.queue.destination import DestinationQueue, Key, QueueState, key_of
from quillon.queue.destination import Rules as Settings
from quillon.queue.ready import Queues
from quillon.queue.retry import Delay, Fail, Remove, RetrySettings
from quillon.queue.throttle import Bucket
from quillon.queue.trail import Failed, Trail
from quillon.queue.window import INITIAL, REFUSED_SECONDS, Window
from tests.support.scripts import Answers

IDS = IdSource(1)
LATER = TransientFailure(replies.parse_reply("450 4.2.1 later"), Stage.AFTER_RCPT)


@dataclass
class Rules:
    retry_interval: int = 1200
    max_retry_interval: int = 43200
    max_retries: str = "auto"
    message_expiration: int = 86400
    retry_spread: int = 0
    delay_dsn_retry_interval: int = 3600
    delay_dsn_max_retry_interval: int = 43200
    never_retry: bool = False
    never_attempt_expired_messages: bool = False


def _message(domain: str = "y.test", batch: Batch | None = None, at: float = 0.0) -> Message:
    batch = batch or Batch(IDS.next(at), Mailbox("a", "x.test"), Origin("192.0.2.1", "esmtp", NULL_ID), at, 5, b"hello")
    return Message(IDS.next(at), batch, Mailbox("b", domain))


@dataclass
class Line:
    """A connection, as far as a queue cares."""

    peer: str


DELIVERY = build(DeliverySettings, lambda name: resolve(table().options[name], [], "/").value)
TLS = build(OutboundTls, lambda name: resolve(table().options[name], [], "/").value)


def _queues(connections: int = 2, total: int = 100, suspended: bool = False) -> Queues[Line]:
    return Queues(lambda _: Settings(DELIVERY, TLS, connections, suspended), total)


def _settle(rules: RetrySettings, message: Message, outcome: Outcome, now: float) -> retry.Settled:
    return retry.settle(message, outcome, now, lambda: rules)


def _failed(text: str, cause: str = "") -> Failed:
    return Failed(TransientFailure(replies.parse_reply(text), Stage.AFTER_EHLO, cause=cause))


def test_the_schedule_of_the_manual() -> None:
    delays = [retry.delay(Rules(), n) for n in range(1, 9)]
    assert delays == [1200, 2400, 4800, 9600, 19200, 38400, 43200, 43200]


@pytest.mark.parametrize(
    ("rules", "limit"),
    [
        (Rules(max_retries="none"), None),
        (Rules(max_retries="5"), 5),
        (Rules(never_retry=True), 0),
        (Rules(), 7),  # 1200 doubled seven times is the first sum over a day
        (Rules(max_retry_interval=1200), 72),
    ],
)
def test_how_many_retries(rules: Rules, limit: int | None) -> None:
    assert retry.retry_limit(rules) == limit


def test_five_retries_without_doubling_take_6000_seconds() -> None:
    rules = Rules(max_retry_interval=1200, max_retries="5", message_expiration=604800)
    message, now = _message(), 0.0
    while isinstance(settled := _settle(rules, message, LATER, now), Delay):
        now = settled.at
    assert now == 6000
    assert isinstance(settled, Fail)
    assert settled.outcome.reply is replies.MAX_RETRIES
    assert settled.last == "450 4.2.1 later"


def test_a_message_past_its_lifetime_fails_when_its_attempt_fails() -> None:
    settled = _settle(Rules(max_retries="none"), _message(), LATER, 86400.0)
    assert isinstance(settled, Fail)
    assert settled.outcome.reply is replies.MAX_TIME
    assert retry.unattempted(Rules(), _message(), 90000.0) is None
    strict = Rules(never_attempt_expired_messages=True)
    assert retry.unattempted(strict, _message(), 90000.0) is not None


def test_outcomes() -> None:
    assert _settle(Rules(), _message(), Delivered(replies.OK), 1.0) == Remove()
    gone = PermanentFailure(replies.parse_reply("550 5.1.1 no"), Stage.AFTER_RCPT)
    assert _settle(Rules(), _message(), gone, 1.0) == Fail(gone)
    message = _message()
    assert _settle(Rules(), message, LATER, 1.0) == Delay(1201.0)
    assert (message.tries, message.last_reply) == (1, "450 4.2.1 later")


def test_retries_are_spread_and_recipients_of_one_message_stay_together() -> None:
    rules = Rules(retry_spread=10)
    found = set()
    for _ in range(200):
        first = _message()
        mates = [first, _message(batch=first.batch)]
        times = {settled.at for m in mates if isinstance(settled := _settle(rules, m, LATER, 0.0), Delay)}
        assert len(times) == 1
        found |= times
    assert 1200 <= min(found) < 1220
    assert 1300 < max(found) <= 1320


@pytest.mark.parametrize(
    ("hours", "due"), [(2.9, 0), (3, 1), (8.9, 1), (9, 2), (21, 3), (44.9, 3), (45, 4), (69, 5), (68.9, 4), (213, 11)]
)
def test_notices_that_a_message_is_late_come_ever_more_rarely(hours: float, due: int) -> None:
    """3 h, 9 h, 21 h, 45 h, then each 24 h (manual, delay_dsn_max_retry_interval)."""
    rules = Rules(delay_dsn_retry_interval=10800, delay_dsn_max_retry_interval=86400)
    assert retry.notices_due(rules, hours * 3600) == due


def test_a_delayed_message_comes_back_in_its_time() -> None:
    queues = _queues()
    message = _message()
    _settle(Rules(), message, LATER, 0.0)
    queue = queues.submit(message, 0.0)
    assert queues.next(1199.0) is None
    assert queues.due() == 1200.0
    assert queue.state(1199.0) is QueueState.DELAYED
    assert queues.next(1200.0) is queue
    assert queue.take(10, "192.0.2.1") == ([message], None)


def test_connections_are_limited_per_destination_and_in_all() -> None:
    queues = _queues(connections=2, total=3)
    for _ in range(5):
        queues.submit(_message("y.test"), 0.0)
        queues.submit(_message("z.test"), 0.0)
    started: list[DestinationQueue[Line]] = []
    while (queue := queues.next(0.0)) is not None:
        started.append(queue)
        queues.opening(queue)
        queues.touch(queue, 0.0)
    assert len(started) == 3
    assert max(started.count(queue) for queue in started) == 2
    line = Line("192.0.2.1")
    queues.connected(started[0])
    queues.closed(started[0], line, 0.0)
    assert queues.next(0.0) is not None


def test_transactions_ask_for_connections_and_recipients_do_not() -> None:
    queues = _queues(connections=10)
    one = _message()
    for _ in range(30):
        queues.submit(_message(batch=one.batch), 0.0)
    queue = queues.next(0.0)
    assert queue is not None
    assert (queue.waiting, queue.groups) == (30, 1)
    queues.opening(queue)
    queues.touch(queue, 0.0)
    assert queues.next(0.0) is None
    assert queue.state(0.0) is QueueState.AT_LIMIT


def test_a_host_that_takes_no_more_is_left_at_that_for_a_while() -> None:
    window = Window()
    assert window.allowed(32) == INITIAL
    window.refused(2, 0.0)
    for _ in range(100):
        window.succeeded(REFUSED_SECONDS - 1.0, 32)
    assert window.allowed(32) == 2
    for _ in range(3):
        window.succeeded(REFUSED_SECONDS, 32)
    assert window.allowed(32) == 3


@given(st.lists(st.sampled_from(["good", "refused", "failed"]), max_size=200), st.integers(1, 40), st.integers(0, 50))
def test_a_window_stays_between_one_and_its_limit(events: list[str], limit: int, standing: int) -> None:
    window = Window()
    for now, event in enumerate(events):
        if event == "good":
            window.succeeded(now * 10.0, limit)
        elif event == "refused":
            window.refused(standing, now * 10.0)
        else:
            window.failed()
        assert 1 <= window.allowed(limit) <= limit


def test_a_window_grows_at_once_until_something_fails_and_slowly_from_then_on() -> None:
    window = Window()
    for _ in range(5):
        window.succeeded(0.0, 32)
    assert window.allowed(32) == INITIAL + 5
    window.failed()
    for _ in range(5):
        window.succeeded(0.0, 32)
    assert window.allowed(32) == INITIAL + 4
    assert Window(whole=32).allowed(32) == 32


def test_suspended_destinations_wait() -> None:
    queues = _queues(suspended=True)
    queue = queues.submit(_message(), 0.0)
    assert queues.next(0.0) is None
    assert queue.state(0.0) is QueueState.SUSPENDED


def test_recipients_of_one_batch_go_together_and_others_do_not() -> None:
    queues = _queues()
    one = _message()
    mates = [one, *(_message(batch=one.batch) for _ in range(4))]
    other = _message()
    for message in [*mates, other]:
        queue = queues.submit(message, 0.0)
    assert queue.take(3, "192.0.2.1") == (mates[:3], None)
    queue.put_back(mates[:3])
    assert queue.take(100, "192.0.2.1") == (mates[:3], None)
    assert queue.take(100, "192.0.2.1") == (mates[3:], None)
    assert queue.take(100, "192.0.2.1") == ([other], None)
    assert queue.take(100, "192.0.2.1") == ([], None)


def test_messages_with_priority_go_first_in_their_own_order() -> None:
    queues = _queues()
    messages = [_message() for _ in range(6)]
    for message in messages[3:]:
        message.priority = 1
    for message in messages:
        queue = queues.submit(message, 0.0)
    order = [queue.take(0, "192.0.2.1")[0][0] for _ in messages]
    assert order == messages[3:] + messages[:3]


def test_messages_that_look_for_another_host_do_not_get_the_same_one_again() -> None:
    queues = _queues()
    stray, fresh = _message(), _message()
    queue = queues.submit(fresh, 0.0)
    trail = Trail().after("192.0.2.1", _failed("451 4.3.0 later"), session=True)
    queue.put_back([stray], trail)
    assert queue.astray() is trail
    assert queue.take(0, "192.0.2.1") == ([fresh], None)
    assert not queue.fits("192.0.2.1")
    assert queue.take(0, "192.0.2.2") == ([stray], trail)


def test_an_idle_connection_that_leads_nowhere_gives_its_place_away() -> None:
    queues = _queues(connections=1)
    queue = queues.submit(_message(), 0.0)
    queues.opening(queue)
    queues.connected(queue)
    taken, _ = queue.take(0, "192.0.2.1")
    queues.rest(queue, Line("192.0.2.1"), 0.0)
    queue.put_back(taken, Trail().after("192.0.2.1", _failed("451 4.3.0 later"), session=True))
    assert queue.full
    assert queue.state(0.0) is QueueState.READY


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (_failed("451 4.7.5 [internal] TLS", "expired"), _failed("451 4.4.1 [internal] No valid hosts"), 0),
        (_failed("451 4.7.5 [internal] TLS", "expired"), _failed("451 4.7.5 [internal] TLS", "name_mismatch"), 0),
        (_failed("451 4.4.1 [internal] No valid hosts"), _failed("451 4.7.5 [internal] TLS", "expired"), 1),
        (_failed("450 4.2.0 greylisted"), _failed("451 4.4.1 [internal] No valid hosts"), 0),
        (_failed("450 4.2.0 greylisted"), _failed("450 4.2.0 full"), 1),
        (_failed("450 4.2.0 greylisted"), _failed("451 4.7.5 [internal] TLS", "expired"), 1),
    ],
)
def test_of_several_failures_the_one_that_tells_most_is_told(first: Failed, second: Failed, told: int) -> None:
    trail = Trail().after("192.0.2.1", first, session=False).after("192.0.2.2", second, session=True)
    assert trail.failed is (first, second)[told]
    assert (set(trail.tried), trail.sessions) == ({"192.0.2.1", "192.0.2.2"}, 1)


def test_an_empty_destination_is_forgotten() -> None:
    queues = _queues()
    queue = queues.submit(_message(), 0.0)
    queues.opening(queue)
    queues.connected(queue)
    queue.take(1, "192.0.2.1")
    queues.closed(queue, Line("192.0.2.1"), 0.0)
    assert len(queues) == 0


def test_a_pause_ends_by_itself() -> None:
    queues = _queues()
    queue = queues.submit(_message(), 0.0)
    queue.pause(50.0, "its hosts rest")
    queues.touch(queue, 0.0)
    assert queues.next(49.0) is None
    assert queue.state(49.0) is QueueState.PAUSED
    assert queues.due() == 50.0
    assert queues.next(50.0) is queue


def test_a_throttle_of_messages_keeps_standing_connections_still() -> None:
    queues = _queues()
    queue = queues.submit(_message(), 0.0)
    queues.opening(queue)
    queues.connected(queue)
    queues.rest(queue, Line("192.0.2.1"), 0.0)
    queue.pause(50.0, "throttle", messages=True)
    assert queue.state(49.0) is QueueState.PAUSED
    assert queue.state(50.0) is QueueState.READY


@given(st.data())
def test_nothing_that_may_act_is_forgotten(data: st.DataObject) -> None:  # noqa: PLR0912 - one event a branch
    """Random events: whatever `state` calls ready has its turn, and each message is in one place."""
    queues, now = _queues(connections=3, total=5), 0.0
    out: list[Message] = []
    count = 0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from([0.0, 1.0, 30.0]))
        event = data.draw(
            st.sampled_from(["submit", "delay", "turn", "turn", "connected", "refused", "closed", "pause"])
        )
        if event in ("submit", "delay"):
            message = _message(data.draw(st.sampled_from(["a.test", "b.test", "c.test"])))
            message.next_at = now + 20.0 if event == "delay" else 0.0
            queues.submit(message, now)
            count += 1
        elif event == "turn":
            queue = queues.next(now)
            if queue is None:
                continue
            if queue.idle:
                queues.wake(queue, queue.idle[0])
                out += queue.take(1, "192.0.2.1")[0]
                queues.rest(queue, Line("192.0.2.1"), now)
            else:
                queues.opening(queue)
            queues.touch(queue, now)
        else:
            for queue in queues:
                if event == "connected" and queue.connecting:
                    queues.connected(queue)
                    out += queue.take(1, "192.0.2.1")[0]
                    queues.rest(queue, Line("192.0.2.1"), now)
                elif event == "refused" and queue.connecting:
                    queues.not_connected(queue, now)
                elif event == "closed" and queue.idle:
                    queues.closed(queue, queue.idle[0], now)
                elif event == "pause" and queue.waiting:
                    queue.pause(now + 10.0, "a test")
                    queues.touch(queue, now)
        assert len(out) + sum(1 for _ in queues.messages()) == count
        assert queues.opened == sum(queue.standing + queue.connecting for queue in queues) <= 5
    for _ in range(300):
        now += 1.0
        while (queue := queues.next(now)) is not None:
            if queue.idle:
                queues.wake(queue, queue.idle[0])
            else:
                queues.opening(queue)
                queues.connected(queue)
            out += queue.take(1, "192.0.2.1")[0]
            queues.closed(queue, Line("192.0.2.9"), now)
        for queue in queues:
            if queue.connecting:
                queues.not_connected(queue, now)
            for line in list(queue.idle):
                queues.closed(queue, line, now)
    assert len(out) == count
    assert len(queues) == 0


def test_destinations_keep_bindings_and_the_way_behind_a_gateway_apart() -> None:
    message = _message()
    message.binding, message.routing_domain, message.via = "b1", "gw.test:2600", "bank.fi"
    assert key_of(message) == Key("default", "b1", "gw.test:2600", "bank.fi")


@given(st.integers(1, 50), st.integers(1, 20), st.lists(st.floats(0.0, 5.0), max_size=200))
def test_a_throttle_is_never_exceeded(count: int, seconds: int, gaps: list[float]) -> None:
    bucket, now = Bucket(count, seconds), 1.0
    turns = []
    for gap in gaps:
        now += gap
        turns.append(bucket.reserve(now))
        assert turns[-1] >= now
    for end in turns:
        assert sum(turn <= end for turn in turns) <= count + (end - 1.0) * count / seconds + 1e-6


def test_each_who_waits_for_a_throttle_gets_a_turn_of_his_own() -> None:
    bucket = Bucket(1, 10)
    assert [bucket.reserve(100.0) for _ in range(4)] == pytest.approx([100.0, 110.0, 120.0, 130.0])
    assert bucket.reserve(135.0) == pytest.approx(140.0)
    assert Bucket(1 / 8, 60).reserve(0.0) == pytest.approx(420.0)  # one of eight workers


@pytest.mark.parametrize(
    ("said", "at"), [(5.0, 100.0), (500.0, 500.0), (math.inf, 1000.0), (math.nan, 300.0), ("x", 300.0)]
)
def test_no_attempt_lies_behind_the_expiry_for_ever(said: object, at: float) -> None:
    """A policy may choose the time; one that never comes would keep the message, untold, for good."""
    reports: list[str] = []
    policy = Policy([Answers(Hook.NEXT_ATTEMPT, lambda *_: said)], reports.append)
    message, now = _message(), 100.0
    rules = Rules(retry_interval=200, message_expiration=1000)
    settled = retry.settle(
        message, LATER, now, lambda: rules, lambda when: override.next_attempt(message, when, now, policy)
    )
    assert settled == Delay(at)
    assert bool(reports) is (at == 300.0)


@pytest.mark.parametrize(
    ("said", "limits"),
    [
        ((60, 3), (60, "3")),
        ((60.0, "none"), (60, "none")),
        (("60", "auto"), (60, "auto")),
        ((-1, 0), (0, "0")),
        ((60, math.inf), None),
        ((math.nan, 3), None),
        ((60, "\u00b2"), None),
        ((None, 3), None),
        (60, None),
    ],
)
def test_limits_that_are_none_change_nothing(said: object, limits: tuple[int, str] | None) -> None:
    reports: list[str] = []
    policy = Policy([Answers(Hook.EXPIRATION, lambda *_: said)], reports.append)
    before = build(DeliverySettings, lambda name: resolve(table().options[name], [], "/").value)
    found = override.retries(_message(), before, policy)
    assert (found.message_expiration, found.max_retries) == (limits or (before.message_expiration, before.max_retries))
    assert bool(reports) is (limits is None)
