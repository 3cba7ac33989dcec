"""Witnesses of a log (C2SP tlog-witness): somebody outside who signs a checkpoint only if it holds all that the last
one did, and remembers how far he has seen. Shell.

LOG/witnessed    the last checkpoint that the witness has signed, a note with both signatures
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path

from quillon.config.settings import WitnessSettings
from quillon.evidence import note, tree
from quillon.evidence.files import DamagedError, LogFiles, replace_file
from quillon.evidence.note import Cosigner, NoteError
from quillon.evidence.outside import AGAIN, OutsideError, asked
from quillon.net.clock import Clock


class WitnessError(OutsideError):
    """A witness has not signed."""


def witnessed(log: Path) -> str | None:
    """The note of the last checkpoint of a log that was witnessed; None where none was. Raises OSError,
    UnicodeDecodeError."""
    try:
        return (log / "witnessed").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def extension(log: Path, old: int, text: str) -> str:
    """What shows that a checkpoint, as a note, holds all of the first `old` records of its log: the body of a question
    to a witness. Raises DamagedError, OSError; ValueError for one that is of fewer records."""
    files = LogFiles(log)
    try:
        path = tree.consistency(files, old, note.size_of(text))
    finally:
        files.close()
    return "".join([f"old {old}\n", *(f"{base64.b64encode(one).decode()}\n" for one in path), "\n", text])


class Witness:
    """Has the checkpoints of one log signed by a witness. `report` takes lines for the paniclog."""

    def __init__(self, settings: WitnessSettings, log: Path, clock: Clock, report: Callable[[str], None]) -> None:
        self.settings = settings
        self._cosigner = Cosigner.of(settings.name, settings.key)
        self._log = log
        self._clock = clock
        self._report = report
        self._asks_at = 0.0
        self._asking = False
        self._failed = ""

    async def look_after(self) -> None:
        """Ask if it is time for it, and there is a checkpoint that the witness has not signed."""
        now = self._clock.now()
        if self._asking or now < self._asks_at:
            return
        self._asking = True
        try:
            if await self._ask():
                self._asks_at = now + self.settings.interval
                if self._failed:
                    self._report(f"evidence: {self.settings.url} signs checkpoints again")
                self._failed = ""
        except (OutsideError, NoteError, DamagedError, OSError, ValueError) as error:
            self._asks_at = now + min(AGAIN, self.settings.interval)
            if str(error) != self._failed:
                self._report(f"evidence: {self.settings.url}: {error}")
            self._failed = str(error)
        finally:
            self._asking = False

    async def _ask(self) -> bool:
        """Whether there was something to be signed, and it is. Raises OutsideError and what `extension` does."""
        text, old = await asyncio.to_thread(self._next)
        if text is None:
            return False
        said, status = await self._posted(old, text)
        if status == 409:
            # it has signed what we have no word of: an answer was lost, or there is less here than it has seen
            old = _size(said)
            if old > note.size_of(text):
                raise WitnessError(
                    f"it has signed {old} records, and there are {note.size_of(text)}: this log was cut back"
                )
            said, status = await self._posted(old, text)
        if status == 422:
            raise WitnessError(f"what it has signed of {old} records is not what is here: this log was written anew")
        if status != 200:
            raise WitnessError(f"status {status}{f': {words}' if (words := said.strip()[:200]) else ''}")
        await asyncio.to_thread(self._keep, text, said)
        return True

    def _next(self) -> tuple[str | None, int]:
        """The last checkpoint, None if it is witnessed, and how many records the one had that was. Raises OSError."""
        try:
            text = (self._log / "checkpoint").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None, 0
        last = witnessed(self._log)
        old = note.size_of(last) if last is not None and self._cosigner.time_of(last) is not None else 0
        return (text if note.size_of(text) != old else None), old

    async def _posted(self, old: int, text: str) -> tuple[str, int]:
        """What the witness answers, and its status. Raises OutsideError."""
        question = await asyncio.to_thread(extension, self._log, old, text)
        status, said = await asked(f"{self.settings.url.rstrip('/')}/add-checkpoint", question.encode())
        return said.decode("utf-8", "replace"), status

    def _keep(self, text: str, said: str) -> None:
        """Put a checkpoint on disk with the signature of the witness. Raises WitnessError, OSError."""
        line = self._cosigner.line_in(text, said)
        if line is None:
            raise WitnessError("what it answers is not signed by witness_key")
        replace_file(self._log / "witnessed", f"{text}{line}\n".encode())


def _size(said: str) -> int:
    """Raises WitnessError."""
    words = said.strip()
    if not words.isdigit() or len(words) > 19:
        raise WitnessError(f"status 409: {words[:200]}")
    return int(words)
