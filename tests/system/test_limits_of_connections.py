"""Limits of the node with several workers: shares, leases, and turns."""

import asyncio
import smtplib
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.app.leases import Leases, LeaseWord
from quillon.config.load import load
from quillon.mail.outcome import Delivered
from quillon.queue.destination import Rules
from quillon.queue.limit import UNLIMITED, Cap, Limit, split
from quillon.queue.ready import Queues
from tests.support.clients import MESSAGE
from tests.support.compiled import pure_only
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.unit.delivery.test_attempts import A, Peer, World, simulate
from tests.unit.queue.test_destination import DELIVERY, TLS, Line, _message


@given(st.integers(-1, 500), st.integers(1, 64))
def test_shares_and_leases_make_up_the_limit(limit: int, workers: int) -> None:
    share, spare = split(limit, workers)
    assert (share, spare) == (UNLIMITED, 0) if limit <= 0 else share * workers + spare == limit
    assert 0 <= spare < workers


def test_a_limit_asks_for_what_it_needs() -> None:
    limit = Limit("g/b/y.test")
    limit.rule(0, 1)
    assert limit.wants
    limit.asked = True
    assert not limit.wants
    limit.leases, limit.asked = 1, False
    assert limit.idle_lease
    limit.used = 1
    assert not limit.idle_lease


def test_leases_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    leases = Leases()
    assert leases.ask(1, "x", 1) == [LeaseWord(1, "leased", "x")]
    assert leases.ask(2, "x", 1) == [LeaseWord(1, "wanted", "x")]
    assert leases.ask(3, "x", 1) == [LeaseWord(1, "wanted", "x")]
    assert leases.give_back(1, "x") == [LeaseWord(2, "leased", "x"), LeaseWord(2, "wanted", "x")]
    assert leases.give_back(1, "x") == []
    assert leases.gone(2) == [LeaseWord(3, "leased", "x")]
    assert leases.gone(3) == []


@given(st.data())
def test_no_more_leases_are_out_than_there_are(data: st.DataObject) -> None:
    leases, most = Leases(), data.draw(st.integers(1, 3))
    out: Counter[int] = Counter()
    asking: set[int] = set()
    for _ in range(data.draw(st.integers(1, 60))):
        worker = data.draw(st.integers(1, 4))
        event = data.draw(st.sampled_from(["ask", "back", "gone"]))
        if event == "ask" and worker not in asking:
            asking.add(worker)
            words = leases.ask(worker, "x", most)
        elif event == "back" and out[worker]:
            out[worker] -= 1
            words = leases.give_back(worker, "x")
        elif event == "gone":
            out[worker] = 0
            asking.discard(worker)
            words = leases.gone(worker)
        else:
            continue
        for word in words:
            if word.do == "leased":
                assert word.worker in asking
                asking.discard(word.worker)
                out[word.worker] += 1
        assert out.total() <= most
        assert not asking or out.total() == most


@pure_only
def test_a_worker_without_a_share_waits_for_a_lease_and_gives_it_back() -> None:
    async def main(world: World) -> None:
        for _ in range(5):
            world.send("y.test")
        await asyncio.sleep(1)
        assert world.said == [{"event": "lease", "name": "default/default/y.test", "most": 1}]
        assert not world.outcomes(Delivered)
        world.dispatcher.places.leased("default/default/y.test")
        await asyncio.sleep(30)
        assert len(world.outcomes(Delivered)) == 5
        assert world.said[1:] == [{"event": "lease back", "name": "default/default/y.test"}]

    peers = {A: Peer()}
    simulate(main, peers, {"y.test": [A]}, "Max_Outbound_Connections = 1", workers=8)
    assert peers[A].highest == 1


@pure_only
def test_a_lease_that_another_worker_waits_for_is_given_back_after_a_turn() -> None:
    async def main(world: World) -> None:
        for _ in range(100):
            world.send("y.test")
        world.dispatcher.places.leased("default/default/y.test")
        world.dispatcher.places.wanted("default/default/y.test")
        await asyncio.sleep(10)
        words = [said["event"] for said in world.said]
        assert words == ["lease", "lease back", "lease"], "asked for, given back after its turn, asked for again"
        assert 10 < len(world.outcomes(Delivered)) < 40

    simulate(main, {A: Peer()}, {"y.test": [A]}, "Max_Outbound_Connections = 1", workers=8)


