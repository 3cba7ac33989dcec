"""The Merkle tree over a log of records (RFC 9162 2.1). Pure.

Hashes are kept by levels of 256, as tiles of C2SP tlog-tiles are: level 0 has one for each record, level 1 one for each
256 of those, and so on; what lies between is computed. So a proof reads some hundreds of hashes, however many records
there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

TILE = 8  # binary levels in one level that is kept


class Levels(Protocol):
    """Hashes that are kept, by level and place."""

    def hashes(self, level: int, index: int, count: int) -> list[bytes]:
        """Some that stand one behind the other."""


def leaf(record: bytes) -> bytes:
    """The hash of a record."""
    return hashlib.sha256(b"\0" + record).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash above two others."""
    return hashlib.sha256(b"\1" + left + right).digest()


def perfect(levels: Levels, height: int, index: int) -> bytes:
    """The root of the perfect tree of 2**height records that begins at record `index * 2**height`."""
    level, rest = divmod(height, TILE)
    return above(levels.hashes(level, index << rest, 1 << rest))


def above(hashes: list[bytes]) -> bytes:
    """The root over hashes, of which there are a power of two."""
    while len(hashes) > 1:
        hashes = [node(hashes[n], hashes[n + 1]) for n in range(0, len(hashes), 2)]
    return hashes[0]


def root(levels: Levels, size: int) -> bytes:
    """The root over the first `size` records."""
    return span(levels, 0, size) if size else hashlib.sha256(b"").digest()


def span(levels: Levels, start: int, end: int) -> bytes:
    """The root over the records from `start` to before `end`, where `start` is a multiple of the largest power of two
    that is less than their number, as it is for each subtree of a tree."""
    size = end - start
    if size & (size - 1) == 0:
        height = size.bit_length() - 1
        return perfect(levels, height, start >> height)
    half = 1 << ((size - 1).bit_length() - 1)
    return node(span(levels, start, start + half), span(levels, start + half, end))


class Edge:
    """The right edge of a tree: the roots of its perfect parts, the largest first, which is all that the root over it
    needs and that a further record changes."""

    def __init__(self, levels: Levels | None = None, size: int = 0) -> None:
        self._parts: list[tuple[int, bytes]] = []
        start = 0
        for height in reversed(range(size.bit_length())):
            if size >> height & 1:
                assert levels is not None
                self._parts.append((1 << height, perfect(levels, height, start >> height)))
                start += 1 << height

    def push(self, leaf_hash: bytes) -> None:
        """One more record."""
        size, found = 1, leaf_hash
        while self._parts and self._parts[-1][0] == size:
            size, found = size * 2, node(self._parts.pop()[1], found)
        self._parts.append((size, found))

    def root(self) -> bytes:
        """The root over all of them."""
        if not self._parts:
            return hashlib.sha256(b"").digest()
        *others, (_, found) = self._parts
        for _, part in reversed(others):
            found = node(part, found)
        return found


def inclusion(levels: Levels, index: int, size: int) -> list[bytes]:
    """The hashes that lead from a record to the root over the first `size` ones (RFC 9162 2.1.3.1). Raises ValueError
    for a record that is not among them."""
    if not 0 <= index < size:
        raise ValueError(f"record {index} is not among the first {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        half = start + (1 << ((end - start - 1).bit_length() - 1))
        if index < half:
            path.append(span(levels, half, end))
            end = half
        else:
            path.append(span(levels, start, half))
            start = half
    return path[::-1]


def consistency(levels: Levels, old: int, new: int) -> list[bytes]:
    """The hashes that show that the first `new` records begin with the first `old` ones (RFC 9162 2.1.4.1). Raises
    ValueError where there are fewer."""
    if not 0 <= old <= new:
        raise ValueError(f"{old} records are not among the first {new}")
    path: list[bytes] = []
    start, end, whole = 0, new, True  # `whole`: the old tree begins here, and its root is known
    while old and end > old:
        half = start + (1 << ((end - start - 1).bit_length() - 1))
        if old <= half:
            path.append(span(levels, half, end))
            end = half
        else:
            path.append(span(levels, start, half))
            start, whole = half, False
    if old and not whole:
        path.append(span(levels, start, end))
    return path[::-1]


def extends(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether hashes show that a tree of `new` records begins with one of `old` (RFC 9162 2.1.4.2)."""
    if old in (0, new):
        return old <= new and not path and (old == 0 or old_root == new_root)
    hashes = list(path) if old & (old - 1) else [old_root, *path]
    if not 0 < old < new or not hashes:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    was = now = hashes[0]
    for other in hashes[1:]:
        if not last:
            return False
        if place & 1 or place == last:
            was, now = node(other, was), node(other, now)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            now = node(now, other)
        place, last = place >> 1, last >> 1
    return not last and was == old_root and now == new_root


def leads_to(record: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a record and its hashes lead to (RFC 9162 2.1.3.2). Raises ValueError for a path of the wrong
    length."""
    if not 0 <= index < size:
        raise ValueError("the record is beyond the tree")
    found, place, last = leaf(record), index, size - 1
    for other in path:
        if not last:
            raise ValueError("the proof is too long")
        if place & 1 or place == last:
            found = node(other, found)
            while place and not place & 1:
                place >>= 1
                last >>= 1
        else:
            found = node(found, other)
        place >>= 1
        last >>= 1
    if last:
        raise ValueError("the proof is too short")
    return found
