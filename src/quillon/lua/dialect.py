"""The manual's Lua to Lua 5.1: `!=`, `!`, operators on integers `& | ^^ << >> ~`, integer division by `\\`, escapes and
octal numbers.

The vendor's machine is a Lua 5.1 with additions, and its lexer and parser are public (SparkPost/thrlua, llex.c and
lparser.c); precedence and escapes are theirs. From weak to strong: or, and, comparison, `..`, `+ - | & ^^`,
`* / % << >> \\`, unary, `^`. An escape that is unknown stands for its character; `\\u` takes 4, 6 or 8 hexadecimal
digits, as many as there are; a number that begins with 0 is octal. What none of this concerns comes out octet for octet
as it went in. Line numbers never change. The functions behind the operators stand in the table `_BIT`. Pure.

A backtick divides as `\\` does, an extension of this server's own.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class DialectError(Exception):
    """A script cannot be translated; the message has path, line and what was expected."""


class _Token(NamedTuple):
    kind: str  # name, keyword, number, string, operator, end
    text: str
    start: int
    line: int


_KEYWORDS = frozenset(
    {"and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in"}
    | {"local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while"}
)
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f\v]+)
    |(?P<comment>--(?:\[(?P<c>=*)\[.*?(?:\](?P=c)\]|\Z)|[^\n]*))
    |(?P<string>\[(?P<s>=*)\[(?:.*?\](?P=s)\]|(?P<unclosed>))
        |"(?>[^"\\\n]|\\\r\n|\\.)*+" |'(?>[^'\\\n]|\\\r\n|\\.)*+')
    |(?P<number>0[xX](?:[0-9A-Fa-f.]|[pP][+-]?)+[A-Za-z]* | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[A-Za-z]*)
    |(?P<name>[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)
    |(?P<operator>\.\.\.|\.\.|==|~=|!=|<=|>=|<<|>>|\^\^|::|[-+*/%^\#<>=(){}\[\];:,.&|~\\`!])
    """,
    re.VERBOSE | re.DOTALL,
)
_NEW = frozenset(("&", "|", "^^", "<<", ">>", "~", "\\", "`", "!"))
_FUNCTIONS = {
    "&": "band",
    "|": "bor",
    "^^": "bxor",
    "<<": "shl",
    ">>": "shr",
    "\\": "idiv",
    "`": "idiv",
}
# left and right priority; where right is less, the operator binds to the right
_BINARY = (
    {"or": (1, 1), "and": (2, 2)}
    | dict.fromkeys(("<", ">", "<=", ">=", "~=", "!=", "=="), (3, 3))
    | {"..": (5, 4)}
    | dict.fromkeys(("+", "-", "|", "&", "^^"), (6, 6))
    | dict.fromkeys(("*", "/", "%", "<<", ">>", "\\", "`"), (7, 7))
    | {"^": (10, 9)}
)
_UNARY = ("not", "-", "#", "~", "!")
_UNARY_PRIORITY = 8
_ESCAPE = re.compile(r"\\(?:u(?P<hex>[0-9A-Fa-f]{0,8})|x(?P<octet>[0-9A-Fa-f]{0,2})|\r\n|(?P<other>.))", re.S)
_AS_IN_LUAJIT = frozenset("abfnrtv0123456789\\\"'\r\n")
_OCTAL = re.compile(r"0[0-9]")
MAX_DEPTH = 100  # of nested expressions and blocks


def translate(text: str, path: str = "script") -> str:
    """A script in Lua 5.1. Raises DialectError where operators of the dialect stand in what is no Lua."""
    if not _may_need(text):
        return text
    tokens = _tokens(text)
    if tokens is None:
        return text  # LuaJIT says better what is wrong with it
    changes: list[tuple[int, int, str]] = [(t.start, t.start + 2, "~=") for t in tokens if t.text == "!="]
    for token in tokens:
        other = _literal(token, path)
        if other != token.text:
            changes.append((token.start, token.start + len(token.text), other))
    if any(t.text in _NEW and t.kind == "operator" for t in tokens):
        changes += _Parser(tokens, path).changes()
    out: list[str] = []
    at = 0
    for start, end, words in sorted(changes, key=lambda change: change[:2]):
        out += (text[at:start], words)
        at = end
    return "".join(out) + text[at:]


def _may_need(text: str) -> bool:
    return any(mark in text for mark in ("!", "&", "|", "^^", "<<", ">>", "~", "\\", "`")) or bool(_OCTAL.search(text))


