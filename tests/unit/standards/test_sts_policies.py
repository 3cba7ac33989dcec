"""The policies of MTA-STS that are kept: when they are fetched, and how long they hold."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from quillon.net.resolver import Answer
from quillon.standards import sts_policies
from quillon.standards.fetch import FetchError
from quillon.standards.sts_policies import BACKOFF, REFRESH, StsFound, StsPolicies

DOMAIN = "bank.test"


def policy(mode: str = "enforce", age: int = 604800) -> bytes:
    return f"version: STSv1\nmode: {mode}\nmx: mx.bank.test\nmax_age: {age}\n".encode()


class World:
    """A clock, a DNS with one TXT record, a policy host, and what was said."""

    def __init__(self, folder: Path) -> None:
        self.time = 1_000_000.0
        self.txt = Answer("ok", ((0, "v=STSv1; id=1;"),), 60)
        self.body: bytes | FetchError = policy()
        self.fetched = 0
        self.said: list[str] = []
        self.folder = folder / "mtasts"
        self.policies = self.worker()

    def worker(self) -> StsPolicies:
        """One more process on the same folder."""
        return StsPolicies(self, self.fetch, self.folder, self, self.said.append)  # type: ignore[arg-type]

    def now(self) -> float:
        return self.time

    def shuffle(self, items: list[str]) -> None: ...

    def forget(self, _: str) -> int:
        return 0

    async def lookup(self, name: str, kind: str, server: str = "") -> Answer:
        assert (name, kind) == (f"_mta-sts.{DOMAIN}", "TXT")
        return self.txt

    async def fetch(self, domain: str) -> bytes:
        assert domain == DOMAIN
        self.fetched += 1
        await asyncio.sleep(0)
        if isinstance(self.body, FetchError):
            raise self.body
        return self.body

    def find(self, policies: StsPolicies | None = None) -> StsFound:
        found: StsFound = self.run((policies or self.policies).find(DOMAIN))
        return found

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def whole() -> Any:
            found = await work
            while left := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.gather(*left)
            return found

        return asyncio.run(whole())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def mode(found: StsFound) -> str:
    return found.policy.mode if found.policy is not None else ""


def test_a_policy_is_fetched_once_and_kept(world: World) -> None:
    assert [mode(world.find()) for _ in range(3)] == ["enforce"] * 3
    assert world.fetched == 1
    assert mode(world.find(world.worker())) == "enforce"  # a restart, another worker
    assert world.fetched == 1
    assert world.find().ttl == 60


def test_many_who_ask_at_once_fetch_it_once(world: World) -> None:
    async def all_at_once() -> list[StsFound]:
        return await asyncio.gather(*(world.policies.find(DOMAIN) for _ in range(20)))

    assert {mode(found) for found in world.run(all_at_once())} == {"enforce"}
    assert world.fetched == 1


def test_another_id_is_another_policy(world: World) -> None:
    world.find()
    world.txt, world.body = Answer("ok", ((0, "v=STSv1; id=2;"),), 60), policy("none")
    assert mode(world.find()) == "none"
    assert world.fetched == 2


@pytest.mark.parametrize(
    "txt",
    [
        Answer("nxdomain"),
        Answer("nodata"),
        Answer("failed", detail="timeout"),
        Answer("ok", ((0, "v=STSv1; id=1;"), (0, "v=STSv1; id=2;"))),
        Answer("ok", ((0, "v=STSv1; id=!;"),)),
        Answer("ok", ((0, "v=STSv1; id=2;"),), aliases=6),
    ],
)
def test_a_record_that_is_gone_takes_nothing_from_a_policy_that_is_kept(world: World, txt: Answer) -> None:
    world.find()
    world.txt = txt
    assert mode(world.find()) == "enforce"
    world.time += 604801
    assert mode(world.find()) == ""  # it has expired


def test_without_a_record_there_is_no_policy(world: World) -> None:
    world.txt = Answer("nxdomain")
    assert world.find() == StsFound(None, "", "", 60)
    assert world.fetched == 0


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (FetchError("404"), "sts-policy-fetch-error"),
        (FetchError("expired", "sts-webpki-invalid"), "sts-webpki-invalid"),
        (b"<html>", "sts-policy-invalid"),
    ],
)
def test_a_fetch_that_fails_leaves_the_old_policy_and_is_not_repeated_at_once(
    world: World, body: bytes | FetchError, result: str
) -> None:
    world.find()
    world.txt, world.body = Answer("ok", ((0, "v=STSv1; id=2;"),), 60), body
    for _ in range(3):
        found = world.find()
        assert (mode(found), found.result) == ("enforce", result)
    assert world.fetched == 2
    assert len(world.said) == 1
    assert "the one that is kept stays in force" in world.said[0]
    world.time += BACKOFF + 1
    world.body = policy("testing")
    assert mode(world.find()) == "testing"


def test_a_policy_is_fetched_again_in_a_day_beside_mail_that_goes_on(world: World) -> None:
    world.find()
    world.time += REFRESH + 1
    world.body = FetchError("down")
    assert mode(world.find()) == "enforce"
    assert world.fetched == 2
    world.body = policy("enforce", 1_000_000)
    world.time += BACKOFF + 1
    world.find()
    found = world.find().policy
    assert found is not None
    assert (found.max_age, found.fetched) == (1_000_000, world.time)


def test_those_that_nobody_asks_for_are_refreshed_and_those_expired_go(world: World) -> None:
    world.find()
    assert world.run(world.policies.refresh_all()) == 0
    world.time += REFRESH + 1
    assert world.run(world.policies.refresh_all()) == 1
    assert world.fetched == 2
    world.time += 604801
    world.txt = Answer("nxdomain")
    world.run(world.policies.refresh_all())
    assert world.policies.domains() == []


def test_refresh_asks_whatever_is_kept(world: World) -> None:
    world.find()
    world.body = policy("none")
    assert mode(world.run(world.policies.refresh(DOMAIN))) == "none"
    world.txt = Answer("nxdomain")
    found = world.run(world.policies.refresh(DOMAIN))
    assert (mode(found), found.result) == ("none", "sts-policy-fetch-error")


def test_what_another_worker_has_fetched_is_seen(world: World) -> None:
    other = world.worker()
    world.find()
    world.find(other)
    world.txt, world.body = Answer("ok", ((0, "v=STSv1; id=2;"),), 60), policy("none")
    assert mode(world.find(other)) == "none"
    world.body = FetchError("down")
    assert mode(world.find()) == "none"
    assert world.fetched == 2


def test_a_file_that_is_damaged_is_told_and_fetched_again(world: World) -> None:
    world.find()
    file = world.folder / "bank.test.json"
    for text in ("{", "[]", json.dumps({"domain": DOMAIN}), '{"mx": 1}'):
        file.write_text(text)
        assert mode(world.find(world.worker())) == "enforce"
    assert len(world.said) == 4
    assert "cannot be read" in world.said[0]


def test_a_folder_that_cannot_be_written_keeps_policies_in_memory(world: World) -> None:
    world.folder.write_text("this is no folder")
    assert mode(world.find()) == "enforce"
    assert mode(world.find()) == "enforce"
    assert world.fetched == 1
    assert "lost at a restart" in world.said[0]


@pytest.mark.parametrize(
    "domain", ["", "localhost", "../../etc/passwd", "a/b.test", "[192.0.2.1]", "x" * 250 + ".test"]
)
def test_what_is_no_domain_has_no_policy(world: World, domain: str) -> None:
    assert world.run(world.policies.find(domain)).policy is None


def test_a_disk_that_cannot_be_read_takes_no_policy_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.find()
    fresh = world.worker()

    def no_descriptor(_: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", no_descriptor)
        os.utime(world.folder / "bank.test.json", (1, 1))
        assert mode(world.find()) == "enforce", "as it is in memory"
        assert fresh.kept(DOMAIN) is None
    assert (world.folder / "bank.test.json").exists()
    assert fresh.kept(DOMAIN) is not None


def test_a_command_that_looks_writes_nothing(world: World, tmp_path: Path) -> None:
    looking = StsPolicies(world, world.fetch, world.folder, world, world.said.append, writes=False)  # type: ignore[arg-type]
    assert mode(world.find(looking)) == "enforce"
    assert not world.folder.exists()


def test_one_domain_that_goes_wrong_keeps_no_other_from_being_refreshed(world: World) -> None:
    world.find()
    (world.folder / "aaa.test.json").write_text(
        (world.folder / "bank.test.json").read_text().replace(DOMAIN, "aaa.test")
    )
    world.time += REFRESH + 1
    assert world.run(world.policies.refresh_all()) == 2  # of aaa.test the lookup is a defect in this world
    assert world.fetched == 2
    assert "aaa.test: unexpected" in world.said[0]


def test_a_folder_that_is_full_gives_up_no_policy_for_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sts_policies, "_MOST_ON_DISK", 1)
    world.folder.mkdir(parents=True)
    (world.folder / "other.test.json").write_text("{}")
    policies = world.worker()
    assert mode(world.find(policies)) == "enforce"
    assert policies.domains() == ["other.test"]
    assert policies.kept(DOMAIN) is not None
    world.txt = Answer("ok", ((0, "v=STSv1; id=2;"),), 60)
    assert mode(world.find(policies)) == "enforce"
    assert sum("further ones are lost" in line for line in world.said) == 1
    (world.folder / "other.test.json").unlink()
    world.txt = Answer("ok", ((0, "v=STSv1; id=3;"),), 60)
    assert mode(world.find(policies)) == "enforce"
    assert policies.domains() == [DOMAIN]
