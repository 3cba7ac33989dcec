"""Changes that the console makes to a configuration that is in force: what is set or unset, by whom. Pure.

They stand behind what the files say, as if they were written there, and go with the next reload. Their origin takes
the place of file, line and column wherever that is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from quillon.config import place
from quillon.config.options import OptionTable
from quillon.config.scope import Node, spelled
from quillon.config.syntax import Item, Position, Scope, Setting, Value, Word, parse

_OPENED = ("(", "[")
_USAGE = "[SCOPE [NAME]]... OPTION [=] VALUE [OPTION = VALUE]..."


class ConfigChange(NamedTuple):
    """One command: its words behind `config set` or `config unset`; `origin` says who gave it, and when."""

    do: str
    words: tuple[str, ...]
    origin: str


def items(change: ConfigChange, root: Node, table: OptionTable) -> tuple[Item, ...]:
    """What would stand in a file for what is set. Raises ValueError."""
    at = Position(change.origin, 0, 0)
    found = place.read(change.words, root, table)
    settings: list[Item] = []
    for name, words in _settings(found.rest):
        option = place.option(found, name, table)
        if option.secret:
            raise ValueError(f"{option.name} is secret: write it into the file, which no log and no history shows")
        settings.append(Setting(Word(option.name, at), _value(option.name, words, change.origin)))
    inner = tuple(settings)
    for kind, label in reversed(found.scopes):
        inner = (Scope(Word(spelled(kind), at), Word(label, at, quoted=True) if label else None, inner),)
    return inner


def take_away(change: ConfigChange, root: Node, table: OptionTable) -> None:
    """Unset an option, or all of a scope with those in it. Raises ValueError where it is not set."""
    found = place.read(change.words, root, table)
    if len(found.rest) > 1:
        raise ValueError("config unset [SCOPE [NAME]]... [OPTION]")
    if not (found.scopes or found.rest):
        raise ValueError("the global scope as a whole is not unset: a server without options serves nobody")
    node = found.find(root)
    if node is None:
        raise ValueError(f"there is no {found.words}")
    if not found.rest:
        outer = found.find(root, outer=1)
        assert outer is not None  # the scope that holds one that is there
        outer.drop(*found.scopes[-1])
        return
    option = place.option(found, found.rest[0], table)
    if node.settings.pop(option.name, None) is None:
        raise ValueError(f"{option.name} is not set in {found.words or 'the global scope'}")


def _settings(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Names with the words of their values: `a b`, `a = b`, `a=b`; ` = ` tells several apart. Raises ValueError."""
    name, sign, value = words[0].partition("=") if words else ("", "", "")
    left = [name, *filter(None, (sign, value)), *words[1:]]
    depths = accumulate(sum(map(word.count, "([")) - sum(map(word.count, ")]")) for word in left)
    signs = [at for at, (depth, word) in enumerate(zip(depths, left[1:], strict=False)) if word == "=" and not depth]
    begins = [0, *filter(None, signs)]
    found = []
    for start, end in zip(begins, [*begins[1:], len(left)], strict=True):
        given = left[start + 1 : end]
        found.append((left[start], given[1:] if given[:1] == ["="] else given))
    if not all(name and value for name, value in found):
        raise ValueError(f"config set {_USAGE}")
    return found


def _value(name: str, words: Sequence[str], origin: str) -> Value:
    """What stands behind an option's name: one word, or a list or dictionary as in a file. Raises ValueError."""
    at = Position(origin, 0, 0)
    if not words[0].startswith(_OPENED):
        if len(words) > 1:
            raise ValueError(f"{name} has {len(words)} values: quote one with spaces, write a list in ( )")
        return Word(words[0], at, quoted=True)
    read, faults = parse(f"x = {' '.join(words)}", origin)
    if faults or len(read) != 1 or not isinstance(read[0], Setting):
        why = faults[0].message if faults else "it is no one value"
        raise ValueError(f"{name}: {why}")
    return read[0].value
