"""The spool: commit, recovery, damage, adoption."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.config.outbound import lookup_name
from quillon.mail.address import Mailbox
from quillon.mail.message import Batch, IdSource, Message, MessageId, Origin
from quillon.spool import database as database_module
from quillon.spool import log as log_module
from quillon.spool import record, segment
from quillon.spool.errors import SpoolError, is_full
from quillon.spool.room import Room
from quillon.spool.store import Store
from tests.support.compiled import pure_only

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


async def _recovered(store: Store) -> list[Message]:
    return [message async for piece in store.recovered() for message in piece]


def _use(store: Store, use: Callable[[list[Message]], object] = len) -> list[Message]:
    """Open, read, use what was there on a loop, close; gives what was there."""
    store.open()

    async def run() -> list[Message]:
        store.start()
        found = await _recovered(store)
        result = use(found)
        if asyncio.iscoroutine(result):
            await result
        await store.close()
        return found

    return asyncio.run(run())


def _with(folder: Path, use: Callable[[Store], object]) -> list[Message]:
    """As `_use`, of the store itself."""
    store, _ = _store(folder)
    return _use(store, lambda _: use(store))


def _into_database(folder: Path) -> None:
    """Have all that a spool holds in its database, as when each message has been tried in vain."""
    store, _ = _store(folder)

    def put_off(found: list[Message]) -> None:
        for message in found:
            store.update(message)

    _use(store, put_off)
    assert not list((folder / "log").iterdir())


async def _insert(store: Store, batch: Batch, messages: list[Message]) -> Exception | None:
    answer: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    store.insert(batch, messages, answer.set_result)
    return await asyncio.wait_for(answer, 10)


def _put(batch: Batch, messages: list[Message]) -> Callable[[Store], object]:
    return lambda store: _insert(store, batch, messages)


@pytest.fixture(params=["log", "database"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _keep(folder: Path, tier: str, *batches: tuple[Batch, list[Message]]) -> None:
    """Put batches into a tier of a spool, in an earlier life."""
    for one in batches:
        _with(folder, _put(*one))
    if tier == "database":
        _into_database(folder)


def test_what_was_committed_comes_back_whole(tmp_path: Path, tier: str) -> None:
    batch, messages = _batch(recipients=2)
    _keep(tmp_path, tier, (batch, messages))
    store, reports = _store(tmp_path)
    bodies: list[bytes] = []

    async def read(found: list[Message]) -> None:
        bodies.append(await store.body_or_nothing(found[0].batch, 0))
        bodies.append(await store.body(found[0].batch) or b"")

    found = _use(store, read)
    assert [m.id for m in found] == [m.id for m in messages]
    assert found[0].batch is found[1].batch
    back = found[0].batch
    assert (back.sender, back.size, back.received_at) == (batch.sender, batch.size, batch.received_at)
    assert (back.connection_context, back.message_context) == ({"tls": "on"}, {"k": "v"})
    assert (back.body, back.left, back.origin) == (None, 2, batch.origin)
    assert bodies == [b"Subject: x\r\n\r\nhi\r\n"] * 2
    for file in tmp_path.glob("**/*[dg]"):
        assert file.is_dir() or file.stat().st_mode & 0o777 == 0o640
    assert reports == []


def test_removed_messages_stay_away_and_take_the_body_with_the_last(tmp_path: Path, tier: str) -> None:
    batch, messages = _batch(recipients=2)
    _keep(tmp_path, tier, (batch, messages))
    store, _ = _store(tmp_path)
    _use(store, lambda found: store.remove(found[0]))
    left = _use(store := _store(tmp_path)[0], lambda found: store.remove(found[0]))
    assert [m.id for m in left] == [messages[1].id]
    assert _with(tmp_path, lambda store: None) == []
    with sqlite3.connect(tmp_path / "spool.db") as database:
        assert database.execute("SELECT count(*) FROM batch").fetchone() == (0,)
    database.close()
    assert not list((tmp_path / "log").iterdir())


def test_retry_state_survives(tmp_path: Path, tier: str) -> None:
    _keep(tmp_path, tier, _batch(recipients=2))
    store, _ = _store(tmp_path)

    def put_off(found: list[Message]) -> None:
        found[0].tries, found[0].next_at, found[0].last_reply = 3, 5000.25, "450 later"
        store.update(found[0])

    _use(store, put_off)
    one, other = _with(tmp_path, lambda store: None)
    assert (one.tries, one.next_at, one.last_reply) == (3, 5000.25, "450 later")
    assert (other.tries, other.next_at, other.last_reply) == (0, 0.0, "")


def test_large_bodies_are_files_and_orphans_are_swept(tmp_path: Path, tier: str) -> None:
    batch, messages = _batch(body=b"")

    async def use(store: Store) -> None:
        name, descriptor = store.bodies.new(batch.id.number)
        import os

        os.write(descriptor, b"large")
        os.close(descriptor)
        batch.path, batch.body = name, None
        assert await _insert(store, batch, messages) is None
        (tmp_path / "bodies" / "999").write_bytes(b"never acknowledged")

    _with(tmp_path, use)
    if tier == "database":
        _into_database(tmp_path)
    _with(tmp_path, lambda store: None)
    assert [f.name for f in (tmp_path / "bodies").iterdir()] == [batch.path]
    store, _ = _store(tmp_path)
    bodies = []

    async def read(found: list[Message]) -> None:
        bodies.append(await store.body(found[0].batch))
        store.remove(found[0])

    _use(store, read)
    assert bodies == [b"large"]
    assert list((tmp_path / "bodies").iterdir()) == []


def test_damage_is_set_aside_and_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    good, damaged, lost = _batch(), _batch(), _batch()
    _keep(tmp_path, "database", good, damaged, lost)
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("UPDATE message SET record = '[1,' WHERE id = ?", (damaged[1][0].id.number,))
        database.execute("UPDATE batch SET record = '[99]' WHERE id = ?", (lost[0].id.number,))
    database.close()
    for _ in range(2):
        store, reports = _store(tmp_path)
        assert [m.id for m in _use(store)] == [good[1][0].id]
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


def test_adoption_moves_everything_and_can_be_repeated(tmp_path: Path, tier: str) -> None:
    mine, theirs = _batch(), _batch(recipients=3)
    _keep(tmp_path / "worker-0", tier, mine)
    _keep(tmp_path / "worker-1", tier, theirs)
    for expected in (3, 0):
        store, _ = _store(tmp_path / "worker-0")
        assert store.adopt(tmp_path / "worker-1") == expected
        store.release()
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


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("message", "record", "cast(x'5bff5d' as text)"),
        ("message", "record", '\'[3,"b","y","g","b1","","",1e999,0,"",0,{},"","",null]\''),
        ("message", "record", "replace(hex(zeroblob(50000)), '00', '[[')"),
        ("message", "record", '\'[3,"b","\\ud800","g","b1","","",0,0,"",0,{},"","",null]\''),
        ("batch", "record", "cast(x'ff' as text)"),
        ("batch", "path", "'../../../../../../etc/hostname'"),
        ("batch", "path", "replace(hex(zeroblob(3000)), '0', 'x')"),
        ("batch", "body", "NULL"),
    ],
)
def test_a_row_that_cannot_be_read_stops_nothing(tmp_path: Path, table: str, column: str, value: str) -> None:
    first, second = _batch(), _batch()
    _keep(tmp_path, "database", first, second)
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute(f"UPDATE {table} SET {column} = {value} WHERE id = (SELECT min(id) FROM {table})")
    database.close()
    store, reports = _store(tmp_path)
    assert [message.id for message in _use(store)] == [second[1][0].id]
    assert any("is set aside" in report for report in reports)
    assert Path("/etc/hostname").exists()


def test_a_routing_domain_that_is_none_is_no_exception() -> None:
    for name in ("[a:b:c", "::1", "[::1]:25", "x:y:z", "[", "]", "a.b.", ""):
        lookup_name(name)


@pytest.mark.parametrize("damage", ["spool.db", "spool.db-wal", "wal cut", "folder", "replaced", "log", "log cut"])
def test_a_spool_that_is_taken_away_takes_nothing_more(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "worker-0"
    reports: list[str] = []
    store = Store(folder, 0o640, reports.append)
    store.open()

    async def run() -> Exception | None:
        store.start()
        await _recovered(store)
        batch, messages = _batch()
        assert await _insert(store, batch, messages) is None
        store.update(messages[0])
        while not store.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await _insert(store, *_batch()) is None
        (active,) = (folder / "log").glob("*.log")
        if damage == "wal cut":
            os.truncate(folder / "spool.db-wal", 0)
        elif damage == "log cut":
            os.truncate(active, 0)
        elif damage == "log":
            active.unlink()
        elif damage in ("folder", "replaced"):
            folder.rename(tmp_path / "elsewhere")
            if damage == "replaced":
                (folder / "bodies").mkdir(parents=True)
        else:
            (folder / damage).unlink()
        if "wal" in damage:
            store.update(messages[0])  # the database is looked at when it is written
            while not store.failing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        error = await _insert(store, *_batch())
        assert await _insert(store, *_batch()) is not None
        await store.close(0.1)
        return error

    error = asyncio.run(run())
    assert error is not None
    assert "while the server runs" in str(error)
    assert any("while the server runs" in report for report in reports)


def test_a_database_that_has_gone_is_not_begun_anew(tmp_path: Path) -> None:
    _with(tmp_path, _put(*_batch()))
    (tmp_path / "bodies/77").write_bytes(b"x")
    (tmp_path / "spool.db").rename(tmp_path / "away.db")
    for content in (None, b""):
        if content is not None:
            (tmp_path / "spool.db").write_bytes(content)
        store, _ = _store(tmp_path)
        with pytest.raises(SpoolError, match="is missing, or empty, and was there before"):
            store.open()
        store.release()
    assert (tmp_path / "bodies/77").exists()
    (tmp_path / "away.db").rename(tmp_path / "spool.db")
    assert len(_with(tmp_path, lambda store: None)) == 1


@pure_only
def test_any_exception_of_a_commit_is_an_answer(tmp_path: Path, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, reports = _store(tmp_path)
    store.open()

    def no_memory(*_: object) -> None:
        raise MemoryError

    async def run() -> None:
        store.start()
        with monkeypatch.context() as patched:
            if tier == "database":
                monkeypatch.setattr(log_module, "MOST", 0)  # new mail goes past the log
                patched.setattr(database_module, "_insert", no_memory)
            else:
                patched.setattr(segment.Segment, "append", no_memory)
            assert isinstance(await _insert(store, *_batch()), MemoryError)
        assert await _insert(store, *_batch()) is None
        await store.close()

    asyncio.run(run())
    assert any("MemoryError" in report for report in reports)
    assert any("is written again" in report for report in reports)


def test_a_context_may_hold_what_is_a_text_and_more(tmp_path: Path) -> None:
    """Header fields that Python's email package gives are."""

    class Header(str):
        pass

    async def use(store: Store) -> None:
        batch, messages = _batch()
        batch.message_context = {"subject": Header("hello")}
        assert await _insert(store, batch, messages) is None

    _with(tmp_path, use)
    (message,) = _with(tmp_path, lambda store: None)
    assert message.batch.message_context == {"subject": "hello"}