def _literal(token: _Token, path: str) -> str:
    """A string or a number as Lua 5.1 reads it. Raises DialectError."""
    if token.kind == "string" and "\\" in token.text and token.text[0] != "[":
        return _ESCAPE.sub(lambda match: _escape(match, token, path), token.text)
    if token.kind == "number" and _OCTAL.match(token.text):
        if not re.fullmatch("[0-7]+", token.text):
            raise DialectError(f"{path}:{token.line}: malformed number near '{token.text}' (a leading 0 is octal)")
        return str(int(token.text, 8))
    return token.text


def _escape(match: re.Match[str], token: _Token, path: str) -> str:
    code, octet, other = match["hex"], match["octet"], match["other"]
    if octet is not None:
        if len(octet) != 2:
            raise DialectError(f"{path}:{token.line}: hexadecimal digit expected near '{match[0]}'")
        return f"\\{int(octet, 16):03}"
    if code is not None:
        if len(code) not in (4, 6, 8):
            raise DialectError(f"{path}:{token.line}: 4, 6 or 8 hexadecimal digits expected near '{match[0]}'")
        return "".join(f"\\{octet:03}" for octet in _utf8(int(code, 16), token, path))
    return match[0] if other is None or other in _AS_IN_LUAJIT else other


def _utf8(code: int, token: _Token, path: str) -> bytes:
    """UTF-8 of up to six octets, as the vendor's lexer writes it. Raises DialectError."""
    if code < 0x80:
        return bytes([code])
    for count, limit in ((2, 0x800), (3, 0x10000), (4, 0x200000), (5, 0x4000000), (6, 0x80000000)):
        if code < limit:
            rest = [0x80 | code >> 6 * n & 0x3F for n in range(count - 2, -1, -1)]
            return bytes([0xFF00 >> count & 0xFF | code >> 6 * (count - 1), *rest])
    raise DialectError(f"{path}:{token.line}: there is no such character")


def _tokens(text: str) -> list[_Token] | None:
    """The tokens of a script; None for an octet that begins none, and for a string without an end."""
    found = []
    at, line = 0, 1
    if text.startswith("#"):
        at = (text + "\n").index("\n")
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match["unclosed"] is not None:
            return None
        kind = str(match.lastgroup if match.lastgroup not in ("c", "s", "unclosed") else "")
        kind = kind or ("comment" if match["comment"] is not None else "string")
        if kind not in ("space", "comment"):
            if kind == "name" and match[0] in _KEYWORDS:
                kind = "keyword"
            found.append(_Token(kind, match[0], at, line))
        line += match[0].count("\n")
        at = match.end()
    found.append(_Token("end", "<eof>", at, line))
    return found


