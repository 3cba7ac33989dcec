"""Where the mail data of one transaction gathers: in memory, or in a file of the spool once it is large.

The fields that go in front of a message are asked for once its header section is known, which is at the latest when
the data outgrows memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from quillon.mail import header
from quillon.reception.content import LineMeter
from quillon.spool.store import Store

MAX_HEAD = 262144  # octets of header section, which stays in memory whole


class MailData:
    """`threshold` is in octets. `prefix` gives the fields to put in front, from the header section."""

    def __init__(
        self, store: Store, number: int, threshold: int, prefix: Callable[[bytes], bytes], line_limit: int
    ) -> None:
        self.size = 0
        self.head = b""
        self.head_too_large = False
        self.eight_bit = False
        self.failed: OSError | None = None
        self._store = store
        self._number = number
        self._threshold = threshold
        self._prefix = prefix
        self._lines = LineMeter(line_limit) if line_limit else None
        self._seen_end = False  # of the header section
        self._tail = b""
        self._parts: list[bytes] = []
        self._path = ""
        self._file = -1
        self._in_front = 0  # octets of ours at the beginning of the file
        self._top = b""

    def add(self, data: bytes) -> None:
        """Take a piece of mail data. A disk error is kept in `failed`, not raised."""
        if not data or self.failed is not None:
            return
        self.size += len(data)
        if not self.eight_bit and not data.isascii():
            self.eight_bit = True
        if self._lines is not None and not self._lines.exceeded:
            self._lines.add(data)
        if self._file >= 0:
            self._write(data)
            return
        self._parts.append(data)
        if not self._seen_end:
            seam = self._tail + data
            self._seen_end = b"\r\n\r\n" in seam or (self.size == len(data) and data.startswith(b"\r\n"))
            self._tail = seam[-3:]
        if self.size > self._threshold and (self._seen_end or self.size > self._threshold + MAX_HEAD):
            self._spill(self._gather())

    def _spill(self, data: bytes) -> None:
        self.head = header.section(data)
        self.head_too_large = len(self.head) > MAX_HEAD
        prefix = header.in_front(self._prefix(self.head), data)
        self._in_front = len(prefix)
        self.size += len(prefix)
        try:
            self._path, self._file = self._store.bodies.new(self._number)
        except OSError as error:
            self.failed = error
            return
        self._write(prefix + data)

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                written = os.write(self._file, view)
                view = view[written:]
        except OSError as error:
            self.failed = error

    def _gather(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = [data]
        return data

    def complete(self) -> None:
        """The last piece has come: `head` is known from here on, and whether the file could be written."""
        if self._path:
            self._close()
        else:
            self.head = header.section(self._gather())
            self.head_too_large = len(self.head) > MAX_HEAD

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            try:
                os.close(file)
            except OSError as error:
                self.failed = self.failed or error

    @property
    def long_line(self) -> bool:
        """Whether a line is longer than it may be."""
        return self._lines is not None and self._lines.exceeded

    @property
    def received(self) -> int:
        """Octets of the mail data as it came, after `complete`."""
        return self.size - self._in_front

    def read(self) -> bytes:
        """The mail data as it came, without the fields in front, after `complete`. Raises OSError."""
        if not self._path:
            return self._gather()
        return self._store.bodies.file(self._path).read_bytes()[self._in_front :]

    def replace(self, data: bytes, top: bytes) -> None:
        """Other mail data in its place, with fields that stand above all others. A disk error is kept in `failed`."""
        self._top = top
        self.eight_bit = not data.isascii()
        self.head = header.section(data)
        if not self._path:
            self._parts = [data]
            self.size = len(data)
            return
        path = self._store.bodies.file(self._path)
        try:
            with path.open("rb") as file:
                front = header.in_front(top + file.read(self._in_front), data)
            path.write_bytes(front + data)
            self.size = len(front) + len(data)
        except OSError as error:
            self.failed = error

    def finish(self) -> tuple[bytes | None, str]:
        """Body in memory or None, and the name of its file or ""; with the fields in front."""
        if self._path:
            return None, self._path
        data = self._gather()
        body = header.in_front(self._top + self._prefix(self.head), data) + data
        self.size = len(body)
        return body, ""

    def copy(self, number: int, data: bytes, top: bytes) -> tuple[bytes | None, str, int]:
        """The same message with other mail data, as a body of its own: as `finish`, and its size. Raises OSError."""
        body = header.in_front(top + self._prefix(header.section(data)), data) + data
        if len(body) <= self._threshold:
            return body, "", len(body)
        name, file = self._store.bodies.new(number)
        try:
            with os.fdopen(file, "wb") as out:
                out.write(body)
        except OSError:
            self._store.bodies.drop(name)
            raise
        return None, name, len(body)

    def discard(self) -> None:
        """The message is not taken: leave nothing behind."""
        self._close()
        if self._path:
            self._store.bodies.drop(self._path)
            self._path = ""
        self._parts.clear()
