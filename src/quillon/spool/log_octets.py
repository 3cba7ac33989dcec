"""The log tier's files as octets: records of a segment, and the list of those that are done. Pure.

Both files begin with `HEAD` and the segment's mark, eight octets by chance. In the segment follow records, one after
the other; zeros, or the end of the file, end them. A record is one batch:

    mark 8 | length of meta 4 | length of body 8 | id of batch 8 | CRC-32 of meta 4 | CRC-32 of body 4 | CRC-32 of these
    4 meta: a line with path and record of the batch, a line with id and record for each message body: empty where path
    names a file

Behind damage records are found again by the mark, which nobody outside knows: a body cannot hold one. In the list
follow ids of messages (8) with a CRC-32 each (4). It goes when the segment goes, so nothing that is done comes back
because a later segment went first. Numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

HEAD = b"QUILLON LOG 1\r\n\x1a"
MARK_SIZE = 8
START = len(HEAD) + MARK_SIZE
_PLAN = struct.Struct("<8sIQQIII")
_DONE = struct.Struct("<QI")
DONE_SIZE = _DONE.size
_MOST_META = 1 << 30


class Record(NamedTuple):
    """A batch in a segment, the octets `start` to `end`; its body begins at `body`. `path` names the file of a large
    body. `batch` and `messages` are records of `spool.record`."""

    start: int
    body: int
    end: int
    number: int
    path: str
    batch: str
    messages: list[tuple[int, str]]


class Broken(NamedTuple):
    """Octets that are no record: damage, or at the end of the last segment a write that a crash broke off."""

    start: int
    end: int


class DamageError(ValueError):
    """A record is not what was written; the message says in what."""


def encode_meta(path: str, batch: str, messages: Iterable[tuple[int, str]]) -> bytes:
    """What a record has beside its body."""
    lines = [f"{path} {batch}"]
    lines += [f"{_digits(message)} {record}" for message, record in messages]
    return "\n".join(lines).encode()


def _digits(number: Any) -> str:
    """Of any object: compiled code that takes the text of an int of over 62 bits never frees it (mypyc 2.4)."""
    return str(number)


def encode_head(mark: bytes, number: int, meta: bytes, body: bytes) -> bytes:
    """What stands in front of meta and body in a record."""
    plan = _PLAN.pack(mark, len(meta), len(body), number, zlib.crc32(meta), zlib.crc32(body), 0)[:-4]
    return plan + zlib.crc32(plan).to_bytes(4, "little")


def decode(mark: bytes, data: bytes | memoryview, start: int = 0) -> Record:
    """The record that begins at `start`. Raises DamageError."""
    plan = _plan(mark, data, start)
    if plan is None:
        raise DamageError("no record begins here")
    meta_length, body_length, number, meta_crc, body_crc = plan
    body = start + _PLAN.size + meta_length
    end = body + body_length
    if end > len(data):
        raise DamageError("its end is missing")
    meta = bytes(data[start + _PLAN.size : body])
    if zlib.crc32(meta) != meta_crc or zlib.crc32(data[body:end]) != body_crc:
        raise DamageError("its checksum is wrong")
    try:
        (path, batch), *rest = (line.split(" ", 1) for line in meta.decode().split("\n"))
        messages = [(int(message), record) for message, record in rest]
    except ValueError as error:  # the checksum holds: it was written like this
        raise DamageError(f"its lines are malformed: {error}") from None
    return Record(start, body, end, number, path, batch, messages)


def mark_of(data: bytes, done: bytes) -> bytes | None:
    """The mark of a segment and its list: where one of its three places is damaged, that by which there are records;
    None where none is."""
    first = data[START : START + MARK_SIZE]
    known = [octets[len(HEAD) : START] for octets in (data, done) if octets[: len(HEAD)] == HEAD]
    candidates = list(dict.fromkeys(mark for mark in (*known, first) if len(mark) == MARK_SIZE and any(mark)))
    for mark in candidates:
        if len(candidates) == 1 or _next(mark, data, START) < len(data):
            return mark
    return candidates[0] if known else None


def scan(mark: bytes, data: bytes, *, reserved: bool) -> Iterator[Record | Broken]:
    """All records of a segment, and what lies between them that is none. Where room was `reserved` zeros behind the
    last one are that."""
    view = memoryview(data)
    at = START
    while at < len(data):
        try:
            record = decode(mark, view, at)
        except DamageError:
            if reserved and data.startswith(bytes(len(data) - at), at):
                return
            after = _next(mark, data, at + 1)
            # behind a write that broke off there may be room that was not used
            end = len(data.rstrip(b"\0")) if reserved and after == len(data) else after
            yield Broken(at, end)
            at = after
        else:
            yield record
            at = record.end


def encode_done(numbers: Iterable[int]) -> bytes:
    """Entries that say that these messages are done."""
    return b"".join([_DONE.pack(number, zlib.crc32(number.to_bytes(8, "little"))) for number in numbers])


def decode_done(data: bytes) -> set[int]:
    """The messages that are done. Entries that a crash has left half written, or as zeros, say nothing."""
    count = max(len(data) - START, 0) // DONE_SIZE
    entries = _DONE.iter_unpack(memoryview(data)[START : START + count * DONE_SIZE])
    return {number for number, crc in entries if zlib.crc32(number.to_bytes(8, "little")) == crc}


def _plan(mark: bytes, data: bytes | memoryview, start: int) -> tuple[int, int, int, int, int] | None:
    head = bytes(data[start : start + _PLAN.size])
    if len(head) < _PLAN.size:
        return None
    found, meta_length, body_length, number, meta_crc, body_crc, crc = _PLAN.unpack(head)
    if found != mark or zlib.crc32(head[:-4]) != crc or meta_length > _MOST_META or number >= 1 << 63:
        return None
    return meta_length, body_length, number, meta_crc, body_crc


def _next(mark: bytes, data: bytes, at: int) -> int:
    """Where the next whole record begins; the end of the data if none does."""
    view = memoryview(data)
    while (at := data.find(mark, at)) >= 0:
        try:
            decode(mark, view, at)
        except DamageError:
            at += 1
        else:
            return at
    return len(data)
