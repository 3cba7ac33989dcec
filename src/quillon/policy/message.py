"""A message in the hands of policy: what it may read, and what it may change. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from quillon.mail import header
from quillon.mail.reply import Reply

_LONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
DISCARDED = Reply(550, "5.7.0", "discarded by policy")
MALFORMED_DISCARD = Reply(550, "5.7.1", "[internal] discarded by policy")


class Content:
    """Mail data: the header section at hand, the body read when it is asked for. `changed` once policy has edited it.

    `read` gives the whole of the mail data. Raises OSError where it cannot be read. `derived` is what has been computed
    from the content as it came, shared with the copies of its recipients: a signature is made once for all of them.
    `missing` gives the fields that will be added to a header section that lacks them (Date, Message-ID); `in_front` are
    the fields that policy has put in front, which will stand above our Received.
    """

    def __init__(
        self,
        head: bytes,
        size: int,
        read: Callable[[], bytes] | None = None,
        missing: Callable[[bytes], bytes] = lambda head: b"",
    ) -> None:
        self.changed = False
        self.in_front = b""
        self.missing = missing
        self._head = head
        self._size = size
        self._read = read or (lambda: head)
        self._source: Content | None = None
        self._body: bytes | None = None
        self._original_head = len(head)
        self.derived: dict[Hashable, bytes] = {}

    @property
    def head(self) -> bytes:
        """The header section with the blank line that ends it, where the message has one."""
        return self.in_front + self._head

    @head.setter
    def head(self, head: bytes) -> None:
        self._load()
        self._head = self._without_front(head)
        self.changed = True

    def _without_front(self, data: bytes) -> bytes:
        """What stands behind the fields in front; where they have been touched, nothing stands in front any more."""
        if not data.startswith(self.in_front):
            self.in_front = b""
        return data[len(self.in_front) :]

    @property
    def signed_head(self) -> bytes:
        """The header section as it will leave us, without trace fields: what a signature covers."""
        return self.missing(self._head) + self.head

    def put_in_front(self, fields: bytes) -> None:
        """Add whole fields with their line ends above all others, our Received included."""
        self._load()
        self.in_front = header.in_front(fields, self.in_front or self._head) + self.in_front
        self.changed = True

    @property
    def body(self) -> bytes:
        """What stands behind the header section."""
        return self._load()

    @body.setter
    def body(self, body: bytes) -> None:
        self._load()
        self._body = _lines(body)
        if body and not self._head.endswith(b"\r\n\r\n") and self._head != b"\r\n":
            self._head += b"\r\n"
        self.changed = True

    @property
    def whole(self) -> bytes:
        return self.in_front + self.rest

    @whole.setter
    def whole(self, data: bytes) -> None:
        self._load()
        data = self._without_front(_lines(data))
        end = 2 if data.startswith(b"\r\n") else data.find(b"\r\n\r\n") + 4
        self._head, self._body = (data[:end], data[end:]) if end >= 4 or data.startswith(b"\r\n") else (data, b"")
        self.changed = True

    @property
    def rest(self) -> bytes:
        """The whole without the fields in front."""
        body = self._load()
        return self._head + body

    @property
    def size(self) -> int:
        """Octets of the whole."""
        return len(self.head) + len(self._body or b"") if self.changed else self._size

    def _load(self) -> bytes:
        if self._body is None:
            source = self._source
            self._body = self._read()[self._original_head :] if source is None else source.body
        return self._body

    def copy(self) -> Content:
        """For the copy of one recipient: what is edited there leaves the others as they are."""
        other = Content(self._head, self.size, missing=self.missing)
        other._source, other.derived, other.in_front = self, self.derived, self.in_front
        return other


def _lines(data: bytes) -> bytes:
    """Mail data out of what a script made: CRLF line ends, the last one included, and no end mark."""
    data = _LONE.sub(b"\r\n", data)
    data = data.removesuffix(b"\r\n.\r\n") + b"\r\n" if data.endswith(b"\r\n.\r\n") else data
    return data if not data or data.endswith(b"\r\n") else data + b"\r\n"


@dataclass(slots=True)
class MessageView:
    """`reply` is what msg:code set, `discarded` the reason of msg:discard; bindings chosen are written back here.

    `context` are values for this message alone, where it already has a copy of its own.
    """

    message_id: str
    batch_id: str
    connection_id: str
    sender: str
    recipient: str
    content: Content = field(default_factory=lambda: Content(b"", 0))
    binding_group: str = ""
    binding: str = ""
    routing_domain: str = ""
    priority: int = 0
    reply: Reply | None = None
    discarded: Reply | None = None
    own_copy: bool = False
    may_edit: bool = False

    @property
    def size(self) -> int:
        return self.content.size

    def header(self, name: str) -> list[str]:
        """Decoded values of a header field."""
        return header.values(self.content.head, name)

    def raw_header(self, name: str) -> list[str]:
        """Values of a header field as they stand, for what is parsed before it is decoded (RFC 2047 6.1)."""
        return header.raw_values(self.content.head, name)

    def set_header(self, name: str, values: list[str], mode: str = "replace") -> None:
        """Replace all fields of a name, or put some in front or at the end. Raises ValueError."""
        head = self._editable().head
        if mode == "replace":
            head = header.replace(head, name, values)
        elif mode == "append":
            for value in values:
                head = header.append(head, name, value)
        elif mode == "prepend":
            for value in reversed(values):
                head = header.prepend(head, name, value)
        else:
            raise ValueError(f"{mode!r} is no mode: replace, append or prepend")
        self.content.head = head

    def remove_header(self, name: str) -> bool:
        """Take all fields of a name away; whether there was one."""
        before = self._editable().head
        after = header.remove(before, name)
        if after != before:
            self.content.head = after
        return after != before

    def put_in_front(self, fields: bytes) -> None:
        """Add whole header fields with their line ends, as signatures are. Raises ValueError."""
        self._editable().put_in_front(fields)

    def _editable(self) -> Content:
        if not self.may_edit:
            raise ValueError("the message cannot be changed in this phase")
        return self.content

    def set_body(self, data: bytes) -> None:
        """Another body. Raises ValueError in a phase that may not edit."""
        self._editable().body = data

    def set_whole(self, data: bytes) -> None:
        """Other mail data, header section included. Raises ValueError in a phase that may not edit."""
        self._editable().whole = data

    def discard(self, reason: str = "") -> None:
        """Accept the message and keep nothing of it but a line in the rejectlog (manual, msg:discard)."""
        self.discarded = DISCARDED
        if reason:
            match = re.fullmatch(r"([2-5][0-9]{2})(?: ([245]\.[0-9]{1,3}\.[0-9]{1,3}))? ?(.*)", reason, re.DOTALL)
            self.discarded = (
                Reply(int(match[1]), match[2] or "", " ".join(match[3].split()) or "no text")
                if match
                else MALFORMED_DISCARD
            )
