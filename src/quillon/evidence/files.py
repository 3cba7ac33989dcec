"""The log of evidence of one worker on disk. Shell; nothing here knows of an event loop.

    entries       records one after the other: length (4 octets), CRC-32 (4 octets), the record
    places        where each begins in `entries`, 8 octets each
    level-0, ...  hashes of the tree, 32 octets each
    checkpoint    the last signed one; checkpoints has one an hour, and the last of each key

    salts         16 octets for each record; zeros where they were deleted

`entries` is the log; places and levels are made of it, and are made anew of what they lack when it is opened. Whoever
changes a record that a checkpoint covers changes the root that the checkpoint has signed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from quillon.evidence import tree

_HEAD = struct.Struct(">II")
_PLACE = struct.Struct(">Q")
_LEVELS = 4  # that are kept: enough for 2**32 records
HASH = 32
MOST_OCTETS = 1 << 20  # of a record
_CHUNK = 1 << 20
_STEP_BACK = 512  # records that are looked at again where the last place or hash is not right
_AT_ONCE = 64  # records whose places and hashes are written together


class DamagedError(Exception):
    """A log that is not what was written; the message says where."""


class LogFiles:
    """Reads a log, and appends to it if it was opened for that: by one process at a time. Raises OSError."""

    def __init__(self, folder: Path, *, append: bool = False, mode: int = 0o640) -> None:
        self.folder = folder
        self._append = append
        if append:
            folder.mkdir(parents=True, exist_ok=True)
        names = ["entries", "places", *(f"level-{n}" for n in range(_LEVELS))]
        flags = os.O_RDWR | os.O_CREAT if append else os.O_RDONLY
        self._files: list[BinaryIO] = []
        self._leaves: list[bytes] = []  # hashes of records that are not in `level-0` yet, and their places
        self._starts: list[bytes] = []
        try:
            for name in names:
                descriptor = os.open(folder / name, flags | os.O_CLOEXEC, mode)
                self._files.append(os.fdopen(descriptor, "r+b" if append else "rb", buffering=0))
            self._entries, self._places, *self._levels = self._files
            if append:
                self._lock()
            self.end = 0  # octets of `entries` that hold whole records
            self.size = 0
            self._find_end()
            if append:
                _sync_folder(folder)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Raises DamagedError where another process writes here."""
        try:
            fcntl.flock(self._entries.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DamagedError(f"{self.folder}: another server writes its evidence here") from None

    def close(self) -> None:
        if self._append and self._leaves:
            with contextlib.suppress(OSError):  # it is made anew of the entries
                self.flush()
        for file in self._files:
            file.close()

    # reading --------------------------------------------------------------------------------------------------

    def hashes(self, level: int, index: int, count: int) -> list[bytes]:
        """Hashes that are kept, from one on. Raises DamagedError."""
        found = os.pread(self._levels[level].fileno(), HASH * count, index * HASH)
        octets = [found[at : at + HASH] for at in range(0, len(found) // HASH * HASH, HASH)]
        if level == 0 and len(octets) < count:
            start = index + len(octets) - self._noted
            octets += self._leaves[max(start, 0) : start + count - len(octets)] if start >= 0 else []
        if len(octets) != count:
            raise DamagedError(f"{self.folder}: hashes from {index} of level {level} on are missing")
        return octets

    @property
    def _noted(self) -> int:
        """Records whose places and hashes are on disk."""
        return self.size - len(self._leaves)

    def _place(self, index: int) -> int:
        """Where a record begins. Raises DamagedError."""
        if not 0 <= index < self.size:
            raise DamagedError(f"{self.folder}: there is no record {index}")
        if index >= self._noted:
            place = self._starts[index - self._noted]
        else:
            place = os.pread(self._places.fileno(), _PLACE.size, index * _PLACE.size)
        if len(place) != _PLACE.size:
            raise DamagedError(f"{self.folder}: the place of record {index} is missing")
        return int(_PLACE.unpack(place)[0])

    def record(self, index: int) -> bytes:
        """One record. Raises DamagedError."""
        found = next(self._scan(self._place(index), index), None)
        if found is None:
            raise DamagedError(f"{self.folder}: record {index} is missing")
        return found[1]

    def records(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Records with their numbers, from one on. Raises DamagedError."""
        if start < self.size:
            for number, (_, record) in enumerate(self._scan(self._place(start), start), start):
                yield number, record

    def _scan(self, start: int, number: int) -> Iterator[tuple[int, bytes]]:
        """Whole records from an octet on, with the octet behind each. Raises DamagedError for one that is not what was
        written and has others behind it."""
        descriptor, at = self._entries.fileno(), start
        total = os.fstat(descriptor).st_size
        held, offset = b"", 0
        while True:
            length, check = _HEAD.unpack_from(held, offset) if len(held) - offset >= _HEAD.size else (-1, 0)
            if length > MOST_OCTETS or (length == 0 and not self._only_zeros(at, total)):
                raise DamagedError(f"{self.folder}/entries: record {number} at octet {at} is damaged")
            if length == 0:
                return  # room that was taken and not written
            if length < 0 or len(held) - offset < _HEAD.size + length:
                held = held[offset:]
                more = os.pread(descriptor, _CHUNK, at + len(held))
                if not more:
                    return
                held, offset = held + more, 0
                continue
            begin = offset + _HEAD.size
            record = held[begin : begin + length]
            end = at + _HEAD.size + length
            if zlib.crc32(record) != check:
                if end >= total or self._only_zeros(end, total):
                    return  # the last write was cut off
                raise DamagedError(f"{self.folder}/entries: record {number} at octet {at} is damaged")
            offset = begin + length
            at, number = end, number + 1
            yield at, record

    def _only_zeros(self, at: int, total: int) -> bool:
        """Whether nothing else stands behind an octet of `entries`."""
        while at < total:
            octets = os.pread(self._entries.fileno(), _CHUNK, at)
            if octets.strip(b"\0"):
                return False
            at += len(octets) or total
        return True

    # the end, and appending ------------------------------------------------------------------------------------

    def _find_end(self) -> None:
        """Where the log ends, and what the files beside it lack. Of a log that is only read, that is kept in memory:
        the one that writes it has it there too."""
        known = os.fstat(self._places.fileno()).st_size // _PLACE.size
        total = os.fstat(self._entries.fileno()).st_size
        while known:
            (start,) = _PLACE.unpack(os.pread(self._places.fileno(), _PLACE.size, (known - 1) * _PLACE.size))
            if start < total:
                break
            known -= 1
        hashed = known
        for level, file in enumerate(self._levels):
            there = os.fstat(file.fileno()).st_size // HASH
            hashed = min(hashed, ((there + 1) << (tree.TILE * level)) - 1)  # the next hash would be due with one more
        hashed = self._believable(hashed)
        first = max(hashed - 1, 0)  # the last one is looked at again: it may have been cut off
        start = 0
        if first:
            (start,) = _PLACE.unpack(os.pread(self._places.fileno(), _PLACE.size, first * _PLACE.size))
        self.size, self.end = first, start
        for _, record in self._scan(start, first):
            self.appended([record], flush=self._append)
        if not self._append:
            return
        self.flush()
        if self.end < total:
            os.ftruncate(self._entries.fileno(), self.end)
        os.ftruncate(self._places.fileno(), self.size * _PLACE.size)
        for level, file in enumerate(self._levels):
            os.ftruncate(file.fileno(), (self.size >> (tree.TILE * level)) * HASH)

    def _believable(self, known: int) -> int:
        """How many of the places and hashes can be gone by: after a loss of power the last of them may be zeros."""
        while known > 0:
            with contextlib.suppress(DamagedError):
                self.size = known
                record = next(self._scan(self._place(known - 1), known - 1), None)
                if record is not None and self.hashes(0, known - 1, 1) == [tree.leaf(record[1])]:
                    behind = self._place(known - 1) if known > 1 else 1
                    if known == 1 or self._place(known - 2) < behind:
                        return known
            known = max(known - _STEP_BACK, 0)
        return 0

    def append(self, records: Sequence[bytes]) -> list[bytes]:
        """Write records and sync them; then what is made of them. Gives their hashes. Raises OSError, with nothing
        appended."""
        descriptor = self._entries.fileno()
        try:
            _write(descriptor, b"".join(framed(records)), self.end)
            os.fdatasync(descriptor)
        except OSError:
            os.ftruncate(descriptor, self.end)
            raise
        return self.appended(records)

    @property
    def descriptor(self) -> int:
        """That of `entries`, for who appends `framed` records at `end` and syncs them himself."""
        return self._entries.fileno()

    def appended(self, records: Sequence[bytes], *, flush: bool = True) -> list[bytes]:
        """Records stand at the end of `entries`: note what is made of them, which is written by `flush`, or when it is
        much. What cannot be written now stays noted, for the records themselves are on disk. Gives their hashes."""
        leaves = list(map(tree.leaf, records))
        for record in records:
            self._starts.append(_PLACE.pack(self.end))
            self.end += _HEAD.size + len(record)
        self._leaves += leaves
        self.size += len(records)
        if flush and len(self._leaves) >= _AT_ONCE:
            with contextlib.suppress(OSError):
                self.flush()
        return leaves

    def flush(self) -> None:
        """Write what was noted. Raises OSError."""
        first = self.size - len(self._leaves)
        _write(self._places.fileno(), b"".join(self._starts), first * _PLACE.size)
        _write(self._levels[0].fileno(), b"".join(self._leaves), first * HASH)
        for level in range(1, _LEVELS):
            for index in range(first >> (tree.TILE * level), self.size >> (tree.TILE * level)):
                below = self.hashes(level - 1, index << tree.TILE, 1 << tree.TILE)
                _write(self._levels[level].fileno(), tree.above(below), index * HASH)
        self._starts.clear()
        self._leaves.clear()


def replace_file(path: Path, octets: bytes) -> None:
    """Put a file on disk, whole or not at all. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _sync_folder(folder: Path) -> None:
    """Have the names of new files on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def framed(records: Sequence[bytes]) -> list[bytes]:
    """Records as they stand in `entries`."""
    return [_HEAD.pack(len(record), zlib.crc32(record)) + record for record in records]


def _write(descriptor: int, octets: bytes, offset: int) -> None:
    view = memoryview(octets)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
