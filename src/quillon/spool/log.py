"""The tier of what is young: segments that are only appended to, each with a list of what is done of it.

A batch is written once, with its body, and synced; a message that is done costs twelve octets. A segment goes as a
whole when nothing in it is left. What stays for longer is moved to the database, so there are never more than a few.

Mail that waits for its answer and all the rest are apart: what is done, and what may go, is written first, and where
that fails it is kept and tried again, and nobody who brings mail is refused for it.

Layout below `folder`: `<number>.log` and `<number>.done` (see `log_octets`), `<number>.broken-<octet>`: damage that was
found, kept for whoever may need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from quillon.mail.message import Batch, Message
from quillon.spool import log_octets, segment
from quillon.spool.bodies import Bodies, make_folder, sync
from quillon.spool.committer import APPEND, RETRY, Committer, Done, Plan, Write, call_all
from quillon.spool.errors import SpoolLost
from quillon.spool.presence import Presence
from quillon.spool.record import encode_batch, encode_message
from quillon.spool.segment import BatchState, Place, Segment

MANY = 8  # segments beyond which the oldest is moved
MOST = 16  # segments beyond which new mail does not come here
_LATE = 500  # messages of one batch whose records the committer makes
_LAZY = 1.0  # seconds until what is done is synced; a power cut before may have it delivered twice


class _Entry:
    """A batch on its way into the log; without `pieces` the committer makes them."""

    def __init__(self, batch: Batch, messages: list[Message], done: Done, pieces: list[bytes]) -> None:
        self.batch = batch
        self.messages = messages
        self.done = done
        self.pieces = pieces
        self.place: Place | None = None


class _Chores:
    """What nobody waits for. The committer takes out of it what it has done; `bodies` go once what is done is synced,
    lest a crash find a message without its body."""

    def __init__(self) -> None:
        self.buried: dict[Segment, list[int]] = {}
        self.dead: dict[Segment, list[int]] = {}  # with what is not in its list
        self.sync: dict[Segment, None] = {}
        self.sync_folder = False
        self.bodies: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.buried or self.dead or self.sync or self.sync_folder or self.bodies)

    def add(self, other: _Chores) -> None:
        for one, messages in other.buried.items():
            self.buried.setdefault(one, []).extend(messages)
        self.dead |= other.dead
        self.sync |= other.sync
        self.sync_folder = self.sync_folder or other.sync_folder
        self.bodies += other.bodies


class _Group:
    """What is written at once."""

    def __init__(self, entries: list[_Entry], chores: _Chores) -> None:
        self.entries = entries
        self.chores = chores
        self.trouble: Exception | None = None  # with a chore
        self.places: list[Place] = []  # where its entries are written
        self.failed: OSError | None = None  # the compiled writer could not write them

    def __bool__(self) -> bool:
        return bool(self.entries or self.chores)


class Log:
    """`watched` are files that have to stay in place. `settled` is called after each write; `report` takes a line."""

    def __init__(
        self,
        folder: Path,
        bodies: Bodies,
        mode: int,
        *,
        watched: tuple[Path, ...],
        report: Callable[[str], object],
        settled: Callable[[], object],
    ) -> None:
        self.folder = folder
        self._bodies = bodies
        self._mode = mode
        self._settled = settled
        self._report = report
        self._presence = Presence(*watched)
        self.committer: Committer[_Group] = Committer(
            str(folder),
            take=self._take,
            write=self._write,
            settle=self._settle,
            verify=self._verify,
            report=report,
            plan=self._plan,
        )
        self._entries: list[_Entry] = []
        self._chores = _Chores()
        self._again = _Chores()  # what failed, until it is tried again
        self._segments: dict[int, Segment] = {}  # by number, the oldest first
        self._current: Segment | None = None  # the last one that was appended to, as the event loop knows
        self._syncing = False
        self._trouble = ""  # with chores, until they are done
        self._doomed: list[str] = []  # bodies that may go when what is done is synced
        self._open: Segment | None = None  # the one that is appended to; the committer's
        self._next = 1
        self._mark = secrets.token_bytes(log_octets.MARK_SIZE)

    def create(self) -> list[Segment]:
        """Make the folder, or give the segments that are there, the oldest first. Raises OSError."""
        make_folder(self.folder)
        found = segment.segments(self.folder)
        known = {one.done_path for one in found}
        for orphan in self.folder.glob("*.done"):
            if orphan not in known:
                orphan.unlink()
        self._next = segment.next_number(self.folder)
        return found

    @property
    def idle(self) -> bool:
        """Whether all that has come is written."""
        return not (self.committer.busy or self._entries or self._chores or self._again)

    @property
    def failing(self) -> str:
        """Why something cannot be written; empty if all can."""
        return self.committer.failing or self._trouble

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
        return sum(len(messages) for chores in (self._chores, self._again) for messages in chores.buried.values())

    # of the event loop ----------------------------------------------------------------------------------------

    def insert(self, batch: Batch, messages: list[Message], done: Done) -> None:
        """Write a batch; `done` is told on the loop. From then on `batch.place` is its place."""
        # the loop has others to serve; but short work is cheaper here than a turn of the interpreter there
        try:
            pieces = [] if len(messages) > _LATE else _pieces(self._mark, batch, messages)
        except Exception as error:  # memory, a value that cannot be written
            asyncio.get_running_loop().call_soon(call_all, [done], error)
            return
        self._entries.append(_Entry(batch, messages, done, pieces))
        self.committer.soon()

    def bury(self, place: Place, message: int) -> None:
        """A message is done."""
        if place.gone is None:
            place.gone = set()
        place.gone.add(message)
        self.bury_all(place.segment, [message])

    def bury_all(self, one: Segment, messages: Iterable[int]) -> None:
        """Messages of a segment are done."""
        self._chores.buried.setdefault(one, []).extend(messages)
        self.sync_soon()
        self.committer.soon()

    def forget(self, place: Place, body: str = "") -> None:
        """Nothing of a batch is left here, nor needs its body file, where one is named."""
        place.segment.places.pop(place.number, None)
        if body:
            self._doomed.append(body)
            self.sync_soon()
        self._look_after(place.segment)

    def register(self, one: Segment, places: Iterable[Place], *, held: bool) -> None:
        """A segment of an earlier life, and some of what lives of it; held until all of it is read and understood."""
        one.held = held
        self._segments[one.number] = one
        one.places.update((place.number, place) for place in places)

    def look_after_all(self) -> None:
        """Let those go that hold nothing."""
        for one in list(self._segments.values()):
            self._look_after(one)

    def to_be_moved(self, count: int) -> list[Place]:
        """The oldest places, so many of them, if there are too many segments."""
        if len(self._segments) <= MANY:
            return []
        for one in self._segments.values():
            if one is self._current:
                return []
            here = (place for place in one.places.values() if place.state is BatchState.LOG)
            if found := list(islice(here, count)):
                return found
        return []

    def _look_after(self, one: Segment) -> None:
        if one.places or one is self._current or one.held:
            return
        if self._segments.pop(one.number, None):
            unwritten = [m for chores in (self._chores, self._again) for m in chores.buried.pop(one, ())]
            self._chores.dead[one] = unwritten
            self.sync_soon()
            self.committer.soon()

    def sync_soon(self) -> None:
        """Have written to the disk what is done, within a second."""
        if not self._syncing:
            self._syncing = True
            asyncio.get_running_loop().call_later(_LAZY, self.sync)

    def sync(self) -> None:
        """Have written to the disk what is done; bodies that were only waited for go then."""
        self._syncing = False
        self._chores.sync |= dict.fromkeys(self._segments.values())
        self._chores.sync_folder = True
        self._chores.bodies += self._doomed
        self._doomed = []
        self.committer.soon()

    def refuse_all(self, error: Exception) -> None:
        """Answer those that still wait; nothing is written any more."""
        entries, self._entries = self._entries, []
        call_all([entry.done for entry in entries], error)

    def release(self) -> None:
        """Close all files; a segment that holds nothing any more goes."""
        for one in self._segments.values():
            with contextlib.suppress(OSError):
                one.close()
                if one.places or one.held:
                    one.release()
                else:
                    one.remove()

    def _take(self) -> _Group | None:
        group = _Group(self._entries, self._chores)
        self._entries, self._chores = [], _Chores()
        if self._again:  # a list that could not be written may be about one of the bodies
            self._chores.bodies, group.chores.bodies = group.chores.bodies, []
        return group or None

    def _plan(self, group: _Group) -> Plan | None:
        """What most groups are while mail comes and goes: what is done, for lists that are open, and entries for a
        segment that has room."""
        chores = group.chores
        if chores.dead or chores.sync or chores.sync_folder or chores.bodies:
            return None
        one = self._open  # nobody else looks at it now: one group at a time
        pieces: list[bytes] = []
        if group.entries:
            if one is None or one.size >= segment.SIZE or self._presence.lost:
                return None
            if not all(entry.pieces for entry in group.entries):
                return None  # they take long to be made
            pieces = self._lay(one, group)
        plan = Plan([], partial(self._planned, one, group, sum(map(len, pieces))))
        entries = [Write(one.file, one.size, pieces)] if one is not None and pieces else []
        return plan if self._lent(chores.buried, plan.writes, entries) else None

    def _lent(self, buried: dict[Segment, list[int]], writes: list[Write], entries: list[Write]) -> bool:
        """Whether the segments lend all their lists of what is done: then `writes` are what is added to them, and
        behind that the entries. Else none is lent."""
        octets = [log_octets.encode_done(messages) for messages in buried.values()]
        lent, whole = 0, False
        try:
            for one, some in zip(buried, octets, strict=True):
                file = one.lend_list()
                if file < 0:
                    return False
                lent += 1
                writes.append(Write(file, APPEND, [some]))
            writes += entries
            whole = True
        finally:
            if not whole:
                for one in islice(buried, lent):
                    one.take_list_back(failed=False)
        return True

    def _planned(self, one: Segment | None, group: _Group, length: int, error: int, count: int) -> None:
        """What has come of a plan: so many lists are written, then `length` octets of entries."""
        lists = len(group.chores.buried)
        for each in group.chores.buried:
            each.take_list_back(failed=error != 0)
        if error:
            if count == lists:  # else the entries were not begun, which the committer does now
                group.failed = OSError(error, os.strerror(error))
            return
        group.chores.buried.clear()
        if one is not None and length:
            one.size += length
            self._written(group)

    def _verify(self, group: _Group) -> None:
        """Here and not on the thread: four looks at names that are in memory cost less than its turns."""
        if group.entries and (place := group.entries[-1].place) is not None:
            self._presence.check(str(place.segment.path))

    def _settle(self, group: _Group, error: Exception | None) -> None:
        self._note(group.trouble, left=bool(group.chores))
        if group.chores:
            if not self._again:
                asyncio.get_running_loop().call_later(RETRY, self._try_again)
            self._again.add(group.chores)
        waiting: list[_Entry] = []
        if error is None:
            self._placed(group.entries)
        else:
            # those that wait are refused too: nobody knows how long it takes, and their clients come again
            waiting, self._entries = self._entries, []
            for entry in group.entries:
                if entry.place is not None:  # it was written whole, and must not come back
                    self.bury_all(entry.place.segment, (message.id.number for message in entry.messages))
        call_all([entry.done for entry in group.entries + waiting], error)
        self._settled()

    def _note(self, trouble: Exception | None, *, left: bool) -> None:
        """Say once what keeps chores from being done, and once that they are."""
        words = "" if trouble is None else str(trouble)
        if words and words != self._trouble:
            self._report(f"spool: {self.folder}: {words}; it is tried again")
            self._trouble = words
        elif self._trouble and not left and not self._again:
            self._report(f"spool: {self.folder} is written again")
            self._trouble = ""

    def _placed(self, entries: list[_Entry]) -> None:
        before = self._current
        for entry in entries:
            place = entry.place
            assert place is not None
            entry.batch.place = place
            self._segments.setdefault(place.segment.number, place.segment)
            place.segment.places[place.number] = place
            self._current = place.segment
        if before is not None and before is not self._current:
            self._presence.forget(str(before.path))
            self._look_after(before)

    def _try_again(self) -> None:
        again, self._again = self._again, _Chores()
        self._chores.add(again)
        self.committer.soon()

    # of the committer -----------------------------------------------------------------------------------------

    def _write(self, group: _Group) -> None:
        group.trouble = self._do(group.chores)
        if group.entries:
            if group.failed is not None:
                assert self._open is not None
                self._abandon(self._open, group)
                raise group.failed
            if self._presence.lost:
                raise SpoolLost(self._presence.lost)
            self._append(group)

    def _do(self, chores: _Chores) -> Exception | None:
        """Do what can be done, and take it out. Gives what kept the rest from it."""
        trouble: Exception | None = None
        for one, messages in list(chores.dead.items()):
            try:
                one.remove()
                del chores.dead[one]
            except OSError as error:
                trouble = error
                if messages:  # it stays for now, so its list has to be whole
                    chores.buried.setdefault(one, []).extend(messages)
                    chores.dead[one] = []
        for one, messages in list(chores.buried.items()):
            try:
                one.bury(messages)
                del chores.buried[one]
            except OSError as error:
                trouble = error
        for one in list(chores.sync):
            try:
                one.sync_done()
                del chores.sync[one]
            except OSError as error:
                trouble = error
        if chores.sync_folder:
            try:
                sync(self.folder)
                chores.sync_folder = False
            except OSError as error:
                trouble = error
        if not (chores.sync or chores.buried or chores.dead or chores.sync_folder):
            for name in chores.bodies:
                self._bodies.drop(name)
            chores.bodies = []
        return trouble

    def _append(self, group: _Group) -> None:
        one = self._open
        if one is None or one.size >= segment.SIZE:
            one = self._another()
        pieces = self._lay(one, group)
        before = one.size
        try:
            one.append(pieces)
        except Exception:
            one.size = before
            self._abandon(one, group)
            raise
        self._written(group)

    def _lay(self, one: Segment, group: _Group) -> list[bytes]:
        """Find places for the entries of a group, behind what is there; gives their octets."""
        at = one.size
        pieces: list[bytes] = []
        group.places = []
        for entry in group.entries:
            some = entry.pieces or _pieces(self._mark, entry.batch, entry.messages)
            length = sum(map(len, some))
            group.places.append(Place(one, entry.batch.id.number, at, length))
            pieces += some
            at += length
        return pieces

    def _written(self, group: _Group) -> None:
        for entry, place in zip(group.entries, group.places, strict=True):
            entry.place = place

    def _another(self) -> Segment:
        """Begin the next segment. Raises OSError."""
        if self._open is not None:
            before, self._open = self._open, None
            before.close()
        one = Segment(self.folder, self._next)
        self._next += 1
        one.create(self._mode, self._mark)
        self._open = one
        return one

    def _abandon(self, one: Segment, group: _Group) -> None:
        """After a write that failed nobody knows what is on the disk: what was refused must not come back, and nothing
        is appended there any more."""
        self._open = None
        try:
            one.close()
        except OSError:
            refused = [message.id.number for entry in group.entries for message in entry.messages]
            try:
                one.bury(refused)
                one.sync_done()
            except OSError:
                group.chores.buried.setdefault(one, []).extend(refused)  # tried again until it is written
                return
        if one.size == log_octets.START:
            with contextlib.suppress(OSError):
                one.remove()
                sync(self.folder)


def _pieces(mark: bytes, batch: Batch, messages: list[Message]) -> list[bytes]:
    """A record; a large body stands as it is, lest it be copied."""
    rows = [(message.id.number, encode_message(message)) for message in messages]
    meta = log_octets.encode_meta(batch.path, encode_batch(batch), rows)
    body = b"" if batch.path else batch.body or b""
    head = log_octets.encode_head(mark, batch.id.number, meta, body)
    return [head + meta, body]
