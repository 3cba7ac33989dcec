"""The log tier of the spool: its octets, crashes at every step, disks that fail, and both tiers against a model."""

import asyncio
import errno
import os
import random
import select
import shutil
import signal
import sqlite3
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.mail.message import IdSource, Message, MessageId
from quillon.spool import committer, log, log_octets, record, segment
from quillon.spool.committer import APPEND
from quillon.spool.errors import SpoolError, is_full
from quillon.spool.inspect import Spool, Wanted
from quillon.spool.log_octets import Broken, Record
from quillon.spool.store import Store
from tests.support.compiled import pure_only
from tests.support.peers import missing
from tests.unit.spool.test_store import IDS, _batch, _insert, _put, _recovered, _store, _use, _with

MARK = b"12345678"
HEAD = log_octets.HEAD + MARK


def _record(number: int, body: bytes, path: str = "") -> bytes:
    meta = log_octets.encode_meta(path, f"[{number}]", [(number + 1, "[1]"), (number + 2, "[2]")])
    return log_octets.encode_head(MARK, number, meta, body) + meta + body


def _mark(data: bytes | bytearray) -> bytes:
    return bytes(data[len(log_octets.HEAD) : log_octets.START])


bodies = st.lists(st.binary(max_size=60), min_size=1, max_size=6)


@given(bodies, st.integers(0, 100))
def test_a_segment_gives_back_what_was_written(some: list[bytes], room: int) -> None:
    data = HEAD + b"".join(_record(n * 10, body) for n, body in enumerate(some)) + bytes(room)
    found = list(log_octets.scan(MARK, data, reserved=True))
    assert [r.number for r in found if isinstance(r, Record)] == [n * 10 for n in range(len(some))]
    assert [data[r.body : r.end] for r in found if isinstance(r, Record)] == some
    assert next(r.messages for r in found if isinstance(r, Record)) == [(1, "[1]"), (2, "[2]")]
    assert log_octets.mark_of(data, HEAD) == MARK


