"""Lua's own patterns for searches that can take long, by the `regex` library, which stops them.

Lua's matcher is C that nothing interrupts, and a pattern as plain as `^%s*(.-)%s*$` takes time that grows with the cube
of a subject's length, which whoever writes the mail chooses. runtime.lua hands such searches to `Search`, which gives
the same places (Lua 5.1 manual, 5.4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import regex

MALFORMED = "malformed pattern"
TOO_LONG = False  # beside nil, which is no match
MAX_CAPTURES = 32
MAX_NESTED = 100_000  # of `%b`: `regex` keeps about 130 octets for each level

_OCTETS = [chr(n) for n in range(256)]
_CLASSES = {
    "a": r"A-Za-z",
    "c": r"\x00-\x1f\x7f",
    "d": r"0-9",
    "g": r"!-~",
    "l": r"a-z",
    "p": r"!-/:-@\[-`{-~",
    "s": r"\t-\r ",
    "u": r"A-Z",
    "w": r"A-Za-z0-9",
    "x": r"0-9A-Fa-f",
    "z": r"\x00",
}
_MEMBERS = {name: frozenset(c for c in _OCTETS if regex.match(f"[{inner}]", c)) for name, inner in _CLASSES.items()}
_ALL = frozenset(_OCTETS)
_MEMBERS |= {name.upper(): _ALL - members for name, members in _MEMBERS.items()}


class NestedError(ValueError):
    """A subject in which what `%b` looks for is nested too deeply."""


class _Translation:
    """A pattern of Lua as a regular expression. Raises ValueError."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._open: list[int] = []
        self._places: list[bool] = []  # per capture: whether it is a place, `()`
        self._balanced: list[str] = []
        self.nested: list[tuple[str, str]] = []  # what opens and closes, of each `%b`

    def run(self) -> tuple[str, tuple[bool, ...]]:
        """The expression, and per capture whether it is a place."""
        parts = []
        while self._at < len(self._text):
            parts.append(self._next())
        if self._open:
            raise ValueError(MALFORMED)
        if self._balanced:  # recursion needs names, which stand where they do not count as captures of the pattern
            parts += ["(?(DEFINE)", *self._balanced, ")"]
        return "".join(parts), tuple(self._places)

    def _take(self, count: int = 1) -> str:
        taken = self._text[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError(MALFORMED)
        self._at += count
        return taken

    def _next(self) -> str:
        head, following = self._text[self._at], self._text[self._at + 1 : self._at + 2]
        if head == "(":
            return self._capture(place=following == ")")
        if head == ")":
            self._take()
            if not self._open:
                raise ValueError(MALFORMED)
            self._open.pop()
            return ")"
        if head == "$" and not following:
            self._take()
            return r"\Z"
        if head == "%" and following == "b":
            self._take(2)
            return self._between(*self._take(2))
        if head == "%" and following == "f":
            self._take(2)
            if self._text[self._at : self._at + 1] != "[":
                raise ValueError(MALFORMED)
            return _frontier(self._single())
        if head == "%" and following.isdigit() and following.isascii():
            return self._back(int(self._take(2)[1]))
        return _written(self._single()) + self._suffix()

    def _capture(self, *, place: bool) -> str:
        self._take(2 if place else 1)
        self._places.append(place)
        if len(self._places) > MAX_CAPTURES:
            raise ValueError(MALFORMED)
        if place:
            return "()"
        self._open.append(len(self._places))
        return "("

    def _back(self, number: int) -> str:
        if not 0 < number <= len(self._places) or number in self._open:
            raise ValueError(MALFORMED)
        return "(?!)" if self._places[number - 1] else f"(?:\\{number})"

    def _between(self, first: str, last: str) -> str:
        """`%bxy`: from x to the y that closes it."""
        a, z = _written(frozenset(first)), _written(frozenset(last))
        if first == last:
            return f"{a}{_written(_ALL - {first})}*+{a}"
        name = f"b{len(self._balanced)}"
        other = _written(_ALL - {first, last})
        self.nested.append((first, last))
        self._balanced.append(f"(?P<{name}>{a}(?:{other}++|(?&{name}))*+{z})")
        return f"(?&{name})"

    def _suffix(self) -> str:
        suffix = self._text[self._at : self._at + 1]
        if suffix and suffix in "*+-?":
            self._take()
            return {"-": "*?"}.get(suffix, suffix)
        return ""

    def _single(self) -> frozenset[str]:
        """What one character may be."""
        head = self._take()
        if head == "%":
            return _class(self._take())
        if head == "[":
            return self._set()
        return _ALL if head == "." else frozenset(head)

    def _set(self) -> frozenset[str]:
        negated = self._text[self._at : self._at + 1] == "^"
        if negated:
            self._take()
        end = self._set_end()
        found: set[str] = set()
        while self._at < end:
            head = self._take()
            if head == "%":
                found |= _class(self._take())
            elif self._text[self._at : self._at + 1] == "-" and self._at + 1 < end:
                last = self._take(2)[1]
                found.update(_OCTETS[ord(head) : ord(last) + 1])
            else:
                found.add(head)
        self._at = end + 1
        return _ALL - found if negated else frozenset(found)

    def _set_end(self) -> int:
        """Where the bracket is that ends the set: not its first character, and none behind a `%`."""
        at = self._at
        while True:
            at += 2 if self._text[at : at + 1] == "%" else 1
            if at >= len(self._text):
                raise ValueError(MALFORMED)
            if self._text[at] == "]":
                return at


def _class(letter: str) -> frozenset[str]:
    return _MEMBERS.get(letter) or frozenset(letter)


def _written(members: frozenset[str]) -> str:
    """A set of octets as an expression."""
    if members == _ALL:
        return "."
    if not members:
        return "(?:(?!))"
    if len(members) == 1:
        return f"\\x{ord(next(iter(members))):02x}"
    numbers = sorted(map(ord, members))
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return "[" + "".join(f"\\x{first:02x}-\\x{last:02x}" for first, last in ranges) + "]"


def _frontier(members: frozenset[str]) -> str:
    """`%f[set]`: the start and the end of the subject count as a character 0."""
    inside, outside = _written(members), _written(_ALL - members)
    if "\0" in members:
        return f"(?<={outside})(?:(?={inside})|\\Z)"
    return f"(?<!{inside})(?={inside})"


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[regex.Pattern[str], tuple[bool, ...], Sequence[tuple[str, str]]]:
    translation = _Translation(pattern.partition("\0")[0])
    expression, places = translation.run()
    return regex.compile(expression, regex.VERSION0 | regex.DOTALL), places, translation.nested


def _depth(subject: str, first: str, last: str) -> int:
    """How deep what opens and closes is nested at most, where not everything has to be closed."""
    depth = deepest = 0
    for mark in subject:
        if mark == first:
            depth += 1
            deepest = max(deepest, depth)
        elif mark == last and depth:
            depth -= 1
    return deepest


class Search:
    """A subject that is looked through with one pattern: called with a place, it gives the next match from there on.

    Octets as latin-1 characters, places as Lua counts them. With `only_there`, the match has to start at the place. The
    pattern comes without the `^` that anchors it. Raises ValueError where it is none, NestedError.
    """

    __slots__ = ("_find", "_places", "_subject")

    def __init__(self, subject: str, pattern: str, only_there: bool) -> None:
        self._subject = subject
        compiled, self._places, nested = _compiled(pattern)
        for first, last in nested:
            if subject.count(first) > MAX_NESTED and _depth(subject, first, last) > MAX_NESTED:
                raise NestedError(f"%b{first}{last}: more than {MAX_NESTED} levels")
        self._find = compiled.match if only_there else compiled.search

    def __call__(self, place: float, seconds: float) -> tuple[int | bool, ...] | bool | None:
        """First and last place of the match and of each capture (place and False for a `()`), None, or TOO_LONG."""
        try:
            found = self._find(self._subject, int(place) - 1, timeout=max(seconds, 0.001))
        except TimeoutError:
            return TOO_LONG
        if found is None:
            return None
        out: list[int | bool] = [found.start() + 1, found.end()]
        for number, is_place in enumerate(self._places, 1):
            first, last = found.span(number)
            out += (first + 1, False) if is_place else (first + 1, last)
        return tuple(out)


def searches() -> Callable[[str, str, bool], Search | str]:
    """What makes a Search, or gives words where the pattern is none.

    Searches of one subject in a row share it: a script may leave many of them behind, which Lua collects late because
    it sees only their handles.
    """
    latest = ""

    def search(subject: str, pattern: str, only_there: bool) -> Search | str:
        nonlocal latest
        if subject != latest:
            latest = subject
        try:
            return Search(latest, pattern, only_there)
        except NestedError as error:
            return str(error)
        except (ValueError, regex.error, OverflowError, RecursionError):
            return MALFORMED

    return search
