"""One file of the log, its list of what is done, and where in it a batch lies.

A place goes through these states: LOG, until a message of its batch has to wait or the log is too long; MOVING, on its
way into the database and still here; MOVED, or STUCK where its record cannot be read. The event loop sets MOVING and
MOVED, the database's committer STUCK.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import io
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from quillon.spool import log_octets
from quillon.spool.bodies import sync
from quillon.spool.log_octets import Broken, DamageError, Record

SIZE = 16 << 20  # octets after which another one is begun
_IOV = 512  # pieces a write
_NAME = re.compile(r"([0-9]{8,18})\.log")
_KIN = re.compile(r"([0-9]{8,18})\.(?:log|done|broken-[0-9]+)")


class BatchState(enum.Enum):
    """Where a batch is that has come into the log."""

    LOG = enum.auto()
    MOVING = enum.auto()
    MOVED = enum.auto()
    STUCK = enum.auto()


class Place:
    """Where the record of a batch lies. `gone` are messages of it that are done; `over` tells that all are."""

    __slots__ = ("gone", "length", "number", "over", "segment", "start", "state")

    def __init__(self, segment: Segment, number: int, start: int, length: int) -> None:
        self.segment = segment
        self.number = number
        self.start = start
        self.length = length
        self.state = BatchState.LOG
        self.gone: set[int] | None = None
        self.over = False


class Segment:
    """`places` are those of batches that are not done, by number: of the event loop. `held` tells that it holds what
    nobody has understood, so it stays; `salvaged` that the disk did not give all. The list may be written by several
    threads."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / f"{number:08}.log"
        self.done_path = folder / f"{number:08}.done"
        self.mark = b""
        self.size = 0
        self.places: dict[int, Place] = {}
        self.held = False
        self.salvaged = False
        self._file = -1
        self._done_file = -1
        self._unsynced = False
        self._removed = False
        self._writing = threading.Lock()

    def create(self, mode: int, mark: bytes) -> None:
        """Raises OSError."""
        self.mark = mark
        head = log_octets.HEAD + mark
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._file = os.open(self.path, flags, mode)
            self._done_file = os.open(self.done_path, flags | os.O_APPEND, mode)
            try:
                os.posix_fallocate(self._file, 0, SIZE)  # room that is taken now makes each sync cheaper
            except OSError:
                os.ftruncate(self._file, 0)  # some of it may have been taken
            for file in (self._file, self._done_file):
                if os.write(file, head) != len(head):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._done_file)
            sync(self.path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
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

    @property
    def file(self) -> int:
        """The descriptor that is appended to, while it is open."""
        return self._file

    def close(self) -> None:
        """No more is appended. Raises OSError where what failed to be written cannot be cut off for certain."""
        file, self._file = self._file, -1
        if file >= 0:
            try:
                os.ftruncate(file, self.size)
                os.fdatasync(file)
            finally:
                os.close(file)

    def bury(self, messages: Iterable[int]) -> None:
        """Write that these are done. Raises OSError."""
        entries = log_octets.encode_done(messages)
        with self._writing:
            if self._removed:
                return
            if self._done_file < 0:
                self._done_file = self._opened_done()
            self._unsynced = True
            try:
                if os.write(self._done_file, entries) < len(entries):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.done_path))
            except OSError:
                self._drop_list()
                raise

    def lend_list(self) -> int:
        """The descriptor of the list, for somebody else to append to, who gives it back by `take_list_back`; -1 if that
        cannot be now."""
        if not self._writing.acquire(blocking=False):
            return -1
        if self._done_file < 0 or self._removed:
            self._writing.release()
            return -1
        self._unsynced = True
        return self._done_file

    def take_list_back(self, *, failed: bool) -> None:
        """After `lend_list`; `failed` tells that it may end within an entry now."""
        if failed:
            self._drop_list()
        self._writing.release()

    def _drop_list(self) -> None:
        """Close the list, which may end within an entry: that is cut off when it is opened again."""
        file, self._done_file = self._done_file, -1
        with contextlib.suppress(OSError):
            os.close(file)

    def sync_done(self) -> None:
        """Raises OSError."""
        with self._writing:
            if self._unsynced and not self._removed:
                if self._done_file < 0:
                    self._done_file = self._opened_done()
                os.fdatasync(self._done_file)
                self._unsynced = False

    def remove(self) -> None:
        """Nothing of it is needed. The list goes last: without it all would come back. Raises OSError."""
        with self._writing:
            self.path.unlink(missing_ok=True)
            self._removed = True
            self.done_path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Close its files."""
        with self._writing:
            open_files, self._file, self._done_file = (self._file, self._done_file), -1, -1
            for file in open_files:
                if file >= 0:
                    with contextlib.suppress(OSError):
                        os.close(file)

    def load(self) -> bytes:
        """All of it, for recovery. What the disk does not give reads as zeros, and it is `salvaged`. Raises
        OSError, DamageError where its mark is gone."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data, self.salvaged = _salvage(self.path), True
        self.mark = log_octets.mark_of(data, self._done_octets()) or b""
        if not self.mark and any(data):
            raise DamageError("its beginning is damaged, and so is that of its list")
        self.size = len(data)
        return data

    def done(self) -> set[int]:
        """The messages that are done. Raises OSError."""
        return log_octets.decode_done(self._done_octets())

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
        return log_octets.decode(self.mark, data), data

    def live(self) -> Iterator[tuple[Place, Record, bytes] | Broken]:
        """What lives of a segment of an earlier life: records, with the octets that they count from, whose messages are
        not all done; and what is broken. Raises OSError, DamageError where its mark is gone."""
        data = self.load()
        if not self.mark:
            return
        done = self.done()
        for found in log_octets.scan(self.mark, data, reserved=len(data) == SIZE and not self.salvaged):
            if isinstance(found, Broken):
                yield found
                continue
            gone = {number for number, _ in found.messages if number in done}
            if len(gone) < len(found.messages):
                place = Place(self, found.number, found.start, found.end - found.start)
                place.gone = gone or None
                yield place, found, data

    def copy_broken(self, broken: Broken) -> Path:
        """Keep damaged octets in a file of their own, which is given. Raises OSError, DamageError."""
        copy = self.path.with_suffix(f".broken-{broken.start}")
        if not copy.exists():
            data = self.load()[broken.start : broken.end]
            begun = copy.with_suffix(f"{copy.suffix}.part")
            with begun.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            begun.rename(copy)
            sync(copy.parent)
        return copy

    def _done_octets(self) -> bytes:
        try:
            return self.done_path.read_bytes()
        except FileNotFoundError:
            return b""

    def _opened_done(self) -> int:
        """Open the list of an earlier life: entries have to begin where entries begin."""
        file = os.open(self.done_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(file).st_size
            if size < log_octets.START:
                os.ftruncate(file, 0)
                os.write(file, log_octets.HEAD + (self.mark or bytes(log_octets.MARK_SIZE)))
            else:
                os.ftruncate(file, size - (size - log_octets.START) % log_octets.DONE_SIZE)
        except OSError:
            os.close(file)
            raise
        return file


def segments(folder: Path) -> list[Segment]:
    """Those in a folder, the oldest first. Raises OSError."""
    names = (_NAME.fullmatch(name) for name in os.listdir(folder))  # not glob, which hides what cannot be read
    return [Segment(folder, number) for number in sorted(int(name[1]) for name in names if name)]


def next_number(folder: Path) -> int:
    """A number that no segment has, nor anything that is left of one. Raises OSError."""
    names = (_KIN.fullmatch(name) for name in os.listdir(folder))
    return max((int(name[1]) for name in names if name), default=0) + 1


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
