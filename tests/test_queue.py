"""Retries by the manual's arithmetic, and which queue gets what."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.config.options import table
from quillon.config.scope import resolve
from quillon.config.settings import DeliverySettings, build
from quillon.delivery import ruling
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, Origin
from quillon.mail.outcome import Delivered, PermanentFailure, Stage, TransientFailure
from quillon.policy.hook import Hook, Policy
from quillon.queue import retry
from quillon.queue.backlog import Key
from quillon.queue.scheduler import Delay, Fail, Limits, Remove, Scheduler
from quillon.queue.throttle import Bucket
from tests.support.scripts import Answers

IDS = IdSource(1)
LATER = TransientFailure(replies.parse_reply("450 4.2.1 later"), Stage.AFTER_RCPT)


@dataclass
class Rules:
    retry_interval: int = 1200
    max_retry_interval: int = 43200
    max_retries: str = "auto"
    message_expiration: int = 86400
    never_retry: bool = False
    never_attempt_expired_messages: bool = False


def _message(domain: str = "y.test", batch: Batch | None = None, at: float = 0.0) -> Message:
    batch = batch or Batch(IDS.next(at), Mailbox("a", "x.test"), Origin("192.0.2.1", "esmtp", NULL_ID), at, 5, b"hello")
    return Message(IDS.next(at), batch, Mailbox("b", domain))


def _scheduler(
    rules: Rules | None = None, connections: int = 2, total: int = 100, suspended: bool = False
) -> Scheduler:
    limits = Limits(connections, suspended, rules or Rules())
    return Scheduler(lambda _: limits, total)


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
    scheduler, message, now = _scheduler(rules), _message(), 0.0
    while isinstance(settled := scheduler.settle(message, LATER, now), Delay):
        now = settled.at
    assert now == 6000
    assert isinstance(settled, Fail)
    assert settled.outcome.reply is replies.MAX_RETRIES


def test_a_message_past_its_lifetime_fails_when_its_attempt_fails() -> None:
    scheduler = _scheduler(Rules(max_retries="none"))
    settled = scheduler.settle(_message(), LATER, 86400.0)
    assert isinstance(settled, Fail)
    assert settled.outcome.reply is replies.MAX_TIME
    assert scheduler.unattempted(_message(), 90000.0, Rules()) is None
    strict = Rules(never_attempt_expired_messages=True)
    assert scheduler.unattempted(_message(), 90000.0, strict) is not None


def test_outcomes() -> None:
    scheduler = _scheduler()
    assert scheduler.settle(_message(), Delivered(replies.OK), 1.0) == Remove()
    gone = PermanentFailure(replies.parse_reply("550 5.1.1 no"), Stage.AFTER_RCPT)
    assert scheduler.settle(_message(), gone, 1.0) == Fail(gone)
    message = _message()
    assert scheduler.settle(message, LATER, 1.0) == Delay(1201.0)
    assert (message.tries, message.last_reply) == (1, "450 4.2.1 later")


def test_a_delayed_message_comes_back_in_its_time() -> None:
    scheduler = _scheduler()
    message = _message()
    scheduler.settle(message, LATER, 0.0)
    assert scheduler.next(1199.0) == []
    assert scheduler.next_due() == 1200.0
    (key,) = scheduler.next(1200.0)
    assert scheduler.take(key, 10) == [message]


def test_connections_are_limited_per_queue_and_in_all() -> None:
    scheduler = _scheduler(connections=2, total=3)
    for _ in range(5):
        scheduler.enqueue(_message("y.test"), 0.0)
        scheduler.enqueue(_message("z.test"), 0.0)
    started = scheduler.next(0.0)
    assert len(started) == 3
    assert max(started.count(key) for key in started) == 2
    assert scheduler.next(0.0) == []
    scheduler.connected(started[0])
    scheduler.closed(started[0], was_connected=True)
    assert len(scheduler.next(0.0)) == 1


def test_no_more_connections_than_messages() -> None:
    scheduler = _scheduler(connections=10)
    scheduler.enqueue(_message(), 0.0)
    assert len(scheduler.next(0.0)) == 1
    assert scheduler.next(0.0) == []


def test_a_host_that_takes_no_more_is_left_at_that_for_a_while() -> None:
    scheduler = _scheduler(connections=5)
    for _ in range(5):
        scheduler.enqueue(_message(), 0.0)
    keys = scheduler.next(0.0)
    assert len(keys) == 5
    scheduler.connected(keys[0])
    scheduler.too_many(keys[0], 0.0)
    for key in keys[1:]:
        scheduler.closed(key, was_connected=False)
    assert scheduler.next(1.0) == []
    assert len(scheduler.next(61.0)) == 4


def test_suspended_queues_wait() -> None:
    scheduler = _scheduler(suspended=True)
    scheduler.enqueue(_message(), 0.0)
    assert scheduler.next(0.0) == []


def test_recipients_of_one_batch_go_together_and_others_do_not() -> None:
    scheduler = _scheduler()
    one = _message()
    mates = [one, *(_message(batch=one.batch) for _ in range(4))]
    other = _message()
    for message in [*mates, other]:
        key = scheduler.enqueue(message, 0.0)
    assert scheduler.take(key, 3) == mates[:3]
    scheduler.put_back(key, mates[:3])
    assert scheduler.take(key, 100) == mates
    assert scheduler.take(key, 100) == [other]
    assert scheduler.take(key, 100) == []


def test_an_empty_backlog_is_forgotten() -> None:
    scheduler = _scheduler()
    key = scheduler.enqueue(_message(), 0.0)
    scheduler.next(0.0)
    scheduler.connected(key)
    scheduler.take(key, 1)
    scheduler.closed(key, was_connected=True)
    assert scheduler.backlogs() == []


def test_keys_keep_bindings_and_the_way_behind_a_gateway_apart() -> None:
    scheduler = _scheduler()
    message = _message()
    message.binding, message.routing_domain, message.via = "b1", "gw.test:2600", "bank.fi"
    assert scheduler.enqueue(message, 0.0) == Key("default", "b1", "gw.test:2600", "bank.fi")


@given(st.integers(1, 50), st.integers(1, 20), st.lists(st.floats(0.0, 5.0), max_size=200))
def test_a_throttle_is_never_exceeded(count: int, seconds: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(count, seconds), 1.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now)
    assert taken <= count + (now - 1.0) * count / seconds + 1e-6


def test_a_throttle_tells_when_it_is_ready() -> None:
    bucket = Bucket(1, 10)
    assert bucket.take(100.0)
    assert not bucket.take(105.0)
    assert bucket.ready_at(105.0) == pytest.approx(110.0)
    assert bucket.take(110.0)


@pytest.mark.parametrize(
    ("said", "at"), [(5.0, 100.0), (500.0, 500.0), (math.inf, 1000.0), (math.nan, 300.0), ("x", 300.0)]
)
def test_no_attempt_lies_behind_the_expiry_for_ever(said: object, at: float) -> None:
    """A policy may choose the time; one that never comes would keep the message, untold, for good."""
    reports: list[str] = []
    policy = Policy([Answers(Hook.NEXT_ATTEMPT, lambda *_: said)], reports.append)
    message, now = _message(), 100.0
    settled = _scheduler(Rules(retry_interval=200, message_expiration=1000)).settle(
        message, LATER, now, lambda when: ruling.next_attempt(message, when, now, policy)
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
    found = ruling.retries(_message(), before, policy)
    assert (found.message_expiration, found.max_retries) == (limits or (before.message_expiration, before.max_retries))
    assert bool(reports) is (limits is None)