@given(bodies, st.data())
def test_damage_costs_the_records_that_it_hits_and_no_others(some: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(HEAD)
    places = []
    for number, body in enumerate(some):
        places.append((len(whole), len(whole) + len(_record(number, body))))
        whole += _record(number, body)
    hit = data.draw(st.integers(len(HEAD), len(whole) - 1))
    length = data.draw(st.integers(1, 80))
    damaged = whole[:hit] + data.draw(st.binary(min_size=length, max_size=length)) + whole[hit + length :]
    found = list(log_octets.scan(MARK, bytes(damaged), reserved=False))
    records = {r.number for r in found if isinstance(r, Record)}
    for number, (start, end) in enumerate(places):
        same = damaged[start:end] == whole[start:end]
        assert (number in records) == same
    assert len(records) == len(some) or any(isinstance(r, Broken) for r in found)


@given(bodies, st.data())
def test_a_write_that_breaks_off_is_a_tail(some: list[bytes], data: st.DataObject) -> None:
    records = [_record(number, body) for number, body in enumerate(some)]
    whole = HEAD + b"".join(records)
    cut = data.draw(st.integers(len(whole) - len(records[-1]) + 1, len(whole) - 1))
    *rest, last = log_octets.scan(MARK, whole[:cut], reserved=False)
    assert all(isinstance(r, Record) for r in rest)
    assert len(rest) == len(some) - 1
    assert last == Broken(len(whole) - len(records[-1]), cut)


def test_nobody_from_outside_can_write_a_record() -> None:
    """What a body holds is no record, though what stands in front of it is damaged: the mark is not known outside."""
    forged = _record(5, b"to anybody").replace(MARK, b"abcdefgh")
    data = bytearray(HEAD + _record(1, forged) + _record(9, b"x"))
    data[len(HEAD) + 10] ^= 1
    records = [r.number for r in log_octets.scan(MARK, bytes(data), reserved=False) if isinstance(r, Record)]
    assert records == [9]


@given(st.sets(st.integers(0, 2**63 - 1), max_size=20), st.binary(max_size=11), st.integers(0, 3))
def test_the_list_of_what_is_done(numbers: set[int], torn: bytes, room: int) -> None:
    data = HEAD + log_octets.encode_done(numbers) + bytes(room * log_octets.DONE_SIZE) + torn
    assert log_octets.decode_done(data) == numbers
    assert log_octets.decode_done(data[:7]) == set()


def _crashed(store: Store) -> None:
    """Leave everything as a process leaves it that was killed: nothing is closed, nothing tidied."""
    copy = store.folder.with_name("after")
    shutil.copytree(store.folder, copy)


def _after(folder: Path) -> list[Message]:
    """What is there after `_crashed`."""
    return _with(folder.with_name("after"), lambda store: None)


def test_what_is_done_stays_done_after_a_crash(tmp_path: Path) -> None:
    folder = tmp_path / "worker-0"
    store, reports = _store(folder)
    kept: list[MessageId] = []

    async def use(_: list[Message]) -> None:
        first, second = _batch(recipients=2), _batch()
        for one in (first, second):
            assert await _insert(store, *one) is None
        store.remove(first[1][0])
        while not store.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        _crashed(store)
        kept.extend((first[1][1].id, second[1][0].id))

    _use(store, use)
    assert [message.id for message in _after(folder)] == kept
    assert reports == []


@pure_only
@pytest.mark.parametrize("lost", ["the list", "the row"])
def test_a_crash_between_the_tiers_has_each_message_once(
    tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has committed, and the log has not been told yet."""
    folder = tmp_path / "worker-0"
    store, _ = _store(folder)
    batch, messages = _batch(recipients=3)

    async def use(_: list[Message]) -> None:
        assert await _insert(store, batch, messages) is None
        messages[1].tries = 7
        if lost == "the list":
            monkeypatch.setattr(segment.Segment, "bury", lambda *_: None)
        store.update(messages[1])
        while not store.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        _crashed(store)
        if lost == "the row":
            # the other order: the list has come to the disk, the row is in the log of the database
            assert not log_octets.decode_done(next((folder / "log").glob("*.done")).read_bytes()) ^ {
                message.id.number for message in messages
            }

    _use(store, use)
    monkeypatch.undo()
    found = _after(folder)
    assert sorted((message.id, message.tries) for message in found) == [
        (message.id, 7 if message is messages[1] else 0) for message in messages
    ]
    assert found[0].batch.left == 3
    found = _after(folder)
    assert len(found) == 3
    assert not list((folder.with_name("after") / "log").iterdir())


def test_what_a_crash_broke_off_is_told_and_stops_nothing(tmp_path: Path) -> None:
    kept = _batch()
    _with(tmp_path, _put(*kept))
    (file,) = (tmp_path / "log").glob("*.log")
    with file.open("ab") as opened:
        opened.write(_mark(file.read_bytes()))
        opened.write(b"\x10\0\0\0half")
    store, reports = _store(tmp_path)
    assert [message.id for message in _use(store)] == [kept[1][0].id]
    assert [report for report in reports if "a write that a crash has broken off" in report]
    (copy,) = (tmp_path / "log").glob("*.broken-*")
    assert copy.read_bytes().endswith(b"half")
    assert file.exists(), "its message is still there"


def test_damage_is_copied_and_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    some = [_batch(body=b"x" * 100) for _ in range(3)]

    async def put(store: Store) -> None:
        for one in some:
            assert await _insert(store, *one) is None

    _with(tmp_path / "worker-0", put)
    folder = tmp_path / "worker-0/log"
    (file,) = folder.glob("*.log")
    data = bytearray(file.read_bytes())
    records = [r for r in log_octets.scan(_mark(data), bytes(data), reserved=False) if isinstance(r, Record)]
    data[records[1].body + 3] ^= 0x40
    file.write_bytes(data)
    assert [message.id for message in (one.message for one in Spool(tmp_path).messages(Wanted()))] == [
        some[0][1][0].id, some[2][1][0].id
    ]  # fmt: skip
    assert any("are no record" in fault.words for fault in Spool(tmp_path).faults())
    store, reports = _store(tmp_path / "worker-0")

    def remove(found: list[Message]) -> None:
        for message in found:
            store.remove(message)

    found = _use(store, remove)
    assert [message.id for message in found] == [some[0][1][0].id, some[2][1][0].id]
    assert any("they are kept in" in report for report in reports)
    (copy,) = folder.iterdir()
    assert copy.read_bytes() == data[records[1].start : records[1].end]
    assert any(fault.file == str(copy) for fault in Spool(tmp_path).faults())


@pytest.mark.parametrize("flip", [0, len(log_octets.HEAD) + 3])
@pytest.mark.parametrize("places", [["log"], ["done"], ["log", "done"]])
def test_a_head_that_is_damaged_costs_nothing(tmp_path: Path, flip: int, places: list[str]) -> None:
    kept = _batch()
    _with(tmp_path, _put(*kept))
    for place in places:
        (file,) = (tmp_path / "log").glob(f"*.{place}")
        data = bytearray(file.read_bytes())
        data[flip] ^= 1
        file.write_bytes(data)
    assert [message.id for message in _with(tmp_path, lambda store: None)] == [kept[1][0].id]


@pure_only
def test_a_record_that_cannot_be_read_goes_where_such_rows_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, missing = _batch(), _batch(recipients=2), _batch(body=b"")

    async def put(store: Store) -> None:
        name, descriptor = store.bodies.new(missing[0].id.number)
        os.close(descriptor)
        missing[0].path = name
        encode = record.encode_message
        with monkeypatch.context() as patched:
            wrong = bad[1][0]
            patched.setattr(log, "encode_message", lambda m: "[9]" if m is wrong else encode(m))
            for one in (good, bad, missing):
                assert await _insert(store, *one) is None
        (store.bodies.folder / name).unlink()

    _with(tmp_path, put)
    for _ in range(2):
        store, reports = _store(tmp_path)
        assert {message.id for message in _use(store)} == {good[1][0].id, bad[1][1].id}
        assert reports
    with sqlite3.connect(tmp_path / "spool.db") as opened:
        aside = {tuple(row) for row in opened.execute("SELECT kind, id FROM set_aside")}
    opened.close()
    assert aside == {
        ("message", bad[1][0].id.number),
        ("batch", missing[0].id.number),
        ("message", missing[1][0].id.number),
    }


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written by Python, whose calls can be made to fail."""
    monkeypatch.setattr(committer, "Writer", None)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("where", ["pwritev", "sync", "short"])
def test_a_disk_that_fails_is_no_250_and_what_was_refused_does_not_come_back(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "worker-0"
    store, reports = _store(folder)
    before, refused, later = _batch(), _batch(), _batch()

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def use(_: list[Message]) -> None:
        assert await _insert(store, *before) is None
        with monkeypatch.context() as patched:
            if where == "short":
                write = os.pwrite
                patched.setattr(os, "pwritev", lambda file, some, at, _: write(file, b"".join(some)[:50], at))
                patched.setattr(os, "pwrite", fail)
            elif where == "sync":
                write_all = os.pwritev
                patched.setattr(os, "pwritev", lambda *told: (write_all(*told), fail()))
            else:
                patched.setattr(os, where, fail)
            error = await _insert(store, *refused)
            assert isinstance(error, OSError)
            assert not is_full(error)
        _crashed(store)
        assert await _insert(store, *later) is None

    _use(store, use)
    assert {message.id for message in _after(folder)} == {before[1][0].id}
    assert {message.id for message in _with(folder, lambda store: None)} == {before[1][0].id, later[1][0].id}
    assert any("write failed" in report for report in reports)
    assert any("is written again" in report for report in reports)


@pure_only
def test_a_disk_that_fails_the_compiled_writer_is_no_250_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if committer.Writer is None:
        missing("Quillon is installed without its compiled parts")
    folder = tmp_path / "worker-0"
    store, reports = _store(folder)
    before, refused, later, last = _batch(), _batch(), _batch(), _batch()
    full = os.open("/dev/full", os.O_WRONLY)

    async def use(_: list[Message]) -> None:
        assert await _insert(store, *before) is None
        with monkeypatch.context() as patched:
            patched.setattr(segment.Segment, "file", full)
            error = await _insert(store, *refused)
            assert isinstance(error, OSError)
        _crashed(store)
        assert await _insert(store, *later) is None
        assert await _insert(store, *last) is None

    _use(store, use)
    os.close(full)
    assert {message.id for message in _after(folder)} == {before[1][0].id}
    kept = {before[1][0].id, later[1][0].id, last[1][0].id}
    assert {message.id for message in _with(folder, lambda store: None)} == kept
    assert any("write failed" in report for report in reports)
    assert any("is written again" in report for report in reports)


def test_a_group_that_fails_while_the_log_is_closed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled writer hands what it could not write to the thread, which has to be there still."""
    if committer.Writer is None:
        missing("Quillon is installed without its compiled parts")

    class Slow:
        """Fails after a while."""

        def __init__(self) -> None:
            self._reader, self._writer = os.pipe()
            self._result: tuple[int, int] | None = None

        def submit(self, *_: object) -> None:
            threading.Timer(0.5, self._end).start()

        def _end(self) -> None:
            self._result = errno.EIO, 0
            os.write(self._writer, b"x")

        def result(self) -> tuple[int, int] | None:
            os.read(self._reader, 1)
            return self._result

        def fileno(self) -> int:
            return self._reader

        def close(self) -> None:
            os.close(self._reader)
            os.close(self._writer)

    monkeypatch.setattr(committer, "Writer", Slow)
    store, reports = _store(tmp_path)
    told: list[Exception | None] = []

    async def use(_: list[Message]) -> None:
        assert await _insert(store, *_batch()) is None
        store.insert(*_batch(), told.append)
        await asyncio.sleep(0.1)
        await store.close(0.1)
        assert len(told) == 1
        assert isinstance(told[0], OSError)

    async def run() -> None:
        store.start()
        await use([])

    store.open()
    asyncio.run(run())
    assert any("write failed" in report for report in reports)
    assert len(_with(tmp_path, lambda store: None)) == 1


def test_the_compiled_writer(tmp_path: Path) -> None:
    if committer.Writer is None:
        missing("Quillon is installed without its compiled parts")
    writer = committer.Writer()
    with (tmp_path / "file").open("wb") as file:

        def write(*writes: tuple[int, int, list[bytes]]) -> tuple[int, int]:
            writer.submit(list(writes))
            with pytest.raises(RuntimeError):
                writer.submit(list(writes))
            select.select([writer], [], [], 20)
            result = writer.result()
            assert result is not None
            assert writer.result() is None
            return result

        to, end = file.fileno(), os.open(tmp_path / "file", os.O_WRONLY | os.O_APPEND)
        many = [b"%d," % n for n in range(5000)]  # more than one call of the system takes
        assert write((to, 3, many)) == (0, 1)
        assert write((to, 0, [b"a", b"", b"bc"])) == (0, 1)
        assert (tmp_path / "file").read_bytes() == b"abc" + b"".join(many)
        assert write((end, APPEND, many), (to, 0, [b"x"]), (end, APPEND, [b"y"])) == (0, 3)
        assert (tmp_path / "file").read_bytes() == b"xbc" + b"".join(many) * 2 + b"y"
        assert write((to, 0, [b"d"]), (-1, 0, [b"x"]), (to, 0, [b"e"])) == (errno.EBADF, 1)
        assert (tmp_path / "file").read_bytes()[:3] == b"dbc"
        assert write() == (0, 0)
        assert write((end, APPEND, [b"", b""]), (to, 0, [b"", b"f"])) == (0, 2)
        assert (tmp_path / "file").read_bytes()[:3] == b"fbc"
        for wrong in (
            [(to, 0, ["text"])],
            [(to, 0, (b"x",))],
            [(to, 0)],
            [to],
            [(to, 0, [b"x"]), None],
            (to, 0, [b"x"]),
        ):
            with pytest.raises(TypeError):
                writer.submit(wrong)  # type: ignore[arg-type]
        writer.submit([(to, 0, [b"z"])])
        writer.close()  # after its job
        writer.close()
        os.close(end)
        assert (tmp_path / "file").read_bytes()[:3] == b"zbc"
        with pytest.raises(RuntimeError):
            writer.submit([(to, 0, [b"x"])])


@pure_only
@pytest.mark.parametrize("fails", [False, True])
def test_the_compiled_writer_writes_what_is_done(tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot the committer does, and nobody who brings mail meanwhile is refused for it."""
    if committer.Writer is None:
        missing("Quillon is installed without its compiled parts")
    folder = tmp_path / "worker-0"
    store, reports = _store(folder)
    done, kept = _batch(recipients=2), _batch()
    full = os.open("/dev/full", os.O_WRONLY)
    written: list[log._Group] = []
    by_thread = store._log._write

    def write(group: log._Group) -> None:
        written.append(group)
        by_thread(group)

    async def use(_: list[Message]) -> None:
        assert await _insert(store, *done) is None
        with monkeypatch.context() as patched:
            patched.setattr(store._log.committer, "_write", write)
            if fails:
                lend = segment.Segment.lend_list
                patched.setattr(segment.Segment, "lend_list", lambda self: full if lend(self) >= 0 else -1)
            store.remove(done[1][0])
            assert await _insert(store, *kept) is None
            assert bool(written) == fails
        _crashed(store)

    _use(store, use)
    os.close(full)
    for found in (_after(folder), _with(folder, lambda store: None)):
        assert {message.id for message in found} == {done[1][1].id, kept[1][0].id}
    assert reports == []


def test_lists_are_lent_all_or_none(tmp_path: Path) -> None:
    store, _ = _store(tmp_path / "worker-0")
    one, other = segment.Segment(tmp_path, 1), segment.Segment(tmp_path, 2)
    one.create(0o640, bytes(8))
    assert not store._log._lent({one: [1], other: [2]}, [], [])
    file = one.lend_list()
    assert file >= 0
    one.take_list_back(failed=False)
    writes: list[committer.Write] = []
    entries = committer.Write(7, 0, [b"entries"])
    assert store._log._lent({one: [1]}, writes, [entries])
    assert writes == [committer.Write(file, APPEND, [log_octets.encode_done([1])]), entries]
    one.take_list_back(failed=False)
    one.release()


def test_a_list_of_what_is_done_is_lent_to_one_at_a_time(tmp_path: Path) -> None:
    one = segment.Segment(tmp_path, 1)
    assert one.lend_list() == -1  # it is not open
    one.create(0o640, bytes(8))
    file = one.lend_list()
    assert file >= 0
    assert one.lend_list() == -1
    os.write(file, b"half")
    one.take_list_back(failed=True)
    assert one.lend_list() == -1
    one.bury([7])  # opens it again, without the half
    assert one.done() == {7}
    assert one.lend_list() >= 0
    one.take_list_back(failed=False)
    one.remove()
    assert one.lend_list() == -1


def _damage(folder: Path, flip: int = -3) -> Path:
    """Change an octet of the last record of the only segment; gives that file."""
    (file,) = (folder / "log").glob("*.log")
    data = bytearray(file.read_bytes())
    data[len(data.rstrip(b"\0")) + flip] ^= 0x40
    file.write_bytes(data)
    return file


def test_the_last_record_is_kept_too_and_so_are_bodies_that_it_may_name(tmp_path: Path) -> None:
    batch, messages = _batch(body=b"")

    async def put(store: Store) -> None:
        batch.path, descriptor = store.bodies.new(batch.id.number)
        os.write(descriptor, b"large")
        os.close(descriptor)
        assert await _insert(store, batch, messages) is None

    _with(tmp_path, put)
    _damage(tmp_path)
    assert _with(tmp_path, lambda store: None) == []
    assert list((tmp_path / "log").glob("*.broken-24"))
    assert (tmp_path / "bodies" / batch.path).exists()


def test_damage_in_two_lives_is_kept_twice_and_a_copy_that_broke_off_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        _with(tmp_path, _put(*_batch()))
        _damage(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda _: _fail(errno.ENOSPC))
            patched.setattr(segment, "sync", lambda _: None)
            patched.setattr(log, "sync", lambda _: None)
            store, reports = _store(tmp_path)
            _use(store)
            assert any("cannot be copied" in report for report in reports)
        _with(tmp_path, lambda store: None)
    assert len([file for file in (tmp_path / "log").iterdir() if file.stat().st_size]) == 2


def _fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_a_disk_that_does_not_give_a_block_costs_no_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [_batch(body=b"x" * 6000) for _ in range(3)]

    async def put(store: Store) -> None:
        for one in some:
            assert await _insert(store, *one) is None

    _with(tmp_path, put)
    (file,) = (tmp_path / "log").glob("*.log")
    whole = file.read_bytes()
    pread, read = os.pread, Path.read_bytes
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", lambda f, n, at: _fail(errno.EIO) if at == 16384 else pread(f, n, at))
        patched.setattr(Path, "read_bytes", lambda self: _fail(errno.EIO) if self == file else read(self))
        store, reports = _store(tmp_path)
        found = _use(store)
    assert [message.id for message in found] == [some[0][1][0].id, some[1][1][0].id]
    assert any("cannot be read from the disk" in report for report in reports)
    assert file.read_bytes() == whole
    assert len(_with(tmp_path, lambda store: None)) == 3, "the disk was mended"


def test_a_first_move_that_is_stuck_stops_nothing(tmp_path: Path) -> None:
    async def use(_: list[Message]) -> None:
        batch, messages = _batch(recipients=2)
        assert await _insert(store, batch, messages) is None
        _damage(tmp_path)
        store.update(messages[0])
        while not store.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await _insert(store, *_batch()) is None
        store.remove(messages[0])
        store.remove(messages[1])

    store, reports = _store(tmp_path)
    _use(store, use)
    assert any("cannot be read: its checksum is wrong" in report for report in reports)
    assert not any("while the server runs" in report for report in reports)
    assert len(_with(tmp_path, lambda store: None)) == 1


def test_no_descriptors_are_left_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(_: list[Message]) -> None:
        batch, messages = _batch()
        assert await _insert(store, batch, messages) is None
        with monkeypatch.context() as patched:
            patched.setattr(segment.Segment, "reader", lambda _: _fail(errno.EMFILE))
            messages[0].tries = 9
            store.update(messages[0])
            while not store.failing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        while not store.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    store, _ = _store(tmp_path)
    _use(store, use)
    assert [message.tries for message in _with(tmp_path, lambda store: None)] == [9]


def test_a_damaged_segment_of_another_worker_is_taken_over_once(tmp_path: Path) -> None:
    some = [_batch() for _ in range(3)]

    async def put(store: Store) -> None:
        for one in some:
            assert await _insert(store, *one) is None

    _with(tmp_path / "worker-1", put)
    _damage(tmp_path / "worker-1")
    for expected in (2, 0, 0):
        store, reports = _store(tmp_path / "worker-0")
        assert store.adopt(tmp_path / "worker-1") == expected
        assert len(_use(store)) == 2
        assert any("it is left there" in report for report in reports)


@pure_only
@pytest.mark.parametrize("what", ["unlink", "bury"])
def test_one_file_that_fails_refuses_nobody(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = _batch(recipients=1 + (what == "bury"))
    _with(tmp_path, _put(*kept))
    store, reports = _store(tmp_path)
    real_bury, real_unlink = segment.Segment.bury, Path.unlink

    def bury(self: segment.Segment, messages: list[int]) -> None:
        _fail(errno.EIO) if self.number == 1 else real_bury(self, messages)

    def unlink(self: Path, *, missing_ok: bool = False) -> None:
        _fail(errno.EPERM) if self.name == "00000001.log" else real_unlink(self, missing_ok=missing_ok)

    async def use(found: list[Message]) -> None:
        with monkeypatch.context() as patched:
            if what == "bury":
                patched.setattr(segment.Segment, "bury", bury)
            else:
                patched.setattr(Path, "unlink", unlink)
            store.remove(found[0])
            for _ in range(3):
                assert await _insert(store, *_batch()) is None
                await asyncio.sleep(0.3)

    _use(store, use)
    assert [report for report in reports if "it is tried again" in report]
    assert len(_with(tmp_path, lambda store: None)) == 3 + (what == "bury")


@pure_only
@pytest.mark.usefixtures("interpreted")
def test_pending_removals_are_written_once_while_mail_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [_batch() for _ in range(40)]
    store, _ = _store(tmp_path)

    async def use(_: list[Message]) -> None:
        for one in some:
            assert await _insert(store, *one) is None
        with monkeypatch.context() as patched:
            patched.setattr(segment.Segment, "append", lambda *_: _fail(errno.ENOSPC))
            for done in some[1:3]:
                store.remove(done[1][0])
                assert await _insert(store, *_batch()) is not None
            while store.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            entries = log_octets.decode_done((tmp_path / "log/00000001.done").read_bytes())
            assert entries == {some[1][1][0].id.number, some[2][1][0].id.number}

    _use(store, use)
    size = (tmp_path / "log/00000001.done").stat().st_size
    assert size == log_octets.START + 2 * log_octets.DONE_SIZE


def test_a_broken_page_of_the_database_stops_no_young_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with(tmp_path, _put(*_batch()))

    def broken(*_: object) -> None:
        raise sqlite3.DatabaseError("malformed")

    monkeypatch.setattr("quillon.spool.recovery.known", broken)
    store, reports = _store(tmp_path)
    assert len(_use(store)) == 1
    assert any("cannot be told: malformed" in report for report in reports)


def test_ids_of_another_life_do_not_come_again(tmp_path: Path) -> None:
    """A clock that was set back, and a process of the same number."""
    batch, messages = _batch()
    _with(tmp_path, _put(batch, messages))
    store, _ = _store(tmp_path)
    store.open()
    assert IdSource(7, store.newest).next(1000.0) > messages[0].id
    store.release()
    # and where one does, it is another message
    other, theirs = _batch(body=b"other")
    other.id = batch.id

    async def put(store: Store) -> None:
        assert await _insert(store, other, theirs) is None
        assert await store.body(other) == b"other"

    store, reports = _store(tmp_path)

    def put_off(found: list[Message]) -> None:
        store.update(found[0])

    _use(store, put_off)
    _with(tmp_path, put)
    store, reports = _store(tmp_path)
    bodies: list[bytes | None] = []

    async def read(found: list[Message]) -> None:
        bodies.extend([await store.body(message.batch) for message in found])

    _use(store, read)
    assert sorted(filter(None, bodies)) == sorted([batch.body or b"", b"other"])
    assert any("are not the same" in report for report in reports)


def test_a_log_that_has_gone_is_not_begun_anew(tmp_path: Path) -> None:
    _with(tmp_path, _put(*_batch()))
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    store, _ = _store(tmp_path)
    with pytest.raises(SpoolError, match="log is missing, and was there before"):
        store.open()
    store.release()


def test_adoption_hides_no_database_that_has_gone(tmp_path: Path) -> None:
    for worker in ("worker-0", "worker-1"):
        _with(tmp_path / worker, _put(*_batch()))
    (tmp_path / "worker-0/spool.db").unlink()
    store, _ = _store(tmp_path / "worker-0")
    with pytest.raises(SpoolError, match="was there before"):
        store.adopt(tmp_path / "worker-1")
    store.release()


def test_who_comes_while_the_spool_is_closed_is_answered(tmp_path: Path) -> None:
    answers: list[Exception | None] = []
    asked = 0

    async def use(store: Store) -> None:
        nonlocal asked

        async def ask() -> None:
            nonlocal asked
            while True:
                store.insert(*_batch(), answers.append)
                asked += 1
                await asyncio.sleep(0)

        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.02)
        await store.close(0.05)
        asking.cancel()
        await asyncio.sleep(0)

    store, _ = _store(tmp_path)
    store.open()

    async def run() -> None:
        store.start()
        await _recovered(store)
        await use(store)

    asyncio.run(run())
    assert len(answers) == asked
    taken = [answer for answer in answers if answer is None]
    assert len(_with(tmp_path, lambda store: None)) == len(taken)


def test_the_body_that_a_copy_of_damage_names_is_kept_for_good(tmp_path: Path) -> None:
    batch, messages = _batch(body=b"")

    async def put(store: Store) -> None:
        batch.path, descriptor = store.bodies.new(batch.id.number)
        os.close(descriptor)
        assert await _insert(store, batch, messages) is None

    _with(tmp_path, put)
    _damage(tmp_path)
    for _ in range(3):
        _with(tmp_path, lambda store: None)
        assert (tmp_path / "bodies" / batch.path).exists()


def test_what_else_lies_in_the_folder_hides_no_segment(tmp_path: Path) -> None:
    _with(tmp_path, lambda store: None)
    (tmp_path / "log/20261129132110123456-saved.tar").write_bytes(b"x")
    (tmp_path / "log/20261129132110123456.log").write_bytes(b"x")
    _with(tmp_path, _put(*_batch()))
    assert len(_with(tmp_path, lambda store: None)) == 1


@pytest.mark.parametrize("layout", [1, 2])
def test_a_worker_whose_log_has_gone_is_taken_over_only_if_it_had_none(tmp_path: Path, layout: int) -> None:
    other = tmp_path / "worker-1"
    batch, messages = _batch(body=b"")

    async def put(store: Store) -> None:
        batch.path, descriptor = store.bodies.new(batch.id.number)
        os.close(descriptor)
        assert await _insert(store, batch, messages) is None
        if layout == 1:
            store.update(messages[0])

    _with(other, put)
    with sqlite3.connect(other / "spool.db") as opened:
        opened.execute(f"PRAGMA user_version={layout}")
    opened.close()
    shutil.rmtree(other / "log")
    store, _ = _store(tmp_path / "worker-0")
    if layout == 1:
        assert store.adopt(other) == 1
        assert len(_use(store)) == 1
        return
    for _ in range(2):  # and it is let go of
        with pytest.raises(SpoolError, match="log is missing, and was there before"):
            store.adopt(other)
    store.release()
    assert (other / "bodies" / batch.path).exists()


def test_adoption_takes_no_message_for_that_of_another_batch(tmp_path: Path) -> None:
    ours, theirs = _batch(), _batch(body=b"for somebody else")
    theirs[0].id = ours[0].id
    for worker, one in (("worker-0", ours), ("worker-1", theirs)):
        _with(tmp_path / worker, _put(*one))
        store, _ = _store(tmp_path / worker)
        _use(store, lambda found, store=store: store.update(found[0]))  # type: ignore[misc]
    with sqlite3.connect(tmp_path / "worker-1/spool.db") as opened:
        opened.execute("UPDATE batch SET record = replace(record, 'x.test', 'z.test')")
    opened.close()
    store, reports = _store(tmp_path / "worker-0")
    assert store.adopt(tmp_path / "worker-1") == 0
    assert [message.id for message in _use(store)] == [ours[1][0].id]
    assert any("have no batch, or that of another" in report for report in reports)
    assert len(_with(tmp_path / "worker-1", lambda store: None)) == 1


@pytest.mark.parametrize("number", [errno.EBADMSG, errno.EACCES])
def test_a_segment_that_cannot_be_opened_holds_up_no_other(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(_: list[Message]) -> None:
        bad, good = _batch(), _batch()
        assert await _insert(store, *bad) is None
        with monkeypatch.context() as patched:
            patched.setattr(segment, "SIZE", 0)  # the next one begins another
            assert await _insert(store, *good) is None
            real = segment.Segment.reader

            def reader(self: segment.Segment) -> object:
                if self.number == 1:
                    _fail(number)
                return real(self)

            patched.setattr(segment.Segment, "reader", reader)
            for one in (bad, good):
                one[1][0].tries = 5
                store.update(one[1][0])
            while not store.idle:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    store, reports = _store(tmp_path)
    _use(store, use)
    assert sorted(message.tries for message in _with(tmp_path, lambda store: None)) == [0, 5]
    assert any("cannot be read" in report for report in reports)


def test_a_body_that_cannot_be_swept_keeps_nobody_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(tmp_path, _put(*_batch()))
    (tmp_path / "bodies/99").write_bytes(b"x")
    real = Path.unlink

    def unlink(self: Path, *, missing_ok: bool = False) -> None:
        _fail(errno.EPERM) if self.name == "99" else real(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    store, reports = _store(tmp_path)
    assert len(_use(store)) == 1
    assert any("cannot be swept" in report for report in reports)


@pytest.mark.usefixtures("interpreted")
def test_refused_mail_is_written_off_as_soon_as_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written whole, and neither the cut nor the list could be."""
    refused = _batch()

    async def use(_: list[Message]) -> None:
        assert await _insert(store, *_batch()) is None
        write = os.pwritev

        def written_and_failed(*told: Any) -> None:
            write(*told)
            _fail(errno.EIO)

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", written_and_failed)
            patched.setattr(os, "ftruncate", lambda *_: _fail(errno.EIO))
            patched.setattr(segment.Segment, "bury", lambda *_: _fail(errno.EIO))
            assert isinstance(await _insert(store, *refused), OSError)
        while not store.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    store, _ = _store(tmp_path)
    _use(store, use)
    found = _with(tmp_path, lambda store: None)
    assert len(found) == 1
    assert found[0].id != refused[1][0].id


def test_a_long_log_is_moved_into_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And past a bound new mail does not go there at all."""
    monkeypatch.setattr(segment, "SIZE", 4000)
    some = [_batch(body=b"y" * 1500) for _ in range(60)]
    longest = 0

    async def use(_: list[Message]) -> None:
        nonlocal longest
        for one in some:
            assert await _insert(store, *one) is None
            longest = max(longest, len(list((tmp_path / "log").glob("*.log"))))
        while not store.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert len(list((tmp_path / "log").glob("*.log"))) <= log.MANY + 1
        for batch, messages in some:
            assert await store.body(batch) == b"y" * 1500
            if (batch, messages) in some[::2]:
                store.remove(messages[0])

    store, reports = _store(tmp_path)
    _use(store, use)
    assert longest <= log.MOST + 2
    found = _with(tmp_path, lambda store: None)
    assert {message.id for message in found} == {messages[0].id for _, messages in some[1::2]}
    assert reports == []


class _Life:
    """One life of a spool, in a process that is killed at any moment. What it does is told first, or, of a message that
    was taken, when that is known: the reader knows at each moment which states may be found."""

    def __init__(self, folder: Path, seed: int, tell: int) -> None:
        self._store, self._reports = _store(folder)
        self._chance = random.Random(seed)
        self._tell_to = tell
        self._here: dict[int, Message] = {}

    def run(self) -> None:
        self._store.open()
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._store.start()
        for message in await _recovered(self._store):
            self._here[message.id.number] = message
            self._tell("f", message.id.number, message.tries)
        self._tell("n", 0, sum(message.batch.left for message in self._one_of_each_batch()))
        for _ in range(60):
            await self._step()
        await self._store.close()
        self._tell("=", 0, 0)
        assert all("a write that a crash has broken off" in report for report in self._reports), self._reports

    def _one_of_each_batch(self) -> list[Message]:
        return list({message.batch.id: message for message in self._here.values()}.values())

    def _tell(self, what: str, number: int, tries: int) -> None:
        os.write(self._tell_to, f"{what} {number} {tries}\n".encode())

    async def _step(self) -> None:
        step = self._chance.random()
        if step < 0.45 or not self._here:
            batch, messages = _batch(self._chance.choice((1, 1, 1, 2, 5)))
            batch.body = _body(batch.id.number)
            for message in messages:
                self._tell("i", message.id.number, 0)
            assert await _insert(self._store, batch, messages) is None
            for message in messages:
                self._here[message.id.number] = message
                self._tell("a", message.id.number, 0)
            batch.body = None
            return
        number = self._chance.choice(list(self._here))
        message = self._here[number]
        if step < 0.75:
            self._tell("r", number, 0)
            self._store.remove(self._here.pop(number))
        elif step < 0.9:
            message.tries += 1
            self._tell("u", number, message.tries)
            self._store.update(message)
        elif step < 0.97:
            assert await self._store.body(message.batch) == _body(message.batch.id.number)
        else:
            while not self._store.idle:  # noqa: ASYNC110
                await asyncio.sleep(0.0005)
            self._tell("=", 0, 0)


def _body(number: int) -> bytes:
    return random.Random(number).randbytes(random.Random(number).choice((0, 10, 500, 3000)))


def _live(folder: Path, seed: int, patience: float | None) -> list[str]:
    """What a life has told, which is killed after so many seconds (None: it ends in order)."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(readable)
            _Life(folder, seed, writable).run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writable)
    killer = threading.Timer(patience or 60, os.kill, (child, signal.SIGKILL))
    killer.start()
    with open(readable, "rb") as told:
        lines = told.read().decode().splitlines()
    killer.cancel()
    killer.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in ((0,) if patience is None else (0, -signal.SIGKILL))
    return lines


@pytest.mark.parametrize("seed", range(10))
def test_both_tiers_against_a_model(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lives that end in order and lives that are killed: each message is found once, in a state that it may have."""
    monkeypatch.setattr(segment, "SIZE", 6000)
    monkeypatch.setattr(log, "MANY", 2)
    monkeypatch.setattr(log, "MOST", 4)
    chance = random.Random(seed)
    states: dict[int, list[int | None]] = {}  # that a message may be found in, the last one as it ought to be
    for life in range(8):
        IDS.next(2000.0 + seed * 10 + life)  # ids of the next process are others
        lines = _live(tmp_path, seed * 100 + life, chance.uniform(0.01, 0.2) if life % 3 else None)
        found: dict[int, int] = {}
        for line in lines:
            what, number, tries = line.split()
            key, value = int(number), int(tries)
            if what == "f":
                assert key not in found, "a message is there twice"
                found[key] = value
            elif what == "n":
                assert value == len(found), "batches count their messages"
                for known, possible in states.items():
                    assert found.get(known) in possible
                assert not found.keys() - states.keys()
                states = {known: [value] for known, value in found.items()}
            elif what == "=":
                states = {known: possible[-1:] for known, possible in states.items()}
            else:
                last: int | None = None if what == "r" else value
                before: list[int | None] = [None] if what == "i" else [] if what == "a" else states[key]
                states[key] = [*before, last]
    assert any(states)
