"""Proofs out of the logs of evidence: records, with what leads from each to a signed checkpoint. Shell."""

from __future__ import annotations

import base64
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from quillon.evidence import note, stamp, tree, witness
from quillon.evidence.files import DamagedError, LogFiles
from quillon.evidence.note import Checkpoint, Cosigner, NoteError
from quillon.evidence.record import SALT, who
from quillon.evidence.stamp import StampError

Row = dict[str, Any]

README = """\
What is in here was written by Quillon, the mail server of {node}.

NNNN.json       a record, octet by octet as it stands in the log
NNNN.proof      what leads from it to the signed checkpoint (c2sp.org/tlog-proof@v1)
NNNN.tsr        the time stamp of an authority on that checkpoint (RFC 3161), where there is one
NNNN.witnessed  the same as NNNN.proof to the last checkpoint that a witness has signed as well, where there is one
NNNN.recipient  the salt and the address behind the record's `recipient`, where it was asked for and not deleted
certificates/   the certificates that the other side showed, by SHA-256
verify.py       checks all of it; needs Python 3 and openssl, and nothing of Quillon

    python3 verify.py . PUBLIC-KEY.pem [--tsa TIME-STAMP-AUTHORITY.pem] [--witness NAME+HASH+KEY]

The public key has to come to you another way than this file, and so has verify.py, for who forges the one forges the
other: it is part of every Quillon (src/quillon/evidence/verify.py). The key that has signed, for comparison:

{key}
By hand: the signed text is what stands in NNNN.proof behind the first empty line, up to the next one with its line
feed; the signature is the base64 behind the dash, without its first four octets:

    openssl pkeyutl -verify -pubin -inkey PUBLIC-KEY.pem -rawin -in text -sigfile signature
    openssl x509 -inform der -in certificates/....der -noout -text

A time stamp is of all that stands in NNNN.proof behind the first empty line:

    openssl ts -verify -data checkpoint -in NNNN.tsr -CAfile TIME-STAMP-AUTHORITY.pem

What this proves: that the log held this record when the checkpoint was signed, and that no record of it has been
changed since. With a time stamp it proves that this was so at that time, with the
signature of a witness that the log has only grown since the witness first saw it. It does not prove that the server
wrote down the truth, nor, without either or a checkpoint that somebody else has kept, that the whole log was not
written anew.
"""


class FoundRecord(NamedTuple):
    """A record: in which log, at which place, its octets and what they say."""

    log: Path
    place: int
    octets: bytes
    row: Row


def logs(folder: Path) -> list[Path]:
    """The logs of all workers there have been."""
    return sorted(path.parent for path in folder.glob("worker-*/entries"))


def find(folder: Path, wanted: Sequence[str]) -> Iterator[FoundRecord]:
    """Records of messages by id, batch id or Message-ID: with a reception of one of them all that follows of it. Raises
    DamagedError, OSError."""
    words = {word.strip() for word in wanted} - {""}
    batches: set[str] = set(words)
    texts = _as_written(words)
    for log in logs(folder):
        for _, octets in _records(log):
            if b'"message_id"' in octets and any(text in octets for text in texts):
                row = json.loads(octets)
                if words & {row.get("message_id", ""), row.get("message_id", "").strip("<>")}:
                    batches.add(row["batch"])
    texts = _as_written(batches)
    for log in logs(folder):
        for place, octets in _records(log):
            if any(text in octets for text in texts):
                row = json.loads(octets)
                if batches & {row.get("id", ""), row.get("batch", "")}:
                    yield FoundRecord(log, place, octets, row)


