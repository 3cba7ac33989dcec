"""Values from outside as people and log readers get to see them: printable, on one line, of bounded length. Pure.

Everything that a client, a remote host or a certificate says may be of any length and hold any character. Where it goes
into a log, a reply, a context or the spool it passes through here.
"""

from __future__ import annotations

from collections.abc import Iterable

CONTEXT_VALUE = 4096  # characters of a context variable that holds what somebody else has said
CONTEXT_LINE = 8192  # characters of one context in a log line
REPLY = 1024  # characters of a remote host's reply
NAME = 512  # characters of a subject, an issuer, or another single name
PANIC = 4096  # characters of a line of the paniclog
MOST_KEYS = 1000  # of a context


def printable(text: str) -> str:
    """The text with a question mark for each character that is no letter, mark, digit, sign or space: control
    characters of any set, line and paragraph separators, what turns the direction of writing, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def cut(text: str, limit: int) -> str:
    """The text, or as much of it as leaves room for a mark with the number of its characters: `...(+73099)`."""
    if len(text) <= limit:
        return text
    mark = f"...(+{len(text)})"
    return text[: max(limit - len(mark), 0)] + mark


def line(text: str, limit: int = REPLY) -> str:
    """The text as one printable line of bounded length: whoever wrote it, no terminal obeys it."""
    return cut(printable(text), limit)


def joined(items: Iterable[str], limit: int, separator: str = ",") -> tuple[str, int]:
    """As many whole items as fit, and how many were left out."""
    taken: list[str] = []
    size = left = 0
    for item in items:
        size += len(item) + len(separator)
        if left or size > limit + len(separator):
            left += 1
        else:
            taken.append(item)
    return separator.join(taken), left
