"""The MIME tree of a message, read and changed by policies.

Parts that are left alone keep their octets.
"""

from __future__ import annotations

import base64
import io
import itertools
import quopri
import re
import secrets
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.generator import BytesGenerator
from email.message import Message as Part_
from email.parser import BytesHeaderParser
from typing import Any, TypeAlias

from quillon.mail import charset as charsets
from quillon.mail import header as headers
from quillon.policy.message import MessageView

WIRE = policy.compat32.clone(linesep="\r\n", max_line_length=0)
MAX_LINE = 998  # octets, RFC 5322 2.1.1

Mime: TypeAlias = "Part_[str, str]"
MOST_CONTAINERS = 100  # of a message; what holds more is taken as one part
MOST_STEPS = 1_000_000  # lines times containers, which is what taking a message apart costs


class OwnPart(Part_):
    """A part whose Content-Type is read as it is written: with comments, white space before the colon, in the first
    field of several. A container without a boundary is a text (RFC 2046 5.1.1)."""

    def _content_type(self) -> tuple[str, dict[str, str]]:
        kind, found = headers.parameters(next(iter(raw_values(self, "Content-Type")), ""))
        if not re.fullmatch(r"[!-.0-~]+/[!-.0-~]+", kind):
            return self.get_default_type(), found
        whole = not isinstance(self._payload, list)  # type: ignore[attr-defined]
        if kind.startswith("multipart/") and whole and not _usable(found.get("boundary")):
            return "text/plain", found
        return kind, found

    def get_content_type(self) -> str:
        return self._content_type()[0]

    def get_content_maintype(self) -> str:
        return self._content_type()[0].partition("/")[0]

    def get_content_subtype(self) -> str:
        return self._content_type()[0].partition("/")[2]

    def get_boundary(self, failobj: Any = None) -> Any:
        found = self._content_type()[1].get("boundary")
        return found if _usable(found) else failobj


def _usable(boundary: str | None) -> bool:
    return bool(boundary) and boundary is not None and boundary.isascii() and boundary.isprintable()


@dataclass(slots=True)
class MimeTree:
    """The parts of one message; `view` is where changes go, None for parts that belong to no message yet."""

    root: Mime
    view: MessageView | None
    writable: bool
    _following: dict[Mime, Mime] | None = None

    def following(self, node: Mime) -> Mime | None:
        """The part behind another one, each container before its parts."""
        if self._following is None:
            parts = list(self.root.walk())
            self._following = dict(itertools.pairwise(parts))
        return self._following.get(node)

    def changed(self) -> None:
        """Write the tree back. Raises ValueError where it was asked for to be read only."""
        self._following = None
        if not self.writable:
            raise ValueError("this MIME part is read-only: ask for it with msg:mime(false)")
        if self.view is not None:
            self.view.set_whole(octets(self.root))


@dataclass(slots=True)
class Part:
    """One part of a tree."""

    node: Mime
    tree: MimeTree

    def parent(self) -> Mime | None:
        containers = (node for node in self.tree.root.walk() if node.is_multipart())
        return next((node for node in containers if any(child is self.node for child in children(node))), None)


def raw_values(node: Mime, name: str) -> list[str]:
    """Values of a header field of a part, as `header.raw_values` gives those of a message."""
    found = [str(value) for key, value in node.raw_items() if key.lower() == name.lower()]
    return [headers.unfolded(value.encode("utf-8", "surrogateescape").decode("latin-1")) for value in found]


def children(node: Mime) -> list[Mime]:
    """The parts of a container."""
    found = node.get_payload()
    return found if isinstance(found, list) else []  # type: ignore[return-value]


_SPACE_BEFORE_COLON = re.compile(rb"^([!-9;-~]+)[ \t]+:", re.MULTILINE)


def octets(node: Mime) -> bytes:
    """A part with its header, CRLF line ends. Raises ValueError for what cannot be written."""
    out = io.BytesIO()
    try:
        BytesGenerator(out, mangle_from_=False, maxheaderlen=0, policy=WIRE).flatten(node)
    except (UnicodeError, RecursionError, LookupError, TypeError, AttributeError):
        raise ValueError("the message is built so that its parts cannot be written") from None
    return out.getvalue()


