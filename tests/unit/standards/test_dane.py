"""Where TLSA records of a host may stand, and whether a resolver can be relied on."""

from __future__ import annotations

import asyncio

import pytest

from quillon.net.resolver import Answer
from quillon.standards.dane import LOOK_AGAIN, MOST_RECORDS, Validator, bases, find

NAME = "mx.bank.test"
PLAIN = Answer("ok", ((0, "192.0.2.1"),), secure=True)
ALIAS = Answer("ok", ((0, "192.0.2.1"),), secure=True, canonical="real.test", aliases=1)
INSECURE = Answer("ok", ((0, "192.0.2.1"),), canonical="real.test", aliases=1)


class World:
    """A resolver with some answers, and a clock."""

    def __init__(self, answers: dict[tuple[str, str], Answer] | None = None) -> None:
        self.answers = answers or {}
        self.time = 0.0
        self.problem = ""
        self.asked = 0

    def now(self) -> float:
        return self.time

    async def lookup(self, name: str, kind: str) -> Answer:
        return self.answers.get((name, kind), Answer("nxdomain", secure=True, ttl=60))

    async def validates(self) -> str:
        self.asked += 1
        return self.problem


@pytest.mark.parametrize(
    ("answer", "cname", "found"),
    [
        (PLAIN, None, ((NAME,), "")),
        (ALIAS, None, (("real.test", NAME), "")),
        (INSECURE, Answer("ok", ((0, "real.test"),), secure=True), ((NAME,), "")),
        (INSECURE, Answer("ok", ((0, "real.test"),)), ((), "")),
        (INSECURE, Answer("failed", detail="SERVFAIL"), ((), "CNAME: SERVFAIL")),
        (Answer("ok", ((0, "192.0.2.1"),)), None, ((), "")),
    ],
)
def test_bases(answer: Answer, cname: Answer | None, found: tuple[tuple[str, ...], str]) -> None:
    world = World({(NAME, "CNAME"): cname} if cname is not None else {})
    assert asyncio.run(bases(world, NAME, answer)) == found  # type: ignore[arg-type]


def test_the_first_name_with_secure_records_counts() -> None:
    record = "030101" + "ab" * 32
    good = Answer("ok", ((0, record),) * 500, 7, secure=True)
    world = World({(f"_25._tcp.{NAME}", "TLSA"): good, ("_25._tcp.real.test", "TLSA"): Answer("ok", ((0, record),))})
    found = asyncio.run(find(world, ("real.test", NAME), 25))  # type: ignore[arg-type]
    assert (found.base, found.ttl, len(found.records)) == (NAME, 7, MOST_RECORDS)
    none = asyncio.run(find(world, ("other.test",), 25))  # type: ignore[arg-type]
    assert (none.records, none.ttl) == ((), 60)
    assert asyncio.run(find(world, (), 25)).ttl == LOOK_AGAIN  # type: ignore[arg-type]
    broken = World({(f"_25._tcp.{NAME}", "TLSA"): Answer("failed", detail="SERVFAIL")})
    assert asyncio.run(find(broken, (NAME,), 25)).failed == "SERVFAIL"  # type: ignore[arg-type]


def test_a_resolver_is_asked_again_soon() -> None:
    world = World()
    validator = Validator(world, world)  # type: ignore[arg-type]
    assert asyncio.run(validator.ask()) == ""
    world.problem = "it does not validate"
    assert asyncio.run(validator.ask()) == ""
    world.time += 61
    assert asyncio.run(validator.ask()) == "it does not validate"
    world.time += 16
    world.problem = ""
    assert asyncio.run(validator.ask()) == ""
    assert world.asked == 3
