"""The spool: commit, recovery, damage, adoption."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.mail.address import Mailbox
from quillon.mail.message import Batch, IdSource, Message, MessageId, Origin
from quillon.spool import record
from quillon.spool.store import SpoolError, Store

IDS = IdSource(7)


def _batch(recipients: int = 1, body: bytes = b"Subject: x\r\n\r\nhi\r\n") -> tuple[Batch, list[Message]]:
    batch = Batch(
        IDS.next(1000.0), Mailbox("a", "x.test"), Origin("192.0.2.1", "esmtp", IDS.next(1000.0)), 1000.5, len(body), body,
        connection_context={"tls": "on"}, message_context={"k": "v"},
    )  # fmt: skip
    return batch, [Message(IDS.next(1000.0), batch, Mailbox("b", f"y{n}.test"), "g", "b1") for n in range(recipients)]


def _store(folder: Path) -> tuple[Store, list[str]]:
    reports: list[str] = []
    return Store(folder, 0o640, reports.append), reports


def _with(folder: Path, use: Callable[[Store], object]) -> list[Message]:
    """Open, use on a loop, close; gives what was recovered at the start."""
    store, _ = _store(folder)
    found = store.open()

    async def run() -> None:
        store.start()
        result = use(store)
        if asyncio.iscoroutine(result):
            await result
        await store.close()

    asyncio.run(run())
    return found


async def _insert(store: Store, batch: Batch, messages: list[Message]) -> Exception | None:
    answer: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    store.insert(batch, messages, answer.set_result)
    return await asyncio.wait_for(answer, 10)


def _put(batch: Batch, messages: list[Message]) -> Callable[[Store], object]:
    return lambda store: _insert(store, batch, messages)


def test_what_was_committed_comes_back_whole(tmp_path: Path) -> None:
    batch, messages = _batch(recipients=2)
    assert _with(tmp_path, _put(batch, messages)) == []
    store, reports = _store(tmp_path)
    found = store.open()
    assert [m.id for m in found] == [m.id for m in messages]
    assert found[0].batch is found[1].batch
    back = found[0].batch
    assert (back.sender, back.size, back.received_at) == (batch.sender, batch.size, batch.received_at)
    assert (back.connection_context, back.message_context) == ({"tls": "on"}, {"k": "v"})
    assert (back.body, back.left, back.origin) == (None, 2, batch.origin)
    assert store.read_body_now(back) == b"Subject: x\r\n\r\nhi\r\n"
    assert (tmp_path / "spool.db").stat().st_mode & 0o777 == 0o640
    assert reports == []
    store.release()


def test_removed_messages_stay_away_and_take_the_body_with_the_last(tmp_path: Path) -> None:
    batch, messages = _batch(recipients=2)
    _with(tmp_path, _put(batch, messages))
    _with(tmp_path, lambda store: None)
    found: list[Message] = []

    def drop_first(store: Store) -> None:
        store.remove(found[0])

    store, _ = _store(tmp_path)
    found = store.open()
    store.release()
    _with(tmp_path, drop_first)
    left = _with(tmp_path, lambda store: None)
    assert [m.id for m in left] == [messages[1].id]
    _with(tmp_path, lambda store: store.remove(left[0]))
    with sqlite3.connect(tmp_path / "spool.db") as database:
        assert database.execute("SELECT count(*) FROM batch").fetchone() == (0,)
    database.close()


def test_retry_state_survives(tmp_path: Path) -> None:
    batch, messages = _batch()
    _with(tmp_path, _put(batch, messages))
    messages[0].tries, messages[0].next_at, messages[0].last_reply = 3, 5000.25, "450 later"
    _with(tmp_path, lambda store: store.update(messages[0]))
    (found,) = _with(tmp_path, lambda store: None)
    assert (found.tries, found.next_at, found.last_reply) == (3, 5000.25, "450 later")


def test_large_bodies_are_files_and_orphans_are_swept(tmp_path: Path) -> None:
    batch, messages = _batch(body=b"")

    async def use(store: Store) -> None:
        name, descriptor = store.new_body_file(batch.id.number)
        import os

        os.write(descriptor, b"large")
        os.close(descriptor)
        batch.path, batch.body = name, None
        assert await _insert(store, batch, messages) is None
        (tmp_path / "bodies" / "999").write_bytes(b"never acknowledged")

    _with(tmp_path, use)
    (found,) = _with(tmp_path, lambda store: None)
    assert [f.name for f in (tmp_path / "bodies").iterdir()] == [batch.path]
    _with(tmp_path, lambda store: store.remove(found))
    assert list((tmp_path / "bodies").iterdir()) == []


def test_a_failed_insert_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    batch, messages = _batch()

    async def twice(store: Store) -> None:
        assert await _insert(store, batch, messages) is None
        assert isinstance(await _insert(store, batch, messages), sqlite3.IntegrityError)

    _with(tmp_path, twice)
    assert len(_with(tmp_path, lambda store: None)) == 1


def test_damage_is_set_aside_and_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    good, damaged, lost = _batch(), _batch(), _batch()
    for one in (good, damaged, lost):
        _with(tmp_path, _put(*one))
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("UPDATE message SET record = '[1,' WHERE id = ?", (damaged[1][0].id.number,))
        database.execute("UPDATE batch SET record = '[99]' WHERE id = ?", (lost[0].id.number,))
    database.close()
    for _ in range(2):
        store, reports = _store(tmp_path)
        found = store.open()
        assert [m.id for m in found] == [good[1][0].id]
        store.release()
    with sqlite3.connect(tmp_path / "spool.db") as database:
        rows = database.execute("SELECT kind, id FROM set_aside ORDER BY kind, id").fetchall()
        bodies = database.execute("SELECT id FROM batch").fetchall()
    database.close()
    assert ("message", damaged[1][0].id.number) in rows
    assert ("batch", lost[0].id.number) in rows
    assert (damaged[0].id.number,) in bodies
    assert reports


def test_two_processes_cannot_share_a_spool(tmp_path: Path) -> None:
    store, _ = _store(tmp_path)
    store.open()
    other, _ = _store(tmp_path)
    with pytest.raises(SpoolError, match="in use"):
        other.open()
    store.release()


def test_adoption_moves_everything_and_can_be_repeated(tmp_path: Path) -> None:
    mine, theirs = _batch(), _batch(recipients=3)
    _with(tmp_path / "worker-0", _put(*mine))
    _with(tmp_path / "worker-1", _put(*theirs))
    for expected in (3, 0):
        store, _ = _store(tmp_path / "worker-0")
        assert store.adopt(tmp_path / "worker-1") == expected
    found = _with(tmp_path / "worker-0", lambda store: None)
    assert {m.id for m in found} == {m.id for m in mine[1] + theirs[1]}
    assert _with(tmp_path / "worker-1", lambda store: None) == []


@given(st.text(max_size=300))
def test_no_record_raises_anything_else(text: str) -> None:
    batch, _ = _batch()
    for read in (lambda: record.decode_batch(1, text, ""), lambda: record.decode_message(1, text, batch)):
        with contextlib.suppress(record.RecordError):
            read()


@given(st.integers(0, 2**31 - 1), st.text(alphabet=st.characters(codec="utf-8"), max_size=20))
def test_records_round_trip(slot: int, text: str) -> None:
    batch = Batch(
        MessageId(slot, 1, 2), Mailbox(text, text), Origin("::1", "esmtp", MessageId(slot, 3, 4), text), 1.5, 9, None,
        eight_bit=True, connection_context={text: text},
    )  # fmt: skip
    again = record.decode_batch(batch.id.number, record.encode_batch(batch), "")
    assert again == batch
    message = Message(MessageId(slot, 5, 6), batch, Mailbox(text, text), text, text, text, text, 3, 2.5, text)
    assert record.decode_message(message.id.number, record.encode_message(message), batch) == message
