"""Addresses in header fields (RFC 5322 3.4, with the obsolete forms of 4.4). Pure.

The field is parsed as it stands and RFC 2047 words are decoded afterwards, in display names only (RFC 2047 6.1 and 5):
an encoded `<`, `@` or `(` is a letter of a name and never part of an address. The parser takes what people's mailers
write and tells by `fault` that something in the field could not be read; who judges by an address has to look at it.
Time grows with the length of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from quillon.mail import header

_TOKEN = re.compile(
    r'(?P<blank>[ \t\r\n]+)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<literal>\[(?:[^\[\]\\]|\\.)*\])'
    r'|(?P<special>[<>:;@,.(])|(?P<atom>[^ \t\r\n<>:;@,.("\[]+)|(?P<stray>["\[])',
    re.DOTALL,
)
# RFC 5322 3.2.3 and RFC 6532 3.2: what no word may hold
_BAD = re.compile(r"[\x00-\x1f\x7f()\\\]\"\[]")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class HeaderAddress(NamedTuple):
    """`name` is decoded text; `local` keeps its quotes; `domain` is empty where there is no at sign."""

    name: str
    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local


@dataclass(frozen=True, slots=True)
class AddressList:
    """The addresses of a field, groups dissolved. `fault` says what could not be read; empty for a sound field."""

    addresses: tuple[HeaderAddress, ...]
    fault: str = ""


class _Token(NamedTuple):
    kind: str
    text: str


def parse_address_list(value: str) -> AddressList:
    """Read a field's raw value, as `header.raw_values` gives it: unfolded, octets above 127 as latin-1."""
    reader = _Reader()
    for token in _tokens(value, reader.faults):
        reader.take(token)
    reader.finish()
    return AddressList(tuple(reader.found), reader.faults[0] if reader.faults else "")


def _tokens(value: str, faults: list[str]) -> Iterator[_Token]:
    at = 0
    while at < len(value):
        match = _TOKEN.match(value, at)
        if match is None or match.lastgroup is None:
            faults.append("an unreadable character")
            at += 1
            continue
        at = match.end()
        if match.lastgroup == "stray":
            faults.append("a quoted string or an address literal without an end")
            return  # where it should have ended is anybody's guess
        if match[0] == "(":
            end = header.comment_end(value, at)
            if end < 0:
                faults.append("a comment without an end")
                end = len(value) + 1
            yield _Token("comment", value[at : end - 1])
            at = end
        else:
            yield _Token(match.lastgroup, match[0])


@dataclass
class _Reader:
    """One pass over the tokens of a field."""

    found: list[HeaderAddress] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _words: list[_Token] = field(default_factory=list)  # a display name, or an address without brackets
    _comments: list[str] = field(default_factory=list)
    _inside: list[_Token] | None = None  # what stands between angle brackets
    _closed: bool = False  # the angle bracket has been closed
    _in_group: bool = False
    _seen_at: bool = False  # an at sign stands among the words

    def take(self, token: _Token) -> None:
        if token.kind == "comment":
            self._comments.append(token.text)
        elif self._inside is not None and not self._closed:
            if token.text == ">":
                self._closed = True
            elif token.text == "<":
                self.faults.append("an angle bracket within angle brackets")
            else:
                self._inside.append(token)
        elif token.kind == "special":
            self._special(token)
        elif self._closed and token.kind != "blank":
            self.faults.append("words behind an address in angle brackets")
        else:
            self._words.append(token)

    def _special(self, token: _Token) -> None:
        if token.text in ",;":
            self.finish()
            if token.text == ";":
                if not self._in_group:
                    self.faults.append("a semicolon that ends no group")
                self._in_group = False
        elif self._closed:
            self.faults.append("words behind an address in angle brackets")
        elif token.text == "<":
            self._inside = []
        elif token.text == ">":
            self.faults.append("an angle bracket that closes nothing")
        elif token.text == ":" and not self._seen_at:
            if self._in_group:
                self.faults.append("a group within a group")
            self._words.clear()
            self._comments.clear()
            self._in_group = True
        else:
            self._words.append(token)
            self._seen_at = self._seen_at or token.text == "@"

    def finish(self) -> None:
        """The end of one address."""
        words, inside, closed, comments = self._words, self._inside, self._closed, self._comments
        self._words, self._inside, self._closed, self._comments = [], None, False, []
        self._seen_at = False
        if inside is not None and not closed:
            self.faults.append("an angle bracket without an end")
        if inside is None:
            self._add("".join(comments), words)
        else:
            self._add(_phrase(words) or header.decoded("".join(comments).strip()), _without_route(inside))

    def _add(self, name: str, tokens: Sequence[_Token]) -> None:
        tokens = _trimmed(tokens)
        if not tokens:
            if name:
                self.faults.append("a name without an address")
            return
        at = max((n for n, token in enumerate(tokens) if token.text == "@" and token.kind == "special"), default=-1)
        local, domain = (tokens[:at], tokens[at + 1 :]) if at >= 0 else (tokens, [])
        if at >= 0 and not domain:
            self.faults.append("an address without a domain")
        for part in (local, domain):
            fault = _fault_of(part)
            if fault:
                self.faults.append(fault)
        if _fault_of(local) == _NOT_JOINED or not local:
            if not local:
                self.faults.append("an address without a local part")
            return  # words that are no address
        self.found.append(HeaderAddress(name, _joined(local), _joined(domain)))


_NOT_JOINED = "words that are no address"


def _fault_of(tokens: Sequence[_Token]) -> str:
    """What is wrong with a local part or a domain: words with dots between them (RFC 5322 3.4.1 and 4.4)."""
    expects_word, blank = True, False
    for token in tokens:
        if token.kind == "blank":
            blank = True
            continue
        if token.text == "." and token.kind == "special":
            if expects_word:
                return "a dot without a word in front of it"
            expects_word = True
        elif token.kind == "special":
            return f"a {token.text!r} within an address"
        elif not expects_word:
            return _NOT_JOINED if blank else "two words without a dot between them"
        else:
            expects_word = False
            if token.kind == "atom" and _BAD.search(token.text):
                return "a character that no address may hold"
        blank = False
    return "an address that ends with a dot" if tokens and expects_word else ""


def _trimmed(tokens: Sequence[_Token]) -> Sequence[_Token]:
    start, end = 0, len(tokens)
    while start < end and tokens[start].kind == "blank":
        start += 1
    while end > start and tokens[end - 1].kind == "blank":
        end -= 1
    return tokens[start:end]


def _without_route(tokens: Sequence[_Token]) -> Sequence[_Token]:
    """Behind the obsolete route `@a,@b:` (RFC 5322 4.4)."""
    first = next((token for token in tokens if token.kind != "blank"), None)
    if first is None or first.text != "@":
        return tokens
    ends = [n for n, token in enumerate(tokens) if token.text == ":" and token.kind == "special"]
    return tokens[ends[0] + 1 :] if ends else tokens


def _joined(tokens: Sequence[_Token]) -> str:
    return header.as_text("".join(token.text for token in tokens if token.kind != "blank"))


def _phrase(tokens: Sequence[_Token]) -> str:
    """A display name: RFC 2047 words decoded where they stand as atoms, quoted strings without their quotes."""
    out: list[str] = []
    plain: list[str] = []
    for token in [*tokens, _Token("quoted", "")]:
        if token.kind != "quoted":
            plain.append(token.text)
            continue
        if plain:
            out.append(header.decoded("".join(plain).strip()))
            plain = []
        out.append(header.as_text(_ESCAPED.sub(r"\1", token.text[1:-1])))
    return " ".join(part.strip() for part in out if part.strip())
