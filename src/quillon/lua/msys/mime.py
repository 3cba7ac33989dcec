"""`msgpart`: the MIME tree of a message, read and changed, and messages built from parts.

The tree is made when a script asks for it. What it changes is written back into the message at once; parts that it
leaves alone keep their octets.
"""

from __future__ import annotations

from collections.abc import Callable
from email import message_from_bytes
from email.message import Message as Part_
from email.utils import formatdate, make_msgid
from typing import Any

from quillon.lua.msys.api import Api, Library, Object
from quillon.lua.msys.message import END_MARK, texts
from quillon.lua.msys.pcre import match_table, replaced
from quillon.mail import header as headers
from quillon.policy.addresses import address_parts, mailbox_of, mailboxes_of
from quillon.policy.hook import Call
from quillon.policy.message import Content, MessageView
from quillon.policy.mime import (
    WIRE,
    Mime,
    MimeTree,
    Part,
    charset_of,
    children,
    container,
    filename_of,
    new_boundary,
    new_part,
    octets,
    one_line,
    raw_values,
    set_octets,
    set_text,
    text_of,
    tree_of,
)

library = Library()


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
        leaf.set_payload([message_from_bytes(content.view.content.whole, policy=WIRE)])
    else:
        data = str(content).encode("utf-8", "surrogateescape")
        leaf = new_part(str(given.get("type", "application/octet-stream")), data, "base64")
    name = one_line(str(given.get("name", "")).removeprefix("./"))
    leaf["Content-Disposition"] = f'attachment; filename="{name}"' if name else "attachment"
    for line in str(given.get("headers", "")).split("\r\n"):
        field, colon, value = line.partition(":")
        if colon:
            leaf[field.strip()] = one_line(value.strip())
    return leaf


def forwarded(view: MessageView, sender: str, recipients: str, text: str, subject: str, charset: str) -> bytes:
    """A new message with the given one attached."""
    top = container("multipart/mixed")
    top["From"], top["To"] = one_line(sender), one_line(recipients)
    top["Subject"] = one_line(subject or "Forwarded message")
    top["Date"], top["Message-ID"] = formatdate(), make_msgid()
    leaf: Mime = Part_(policy=WIRE)
    set_text(leaf, text, "text/plain", charset)
    del leaf["MIME-Version"]
    top.attach(leaf)
    whole: Mime = Part_(policy=WIRE)
    whole["Content-Type"] = "message/rfc822"
    whole.set_payload([message_from_bytes(view.content.whole, policy=WIRE)])
    top.attach(whole)
    return octets(top)


@library.function("msg:mime")
def mime(call: Call, readonly: bool = True) -> Object:
    """The top part of the MIME tree; with false one that can be changed."""
    tree = tree_of(call.view, writable=readonly is False)
    return Object("part", Part(tree.root, tree))


@library.function("msg:text")
def text(call: Call, value: str | None = None, kind: str | None = None, charset: str | None = None) -> Any:
    """The decoded text, a table where there are several parts; or another text in place of the body."""
    tree = tree_of(call.view, writable=True)
    if value is not None:
        tree.root.set_payload("")
        set_text(tree.root, value, kind, charset)
        tree.changed()
    found = [t for node in tree.root.walk() if _is_text(node) and (t := text_of(node)) is not None]
    return found[0] if len(found) == 1 else found


@library.function("msg:text_match", octets=True)
def text_match(call: Call, pattern: bytes) -> Any:
    """The matches of a regular expression in the first text that has some, or false."""
    for node in tree_of(call.view, writable=False).root.walk():
        found = match_table(_searched(node), pattern) if _is_text(node) else None
        if found:
            return found
    return False


@library.function("msg:text_replace", octets=True)
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


@library.function("msg:makeBoundary")
def make_boundary(call: Call, *parts: Any) -> str:
    """A boundary that no part holds, whichever parts are given: it is made by chance, of 128 bits."""
    return new_boundary()


@library.function("msg:makeContainer")
def make_container(call: Call, kind: str, boundary: str | None = None, terminator: bool = False) -> Object:
    """A container that belongs to no message yet."""
    node = container(kind, boundary)
    return Object("part", Part(node, MimeTree(node, None, True)))


@library.function("msg:makePart", octets=True)
def make_part(call: Call, kind: bytes, body: bytes | None = None, encoding: bytes | None = None) -> Object:
    """A leaf that belongs to no message yet."""
    node = new_part(kind.decode("latin-1"), body, encoding.decode("ascii") if encoding else None)
    return Object("part", Part(node, MimeTree(node, None, True)))