class _Parser:
    """Walks the grammar of Lua 5.1 (reference manual, section 8) to find where the operands of new operators end."""

    def __init__(self, tokens: list[_Token], path: str) -> None:
        self._tokens = tokens
        self._path = path
        self._at = 0
        self._depth = 0
        self._before: dict[int, list[str]] = {}
        self._behind: dict[int, list[str]] = {}
        self._instead: dict[int, str] = {}

    def changes(self) -> list[tuple[int, int, str]]:
        """What to put where: start, end, text, sorted so that what opens comes before what it encloses."""
        self._block()
        if self._token.kind != "end":
            self._wrong("'<eof>' expected")
        found = []
        for index, words in self._behind.items():
            last = self._tokens[index]
            end = last.start + len(last.text)
            found.append((end, end, "".join(words)))
        for index, words in self._before.items():
            start = self._tokens[index].start
            found.append((start, start, "".join(words)))
        for index, text in self._instead.items():
            token = self._tokens[index]
            found.append((token.start, token.start + len(token.text), text))
        # behind one token and before the next may be one place: what closes goes first, as the list has it
        return found

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _wrong(self, words: str) -> None:
        raise DialectError(f"{self._path}:{self._token.line}: {words} near '{self._token.text}'")

    def _is(self, *texts: str) -> bool:
        return self._token.kind in ("operator", "keyword") and self._token.text in texts

    def _take(self, text: str) -> bool:
        if self._is(text):
            self._at += 1
            return True
        return False

    def _need(self, text: str) -> None:
        if not self._take(text):
            self._wrong(f"'{text}' expected")

    def _name(self) -> None:
        if self._token.kind != "name":
            self._wrong("<name> expected")
        self._at += 1

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._wrong("the script is nested too deeply")

    # statements -----------------------------------------------------------------------------------------------

    def _block(self) -> None:
        self._deeper()
        while not self._is("end", "else", "elseif", "until") and self._token.kind != "end":
            if self._take("return"):
                if not self._is("end", "else", "elseif", "until", ";") and self._token.kind != "end":
                    self._expressions()
                self._take(";")
                break
            self._statement()
        self._depth -= 1

    def _statement(self) -> None:
        if self._take(";") or self._take("break"):
            return
        if self._take("::"):
            self._name()
            self._need("::")
        elif self._is_goto():
            self._at += 2
        elif self._take("do"):
            self._block()
            self._need("end")
        elif self._take("while"):
            self._expression()
            self._need("do")
            self._block()
            self._need("end")
        elif self._take("repeat"):
            self._block()
            self._need("until")
            self._expression()
        elif self._take("if"):
            self._if()
        elif self._take("for"):
            self._for()
        elif self._take("function"):
            self._name()
            while self._take(".") or self._take(":"):
                self._name()
            self._function_body()
        elif self._take("local"):
            self._local()
        else:
            self._assignment_or_call()

    def _is_goto(self) -> bool:
        following = self._tokens[self._at + 1 : self._at + 2]
        return self._token.text == "goto" and bool(following) and following[0].kind == "name"

    def _if(self) -> None:
        self._expression()
        self._need("then")
        self._block()
        while self._take("elseif"):
            self._expression()
            self._need("then")
            self._block()
        if self._take("else"):
            self._block()
        self._need("end")

    def _for(self) -> None:
        self._name()
        if self._take("="):
            self._expressions()
        else:
            while self._take(","):
                self._name()
            self._need("in")
            self._expressions()
        self._need("do")
        self._block()
        self._need("end")

    def _local(self) -> None:
        if self._take("function"):
            self._name()
            self._function_body()
            return
        self._name()
        while self._take(","):
            self._name()
        if self._take("="):
            self._expressions()

    def _assignment_or_call(self) -> None:
        self._suffixed()
        while self._take(","):
            self._suffixed()
        if self._take("="):
            self._expressions()

    def _function_body(self) -> None:
        self._need("(")
        while not self._is(")"):
            if not self._take("..."):
                self._name()
            if not self._take(","):
                break
        self._need(")")
        self._block()
        self._need("end")

    # expressions ----------------------------------------------------------------------------------------------

    def _expressions(self) -> None:
        self._expression()
        while self._take(","):
            self._expression()

    def _expression(self, limit: int = 0) -> None:
        self._deeper()
        first = self._at
        if self._is(*_UNARY):
            operator = self._at
            self._at += 1
            self._expression(_UNARY_PRIORITY)
            if self._tokens[operator].text == "!":
                self._instead[operator] = " not "
            elif self._tokens[operator].text == "~":
                self._instead[operator] = "_BIT.bnot("
                self._behind.setdefault(self._at - 1, []).append(")")
        else:
            self._simple()
        while self._token.kind in ("operator", "keyword") and self._token.text in _BINARY:
            left, right = _BINARY[self._token.text]
            if left <= limit:
                break
            operator = self._at
            self._at += 1
            self._expression(right)
            function = _FUNCTIONS.get(self._tokens[operator].text)
            if function is not None:
                self._before.setdefault(first, []).insert(0, f"_BIT.{function}(")
                self._instead[operator] = ","
                self._behind.setdefault(self._at - 1, []).append(")")
        self._depth -= 1

    def _simple(self) -> None:
        if self._token.kind in ("number", "string") or self._is("nil", "true", "false", "..."):
            self._at += 1
        elif self._is("{"):
            self._table()
        elif self._take("function"):
            self._function_body()
        else:
            self._suffixed()

    def _suffixed(self) -> None:
        if self._take("("):
            self._expression()
            self._need(")")
        elif self._token.kind == "name":
            self._at += 1
        else:
            self._wrong("unexpected symbol")
        while True:
            if self._take("."):
                self._name()
            elif self._take("["):
                self._expression()
                self._need("]")
            elif self._take(":"):
                self._name()
                self._arguments()
            elif self._is("(", "{") or self._token.kind == "string":
                self._arguments()
            else:
                return

    def _arguments(self) -> None:
        if self._token.kind == "string":
            self._at += 1
        elif self._is("{"):
            self._table()
        else:
            self._need("(")
            if not self._is(")"):
                self._expressions()
            self._need(")")

    def _table(self) -> None:
        self._need("{")
        while not self._is("}"):
            if self._take("["):
                self._expression()
                self._need("]")
                self._need("=")
                self._expression()
            elif self._token.kind == "name" and self._tokens[self._at + 1].text == "=":
                self._at += 2
                self._expression()
            else:
                self._expression()
            if not (self._take(",") or self._take(";")):
                break
        self._need("}")