def set_octets(node: Mime, data: bytes) -> None:
    """Another header and body of a part."""
    other = message_from_bytes(data, policy=WIRE)
    for name in set(node.keys()):
        del node[name]
    for name, value in other.raw_items():
        node.set_raw(name, value)
    node.set_payload(other.get_payload())


def tree_of(view: MessageView, *, writable: bool) -> MimeTree:
    head = _SPACE_BEFORE_COLON.sub(rb"\1:", view.content.head)
    data = head + view.content.body
    low = data.lower()
    containers = low.count(b"multipart/") + low.count(b"message/")
    if containers > MOST_CONTAINERS or containers * data.count(b"\n") > MOST_STEPS:
        # nobody's mail: parts within parts by the hundred, or so many lines in them that it takes minutes
        root: Mime = BytesHeaderParser(OwnPart, policy=WIRE).parsebytes(data)
    else:
        root = message_from_bytes(data, OwnPart, policy=WIRE)
    return MimeTree(root, view, writable)


def text_of(node: Mime) -> str | None:
    """The decoded text of a leaf; None where it has none."""
    if node.is_multipart():
        return None
    data = node.get_payload(decode=True)
    if not isinstance(data, bytes):
        return None
    return charsets.decoded(data, charset_of(node) or "utf-8")


def charset_of(node: Mime) -> str | None:
    """The charset of a part's Content-Type, if it names one."""
    found = _parameter(node, "content-type", "charset")
    return found.lower() if found else None


def _parameter(node: Mime, header: str, name: str) -> str | None:
    """A parameter of a header field, decoded (RFC 2231, RFC 2047); None where it is not there."""
    return headers.parameters(next(iter(raw_values(node, header)), ""))[1].get(name)


def filename_of(node: Mime) -> str | None:
    """The name of the file that a part is."""
    return _parameter(node, "content-disposition", "filename") or _parameter(node, "content-type", "name")


def set_text(node: Mime, value: str, kind: str | None, charset: str | None) -> None:
    """Another text, with its Content-Type and transfer encoding. Raises ValueError for an unknown charset."""
    charset = charset or charset_of(node) or "utf-8"
    kind = kind or (node.get_content_type() if node.get_content_maintype() == "text" else "text/plain")
    data, encoding = encoded(value, charset)
    for name in ("Content-Type", "Content-Transfer-Encoding"):
        del node[name]
    node["Content-Type"] = f'{kind}; charset="{charset}"'
    node["Content-Transfer-Encoding"] = encoding
    if "MIME-Version" not in node:
        node["MIME-Version"] = "1.0"
    node.set_payload(data.decode("ascii"))


def encoded(value: str, charset: str) -> tuple[bytes, str]:
    """Text as octets in a transfer encoding, and its name: 7bit where that does, else quoted-printable."""
    data = charsets.encoded(value, charset)
    data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if data.isascii() and all(len(line) <= MAX_LINE for line in data.split(b"\r\n")):
        return data, "7bit"
    return quopri.encodestring(data.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n"), "quoted-printable"


def new_part(kind: str, body: bytes | None, encoding: str | None) -> Mime:
    """A leaf. Raises ValueError for an unknown transfer encoding."""
    one_line(kind)
    node: Mime = Part_(policy=WIRE)
    node["Content-Type"] = kind
    data = body or b""
    if encoding in (None, "7bit", "8bit"):
        encoding = "7bit" if data.isascii() else "8bit"
    elif encoding == "base64":
        data = base64.encodebytes(data).replace(b"\n", b"\r\n")
    elif encoding == "quoted-printable":
        data = quopri.encodestring(data)
    else:
        raise ValueError(f"{encoding!r} is no transfer encoding")
    node["Content-Transfer-Encoding"] = encoding
    node.set_payload(data.decode("ascii", "surrogateescape"))
    return node


def container(kind: str, boundary: str | None = None) -> Mime:
    """A container without parts."""
    node: Mime = Part_(policy=WIRE)
    node["MIME-Version"] = "1.0"
    node["Content-Type"] = f'{one_line(kind)}; boundary="{one_line(boundary or new_boundary())}"'
    node.set_payload([])
    return node


def new_boundary() -> str:
    return f"=_quillon_{secrets.token_hex(16)}"


def one_line(text: str) -> str:
    if "\r" in text or "\n" in text or '"' in text:
        raise ValueError(f"{text!r} holds a quote or a line end")
    return text