@library.function("msg:build")
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


@library.of_api("msg:forward")
async def forward(
    api: Api, call: Call, sender: str, recipients: str, text: str, subject: str = "", charset: str = "utf-8"
) -> bool:
    """Send the message to others, as an attachment of a new one."""
    data = forwarded(call.view, sender, recipients, text, subject, charset or "utf-8")
    await api.environment.inject(mailbox_of(sender), mailboxes_of(recipients), data)
    return True


_ABSENT = object()


@library.function("part:content_type")
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


@library.function("part:text")
def part_text(part: Part, value: str | None = None, kind: str | None = None, charset: str | None = None) -> str | None:
    """The decoded text, nil where there is none; or another one."""
    if value is not None:
        set_text(part.node, value, kind, charset)
        part.tree.changed()
    return text_of(part.node)


@library.function("part:header")
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


@library.function("part:address_header")
def address_header(part: Part, name: str, what: str = "all") -> list[str]:
    """A part of each address in a header field of this part."""
    return address_parts(raw_values(part.node, name), what)


def _body(node: Mime) -> bytes:
    found = node.get_payload()
    return (
        found.encode("ascii", "surrogateescape") if isinstance(found, str) else octets(node).partition(b"\r\n\r\n")[2]
    )


def _matched(name: str) -> Callable[[Part, bytes], Any]:
    def match(part: Part, pattern: bytes) -> Any:
        return match_table(_READ[name](part.node), pattern) or False

    return match


def _replacing(name: str) -> Callable[[Part, bytes, bytes], bool]:
    def replace(part: Part, pattern: bytes, replacement: bytes) -> bool:
        if name == "text":
            done = _replace_text(part.node, pattern, replacement)
        else:
            before = _READ[name](part.node)
            after = replaced(before, pattern, replacement)
            done = after != before and not part.node.is_multipart()
            if done and name == "raw":
                set_octets(part.node, after)
            elif done:
                part.node.set_payload(after.decode("ascii", "surrogateescape"))
        if done:
            part.tree.changed()
        return done

    return replace


_READ: dict[str, Callable[[Mime], bytes]] = {"text": _searched, "body": _body, "raw": octets}
for _name in _READ:
    library.function(
        f"part:{_name}_match",
        octets=True,
        doc=f"The matches of a regular expression in the {_name} of a part, or false.",
    )(_matched(_name))
    library.function(
        f"part:{_name}_replace", octets=True, doc=f"Replace what a regular expression finds in the {_name} of a part."
    )(_replacing(_name))


@library.function("part.thread")
def thread(part: Part) -> Object | None:
    """The next part of the tree, or nil."""
    found = part.tree.following(part.node)
    return Object("part", Part(found, part.tree)) if found is not None else None


@library.function("part.parts")
def parts(part: Part) -> list[Object] | None:
    """The parts of a container; nil for a leaf."""
    if not part.node.is_multipart():
        return None
    return [Object("part", Part(node, part.tree)) for node in children(part.node)]


def insert(part: Part, child: Any, place: int) -> bool:
    if not isinstance(child, Part) or not part.node.is_multipart():
        return False
    found = part.node.get_payload()
    assert isinstance(found, list)
    found.insert(len(found) if place < 0 else place, child.node)
    child.tree = part.tree
    part.tree.changed()
    return True


@library.function("part:addFirstChild")
def add_first(part: Part, child: Any) -> bool:
    """Put a part in front of those of a container."""
    return insert(part, child, 0)


@library.function("part:addLastChild")
def add_last(part: Part, child: Any) -> bool:
    """Put a part behind those of a container."""
    return insert(part, child, -1)


def beside(part: Part, other: Any, step: int) -> bool:
    parent = other.parent() if isinstance(other, Part) else None
    if parent is None:
        return False
    place = next(n for n, node in enumerate(children(parent)) if node is other.node)
    return insert(Part(parent, other.tree), part, place + step)


@library.function("part:insertBefore")
def insert_before(part: Part, other: Any) -> bool:
    """Put this part in front of another one."""
    return beside(part, other, 0)


@library.function("part:insertAfter")
def insert_after(part: Part, other: Any) -> bool:
    """Put this part behind another one."""
    return beside(part, other, 1)


@library.function("part:unlink")
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


@library.function("part.body_start=")
@library.function("part.body_end=")
def set_place(part: Part, value: Any) -> None:
    """Taken and not needed."""
    # an offset into a buffer that the server keeps by itself; scripts of the manual set it
