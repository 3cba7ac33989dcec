"""Writes the evidence of one worker: an event becomes a record, a group of records one write and one sync. Shell.

`prove` is for what must not be without a record: what follows of it (the removal of a message from the spool, a 250)
happens once the record is on disk. While the disk takes nothing, what follows waits, and is tried again; `failing`
tells why, so that nothing new begins.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization

from quillon.evidence import keys, roster, tree
from quillon.evidence.files import DamagedError, LogFiles, framed, replace_file
from quillon.evidence.keys import KeyFileError
from quillon.evidence.note import Checkpoint, NoteError, NoteSigner, read
from quillon.evidence.record import SALT, VERSION, Recorded, Source, encode, moment, row_of
from quillon.mail.event import Attempted
from quillon.net.clock import Clock
from quillon.net.histogram import Histogram
from quillon.spool.committer import Committer, Plan, Write, call_all

_HOUR = 3600.0
MOST = 1000  # records of one write
MOST_WAITING = 10_000  # records that wait for a disk which takes none
LATER = 0.02  # seconds that a record may wait which no client waits for: each write and sync costs what a record costs


class _Entry(NamedTuple):
    event: Recorded
    source: Source
    then: Callable[[], object] | None
    otherwise: Callable[[], object] | None = None
    kind: str = ""


class _Group(NamedTuple):
    entries: list[_Entry]
    records: list[bytes]
    salts: bytes


class Evidence:
    """`folder` is that of all workers; `key` the file of the key, made if it is not there. `source` says who records,
    by the configuration that runs. Raises OSError, KeyFileError, DamagedError."""

    def __init__(
        self, folder: Path, number: int, key: Path, source: Source, clock: Clock, report: Callable[[str], object]
    ) -> None:
        self.source = source
        self.folder = folder / f"worker-{number}"
        self._certificates = folder / "certificates"
        self._certificates.mkdir(parents=True, exist_ok=True)
        self._signer = NoteSigner(f"{source.node}/worker-{number}", keys.load_or_make(key))
        self._files = LogFiles(self.folder, append=True)
        self._edge = tree.Edge(self._files, self._files.size)
        self._check()
        self._publish(folder)
        roster.enlist(folder, source.node, self.folder.name, self._signer.key)
        self._salts = os.open(self.folder / "salts", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._clock = clock
        self._report = report
        self._waiting: list[_Entry] = []
        self._signed = -1  # records under the last checkpoint
        self._kept_at = 0.0  # when one went into `checkpoints`
        self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None
        self._known: set[str] = set()  # certificates that are on disk
        self._committer: Committer[_Group] = Committer(
            f"evidence/worker-{number}",
            take=self._take,
            write=self._write,
            settle=self._settle,
            report=report,
            plan=self._plan,
        )

    def _check(self) -> None:
        """Hold what is on disk against the last checkpoint: what is not what was signed is not signed again. Raises
        DamagedError."""
        try:
            text = (self.folder / "checkpoint").read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        try:
            signed = read(text, self._signer.key.public_key())
        except NoteError as error:
            raise DamagedError(f"{self.folder}/checkpoint: {error}; quillon proof audit tells more") from None
        same = signed.origin == self._signer.name and signed.size <= self._files.size
        if not same or tree.root(self._files, signed.size) != signed.root:
            raise DamagedError(
                f"{self.folder}: it is not the log that its checkpoint has signed; quillon proof audit tells more. Move"
                " the folder away to begin another one"
            )

    def _publish(self, folder: Path) -> None:
        """The public key, for those who verify without the other one. Raises OSError."""
        pem = self._signer.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        new = folder / f"public.pem.{os.getpid()}.new"
        new.write_bytes(pem)
        os.replace(new, folder / "public.pem")

    def start(self) -> None:
        """On the event loop."""
        self._committer.start()

    @property
    def failing(self) -> str:
        """Why records are not written, "" while they are."""
        return self._committer.failing

    @property
    def took(self) -> Histogram:
        """How long it takes until records are on disk."""
        return self._committer.took

    @property
    def size(self) -> int:
        """Records that are on disk."""
        return self._files.size

    def note(self, event: Recorded) -> None:
        """Record an event that nothing waits for. While nothing can be written, only so many of them are kept; that
        others are missing is told."""
        if len(self._waiting) >= MOST_WAITING:
            self._left_out += 1
            return
        self._waiting.append(_Entry(event, self.source, None))
        self._later()

    def prove(self, event: Recorded, then: Callable[[], object]) -> None:
        """Record an event that has happened; `then` is called once that is on disk, however long it takes."""
        self._waiting.append(_Entry(event, self.source, then))
        self._later()

    def _later(self) -> None:
        """Write within a moment: with the next record that a client waits for, or without one."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATER, self._now)

    def _now(self) -> None:
        self._timer = None
        self._committer.soon()

    def prove_all(
        self, events: Sequence[Recorded], then: Callable[[], object], otherwise: Callable[[], object]
    ) -> None:
        """Record events that can still be undone: `then` is called once all are on disk, or `otherwise` where they
        cannot be written now."""
        source = self.source
        self._waiting += [_Entry(event, source, None, otherwise) for event in events[:-1]]
        self._waiting.append(_Entry(events[-1], source, then, otherwise))
        self._committer.soon()

    def undone(self, events: Sequence[Recorded]) -> None:
        """What was recorded has not come to be: whoever sent it was told to come again."""
        self._waiting += [_Entry(event, self.source, None, None, "undone") for event in events]
        self._later()

    def keep(self, chain: Sequence[bytes]) -> tuple[str, ...]:
        """Keep certificates in DER, each once, and give their SHA-256. One that cannot be written is named all the
        same."""
        names = tuple(hashlib.sha256(der).hexdigest() for der in chain)
        for name, der in zip(names, chain, strict=True):
            if name not in self._known:
                self._keep(name, der)
        return names

    def _keep(self, name: str, der: bytes) -> None:
        file = self._certificates / f"{name}.der"
        if len(self._known) >= 100_000:
            self._known.clear()
        try:
            if not file.exists():
                new = file.with_name(f"{name}.{os.getpid()}.new")
                new.write_bytes(der)
                os.replace(new, file)
            self._known.add(name)
        except OSError as error:
            self._report(f"evidence: {file}: {error.strerror}")

    # groups ---------------------------------------------------------------------------------------------------

    def _take(self) -> _Group | None:
        entries, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        if not entries:
            return None
        salts = secrets.token_bytes(SALT * len(entries))
        records = []
        for n, entry in enumerate(entries):
            records.append(self._record(entry, self._files.size + n, salts[n * SALT : (n + 1) * SALT]))
        return _Group(entries, records, salts)

    def _record(self, entry: _Entry, number: int, salt: bytes) -> bytes:
        """The octets of a record; of one that cannot be made, that it could not."""
        try:
            row = row_of(entry.event, entry.source, salt)
            row["seq"] = number
            if entry.kind:
                row["kind"] = entry.kind
            return encode(row)
        except Exception as defect:
            self._report(f"evidence: a record of {type(entry.event).__name__} cannot be made: {defect!r}")
            row = {"v": VERSION, "kind": "unwritable", "at": moment(entry.event.time), "seq": number}
            return encode({**row, "node": entry.source.node, "worker": entry.source.worker})

    def put_off(self, event: Attempted) -> None:
        """Record what one host made of a message that goes to the next one; nothing waits for it."""
        self._waiting.append(_Entry(event, self.source, None, None, "host"))
        self._later()

    def _plan(self, group: _Group) -> Plan:
        """The same as `_write`, for a thread that needs no interpreter."""
        self._write_salts(group)

        def done(error: int, _count: int) -> None:
            if not error:
                self._grow(self._files.appended(group.records))

        return Plan([Write(self._files.descriptor, self._files.end, framed(group.records))], done)

    def _write(self, group: _Group) -> None:
        self._write_salts(group)
        self._grow(self._files.append(group.records))

    def _write_salts(self, group: _Group) -> None:
        """Raises OSError."""
        if os.pwrite(self._salts, group.salts, self._files.size * SALT) != len(group.salts):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _grow(self, leaves: Sequence[bytes]) -> None:
        """Records with these hashes are in the tree, whatever becomes of the files beside it."""
        for leaf in leaves:
            self._edge.push(leaf)

    def _settle(self, group: _Group, error: Exception | None) -> None:
        if error is not None:
            undone = dict.fromkeys(entry.otherwise for entry in group.entries if entry.otherwise is not None)
            self._waiting = [entry for entry in group.entries + self._waiting if entry.otherwise not in undone]
            call_all([_called(otherwise) for otherwise in undone if otherwise is not None], None)
            return
        if self._left_out:
            self._report(f"evidence: {self._left_out} records of refusals and failed hosts were not kept meanwhile")
            self._left_out = 0
        call_all([_called(entry.then) for entry in group.entries if entry.then is not None], None)

    # checkpoints ----------------------------------------------------------------------------------------------

    def checkpoint(self) -> bool:
        """Sign what there is, if that is more than the last time; False where it has to be asked for again, since
        something is being written now."""
        if self._committer.busy:
            return False
        if self._files.size != self._signed:
            try:
                self._sign()
            except (OSError, DamagedError) as error:
                self._report(f"evidence: {self.folder}/checkpoint: {error}")
        return True

    def _sign(self) -> None:
        """Raises OSError, DamagedError."""
        size, now = self._files.size, self._clock.now()
        self._files.flush()
        root = self._edge.root()  # as it was written, not as it can be read now
        if tree.root(self._files, size) != root:
            self._report(f"evidence: {self.folder}: the hashes on disk are not those that were written")
        os.fdatasync(self._salts)
        found = Checkpoint(self._signer.name, size, root, int(now))
        note = self._signer.sign(found.text())
        replace_file(self.folder / "checkpoint", note.encode())
        if now - self._kept_at >= _HOUR:
            with (self.folder / "checkpoints").open("a", encoding="utf-8") as file:
                file.write(note + "\n")
            self._kept_at = now
        self._signed = size

    @property
    def idle(self) -> bool:
        """Whether all that has come is written."""
        return not self._waiting and not self._committer.busy

    async def close(self) -> None:
        """Sign what is written, and end."""
        if self._timer is not None:
            self._timer.cancel()
        await self._committer.stop()
        if self._waiting:
            self._report(f"evidence: {len(self._waiting)} records were not written; what they tell of is done again")
        self.seal()

    def seal(self) -> None:
        """Sign what is there, and let go of it; of a log that nobody writes to."""
        self.checkpoint()
        self._files.close()
        os.close(self._salts)


def seal_others(given: Evidence, count: int, key: Path, clock: Clock, report: Callable[[str], object]) -> None:
    """Sign what is left of workers that are no more, of which there were more than `count` or which were killed."""
    for log in given.folder.parent.glob("worker-*/entries"):
        number = log.parent.name.removeprefix("worker-")
        if number.isdecimal() and int(number) >= count:
            try:
                other = given.source._replace(worker=int(number))
                Evidence(given.folder.parent, int(number), key, other, clock, report).seal()
            except (DamagedError, KeyFileError, OSError) as error:
                report(f"evidence: {log.parent}: {error}")


def _called(then: Callable[[], object]) -> Callable[[Exception | None], object]:
    return lambda _: then()
