"""Text of an `ecelerity.conf` file to stanzas. Pure: no file is opened here.

Grammar (manual, configuration overview 15.1.1):

    file    := item*
    item    := include | scope | setting
    include := ("include" | "readonly_include") WORD
    scope   := NAME ["="] [WORD] "{" item* "}"
    setting := NAME "=" value | NAME dict
    value   := WORD | list | dict
    list    := "(" { WORD [","] } ")"
    dict    := "[" { WORD "=" value [","] } "]"

Every token keeps file, line and column. A syntax error does not end the reading: what follows on later lines is read
as well, so that an operator sees all faults at once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a file; line and column count from 1. Line 0 stands for what no file said."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a configuration. A warning does not keep the configuration from being used."""

    position: Position
    message: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.position}: {'warning: ' if self.warning else ''}{self.message}"


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    position: Position
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class ListValue:
    items: tuple[Word, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class DictValue:
    items: tuple[tuple[Word, Word], ...]
    position: Position


Value = Word | ListValue | DictValue


@dataclass(frozen=True, slots=True)
class Setting:
    name: Word
    value: Value


@dataclass(frozen=True, slots=True)
class Include:
    path: Word
    readonly: bool


@dataclass(frozen=True, slots=True)
class Scope:
    name: Word
    label: Word | None
    items: tuple[Item, ...]


Item = Setting | Include | Scope

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|\#[^\n]*|/\*.*?\*/)
      | (?P<open_comment>/\*)
      | (?P<quoted>["“”](?:[^"“”\\]|\\.)*["“”])
      | (?P<open_quote>["“”])
      | (?P<punct>[{}()\[\]=,])
      | (?P<bare>(?:[^\s\#"'={}\[\](),“”])+)
      | (?P<other>.)""",
    re.X | re.S,
)
_ESCAPE = re.compile(r"\\([\"\\rnt])")
_ESCAPES = {'"': '"', "\\": "\\", "r": "\r", "n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "word", "end" or the punctuation character
    word: Word


@dataclass
class _Reader:
    """Tokens with one of look-ahead, and the faults found on the way."""

    tokens: list[_Token]
    faults: list[Fault]
    at: int = 0
    depth: int = field(default=0)

    def peek(self, ahead: int = 0) -> _Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def take(self) -> _Token:
        token = self.peek()
        self.at += 1
        return token


class _SyntaxFault(Exception):
    def __init__(self, token: _Token, message: str) -> None:
        super().__init__(message)
        self.token = token


def parse(text: str, file: str) -> tuple[tuple[Item, ...], list[Fault]]:
    """The items of a file, and every fault of its syntax. Items around a fault are kept."""
    faults: list[Fault] = []
    reader = _Reader(_tokens(text, file, faults), faults)
    items = _items(reader, top=True)
    return items, _explained(faults, reader.tokens)


def _explained(faults: list[Fault], tokens: list[_Token]) -> list[Fault]:
    """Where faults follow a string over several lines, its end is what is missing: say that, and nothing after it."""
    first = min((fault.position for fault in faults if not fault.warning), default=None)
    if first is None:
        return faults
    for token in tokens:
        word = token.word
        lines = word.text.count("\n")
        if word.quoted and lines and word.position < first:
            end = word.position.line + lines
            text = f"this quoted string ends on line {end} only; is its closing quote missing?"
            return [*(fault for fault in faults if fault.position < word.position), Fault(word.position, text)]
    return faults


def _tokens(text: str, file: str, faults: list[Fault]) -> list[_Token]:
    lines = [match.end() for match in re.finditer("\n", text)]

    def where(offset: int) -> Position:
        line = bisect_right(lines, offset)
        return Position(file, line + 1, offset - (lines[line - 1] if line else 0) + 1)

    out: list[_Token] = []
    for match in _TOKEN.finditer(text):
        kind, written = match.lastgroup, match.group()
        if kind == "space":
            continue
        position = where(match.start())
        if kind == "punct":
            out.append(_Token(written, Word(written, position)))
        elif "\0" in written:
            faults.append(Fault(position, "a NUL character"))
        elif kind == "bare":
            out.append(_Token("word", Word(written, position)))
        elif kind == "quoted":
            if written[0] != '"' or written[-1] != '"':
                faults.append(Fault(position, 'typographic quotes read as "', warning=True))
            value = _ESCAPE.sub(lambda m: _ESCAPES[m[1]], written[1:-1])
            out.append(_Token("word", Word(value, position, quoted=True)))
        elif kind == "open_quote":
            faults.append(Fault(position, "this quoted string does not end"))
            break
        elif kind == "open_comment":
            faults.append(Fault(position, "this comment does not end"))
            break
        else:
            hint = '; quote with "' if written == "'" else ""
            faults.append(Fault(position, f"unexpected character {written!r}{hint}"))
    out.append(_Token("end", Word("", where(len(text)))))
    return out


def _items(reader: _Reader, *, top: bool) -> tuple[Item, ...]:
    items: list[Item] = []
    while True:
        token = reader.peek()
        if token.kind == "end":
            if not top:
                raise _SyntaxFault(token, "a scope is not closed: } is missing")
            return tuple(items)
        if token.kind == "}":
            if not top:
                return tuple(items)
            reader.faults.append(Fault(token.word.position, "} without a scope to close"))
            reader.take()
            continue
        try:
            items.append(_item(reader))
        except _SyntaxFault as fault:
            reader.faults.append(Fault(fault.token.word.position, str(fault)))
            if fault.token.kind == "end":
                reader.at = len(reader.tokens) - 1
                return tuple(items)
            _skip(reader, fault.token)


def _skip(reader: _Reader, bad: _Token) -> None:
    """Go on at the first word of a later line, or at a brace that closes a scope."""
    while True:
        token = reader.peek()
        later = token.word.position.line > bad.word.position.line
        if token.kind in ("end", "}") or (token.kind == "word" and later):
            return
        reader.take()


def _item(reader: _Reader) -> Item:
    name = reader.take()
    if name.kind != "word":
        raise _SyntaxFault(name, f"an option or scope name is expected here, not {name.kind}")
    if name.word.text.lower() in ("include", "readonly_include") and reader.peek().kind == "word":
        return Include(reader.take().word, readonly=name.word.text.lower() != "include")
    follows = reader.peek()
    if follows.kind == "=":
        reader.take()
        if reader.peek().kind != "{":
            return Setting(name.word, _value(reader))
        return _scope(reader, name.word, None)
    if follows.kind == "{":
        return _scope(reader, name.word, None)
    if follows.kind == "[":
        return Setting(name.word, _value(reader))
    if follows.kind == "word" and reader.peek(1).kind == "{":
        return _scope(reader, name.word, reader.take().word)
    raise _SyntaxFault(name, f"{name.word.text} is neither an option (= is missing) nor a scope ({{ is missing)")


MAX_DEPTH = 32


def _scope(reader: _Reader, name: Word, label: Word | None) -> Scope:
    brace = reader.take()
    if reader.depth >= MAX_DEPTH:
        raise _SyntaxFault(brace, f"scopes are nested over {MAX_DEPTH} deep")
    reader.depth += 1
    try:
        items = _items(reader, top=False)
    except _SyntaxFault as fault:
        if fault.token.kind != "end":
            raise
        raise _SyntaxFault(
            fault.token, f"{name.text} of line {name.position.line} is not closed: }} is missing"
        ) from None
    finally:
        reader.depth -= 1
    reader.take()
    return Scope(name, label, items)


def _value(reader: _Reader) -> Value:
    token = reader.peek()
    if token.kind not in ("word", "(", "["):
        raise _SyntaxFault(token, "a value is expected here")
    reader.take()
    if token.kind == "word":
        return token.word
    if token.kind == "(":
        return ListValue(tuple(_list(reader, token)), token.word.position)
    return DictValue(tuple(_dict(reader, token)), token.word.position)


def _list(reader: _Reader, opened: _Token) -> list[Word]:
    items: list[Word] = []
    while True:
        token = reader.take()
        if token.kind == ")":
            return items
        if token.kind == "word":
            items.append(token.word)
        elif token.kind != ",":
            raise _SyntaxFault(token, f"the list of line {opened.word.position.line} is not closed: ) is missing")


def _dict(reader: _Reader, opened: _Token) -> list[tuple[Word, Word]]:
    items: list[tuple[Word, Word]] = []
    while True:
        key = reader.take()
        if key.kind == "]":
            return items
        if key.kind == ",":
            continue
        if key.kind != "word":
            raise _SyntaxFault(key, f"the dictionary of line {opened.word.position.line} is not closed: ] is missing")
        if reader.peek().kind != "=":
            raise _SyntaxFault(reader.peek(), f"= is expected behind the key {key.word.text}")
        reader.take()
        value = reader.take()
        if value.kind != "word":
            raise _SyntaxFault(value, f"a value is expected for the key {key.word.text}")
        items.append((key.word, value.word))
