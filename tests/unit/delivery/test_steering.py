"""Orders of an operator to a dispatcher, on a clock of its own: whatever is ordered, each recipient ends once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from quillon.delivery.steering import Steering
from quillon.mail import reply as replies
from quillon.mail.outcome import Delivered, PermanentFailure
from quillon.queue.selection import Selection, read
from quillon.queue.suspension import FOREVER, Suspension, Suspensions
from tests.support.compiled import pure_only
from tests.unit.delivery.test_attempts import AT_ONCE, REFUSED, A, B, Peer, World, obstructed, simulate

pytestmark = pure_only  # connections here are none

BINDINGS = 'Binding "b1" { } Binding "b2" { Max_Outbound_Connections = 2 }'


def meant(text: str) -> Selection:
    return read(text.split()).selection


def test_a_flush_does_not_wait_for_a_host_that_rests() -> None:
    up = [False]

    async def main(world: World) -> None:
        for _ in range(50):
            world.send("y.test")
        world.send("z.test")
        await asyncio.sleep(30)
        up[0] = True
        assert await Steering(world.dispatcher).flush(meant("--domain y.test")) == 50
        await asyncio.sleep(20)
        assert len(world.outcomes(Delivered)) == 50

    peers = {A: Peer(connect=lambda: None if up[0] else obstructed(REFUSED))}
    simulate(main, peers, {"y.test": [A], "z.test": [A]}, AT_ONCE)
    up[0] = False
    simulate(main, peers, {"y.test": [A], "z.test": [A]})  # it is not delayed yet, its host rests


def test_what_is_failed_is_told_but_where_it_is_quiet() -> None:
    async def main(world: World) -> None:
        steering = Steering(world.dispatcher)
        world.dispatcher.halts.suspensions.add(Suspension("", "", "", "root", 0, FOREVER))
        for domain in ("y.test", "z.test", "y.test"):
            world.send(domain, recipients=2)
        await asyncio.sleep(1)
        assert await steering.count(meant("--all")) == 6
        assert await steering.fail(meant("--domain y.test"), replies.MANUALLY_PURGED) == 4
        assert await steering.fail(meant("--domain z.test"), replies.MANUALLY_DISCARDED, quiet=True) == 2
        assert await steering.count(meant("--all")) == 0
        await asyncio.sleep(1)
        assert len(world.bouncer.told) == 4
        assert len(world.outcomes(PermanentFailure)) == 6
        assert set(world.store.removed.values()) == {1}
        assert len(world.store.removed) == 6

    simulate(main, {A: Peer()}, {"y.test": [A], "z.test": [A]})


def test_what_is_put_off_comes_at_its_time() -> None:
    async def main(world: World) -> None:
        world.dispatcher.halts.suspensions.add(Suspension("", "", "", "root", 0, world.clock.now() + 5))
        world.send("y.test")
        world.send("z.test")
        await asyncio.sleep(1)
        assert await Steering(world.dispatcher).delay(meant("--domain y.test"), 100) == 1
        assert await Steering(world.dispatcher).delay(meant("--domain y.test"), 1000) == 0, "it is delayed already"
        await asyncio.sleep(60)
        assert [event.message.recipient.domain for event in world.outcomes(Delivered)] == ["z.test"]
        await asyncio.sleep(60)
        assert len(world.outcomes(Delivered)) == 2

    simulate(main, {A: Peer()}, {"y.test": [A], "z.test": [A]})


def test_a_suspension_of_one_domain_holds_no_other_of_its_gateway() -> None:
    config = 'Domain "y.test" { Gateway = "gw.test" } Domain "z.test" { Gateway = "gw.test" }'

    async def main(world: World) -> None:
        steering = Steering(world.dispatcher)

        def send() -> None:
            for domain in ("y.test", "z.test"):
                world.send(domain, change=lambda message: setattr(message, "routing_domain", "gw.test"))

        world.peers[A].connect = lambda: obstructed(REFUSED)
        send()
        await asyncio.sleep(5)
        found = Suspensions([Suspension("y.test", "", "", "root", 0, FOREVER)])
        assert await steering.suspend(found, "y.test") == 1
        world.peers[A].connect = lambda: None
        await steering.flush(meant("--all"))
        send()
        await asyncio.sleep(10)
        assert Counter(event.message.recipient.domain for event in world.outcomes(Delivered)) == {"z.test": 2}
        assert await steering.suspend(Suspensions(), "y.test") == 0
        await asyncio.sleep(10)
        assert len(world.outcomes(Delivered)) == 4

    simulate(main, {A: Peer()}, {"gw.test": [A]}, config + AT_ONCE)


@pytest.mark.parametrize("seed", range(40))
def test_orders_at_random_end_each_recipient_once(seed: int) -> None:
    chance = random.Random(seed)
    sent: list[int] = []
    domains = ("y.test", "z.test", "w.test")

    async def main(world: World) -> None:
        steering = Steering(world.dispatcher)

        async def order() -> None:
            which = meant(chance.choice(("--all", "--domain y.test", "--binding b1", "--recipient b[0-2]@*")))
            what = chance.randrange(8)
            if what == 7:
                await world.dispatcher.reconfigure(world.config, None, world.hooks)  # type: ignore[arg-type]
            elif what == 0:
                await steering.flush(which)
            elif what == 1:
                await steering.delay(which, chance.uniform(1, 300))
            elif what == 2:
                await steering.fail(which, replies.MANUALLY_PURGED, quiet=chance.random() < 0.5)
            elif what == 3:
                await steering.rebind(which, lambda _: ("default", chance.choice(("b1", "b2", "default"))))
            elif what == 4:
                await steering.reroute(which, chance.choice(domains))
            else:
                domain = chance.choice((*domains, ""))
                ends = world.clock.now() + chance.uniform(1, 200)
                found = Suspensions([Suspension(domain, "", "", "root", 0, ends)] if what == 5 else [])
                await steering.suspend(found, domain)

        tasks = []
        for _ in range(60):
            for message in world.send(chance.choice(domains), recipients=chance.randrange(1, 5)):
                sent.append(message.id.number)
            if chance.random() < 0.7:
                tasks.append(asyncio.create_task(order()))  # some at the same time
            await asyncio.sleep(chance.uniform(0, 20))
        await asyncio.gather(*tasks)
        await steering.suspend(Suspensions(), "")
        await asyncio.sleep(5 * 86400)

    def connect() -> None:
        return None if chance.random() < 0.6 else obstructed(REFUSED)  # type: ignore[return-value]

    def answer(messages: list[object]) -> list[str | None]:
        return [chance.choice((None, None, "451 4.3.0 later", "550 5.1.1 nobody")) for _ in messages]

    peers = {A: Peer(connect=connect, answer=answer), B: Peer(answer=answer, most=3)}  # type: ignore[arg-type]
    world = simulate(main, peers, {"y.test": [A, B], "z.test": [B], "w.test": [A]}, BINDINGS)
    ended = Counter(event.message.id.number for event in world.outcomes(Delivered) + world.outcomes(PermanentFailure))
    assert ended == Counter(sent)
    assert world.store.removed == Counter(sent)
    assert not len(world.dispatcher.queues)
