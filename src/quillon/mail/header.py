"""Header sections as octets: fields read, added, replaced, taken away, and nothing else touched (RFC 5322 2.2).

A header section here ends with its blank line, or where the message has none with its last line. Every function gives a
new section; octets of fields that are not concerned stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from email.errors import HeaderParseError
from email.header import Header, decode_header, make_header
from functools import lru_cache

from quillon.mail import charset

_NAME = re.compile(r"[!-9;-~]+")
_FOLD = re.compile(r"\r\n(?=[ \t])")
_UNFOLD = re.compile(r"\r\n[ \t]+")
LONGEST_DECODED = 65536  # characters of a value; the library takes time that grows with the square of them
_LINE_LENGTH = 76  # RFC 5322 2.1.1 asks for at most 78


@lru_cache(maxsize=512)
def _field(name: str) -> re.Pattern[bytes]:
    """A whole field of this name, its folded lines and line end included; the value is group 1."""
    return re.compile(
        rb"^%s[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|\Z)" % re.escape(name.encode("latin-1", "replace")),
        re.IGNORECASE | re.MULTILINE,
    )


_ANY = re.compile(rb"^([!-9;-~]+)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|\Z)", re.MULTILINE)


def fields(head: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and octets of each field, in order; the octets with their line end."""
    for match in _ANY.finditer(head):
        yield match[1].decode("ascii"), match[0]


def raw_values(head: bytes, name: str) -> list[str]:
    """Unfolded values, octets above 127 as latin-1."""
    return [_UNFOLD.sub(" ", match[1].decode("latin-1")).strip() for match in _field(name).finditer(head)]


def values(head: bytes, name: str) -> list[str]:
    """Unfolded values with RFC 2047 words decoded, and octets above 127 read as UTF-8."""
    return [decoded(value) for value in raw_values(head, name)]


def decoded(value: str) -> str:
    """A value as `raw_values` gives it, as text."""
    if "=?" in value and len(value) <= LONGEST_DECODED:
        try:
            words = decode_header(value)
            if any(name is not None and charset.codec_of(name) is None for _, name in words):
                return value
            return str(make_header(words))
        except (HeaderParseError, LookupError, UnicodeError, ValueError):
            return value
    return value if value.isascii() else value.encode("latin-1").decode("utf-8", "replace")


def encoded(name: str, value: str) -> bytes:
    """One field with its line end. Raises ValueError for a name or value that would be more than one field."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no header field name")
    bare = _FOLD.sub("", value)
    if "\r" in bare or "\n" in bare or "\0" in bare:
        raise ValueError(f"the value of {name} holds a line end that folds nothing")
    if not value.isascii():
        value = Header(_UNFOLD.sub(" ", value), "utf-8", _LINE_LENGTH, name).encode(linesep="\r\n")
    return f"{name}: {value}\r\n".encode("ascii")


def prepend(head: bytes, name: str, value: str) -> bytes:
    """With a field in front. Raises ValueError."""
    return encoded(name, value) + _separate(head)


def append(head: bytes, name: str, value: str) -> bytes:
    """With a field at the end. Raises ValueError."""
    new = encoded(name, value)
    if head.startswith(b"\r\n"):
        return new + head
    if head.endswith(b"\r\n\r\n"):
        return head[:-2] + new + b"\r\n"
    return (head if head.endswith(b"\r\n") or not head else head + b"\r\n") + new


def remove(head: bytes, name: str) -> bytes:
    """Without any field of this name."""
    left = _field(name).sub(b"", head)
    return left if left or not head else b"\r\n"


def replace(head: bytes, name: str, replacement: list[str]) -> bytes:
    """With these values: where the first field of the name stood, or at the end. Raises ValueError."""
    new = b"".join(encoded(name, value) for value in replacement)
    match = _field(name).search(head)
    if match is None:
        for value in replacement:
            head = append(head, name, value)
        return head
    return head[: match.start()] + new + remove(head[match.start() :], name)


def pvalue(text: str) -> str:
    """A value of Authentication-Results (RFC 8601 2.2): as it is where it is a token or an address, else quoted."""
    if re.fullmatch(r"[A-Za-z0-9._+/@-]+", text):
        return text
    return '"' + re.sub(r'[^ -~]|["\\]', "?", text) + '"'


def without_comments(value: str) -> str:
    """A structured value without its comments, nested ones too, and with quoted strings unquoted (RFC 5322 3.2)."""
    out, depth, quoted, at = [], 0, False, 0
    while at < len(value):
        character = value[at]
        if character == "\\" and at + 1 < len(value):
            at += 1
            if not depth:
                out.append(value[at])
        elif character == '"' and not depth:
            quoted = not quoted
        elif character == "(" and not quoted:
            depth += 1
        elif character == ")" and depth and not quoted:
            depth -= 1
        elif not depth:
            out.append(character)
        at += 1
    return "".join(out)


def drop(head: bytes, doomed: Callable[[str, bytes], bool]) -> bytes:
    """Without the fields that `doomed` says so of, by name and octets; nothing else is touched."""
    kept, at = [], 0
    for match in _ANY.finditer(head):
        if doomed(match[1].decode("ascii"), match[0]):
            kept.append(head[at : match.start()])
            at = match.end()
    left = b"".join(kept) + head[at:]
    return left if left or not head else b"\r\n"


def _separate(head: bytes) -> bytes:
    """A section that begins with text that is no field must not become the end of the field in front of it."""
    return head if not head or head.startswith(b"\r\n") or _ANY.match(head) else b"\r\n" + head
