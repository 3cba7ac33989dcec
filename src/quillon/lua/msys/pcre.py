"""`msys.pcre`: regular expressions, by the `regex` library, which stops a search that takes too long.

Its dialect is close to PCRE's: atomic groups, possessive quantifiers, POSIX classes, named groups as `(?P<name>)`,
recursion. Subjects and patterns are octets.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import regex

from quillon.lua.msys.api import Library

library = Library()

LONGEST_SEARCH = 0.25  # seconds


class PatternError(ValueError):
    """A pattern cannot be compiled, or takes too long."""


@lru_cache(maxsize=1024)
def compiled(pattern: bytes) -> regex.Pattern[bytes]:
    """Raises PatternError."""
    try:
        return regex.compile(pattern, regex.VERSION0)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        raise PatternError(f"{pattern.decode('latin-1')!r} is no regular expression: {error}") from None


_GROUP = regex.compile(rb"\$\$|\$(\d{1,2})|\$\{(\d{1,2})\}")


def search(subject: bytes, pattern: bytes) -> regex.Match[bytes] | None:
    """Raises PatternError, also for a search that takes longer than LONGEST_SEARCH."""
    try:
        return compiled(pattern).search(subject, timeout=LONGEST_SEARCH)
    except TimeoutError:
        raise PatternError(f"{pattern.decode('latin-1')!r} took more than {LONGEST_SEARCH} s to search") from None


def match_table(subject: bytes, pattern: bytes) -> dict[Any, bytes] | None:
    """The groups by number, 0 for the whole, and by name; those that took no part are left out. Raises PatternError."""
    found = search(subject, pattern)
    if found is None:
        return None
    table: dict[Any, bytes] = {0: found[0]}
    table |= {n: value for n, value in enumerate(found.groups(), 1) if value is not None}
    table |= {name.encode("latin-1"): value for name, value in found.groupdict().items() if value is not None}
    return table


def replaced(subject: bytes, pattern: bytes, replacement: bytes) -> bytes:
    """Every match replaced; `$1`, `${1}` and `\\1` stand for groups, `$$` for a dollar. Raises PatternError."""
    template = _GROUP.sub(
        lambda found: b"$" if found[0] == b"$$" else rb"\g<" + (found[1] or found[2]) + b">",
        replacement.replace(b"\\", b"\\\\"),
    )
    template = regex.sub(rb"\\\\(\d)", rb"\\g<\1>", template)
    try:
        result: bytes = compiled(pattern).sub(template, subject, timeout=LONGEST_SEARCH)
        return result
    except TimeoutError:
        raise PatternError(f"{pattern.decode('latin-1')!r} took more than {LONGEST_SEARCH} s to replace") from None
    except (regex.error, IndexError) as error:
        raise PatternError(f"{replacement.decode('latin-1')!r} is no replacement: {error}") from None


@library.function("msys.pcre.match", octets=True)
def match(subject: bytes, pattern: bytes) -> Any:
    """The groups by number and name, or nil; nil, words and a number where the pattern is wrong."""
    try:
        return match_table(subject, pattern)
    except PatternError as error:
        return None, str(error), 1


@library.function("msys.pcre.replace", octets=True)
def replace(subject: bytes, pattern: bytes, replacement: bytes) -> bytes:
    """The subject with every match replaced; $1 stands for a group."""
    return replaced(subject, pattern, replacement)


@library.function("msys.pcre.split", octets=True)
def split(subject: bytes, pattern: bytes) -> list[bytes]:
    """What stands between the matches."""
    try:
        return [part or b"" for part in compiled(pattern).split(subject, timeout=LONGEST_SEARCH)]
    except TimeoutError:
        raise PatternError(f"{pattern.decode('latin-1')!r} took more than {LONGEST_SEARCH} s") from None
