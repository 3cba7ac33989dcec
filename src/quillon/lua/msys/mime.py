"""`msgpart`: the MIME tree of a message, read and changed, and messages built from parts.

The tree is made when a script asks for it. What it changes is written back into the message at once; parts that it
leaves alone keep their octets.
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
from email.utils import formatdate, make_msgid
from typing import Any, TypeAlias

from quillon.lua.msys.api import Api, Object
from quillon.lua.msys.message import END_MARK, texts
from quillon.lua.msys.pcre import match_table, replaced
from quillon.mail import charset as charsets
from quillon.mail import header as headers
from quillon.policy.addresses import address_parts, mailbox_of, mailboxes_of
from quillon.policy.hook import Call
from quillon.policy.message import Content, MessageView

_WIRE = policy.compat32.clone(linesep="\r\n", max_line_length=0)
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
class Tree:
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
    tree: Tree

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
        BytesGenerator(out, mangle_from_=False, maxheaderlen=0, policy=_WIRE).flatten(node)
    except (UnicodeError, RecursionError, LookupError, TypeError, AttributeError):
        raise ValueError("the message is built so that its parts cannot be written") from None
    return out.getvalue()


def set_octets(node: Mime, data: bytes) -> None:
    """Another header and body of a part."""
    other = message_from_bytes(data, policy=_WIRE)
    for name in set(node.keys()):
        del node[name]
    for name, value in other.raw_items():
        node.set_raw(name, value)
    node.set_payload(other.get_payload())


def tree_of(view: MessageView, *, writable: bool) -> Tree:
    head = _SPACE_BEFORE_COLON.sub(rb"\1:", view.content.head)
    data = head + view.content.body
    low = data.lower()
    containers = low.count(b"multipart/") + low.count(b"message/")
    if containers > MOST_CONTAINERS or containers * data.count(b"\n") > MOST_STEPS:
        # nobody's mail: parts within parts by the hundred, or so many lines in them that it takes minutes
        root: Mime = BytesHeaderParser(OwnPart, policy=_WIRE).parsebytes(data)
    else:
        root = message_from_bytes(data, OwnPart, policy=_WIRE)
    return Tree(root, view, writable)


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
    _one_line(kind)
    node: Mime = Part_(policy=_WIRE)
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
    node: Mime = Part_(policy=_WIRE)
    node["MIME-Version"] = "1.0"
    node["Content-Type"] = f'{_one_line(kind)}; boundary="{_one_line(boundary or new_boundary())}"'
    node.set_payload([])
    return node


def new_boundary() -> str:
    return f"=_quillon_{secrets.token_hex(16)}"


def _one_line(text: str) -> str:
    if "\r" in text or "\n" in text or '"' in text:
        raise ValueError(f"{text!r} holds a quote or a line end")
    return text


def build(view: MessageView, fields: dict[str, Any], parts: dict[str, Any], attachments: list[Any]) -> None:
    """A new message out of header fields, alternative texts and attachments (manual, msg:build)."""
    top = container("multipart/mixed")
    body = container("multipart/alternative") if len(parts) > 1 else None
    # what every reader understands comes first (RFC 2046 5.1.4); a table of a script has no order
    for kind, content in sorted(
        parts.items(), key=lambda item: (not item[0].lower().startswith("text/plain"), item[0])
    ):
        leaf = _leaf(kind, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        (body if body is not None else top).attach(leaf)
    if body is not None:
        children(top).insert(0, body)
    for attachment in attachments:
        top.attach(_attachment(attachment))
    del top["MIME-Version"]
    head = b"".join(
        headers.encoded(name, value) for name, given in fields.items() for value in texts(_without_name(name, given))
    )
    known = {name.lower() for name in fields}
    if "date" not in known:
        head += headers.encoded("Date", formatdate())
    if "message-id" not in known:
        head += headers.encoded("Message-ID", make_msgid())
    content = view.content
    content.whole = head + b"MIME-Version: 1.0\r\n" + octets(top)


def _without_name(name: str, given: Any) -> Any:
    """A value that repeats its field name in front, as a sample of the manual writes it."""
    prefix = f"{name.lower()}:"
    if isinstance(given, str) and given.lower().startswith(prefix):
        return given[len(prefix) :].strip()
    return given


def _leaf(kind: str, data: bytes) -> Mime:
    """text/* without charset as quoted-printable, anything else as base64 (manual, msg:build)."""
    plain = kind.lower().startswith("text/") and "charset" not in kind.lower()
    leaf = new_part(kind, data, "quoted-printable" if plain else "base64")
    leaf["Content-Disposition"] = "inline"
    return leaf


def _attachment(given: Any) -> Mime:
    if not isinstance(given, dict):
        raise ValueError("an attachment is a table with type, name and content")
    content = given.get("content", "")
    if isinstance(content, Call):
        leaf = container("message/rfc822")
        del leaf["MIME-Version"], leaf["Content-Type"]
        leaf["Content-Type"] = "message/rfc822"
        leaf.set_payload([message_from_bytes(content.view.content.whole, policy=_WIRE)])
    else:
        data = str(content).encode("utf-8", "surrogateescape")
        leaf = new_part(str(given.get("type", "application/octet-stream")), data, "base64")
    name = _one_line(str(given.get("name", "")).removeprefix("./"))
    leaf["Content-Disposition"] = f'attachment; filename="{name}"' if name else "attachment"
    for line in str(given.get("headers", "")).split("\r\n"):
        field, colon, value = line.partition(":")
        if colon:
            leaf[field.strip()] = _one_line(value.strip())
    return leaf


def forwarded(view: MessageView, sender: str, recipients: str, text: str, subject: str, charset: str) -> bytes:
    """A new message with the given one attached."""
    top = container("multipart/mixed")
    top["From"], top["To"] = _one_line(sender), _one_line(recipients)
    top["Subject"] = _one_line(subject or "Forwarded message")
    top["Date"], top["Message-ID"] = formatdate(), make_msgid()
    leaf: Mime = Part_(policy=_WIRE)
    set_text(leaf, text, "text/plain", charset)
    del leaf["MIME-Version"]
    top.attach(leaf)
    whole: Mime = Part_(policy=_WIRE)
    whole["Content-Type"] = "message/rfc822"
    whole.set_payload([message_from_bytes(view.content.whole, policy=_WIRE)])
    top.attach(whole)
    return octets(top)


def register(api: Api) -> None:
    _register_text(api)
    _register_make(api)
    _register_part(api)
    _register_tree(api)


def _register_text(api: Api) -> None:
    @api.function("msg:mime")
    def mime(call: Call, readonly: bool = True) -> Object:
        """The top part of the MIME tree; with false one that can be changed."""
        tree = tree_of(call.view, writable=readonly is False)
        return Object("part", Part(tree.root, tree))

    @api.function("msg:text")
    def text(call: Call, value: str | None = None, kind: str | None = None, charset: str | None = None) -> Any:
        """The decoded text, a table where there are several parts; or another text in place of the body."""
        tree = tree_of(call.view, writable=True)
        if value is not None:
            tree.root.set_payload("")
            set_text(tree.root, value, kind, charset)
            tree.changed()
        found = [t for node in tree.root.walk() if _is_text(node) and (t := text_of(node)) is not None]
        return found[0] if len(found) == 1 else found

    @api.function("msg:text_match", octets=True)
    def text_match(call: Call, pattern: bytes) -> Any:
        """The matches of a regular expression in the first text that has some, or false."""
        for node in tree_of(call.view, writable=False).root.walk():
            found = match_table(_searched(node), pattern) if _is_text(node) else None
            if found:
                return found
        return False

    @api.function("msg:text_replace", octets=True)
    def text_replace(call: Call, pattern: bytes, replacement: bytes) -> bool:
        """Replace what a regular expression finds in the texts, at whose end stands the end mark."""
        tree = tree_of(call.view, writable=True)
        done = [_replace_text(node, pattern, replacement) for node in tree.root.walk() if _is_text(node)]
        if any(done):
            tree.changed()
        return any(done)


def _is_text(node: Mime) -> bool:
    return node.get_content_maintype() == "text" and not node.is_multipart()


def _searched(node: Mime) -> bytes:
    text = text_of(node) or ""
    return text.encode() + (b"" if text.endswith("\n") else b"\r\n") + END_MARK


def _replace_text(node: Mime, pattern: bytes, replacement: bytes) -> bool:
    before = _searched(node)
    after = replaced(before, pattern, replacement)
    if after == before:
        return False
    text = after.removesuffix(END_MARK)
    if not (text_of(node) or "").endswith("\n"):
        text = text.removesuffix(b"\r\n")  # which was put there to be searched
    set_text(node, text.decode("utf-8", "replace"), None, None)
    return True


def _register_make(api: Api) -> None:
    @api.function("msg:makeBoundary")
    def make_boundary(call: Call, *parts: Any) -> str:
        """A boundary that no part holds, whichever parts are given: it is made by chance, of 128 bits."""
        return new_boundary()

    @api.function("msg:makeContainer")
    def make_container(call: Call, kind: str, boundary: str | None = None, terminator: bool = False) -> Object:
        """A container that belongs to no message yet."""
        node = container(kind, boundary)
        return Object("part", Part(node, Tree(node, None, True)))

    @api.function("msg:makePart", octets=True)
    def make_part(call: Call, kind: bytes, body: bytes | None = None, encoding: bytes | None = None) -> Object:
        """A leaf that belongs to no message yet."""
        node = new_part(kind.decode("latin-1"), body, encoding.decode("ascii") if encoding else None)
        return Object("part", Part(node, Tree(node, None, True)))

    @api.function("msg:build")
    def make_message(call: Call, fields: Any, parts: Any, attachments: Any = None) -> bool:
        """Fill an empty message: header fields, alternative texts by type, attachments."""
        if call.view.content.size:
            raise ValueError("msg:build fills an empty message: msys.core.ec_message_new()")
        given = list(attachments.values()) if isinstance(attachments, dict) else attachments or []
        if not isinstance(fields, dict) or not isinstance(parts, dict):
            raise ValueError("msg:build takes a table of header fields and a table of texts by type")
        call.view.content = Content(b"", 0)
        build(call.view, fields, parts, given)
        return True

    @api.function("msg:forward")
    async def forward(
        call: Call, sender: str, recipients: str, text: str, subject: str = "", charset: str = "utf-8"
    ) -> bool:
        """Send the message to others, as an attachment of a new one."""
        data = forwarded(call.view, sender, recipients, text, subject, charset or "utf-8")
        await api.environment.inject(mailbox_of(sender), mailboxes_of(recipients), data)
        return True


_ABSENT = object()


def _register_part(api: Api) -> None:
    @api.function("part:content_type")
    def content_type(part: Part) -> dict[str, Any]:
        """mimetype, charset, encoding, is_attachment, filename."""
        node = part.node
        name = filename_of(node)
        found: dict[str, Any] = {
            "mimetype": node.get_content_type(),
            "charset": charset_of(node),
            "encoding": str(node.get("Content-Transfer-Encoding", "7bit")).lower(),
            "is_attachment": name is not None or node.get_content_disposition() == "attachment",
            "filename": name,
        }
        return {key: value for key, value in found.items() if value is not None}

    @api.function("part:text")
    def text(part: Part, value: str | None = None, kind: str | None = None, charset: str | None = None) -> str | None:
        """The decoded text, nil where there is none; or another one."""
        if value is not None:
            set_text(part.node, value, kind, charset)
            part.tree.changed()
        return text_of(part.node)

    @api.function("part:header")
    def header(part: Part, name: str, value: Any = _ABSENT, mode: str | None = None) -> Any:
        """As msg:header, for the header of one part; nil as the value deletes too."""
        node = part.node
        if value is _ABSENT:
            return [headers.decoded(found) for found in raw_values(node, name)]
        before = [] if mode in (None, "replace") else [str(found) for found in node.get_all(name, [])]
        del node[name]
        new = [] if value is None or (value == "" and mode is None) else texts(value)
        for item in [*new, *before] if mode == "prepend" else [*before, *new]:
            node[name] = headers.encoded(name, item).decode("ascii").partition(":")[2].strip()
        part.tree.changed()
        return True

    @api.function("part:address_header")
    def address_header(part: Part, name: str, what: str = "all") -> list[str]:
        """A part of each address in a header field of this part."""
        return address_parts(raw_values(part.node, name), what)

    for name, read in (("text", _searched), ("body", _body), ("raw", octets)):
        _register_search(api, name, read)


def _body(node: Mime) -> bytes:
    found = node.get_payload()
    return (
        found.encode("ascii", "surrogateescape") if isinstance(found, str) else octets(node).partition(b"\r\n\r\n")[2]
    )


def _register_search(api: Api, name: str, read: Any) -> None:
    @api.function(f"part:{name}_match", octets=True)
    def match(part: Part, pattern: bytes) -> Any:
        return match_table(read(part.node), pattern) or False

    api.documented[f"part:{name}_match"] = f"The matches of a regular expression in the {name} of a part, or false."

    @api.function(f"part:{name}_replace", octets=True)
    def replace(part: Part, pattern: bytes, replacement: bytes) -> bool:
        if name == "text":
            done = _replace_text(part.node, pattern, replacement)
        else:
            before = read(part.node)
            after = replaced(before, pattern, replacement)
            done = after != before and not part.node.is_multipart()
            if done and name == "raw":
                set_octets(part.node, after)
            elif done:
                part.node.set_payload(after.decode("ascii", "surrogateescape"))
        if done:
            part.tree.changed()
        return done

    api.documented[f"part:{name}_replace"] = f"Replace what a regular expression finds in the {name} of a part."


def _register_tree(api: Api) -> None:
    @api.function("part.thread")
    def thread(part: Part) -> Object | None:
        """The next part of the tree, or nil."""
        found = part.tree.following(part.node)
        return Object("part", Part(found, part.tree)) if found is not None else None

    @api.function("part.parts")
    def parts(part: Part) -> list[Object] | None:
        """The parts of a container; nil for a leaf."""
        if not part.node.is_multipart():
            return None
        return [Object("part", Part(node, part.tree)) for node in children(part.node)]

    for name in ("body_start", "body_end"):
        # offsets into a buffer that the server keeps by itself; scripts of the manual set them
        api.function(f"part.{name}=")(lambda part, value: None)
        api.documented[f"part.{name}="] = "Taken and not needed."

    def insert(part: Part, child: Any, place: int) -> bool:
        if not isinstance(child, Part) or not part.node.is_multipart():
            return False
        found = part.node.get_payload()
        assert isinstance(found, list)
        found.insert(len(found) if place < 0 else place, child.node)
        child.tree = part.tree
        part.tree.changed()
        return True

    @api.function("part:addFirstChild")
    def add_first(part: Part, child: Any) -> bool:
        """Put a part in front of those of a container."""
        return insert(part, child, 0)

    @api.function("part:addLastChild")
    def add_last(part: Part, child: Any) -> bool:
        """Put a part behind those of a container."""
        return insert(part, child, -1)

    def beside(part: Part, other: Any, step: int) -> bool:
        parent = other.parent() if isinstance(other, Part) else None
        if parent is None:
            return False
        place = next(n for n, node in enumerate(children(parent)) if node is other.node)
        return insert(Part(parent, other.tree), part, place + step)

    @api.function("part:insertBefore")
    def insert_before(part: Part, other: Any) -> bool:
        """Put this part in front of another one."""
        return beside(part, other, 0)

    @api.function("part:insertAfter")
    def insert_after(part: Part, other: Any) -> bool:
        """Put this part behind another one."""
        return beside(part, other, 1)

    @api.function("part:unlink")
    def unlink(part: Part) -> bool:
        """Take this part out of its tree."""
        parent = part.parent()
        if parent is None:
            return False
        found = parent.get_payload()
        assert isinstance(found, list)
        found[:] = [node for node in found if node is not part.node]
        part.tree.changed()
        return True