def _as_written(words: Iterable[str]) -> list[bytes]:
    """Texts as they stand in a record."""
    return [json.dumps(word, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass") for word in words if word]


def _records(log: Path) -> Iterator[tuple[int, bytes]]:
    files = LogFiles(log)
    try:
        yield from files.records()
    finally:
        files.close()


def checkpoint(log: Path, key: Ed25519PublicKey) -> tuple[Checkpoint, str]:
    """The last checkpoint of a log, and its note. Raises NoteError, OSError."""
    text = (log / "checkpoint").read_text(encoding="utf-8")
    return note.read(text, key), text


class Proof(NamedTuple):
    """What leads from a record to a checkpoint, what an authority answered that was to put a time stamp on that, and
    what leads to a checkpoint that was witnessed; empty where there is none."""

    text: str
    stamp: bytes = b""
    witnessed: str = ""


def proof(found: FoundRecord, key: Ed25519PublicKey) -> Proof:
    """What leads from a record to the first checkpoint behind it that has a time stamp, or to the last one of its log.
    It is compared with the log. Raises DamagedError, NoteError, OSError; ValueError for a record that no checkpoint
    covers yet."""
    stamped = stamp.first_over(found.log, found.place)
    if stamped is not None:
        signed, text = note.read(stamped.note, key), stamped.note
    else:
        signed, text = checkpoint(found.log, key)
    other = witness.witnessed(found.log)
    by_witness = _way(found, note.read(other, key), other) if other and note.size_of(other) > found.place else ""
    return Proof(_way(found, signed, text), stamped.response if stamped is not None else b"", by_witness)


def _way(found: FoundRecord, signed: Checkpoint, text: str) -> str:
    """What leads from a record to a checkpoint. Raises DamagedError, OSError, ValueError."""
    files = LogFiles(found.log)
    try:
        path = tree.inclusion(files, found.place, signed.size)
    finally:
        files.close()
    if tree.leads_to(found.octets, found.place, signed.size, path) != signed.root:
        raise DamagedError(f"{found.log}: the log is not the one that its checkpoint has signed")
    lines = ["c2sp.org/tlog-proof@v1", f"index {found.place}"]
    lines += [base64.b64encode(one).decode() for one in path]
    return "\n".join(lines) + "\n\n" + text


def salt_of(found: FoundRecord) -> bytes:
    """The salt of a record; empty where it was deleted."""
    with (found.log / "salts").open("rb") as file:
        salt = os.pread(file.fileno(), SALT, found.place * SALT)
    return salt_at(salt, 0)


def salt_at(salts: bytes, place: int) -> bytes:
    """One of many salts; empty where it was deleted."""
    salt = salts[place * SALT : (place + 1) * SALT]
    return salt if len(salt) == SALT and any(salt) else b""


def erase(found: FoundRecord) -> bool:
    """Delete the salt of a record, after which nobody can tell whom it was for; False where it was gone."""
    if not salt_of(found):
        return False
    with (found.log / "salts").open("r+b") as file:
        os.pwrite(file.fileno(), bytes(SALT), found.place * SALT)
        os.fsync(file.fileno())
    return True


def bundle(records: Sequence[FoundRecord], key: Ed25519PublicKey, recipient: str = "") -> bytes:
    """A zip with records, proofs, certificates and what verifies them. `recipient` is shown to be that of those records
    which are of it. Raises as `proof`."""
    out = io.BytesIO()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        names: set[str] = set()
        for number, found in enumerate(records, 1):
            archive.writestr(f"{number:04}.json", found.octets)
            proven = proof(found, key)
            archive.writestr(f"{number:04}.proof", proven.text)
            if proven.stamp:
                archive.writestr(f"{number:04}.tsr", proven.stamp)
            if proven.witnessed:
                archive.writestr(f"{number:04}.witnessed", proven.witnessed)
            salt = salt_of(found)
            if recipient and salt and "recipient" in found.row and who(recipient, salt) == found.row["recipient"]:
                archive.writestr(f"{number:04}.recipient", f"{salt.hex()} {recipient}\n")
            names |= set((found.row.get("tls") or {}).get("certificates", []))
        for name in sorted(names):
            file = records[0].log.parent / "certificates" / f"{name}.der"
            if file.exists():
                archive.writestr(f"certificates/{name}.der", file.read_bytes())
        archive.writestr("verify.py", resources.files(__package__).joinpath("verify.py").read_text(encoding="utf-8"))
        archive.writestr("README.txt", README.format(node=records[0].row["node"], key=pem))
    return out.getvalue()


MOST_PROBLEMS = 100  # that are told of one log


class Audit(NamedTuple):
    """What an audit of one log has found: records, how many of them the checkpoint covers, a time stamp and a witness,
    and of when those are, and what is wrong."""

    log: Path
    size: int
    signed: int
    problems: tuple[str, ...]
    stamped: int = 0
    stamped_at: datetime | None = None
    witnessed: int = 0
    witnessed_at: datetime | None = None


def audit(
    log: Path,
    key: Ed25519PublicKey,
    node: str,
    authority: Sequence[x509.Certificate] = (),
    cosigner: Cosigner | None = None,
) -> Audit:
    """Compute a log's tree anew from its records, and compare it with what was signed of it: all checkpoints that were
    kept, and the last. Each record has to say that it is of this log, and which number it has. Time stamps are verified
    by the certificates of their authority, the signature of a witness by its key. Raises OSError."""
    problems: list[str] = []
    stamped, stamped_at = _stamped(log, authority, problems) if authority else (0, None)
    witnessed, witnessed_at = _witnessed(log, cosigner, problems) if cosigner is not None else (0, None)
    notes = sorted(_checkpoints(log, key, f"{node}/{log.name}", problems), key=lambda one: one.size)
    edge, size, signed = tree.Edge(), 0, 0

    def compare() -> None:
        nonlocal signed
        while notes and notes[0].size == size:
            known = notes.pop(0)
            signed = size
            if known.root != edge.root():
                problems.append(f"the checkpoint of {known.size} records signs others than those that are here")

    compare()
    try:
        for index, octets in _records(log):
            problems += _misplaced(octets, index, log.name) if len(problems) < MOST_PROBLEMS else []
            edge.push(tree.leaf(octets))
            size += 1
            compare()
    except DamagedError as error:
        problems.append(str(error))
    problems += [f"the checkpoint of {known.size} records: there are only {size}" for known in notes]
    if size and not (log / "checkpoint").exists():
        problems.append("there is no checkpoint, so anything may have been changed behind the last that was kept")
    return Audit(log, size, signed, tuple(dict.fromkeys(problems)), stamped, stamped_at, witnessed, witnessed_at)


def _stamped(log: Path, authority: Sequence[x509.Certificate], problems: list[str]) -> tuple[int, datetime | None]:
    """How many records a log has under its last good time stamp, and of when that is."""
    best: tuple[int, datetime | None] = (0, None)
    for size in stamp.sizes(log):
        try:
            best = (size, stamp.verified(stamp.load(log, size), list(authority)))
        except (OSError, ValueError, StampError) as error:
            problems.append(f"stamps/{size}.tsr: {error}")
    return best


def _witnessed(log: Path, cosigner: Cosigner, problems: list[str]) -> tuple[int, datetime | None]:
    """How many records a log has under the signature of its witness, and of when that is."""
    try:
        text = witness.witnessed(log)
        time = cosigner.time_of(text) if text is not None else 0
        if time is None:
            problems.append(f"witnessed: it is not signed by {cosigner.name}")
        return (note.size_of(text), datetime.fromtimestamp(time, UTC)) if text is not None and time else (0, None)
    except (OSError, ValueError, OverflowError) as error:
        problems.append(f"witnessed says no time: {error}")
    return 0, None


def _checkpoints(log: Path, key: Ed25519PublicKey, origin: str, problems: list[str]) -> list[Checkpoint]:
    """Those of a log that the key has signed for it."""
    found = []
    for text in _notes(log, problems):
        try:
            known = note.read(text, key)
        except NoteError as error:
            problems.append(str(error))
            continue
        if known.origin != origin:
            problems.append(f"a checkpoint is of {known.origin}, and not of {origin}")
        else:
            found.append(known)
    return found


def _misplaced(octets: bytes, index: int, log: str) -> list[str]:
    """What a record says against its place."""
    try:
        row = json.loads(octets)
        said = (row["seq"], f"worker-{row['worker']}")
    except (ValueError, KeyError, TypeError):
        return [f"record {index} cannot be read"]
    return [] if said == (index, log) else [f"record {index} says that it is number {said[0]} of {said[1]}"]


def _notes(log: Path, problems: list[str]) -> list[str]:
    """The checkpoints that were kept, those that have a time stamp, and the last."""
    found = []
    for size in stamp.sizes(log):
        try:
            found.append(stamp.load(log, size).note)
        except (OSError, ValueError) as error:
            problems.append(f"stamps/{size}.note cannot be read: {error}")
    try:
        found += [text for text in [witness.witnessed(log)] if text is not None]
    except (OSError, ValueError) as error:
        problems.append(f"witnessed cannot be read: {error}")
    for name in ("checkpoints", "checkpoint"):
        try:
            text = (log / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        lines: list[str] = []
        for line in text.split("\n"):
            lines.append(line)
            if line.startswith("\u2014 "):
                found.append("\n".join(lines).lstrip("\n") + "\n")
                lines = []
    return found
