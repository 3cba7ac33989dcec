"""The tier of what is young: segments that are only appended to, each with a list of what is done of it.

A batch is written once, with its body, and synced; a message that is done costs twelve octets. A segment goes as a
whole when nothing in it is left. What stays for longer is moved to the database, so there are never more than a few.

Layout below `folder`: `<number>.log` and `<number>.done` (see `segment`), `<number>.broken-<octet>`: damage that was
found, kept for whoever may need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import io
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from quillon.mail.message import Batch, Message
from quillon.spool import segment as octets
from quillon.spool.bodies import Bodies, sync
from quillon.spool.committer import Committer, Done, call_all
from quillon.spool.errors import SpoolLost
from quillon.spool.presence import Presence
from quillon.spool.record import encode_batch, encode_message
from quillon.spool.segment import DamageError, Record

SEGMENT = 16 << 20  # octets after which another one is begun
MANY = 8  # segments beyond which the oldest is moved
MOST = 16  # segments beyond which new mail does not come here
_LATE = 500  # messages of one batch whose records the committer makes
_LAZY = 1.0  # seconds until what is done is synced; a power cut before may have it delivered twice
_IOV = 512  # pieces a write
NAME = re.compile(r"(\d{8,18})\.log")


class State(enum.Enum):
    """Where a batch is that has come into the log."""

    LOG = enum.auto()
    MOVING = enum.auto()  # on its way into the database, and still here
    MOVED = enum.auto()
    STUCK = enum.auto()  # cannot be read, so it stays


class Place:
    """Where the record of a batch lies. `gone` are the messages of it that are done."""

    __slots__ = ("gone", "length", "number", "segment", "start", "state")

    def __init__(self, segment: Segment, number: int, start: int, length: int) -> None:
        self.segment = segment
        self.number = number
        self.start = start
        self.length = length
        self.state = State.LOG
        self.gone: set[int] | None = None


class Segment:
    """One file, and its list. The list may be written by several threads."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / f"{number:08}.log"
        self.done_path = folder / f"{number:08}.done"
        self.mark = b""
        self.size = 0
        self.places: dict[int, Place] = {}  # by batch; of the event loop
        self.held = False  # it holds what nobody has read, so it stays
        self._file = -1
        self._done_file = -1
        self._removed = False
        self._writing = threading.Lock()

    def create(self, mode: int, mark: bytes) -> None:
        """Raises OSError."""
        self.mark = mark
        head = octets.HEAD + mark
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._file = os.open(self.path, flags, mode)
            self._done_file = os.open(self.done_path, flags | os.O_APPEND, mode)
            with contextlib.suppress(OSError):  # room that is taken now makes each sync cheaper, and cannot run out
                os.posix_fallocate(self._file, 0, SEGMENT)
            for file in (self._file, self._done_file):
                if os.write(file, head) != len(head):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._done_file)
            sync(self.path.parent)
        except BaseException:
            self.remove()
            raise
        self.size = len(head)

    def append(self, pieces: list[bytes]) -> None:
        """Write behind what is there, and sync. After an OSError nothing more may be appended.

        One call for all, where that can be: each one costs a wait for the interpreter.
        """
        at = self.size
        for start in range(0, len(pieces), _IOV):
            some = pieces[start : start + _IOV]
            length = sum(map(len, some))
            written = os.pwritev(self._file, some, at, os.RWF_DSYNC)
            if written < length:
                # a disk that is full, a signal: the second try says which
                rest = b"".join(some)
                while written < length:
                    written += os.pwrite(self._file, rest[written:], at + written)
                os.fdatasync(self._file)
            at += length
        self.size = at

    def close(self) -> None:
        """No more is appended. Raises OSError where what failed to be written cannot be cut off."""
        if self._file >= 0:
            try:
                os.ftruncate(self._file, self.size)
            finally:
                os.close(self._file)
                self._file = -1

    def bury(self, messages: Iterable[int]) -> None:
        """Write that these are done. Raises OSError."""
        entries = octets.encode_done(messages)
        with self._writing:
            if self._removed:
                return
            if self._done_file < 0:
                self._open_done()
            written = os.write(self._done_file, entries)
            if written < len(entries):
                os.ftruncate(self._done_file, os.fstat(self._done_file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.done_path))

    def sync_done(self) -> None:
        """Raises OSError."""
        with self._writing:
            if self._done_file >= 0:
                os.fdatasync(self._done_file)

    def remove(self) -> None:
        """Nothing of it is needed. The list goes last: without it all would come back."""
        self.release()
        with self._writing:
            self._removed = True
            self.path.unlink(missing_ok=True)
            self.done_path.unlink(missing_ok=True)

    def release(self) -> None:
        """Close its files."""
        with self._writing:
            for file in (self._file, self._done_file):
                if file >= 0:
                    os.close(file)
            self._file = self._done_file = -1

    def load(self) -> bytes:
        """All of it, for recovery. A part that the disk does not give reads as zeros. Raises OSError."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = _salvage(self.path)
        self.mark = octets.mark_of(data) or octets.mark_of(self._done_octets()) or b""
        self.size = len(data)
        return data

    def done(self) -> set[int]:
        """The messages that are done. Raises OSError."""
        return octets.decode_done(self._done_octets())

    def read(self, place: Place) -> tuple[Record, bytes]:
        """A record as it lies here, and its octets, which it counts from. Raises OSError, DamageError."""
        with self.reader() as file:
            return self.read_from(file, place)

    def reader(self) -> io.FileIO:
        """Opened for `read_from`. Raises OSError."""
        return io.FileIO(self.path, "rb")

    def read_from(self, file: io.FileIO, place: Place) -> tuple[Record, bytes]:
        """As `read`, for many. Raises OSError, DamageError."""
        data = os.pread(file.fileno(), place.length, place.start)
        return octets.decode(self.mark, data), data

    def _done_octets(self) -> bytes:
        try:
            return self.done_path.read_bytes()
        except FileNotFoundError:
            return b""

    def _open_done(self) -> None:
        """Open the list of an earlier life: entries have to begin where entries begin."""
        file = os.open(self.done_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        size = os.fstat(file).st_size
        if size < octets.START:
            os.ftruncate(file, 0)
            os.write(file, octets.HEAD + (self.mark or bytes(octets.MARK_SIZE)))
        else:
            os.ftruncate(file, size - (size - octets.START) % octets.DONE_SIZE)
        self._done_file = file


@dataclass
class _Entry:
    """A batch on its way into the log; without `pieces` the committer makes them."""

    batch: Batch
    messages: list[Message]
    done: Done
    pieces: list[bytes]
    place: Place | None = None


@dataclass
class _Group:
    """What is written at once."""

    entries: list[_Entry] = field(default_factory=list)
    buried: dict[Segment, list[int]] = field(default_factory=dict)
    dead: list[Segment] = field(default_factory=list)
    dead_files: list[str] = field(default_factory=list)  # after what is buried
    sync: bool = False

    def __bool__(self) -> bool:
        return bool(self.entries or self.buried or self.dead or self.dead_files or self.sync)


class Log:
    """`watched` are files that have to stay in place. `settled` is called after each write; `report` takes a line."""

    def __init__(
        self,
        folder: Path,
        bodies: Bodies,
        mode: int,
        *,
        watched: tuple[Path, ...],
        report: Callable[[str], None],
        settled: Callable[[], None],
    ) -> None:
        self.folder = folder
        self._bodies = bodies
        self._mode = mode
        self._report = report
        self._settled = settled
        self._presence = Presence(*watched)
        self.committer: Committer[_Group] = Committer(
            str(folder), take=self._take, write=self._write, settle=self._settle, verify=self._verify, report=report
        )
        self._group = _Group()
        self._segments: dict[int, Segment] = {}  # by number, the oldest first
        self._current: Segment | None = None  # the last one that was appended to, as the event loop knows
        self._dirty: set[Segment] = set()  # with entries that are not synced; the committer's
        self._syncing = False
        self._open: Segment | None = None  # the one that is appended to; the committer's
        self._next = 1
        self._mark = secrets.token_bytes(octets.MARK_SIZE)

    def create(self) -> list[Segment]:
        """Make the folder, or give the segments that are there, the oldest first. Raises OSError."""
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        found = segments(self.folder)
        known = {segment.done_path for segment in found}
        for orphan in self.folder.glob("*.done"):
            if orphan not in known:
                orphan.unlink()
        self._next = found[-1].number + 1 if found else 1
        return found

    @property
    def idle(self) -> bool:
        """Whether all that has come is written."""
        return not self.committer.busy and not self._group

    @property
    def is_full(self) -> bool:
        """Whether new mail had better go elsewhere, for what is here is not moved fast enough."""
        return len(self._segments) >= MOST

    @property
    def lost(self) -> str:
        """Why nothing is taken any more; empty if all is well."""
        return self._presence.lost

    @property
    def waiting(self) -> int:
        """Messages that are done and not yet written so."""
        return sum(map(len, self._group.buried.values()))

    # of the event loop ----------------------------------------------------------------------------------------

    def insert(self, batch: Batch, messages: list[Message], done: Done) -> None:
        """Write a batch; `done` is told on the loop. From then on `batch.place` is its place."""
        # the loop has others to serve; but short work is cheaper here than a turn of the interpreter there
        try:
            pieces = [] if len(messages) > _LATE else _pieces(self._mark, batch, messages)
        except Exception as error:  # memory, a value that cannot be written
            asyncio.get_running_loop().call_soon(call_all, [done], error)
            return
        self._group.entries.append(_Entry(batch, messages, done, pieces))
        self.committer.soon()

    def bury(self, place: Place, message: int) -> None:
        """A message is done."""
        if place.gone is None:
            place.gone = set()
        place.gone.add(message)
        self._group.buried.setdefault(place.segment, []).append(message)
        self.committer.soon()

    def bury_moved(self, segment: Segment, messages: list[int]) -> None:
        """Messages of an earlier life that the database has."""
        if messages:
            self._group.buried.setdefault(segment, []).extend(messages)
            self.committer.soon()

    def forget(self, place: Place, body: str = "") -> None:
        """Nothing of a batch is left here, nor needs its body file, where one is named."""
        place.segment.places.pop(place.number, None)
        if body:
            self._group.dead_files.append(body)
        self._look_after(place.segment)

    def register(self, segment: Segment, places: Iterable[Place], *, last: bool) -> None:
        """A segment of an earlier life, and some of what lives of it; held until the last of that is there."""
        segment.held = not last
        self._segments[segment.number] = segment
        segment.places.update((place.number, place) for place in places)

    def look_after_all(self) -> None:
        """Let those go that hold nothing."""
        for segment in list(self._segments.values()):
            self._look_after(segment)

    def to_be_moved(self, count: int) -> list[Place]:
        """The oldest places, so many of them, if there are too many segments."""
        if len(self._segments) <= MANY:
            return []
        for segment in self._segments.values():
            if segment is self._current:
                return []
            here = (place for place in segment.places.values() if place.state is State.LOG)
            if found := list(islice(here, count)):
                return found
        return []

    def _look_after(self, segment: Segment) -> None:
        if segment.places or segment is self._current or segment.held:
            return
        if self._segments.pop(segment.number, None):
            self._group.buried.pop(segment, None)
            self._group.dead.append(segment)
            self.committer.soon()

    def _take(self) -> _Group | None:
        group, self._group = self._group, _Group()
        return group or None

    def _verify(self, group: _Group) -> None:
        """Here and not on the thread: four looks at names that are in memory cost less than its turns."""
        if group.entries and (place := group.entries[-1].place) is not None:
            self._presence.check(place.segment.path)

    def _settle(self, group: _Group, error: Exception | None) -> None:
        waiting: list[_Entry] = []
        if error is not None:
            # inserts are over, and told so, those that wait too: nobody knows how long it takes, their clients come
            # again. What is done, and what is to go, is tried again
            waiting, self._group.entries = self._group.entries, []
            for segment, messages in group.buried.items():
                self._group.buried.setdefault(segment, []).extend(messages)
            self._group.dead += group.dead
            self._group.dead_files += group.dead_files
            self._group.sync = self._group.sync or group.sync
        else:
            before = self._current
            for entry in group.entries:
                place = entry.place
                assert place is not None
                entry.batch.place = place
                self._segments.setdefault(place.segment.number, place.segment)
                place.segment.places[place.number] = place
                self._current = place.segment
            if before is not None and before is not self._current:
                self._look_after(before)
            if group.buried and not self._syncing:
                self._syncing = True
                asyncio.get_running_loop().call_later(_LAZY, self.sync)
        call_all([entry.done for entry in group.entries + waiting], error)
        self._settled()

    def sync(self) -> None:
        """Have written to the disk what is done."""
        self._syncing = False
        self._group.sync = True
        self.committer.soon()

    # of the committer -----------------------------------------------------------------------------------------

    def _write(self, group: _Group) -> None:
        if self._presence.lost:
            raise SpoolLost(self._presence.lost)
        for segment in group.dead:
            segment.remove()
            self._dirty.discard(segment)
        for segment, messages in group.buried.items():
            segment.bury(messages)
            self._dirty.add(segment)
        for name in group.dead_files:
            self._bodies.drop(name)
        if group.entries:
            self._append(group.entries)
        if group.sync:
            for segment in self._dirty:
                segment.sync_done()
            self._dirty.clear()

    def _append(self, entries: list[_Entry]) -> None:
        segment = self._open
        if segment is None or segment.size >= SEGMENT:
            segment = self._another()
        at = segment.size
        pieces: list[bytes] = []
        for entry in entries:
            some = entry.pieces or _pieces(self._mark, entry.batch, entry.messages)
            length = sum(map(len, some))
            entry.place = Place(segment, entry.batch.id.number, at, length)
            pieces += some
            at += length
        before = segment.size
        try:
            segment.append(pieces)
        except Exception:
            segment.size = before
            self._abandon(segment, entries)
            raise

    def _another(self) -> Segment:
        """Begin the next segment. Raises OSError."""
        if self._open is not None:
            before, self._open = self._open, None
            before.close()
        segment = Segment(self.folder, self._next)
        self._next += 1
        segment.create(self._mode, self._mark)
        self._open = segment
        return segment

    def _abandon(self, segment: Segment, entries: list[_Entry]) -> None:
        """After a write that failed nobody knows what is on the disk: what was refused must not come back, and nothing
        is appended there any more."""
        self._open = None
        try:
            segment.close()
        except OSError:
            with contextlib.suppress(OSError):
                segment.bury(message.id.number for entry in entries for message in entry.messages)
        if segment.size == octets.START:
            with contextlib.suppress(OSError):
                segment.remove()

    def release(self) -> None:
        """Close all files; a segment that holds nothing any more goes."""
        for segment in self._segments.values():
            with contextlib.suppress(OSError):
                segment.close()
                if segment.places or segment.held:
                    segment.release()
                else:
                    segment.remove()


def segments(folder: Path) -> list[Segment]:
    """Those in a folder, the oldest first. Raises OSError."""
    names = (NAME.fullmatch(file.name) for file in folder.glob("*.log"))
    return [Segment(folder, number) for number in sorted(int(name[1]) for name in names if name)]


def _pieces(mark: bytes, batch: Batch, messages: list[Message]) -> list[bytes]:
    """A record; a large body stands as it is, lest it be copied."""
    rows = [(message.id.number, encode_message(message)) for message in messages]
    meta = octets.encode_meta(batch.path, encode_batch(batch), rows)
    body = b"" if batch.path else batch.body or b""
    head = octets.encode_head(mark, batch.id.number, meta, body)
    return [head + meta, body]


def _salvage(path: Path) -> bytes:
    """What the disk gives of a file, block by block."""
    block = 4096
    found = bytearray()
    with path.open("rb", buffering=0) as file:
        for at in range(0, os.fstat(file.fileno()).st_size, block):
            try:
                found += os.pread(file.fileno(), block, at)
            except OSError:
                found += bytes(block)
    return bytes(found)


def copy_broken(segment: Segment, broken: octets.Broken) -> Path:
    """Keep damaged octets in a file of their own, which is given. Raises OSError."""
    copy = segment.path.with_suffix(f".broken-{broken.start}")
    if not copy.exists():
        data = segment.load()[broken.start : broken.end]
        with copy.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return copy


def live(segment: Segment) -> Iterator[tuple[Place, Record, bytes] | octets.Broken]:
    """What lives of a segment of an earlier life: records, with the octets that they count from, whose messages are not
    all done; and what is broken. Raises OSError, DamageError where its mark is gone."""
    data = segment.load()
    if not segment.mark:
        if any(data):
            raise DamageError("its beginning is damaged, and so is that of its list")
        return
    done = segment.done()
    for found in octets.scan(segment.mark, data):
        if isinstance(found, octets.Broken):
            yield found
            continue
        gone = {number for number, _ in found.messages if number in done}
        if len(gone) < len(found.messages):
            place = Place(segment, found.number, found.start, found.end - found.start)
            place.gone = gone or None
            yield place, found, data