def test_a_record_that_cannot_be_made_is_an_answer(tmp_path: Path) -> None:
    async def use(store: Store) -> None:
        batch, messages = _batch()
        batch.connection_context = {"k": object()}  # type: ignore[dict-item]
        assert isinstance(await _insert(store, batch, messages), TypeError)
        assert await _insert(store, *_batch()) is None

    _with(tmp_path, use)
    assert len(_with(tmp_path, lambda store: None)) == 1


def test_a_spool_of_the_first_layout_is_taken_over_and_one_of_a_later_one_is_not(tmp_path: Path) -> None:
    batch, messages = _batch(recipients=2)
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.executescript(database_module.SCHEMA)
        database.execute("PRAGMA user_version=1")
        database.execute(
            "INSERT INTO batch VALUES(?,?,?,'')", (batch.id.number, record.encode_batch(batch), batch.body)
        )
        rows = [(m.id.number, batch.id.number, record.encode_message(m)) for m in messages]
        database.executemany("INSERT INTO message VALUES(?,?,?)", rows)
    database.close()
    found = _with(tmp_path, lambda store: None)
    assert [m.id for m in found] == [m.id for m in messages]
    with sqlite3.connect(tmp_path / "spool.db") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
        database.execute("PRAGMA user_version=3")
    database.close()
    store, _ = _store(tmp_path)
    with pytest.raises(SpoolError, match="layout 3 is of another version"):
        store.open()
    store.release()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("a small disk takes root and leave to mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_heals_by_itself(small_disk: Path) -> None:
    """New mail is refused, what was taken is removed as soon as there is room, and nothing comes back."""
    folder, filler = small_disk / "worker-0", small_disk / "filler"
    reports: list[str] = []
    store = Store(folder, 0o640, reports.append)
    store.open()
    kept, gone = _batch(), _batch()

    async def run() -> None:
        store.start()
        assert await _insert(store, *kept) is None
        assert await _insert(store, *gone) is None
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        error = await _insert(store, *_batch(body=b"x" * 1_000_000))
        assert error is not None
        assert is_full(error)
        store.remove(gone[1][0])
        await asyncio.sleep(0.6)
        filler.unlink()
        while not store.idle:  # noqa: ASYNC110 - the store has no event for that
            await asyncio.sleep(0.05)
        assert await _insert(store, *_batch()) is None
        await store.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    again = Store(folder, 0o640, reports.append)
    found = {message.id for message in _use(again)}
    assert kept[1][0].id in found
    assert gone[1][0].id not in found
    assert len(found) == 2


def test_room_is_looked_at_before_it_is_gone(tmp_path: Path) -> None:
    now = [0.0]
    room = Room(tmp_path, 0, 0, lambda: now[0])
    assert room.shortage() == ""
    room.reconfigure(1 << 60, 0)
    now[0] = 10.0
    assert "MiB are free" in room.shortage()
    room.reconfigure(0, 1 << 60)
    now[0] = 20.0
    assert room.shortage() == "" or "inodes are free" in room.shortage()
    now[0] = 30.0
    free, now = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, [40.0]
    room = Room(tmp_path, free * 2, 0, lambda: now[0])
    assert room.shortage().endswith(f"less than {free * 2 >> 20} MiB")
    room.reconfigure(free * 9 // 10, 0)  # enough to go on, too little to begin again
    now[0] = 50.0
    assert room.shortage().endswith(f"less than {free * 9 // 10 * 5 // 4 >> 20} MiB")
    now[0] = 60.0
    assert "cannot be looked at" in Room(tmp_path / "nowhere", 1, 0, lambda: now[0]).shortage()


def test_recipients_in_different_pieces_share_one_batch_that_goes_with_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quillon.spool.recovery.PIECE", 2)
    batch, messages = _batch(recipients=5)
    _keep(tmp_path, "database", (batch, messages))
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("UPDATE message SET record = '[1,' WHERE id = ?", (messages[3].id.number,))
    database.close()
    store, _ = _store(tmp_path)
    store.open()
    found: list[Message] = []

    async def run() -> None:
        store.start()
        async for piece in store.recovered():
            for message in piece:
                found.append(message)
                store.remove(message)
        await store.close()

    asyncio.run(run())
    assert [message.id for message in found] == [m.id for m in messages if m is not messages[3]]
    assert len({id(message.batch) for message in found}) == 1
    assert found[0].batch.left == 0
    with sqlite3.connect(tmp_path / "spool.db") as database:
        assert database.execute("SELECT count(*) FROM message").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM set_aside").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM batch").fetchone() == (1,), "the entry set aside needs it"
    database.close()


@pytest.mark.parametrize("name", ["lost+found", "99999999999999999999", "5"])
def test_what_lies_in_the_folder_of_bodies_stops_no_start(tmp_path: Path, name: str) -> None:
    _with(tmp_path, _put(*_batch()))
    if name == "lost+found":
        (tmp_path / "bodies" / name).mkdir()
    else:
        (tmp_path / "bodies" / name).write_bytes(b"x")
    assert len(_with(tmp_path, lambda store: None)) == 1
    assert (tmp_path / "bodies" / name).exists() == (name == "lost+found")
