"""Header sections as octets: fields read, added, replaced, taken away, and nothing else touched (RFC 5322 2.2).

A header section here ends with its blank line, or where the message has none with its last line. Every function gives a
new section; octets of fields that are not concerned stay what they are.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from email.header import Header
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from quillon.mail import charset

_NAME = re.compile(r"[!-9;-~]+")
_FOLD = re.compile(r"\r\n(?=[ \t])")
_UNFOLD = re.compile(r"\r\n[ \t]+")
# RFC 2047 2: charset, with a language of RFC 2231 5, encoding and text, which writers make longer than it allows
_WORD = re.compile(r"=\?([!#-'*+\-0-9A-Z^-~]{1,64})\?([bBqQ])\?([!->@-~ ]{0,1024}?)\?=")
_LINE_LENGTH = 76  # RFC 5322 2.1.1 asks for at most 78


@lru_cache(maxsize=512)
def _field(name: str) -> re.Pattern[bytes]:
    """A whole field of this name, its folded lines and line end included; the value is group 1."""
    return re.compile(
        rb"^%s[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|\Z)" % re.escape(name.encode("latin-1", "replace")),
        re.IGNORECASE | re.MULTILINE,
    )


_ANY = re.compile(rb"^([!-9;-~]+)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|\Z)", re.MULTILINE)


def section(data: bytes) -> bytes:
    """The header section of mail data with the blank line that ends it; all of `data` where there is none."""
    if data.startswith(b"\r\n"):
        return data[:2]
    end = data.find(b"\r\n\r\n")
    return data[: end + 4] if end >= 0 else data


@lru_cache(maxsize=64)
def _loose(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?:\A|\r\n)%s[ \t]*:" % re.escape(name), re.IGNORECASE)


def more_than(head: bytes, name: bytes, limit: int) -> bool:
    """Whether there are more than so many fields of a name, which is in lower case; white space before the colon counts
    as none (RFC 5322 4.5)."""
    return head.lower().count(name) > limit and len(_loose(name).findall(head)) > limit


def has(head: bytes, name: bytes) -> bool:
    """Whether there is a field of a name, which is in lower case."""
    low = head.lower()
    if low.startswith(name + b":") or low.find(b"\r\n" + name + b":") >= 0:  # `in` raises within itself, and is slow
        return True
    return low.find(name) >= 0 and _loose(name).search(low) is not None


def fields(head: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and octets of each field, in order; the octets with their line end."""
    for match in _ANY.finditer(head):
        yield match[1].decode("ascii"), match[0]


def raw_values(head: bytes, name: str) -> list[str]:
    """Unfolded values, octets above 127 as latin-1."""
    return [unfolded(match[1].decode("latin-1")) for match in _field(name).finditer(head)]


def unfolded(value: str) -> str:
    """A value on one line, without white space around it."""
    return _UNFOLD.sub(" ", value).strip(" \t\r\n")


def as_text(raw: str) -> str:
    """Octets above 127, which `raw_values` gives as latin-1, read as UTF-8; RFC 2047 words stay as they are."""
    return raw if raw.isascii() else raw.encode("latin-1", "replace").decode("utf-8", "replace")