NAMES = {"one": 5, "other": 1}
SCOPES = [
    ('Domain "/^[yz].test$/" { Scope_Max_Outbound_Connections = 2 }', True),
    ('Binding_Group default { Domain "*.test" { Scope_Max_Outbound_Connections = 2 } }', True),
    ("Binding default { Server_Max_Outbound_Connections = 2 }", True),
    ("Binding_Group default { Server_Max_Outbound_Connections = 2 }", True),
    ("Scope_Max_Outbound_Connections = 2", True),
    ('Domain "y.test" { Scope_Max_Outbound_Connections = 2 }', False),
    ("Host mx1.y.test { Scope_Max_Outbound_Connections = 2 }", False),
]


@pure_only
@pytest.mark.parametrize(("option", "both"), SCOPES)
def test_several_destinations_share_a_limit_and_take_turns(option: str, both: bool) -> None:
    async def main(world: World) -> None:
        for number in range(150):
            world.send("yz"[number % 2] + ".test")
        await asyncio.sleep(10)
        early = Counter(event.message.destination for event in world.outcomes(Delivered))
        assert min(early["y.test"], early["z.test"]) > 10, "nobody waits until the other one is done"
        await asyncio.sleep(300)
        assert len(world.outcomes(Delivered)) == 150

    peers = {A: Peer()}
    simulate(main, peers, {"y.test": [A], "z.test": [A]}, f"Max_Outbound_Connections = 5 {option}")
    assert peers[A].highest == 2 if both else peers[A].highest > 2


@pure_only
def test_a_lease_that_is_given_back_is_asked_for_again_by_who_still_waits() -> None:
    """Two destinations share a limit of one connection of eight workers; the first is done when others want it."""

    async def main(world: World) -> None:
        world.send("y.test")
        for _ in range(3):
            world.send("z.test")
        name = 'Scope_Max_Outbound_Connections of Domain "/./"'
        for _ in range(6):
            world.dispatcher.places.leased(name)
            world.dispatcher.places.wanted(name)
            await asyncio.sleep(600)
        assert len(world.outcomes(Delivered)) == 4

    simulate(
        main,
        {A: Peer()},
        {"y.test": [A], "z.test": [A]},
        'Domain "/./" { Scope_Max_Outbound_Connections = 1 }',
        workers=8,
    )


def test_a_reload_moves_connections_that_stand_to_their_new_limits() -> None:
    rules = [Rules(DELIVERY, TLS, 2, suspended=False, caps=(Cap(name, most, 0),)) for name, most in NAMES.items()]
    queues: Queues[Line] = Queues(lambda _: rules[0], 100)
    messages = [_message(domain) for domain in ("y.test", "z.test") for _ in range(3)]
    made = [queues.submit(message, 0.0) for message in messages]
    y, z = made[0], made[3]
    for queue in (y, z):
        queues.opening(queue)
        queues.connected(queue)
    assert [limit.used for limit in y.limits] == [1, 2]
    rules.pop(0)
    queues.epoch += 1
    for queue in (y, z):
        queues.renew(queue)
    assert y.limits[1] is z.limits[1]
    assert (y.limits[1].used, y.full) == (2, True)
    queues.closed(y, Line("a"), 1.0)
    queues.closed(z, Line("b"), 1.0)
    assert y.limits[1].used == 0
    assert not y.full


@pytest.mark.parametrize("label", ["/^mx/", "*.mx.test"])
def test_a_sum_over_several_hosts_is_refused(tmp_path: Path, label: str) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(f'Host "{label}" {{ Scope_Max_Outbound_Connections = 2 }}')
    assert any("several hosts as one" in str(fault) for fault in load(file).errors)


@pytest.mark.parametrize(
    "option",
    [
        "Max_Outbound_Connections = 1",
        "Host 127.0.0.1 { Max_Outbound_Connections = 1 }",
        'Domain "/./" { Scope_Max_Outbound_Connections = 1 }',
        "Binding default { Server_Max_Outbound_Connections = 1 }",
    ],
)
def test_one_connection_of_four_workers_is_one(server: Callable[..., Server], tmp_path: Path, option: str) -> None:
    highest = 0
    over = threading.Event()
    with SinkThread() as sink:

        def watch() -> None:
            nonlocal highest
            while not over.wait(0.001):
                highest = max(highest, len(sink.sink.open))

        watcher = threading.Thread(target=watch)
        watcher.start()
        port = free_port()
        server(
            f"""ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
            Idle_Timeout = 1 Gateway = "127.0.0.1:{sink.port}" {option}""",
            workers=4,
        ).start()
        for _ in range(40):
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.sendmail("a@x.test", ["b@y.test"], MESSAGE)
        until(lambda: len(sink.messages) == 40, "all messages")
        over.set()
        watcher.join()
    assert highest == 1
