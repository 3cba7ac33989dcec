"""The tree, the notes and the files of the log of evidence."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from quillon.evidence import tree
from quillon.evidence.files import DamagedError, LogFiles
from quillon.evidence.note import Checkpoint, NoteError, NoteSigner, read, verifier_key


class Kept:
    """Levels of a tree in memory, of plain records."""

    def __init__(self, records: list[bytes]) -> None:
        self.levels = [[tree.leaf(record) for record in records]]
        while len(self.levels[-1]) >= 256:
            below = self.levels[-1]
            whole = len(below) // 256 * 256
            self.levels.append([tree.above(below[at : at + 256]) for at in range(0, whole, 256)])

    def hashes(self, level: int, index: int, count: int) -> list[bytes]:
        found = self.levels[level][index : index + count]
        assert len(found) == count
        return found


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 9162 2.1.1, as it stands there."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return tree.node(by_definition(leaves[:half]), by_definition(leaves[half:]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 700, 1025])
def test_root_and_proofs_are_those_of_the_rfc(size: int) -> None:
    records = [str(n).encode() for n in range(size)]
    kept = Kept(records)
    root = tree.root(kept, size)
    assert root == by_definition(kept.levels[0])
    for index in {0, 1, size // 2, size - 2, size - 1} & set(range(size)):
        path = tree.inclusion(kept, index, size)
        assert tree.leads_to(records[index], index, size, path) == root
        assert tree.leads_to(b"another", index, size, path) != root
    with pytest.raises(ValueError, match="not among"):
        tree.inclusion(kept, size, size)


def test_known_roots() -> None:
    """Those of RFC 6962 that certificate logs test with."""
    assert tree.root(Kept([]), 0).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    records = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
    records.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
    assert tree.root(Kept(records), 8).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def subproof(leaves: list[bytes], old: int, whole: bool) -> list[bytes]:
    """RFC 9162 2.1.4.1, as it stands there."""
    if old == len(leaves):
        return [] if whole else [by_definition(leaves)]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if old <= half:
        return [*subproof(leaves[:half], old, whole), by_definition(leaves[half:])]
    return [*subproof(leaves[half:], old - half, False), by_definition(leaves[:half])]


@given(st.integers(1, 600), st.data())
@settings(max_examples=60, deadline=None)
def test_a_log_that_has_grown_shows_that_nothing_was_changed(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    kept = Kept([str(n).encode() for n in range(new)])
    path = tree.consistency(kept, old, new)
    assert path == subproof(kept.levels[0], old, True)
    was, now = tree.root(kept, old), tree.root(kept, new)
    assert tree.extends(old, was, new, now, path)
    other = tree.leaf(b"another")
    assert not tree.extends(old, other, new, now, path)
    assert not tree.extends(old, was, new, other, path)
    assert not tree.extends(old, was, new, now, [*path, other])
    assert not tree.extends(new, now, old, was, path) or old == new
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert not tree.extends(old, was, new, now, [*path[:at], *path[at + 1 :]])
        assert not tree.extends(old, was, new, now, [*path[:at], other, *path[at + 1 :]])
    assert tree.consistency(kept, 0, new) == []
    assert tree.extends(0, b"", new, now, [])
    with pytest.raises(ValueError, match="not among"):
        tree.consistency(kept, new + 1, new)


@given(st.integers(1, 600), st.data())
@settings(max_examples=60, deadline=None)
def test_a_proof_of_another_place_size_or_length_leads_elsewhere(size: int, data: st.DataObject) -> None:
    records = [str(n).encode() for n in range(size)]
    kept = Kept(records)
    index = data.draw(st.integers(0, size - 1))
    path = tree.inclusion(kept, index, size)
    root = tree.root(kept, size)
    for wrong in ([*path, b"x" * 32], path[:-1] if path else [b"x" * 32]):
        with pytest.raises(ValueError, match="too"):
            assert tree.leads_to(records[index], index, size, wrong) != root
            raise ValueError("it leads elsewhere, which is too good to be wrong")
    if size > 1:
        other = (index + 1) % size
        try:
            assert tree.leads_to(records[index], other, size, path) != root
        except ValueError as error:
            assert "too" in str(error)  # noqa: PT017 - either is a refusal


def signer(name: str = "mx1/worker-0") -> NoteSigner:
    return NoteSigner(name, Ed25519PrivateKey.generate())


def test_a_checkpoint_is_read_with_its_key_alone() -> None:
    own, other = signer(), signer()
    found = Checkpoint("mx1/worker-0", 7, b"r" * 32, 1234)
    note = own.sign(found.text())
    assert read(note, own.key.public_key()) == found
    with pytest.raises(NoteError, match="not signed by this key"):
        read(note, other.key.public_key())
    with pytest.raises(NoteError, match="not signed"):
        read(note.replace("\n7\n", "\n8\n"), own.key.public_key())
    with pytest.raises(NoteError, match="no checkpoint"):
        read("hello", own.key.public_key())
    key = verifier_key("mx1/worker-0", own.key.public_key())
    name, digest, octets = key.split("+", 2)
    assert (name, len(digest), base64.b64decode(octets)[0]) == ("mx1/worker-0", 8, 1)


@given(st.text(max_size=200))
def test_no_text_is_a_checkpoint_of_ours(text: str) -> None:
    with pytest.raises(NoteError):
        read(text, Ed25519PrivateKey.generate().public_key())


def filled(folder: Path, count: int) -> list[bytes]:
    records = [b"record %d" % n + b"x" * (n % 50) for n in range(count)]
    files = LogFiles(folder, append=True)
    for at in range(0, count, 7):
        files.append(records[at : at + 7])
    files.close()
    return records


@pytest.mark.parametrize("count", [0, 1, 6, 256, 600])
def test_what_is_appended_is_there(tmp_path: Path, count: int) -> None:
    records = filled(tmp_path, count)
    files = LogFiles(tmp_path)
    assert [record for _, record in files.records()] == records
    assert files.size == count
    assert tree.root(files, count) == tree.root(Kept(records), count)
    for index in {0, count // 2, count - 1} & set(range(count)):
        assert files.record(index) == records[index]
    with pytest.raises(DamagedError):
        files.record(count)
    files.close()


@pytest.mark.parametrize("lost", [1, 5, 9, 20, 3000])
def test_a_write_that_was_cut_off_is_gone_and_the_rest_stays(tmp_path: Path, lost: int) -> None:
    records = filled(tmp_path, 300)
    entries = tmp_path / "entries"
    os.truncate(entries, entries.stat().st_size - lost)
    files = LogFiles(tmp_path, append=True)
    left = [record for _, record in files.records()]
    assert left == records[: len(left)]
    assert 200 < len(left) < 300
    files.append([b"a new one"])
    assert files.record(len(left)) == b"a new one"
    assert tree.root(files, files.size) == tree.root(Kept([*left, b"a new one"]), files.size)
    files.close()


@pytest.mark.parametrize("name", ["places", "level-0", "level-1"])
@pytest.mark.parametrize("octets", [0, 8, 31, 64, 100])
def test_what_is_made_of_the_entries_is_made_anew(tmp_path: Path, name: str, octets: int) -> None:
    records = filled(tmp_path, 600)
    os.truncate(tmp_path / name, octets)
    files = LogFiles(tmp_path, append=True)
    assert files.size == 600
    assert tree.root(files, 600) == tree.root(Kept(records), 600)
    files.close()


def test_damage_amid_the_log_is_no_end_of_it(tmp_path: Path) -> None:
    filled(tmp_path, 50)
    entries = tmp_path / "entries"
    octets = bytearray(entries.read_bytes())
    octets[100] ^= 1
    entries.write_bytes(octets)
    files = LogFiles(tmp_path)
    with pytest.raises(DamagedError, match="is damaged"):
        list(files.records())
    files.close()
    for name in ("places", "level-0"):
        os.truncate(tmp_path / name, 0)
    with pytest.raises(DamagedError, match="is damaged"):
        LogFiles(tmp_path, append=True)
    octets[:4] = struct.pack(">I", 1 << 30)
    entries.write_bytes(octets)
    for name in ("places", "level-0"):
        os.truncate(tmp_path / name, 0)
    with pytest.raises(DamagedError, match="record 0 at octet 0 is damaged"):
        LogFiles(tmp_path, append=True)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 10)
    files = LogFiles(tmp_path, append=True)
    end = (tmp_path / "entries").stat().st_size

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            files.append([b"x" * 1000])
    assert (tmp_path / "entries").stat().st_size == end
    files.append([b"y"])
    assert files.record(10) == b"y"
    files.close()


def test_hashes_that_cannot_be_written_take_nothing_from_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 10)
    files = LogFiles(tmp_path, append=True)
    records = [b"more %d" % n for n in range(300)]
    with monkeypatch.context() as patched:

        def full() -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(files, "flush", full)
        for record in records:
            files.append([record])
    assert files.size == 310
    assert files.record(309) == records[-1]
    files.append([b"the last"])
    files.close()
    again = LogFiles(tmp_path)
    everything = [record for _, record in again.records()]
    assert everything[10:] == [*records, b"the last"]
    assert tree.root(again, 311) == tree.root(Kept(everything), 311)
    again.close()