def as_raw(text: str) -> str:
    """A value as text in the form of `raw_values`."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("latin-1")


def values(head: bytes, name: str) -> list[str]:
    """Unfolded values with RFC 2047 words decoded, and octets above 127 read as UTF-8."""
    return [decoded(value) for value in raw_values(head, name)]


def decoded(value: str) -> str:
    """A value as `raw_values` gives it, as text: RFC 2047 words decoded, white space between two of them dropped.

    Words of one charset that follow each other are put together before they are decoded, since writers cut letters in
    two. What cannot be decoded stays as it is.
    """
    out: list[str] = []
    run: list[bytes] = []
    run_charset, at = "", 0
    for match in _WORD.finditer(value):
        name = match[1].partition("*")[0].lower()
        octets = _word_octets(match[2], match[3]) if charset.codec_of(name) is not None else None
        if octets is None:
            continue  # it stays as it is, with what stands around it
        between, at = value[at : match.start()], match.end()
        follows = bool(run) and not between.strip(" \t")
        if follows and name == run_charset:
            run.append(octets)
            continue
        if run:
            out.append(charset.decoded(b"".join(run), run_charset))
        if not follows:
            out.append(as_text(between))
        run, run_charset = [octets], name
    if run:
        out.append(charset.decoded(b"".join(run), run_charset))
    out.append(as_text(value[at:]))
    return "".join(out)


def _word_octets(encoding: str, text: str) -> bytes | None:
    """The octets of an encoded word (RFC 2047 4); None where it is malformed."""
    if encoding in "qQ":
        return binascii.a2b_qp(text.replace("_", " ").encode("ascii"), header=False)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None


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
    return in_front(encoded(name, value), head) + head


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


def in_front(new: bytes, data: bytes) -> bytes:
    """Fields to be put in front of mail data, with a blank line behind them where the data begin with text that is no
    header section: it must not become the end of the last field."""
    if not new or not data or new.endswith(b"\r\n\r\n") or data.startswith(b"\r\n") or _ANY.match(data):
        return new
    return new + b"\r\n"


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


_PARAMETER_TOKEN = re.compile(r'[ \t\r\n]+|"((?:[^"\\]|\\.)*)"?|([^ \t\r\n";=()]+)|(.)', re.DOTALL)
_IN_COMMENT = re.compile(r"[()]|\\.", re.DOTALL)
_STARRED = re.compile(r"([^*]+)(?:\*([0-9]{1,3}))?(\*)?")


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """A raw value of Content-Type or Content-Disposition: what stands first, in lower case, and its parameters.

    Comments may stand anywhere (RFC 2045 5.1), nested ones too. Of a parameter the form of RFC 2231 goes before one
    in pieces, and that before the plain one (RFC 6266 4.3), in which RFC 2047 words are decoded, as writers have it.
    Of one that stands twice the first counts.
    """
    first, *rest = _segments(value)
    kind = "".join(first).lower()
    plain: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    extended: dict[str, str] = {}
    for texts in rest:
        if "=" not in texts or texts.index("=") != 1:
            continue
        match = _STARRED.fullmatch(texts[0].lower())
        text = "".join(texts[2:])
        if match is None:
            continue
        name, number, star = match.groups()
        if number is not None:
            pieces.setdefault(name, {}).setdefault(int(number), (text, star is not None))
        elif star is not None:
            extended.setdefault(name, _extended(text))
        else:
            plain.setdefault(name, decoded(text))
    joined = {name: _joined_pieces(found) for name, found in pieces.items() if 0 in found}
    return kind, plain | joined | extended


def _segments(value: str) -> list[list[str]]:
    """The words between semicolons, quoted ones without their quotes; comments and white space are gone."""
    out: list[list[str]] = [[]]
    at = 0
    while (match := _PARAMETER_TOKEN.match(value, at)) is not None:
        at = match.end()
        quoted, word, sign = match.groups()
        if sign == "(":
            at = comment_end(value, at)
            if at < 0:
                break
        elif quoted is not None:
            out[-1].append(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
        elif sign == ";":
            out.append([])
        elif word is not None or sign is not None:
            out[-1].append(word or sign)
    return out


def comment_end(value: str, at: int) -> int:
    """The place behind a comment that begins before `at`, nested ones included (RFC 5322 3.2.2); -1 where it does not
    end. A quotation mark means nothing in it."""
    depth = 1
    for match in _IN_COMMENT.finditer(value, at):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return -1


def _extended(text: str) -> str:
    """`charset'language'percent-encoded` (RFC 2231 4)."""
    name, _, rest = text.partition("'")
    return charset.decoded(unquote_to_bytes(rest.partition("'")[2]), name or "utf-8")


def _joined_pieces(found: dict[int, tuple[str, bool]]) -> str:
    """The pieces of a parameter (RFC 2231 3), as far as their numbers go on."""
    name, octets = "utf-8", b""
    for number in range(len(found)):
        if number not in found:
            break
        text, is_encoded = found[number]
        if number == 0 and is_encoded:
            name, _, rest = text.partition("'")
            text = rest.partition("'")[2]
        octets += unquote_to_bytes(text) if is_encoded else text.encode("latin-1", "replace")
    return charset.decoded(octets, name or "utf-8")


def drop(head: bytes, doomed: Callable[[str, bytes], bool]) -> bytes:
    """Without the fields that `doomed` says so of, by name and octets; nothing else is touched."""
    kept, at = [], 0
    for match in _ANY.finditer(head):
        if doomed(match[1].decode("ascii"), match[0]):
            kept.append(head[at : match.start()])
            at = match.end()
    left = b"".join(kept) + head[at:]
    return left if left or not head else b"\r\n"
