"""Changes that the console makes to a configuration that is in force: what is set or unset, by whom. Pure.

They stand behind what the files say, as if they were written there, and go with the next reload. Their origin takes
the place of file, line and column wherever that is told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import NamedTuple

from quillon.config import place, written
from quillon.config.contracts import KIND as CONTRACT
from quillon.config.options import Option, OptionTable
from quillon.config.place import ScopePlace
from quillon.config.scope import Node, spelled
from quillon.config.syntax import Item, Position, Scope, Setting, Value, Word, parse
from quillon.config.values import CONTAINERS

_USAGE = {
    "set": "config set [SCOPE [NAME]]... OPTION [=] VALUE [OPTION = VALUE]...",
    "unset": "config unset [SCOPE [NAME]]... [OPTION]",
}
_OPENING, _CLOSING = "([", ")]"


class ConfigChange(NamedTuple):
    """One command: its words behind `config set` or `config unset`; `origin` says who gave it, and when."""

    do: str
    words: tuple[str, ...]
    origin: str

    def makes(self, root: Node, table: OptionTable) -> str:
        """The scope that is not there yet and comes by it, as words. Raises ValueError for what is no change."""
        found = self._unset(root, table)[0] if self.do == "unset" else self._set(root, table)[0]
        return found.words if found.find(root) is None else ""

    def items(self, root: Node, table: OptionTable) -> tuple[Item, ...]:
        """What would stand in a file for what is set. Raises ValueError."""
        at = Position(self.origin, 0, 0)
        found, inner = self._set(root, table)
        for kind, label in reversed(found.scopes):
            named = Word(label, at, quoted=True) if label else None
            inner = (Scope(Word(spelled(kind), at), named, inner),)
        return inner

    def _set(self, root: Node, table: OptionTable) -> tuple[ScopePlace, tuple[Item, ...]]:
        found = self._place(root, table)
        settings: list[Item] = []
        for name, words in _settings(found.rest, found.options):
            option = place.option(found, name, table)
            if option.secret:
                raise ValueError(f"{option.name} is secret: write it into the file, which no log and no history shows")
            name_word = Word(option.name, Position(self.origin, 0, 0))
            settings.append(Setting(name_word, _value(option, words, self.origin)))
        return found, tuple(settings)

    def take_away(self, root: Node, table: OptionTable) -> None:
        """Unset an option, or all of a scope with those in it. Raises ValueError where it is not set."""
        found, option = self._unset(root, table)
        node = found.find(root)
        outer = found.find(root, outer=1)
        assert node is not None
        assert outer is not None
        if option is None:
            outer.drop(*found.scopes[-1])
        else:
            del node.settings[option.name]

    def _unset(self, root: Node, table: OptionTable) -> tuple[ScopePlace, Option | None]:
        found = self._place(root, table)
        if len(found.rest) > 1:
            raise ValueError(_USAGE["unset"])
        if not (found.scopes or found.rest):
            raise ValueError("the global scope as a whole is not unset: a server without options serves nobody")
        node = found.find(root)
        if node is None:
            raise ValueError(f"there is no {found.words}")
        if not found.rest:
            return found, None
        option = place.option(found, found.rest[0], table)
        if option.name not in node.settings:
            raise ValueError(f"{option.name} is not set in {found.words or 'the global scope'}")
        return found, option

    def _place(self, root: Node, table: OptionTable) -> ScopePlace:
        for word in self.words:
            if not word.isprintable() or {"“", "”"} & set(word):
                raise ValueError(f"{word!r}: such characters are written into the file")
        found = place.read(self.words, root, table)
        if found.scopes and found.scopes[0][0] == CONTRACT:
            raise ValueError("what was agreed on with a partner is changed in the file, where its history is")
        return found


def loggable(do: str, words: Sequence[str], table: OptionTable) -> str:
    """The words of a change as logs have them: no value of a secret option, nor of what is none."""
    nothing = Node("global", "", Position("", 0, 0))
    try:
        found = place.read(words, nothing, table)
        names = [name for name, _ in _settings(found.rest, found.options)] if do == "set" else list(found.rest)
        secret = any(place.option(found, name, table).secret for name in names)
    except ValueError:
        return written.HIDDEN
    return " ".join([*filter(None, (found.words,)), *names, written.HIDDEN]) if secret else " ".join(words)


def _settings(words: Sequence[str], options: Collection[str]) -> list[tuple[str, list[str]]]:
    """Names with the words of their values: `a b`, `a = b`, `a=b`; several are told apart by `=`. Raises ValueError."""
    left: list[str] = []
    for word in words:
        name, sign, value = word.partition("=")
        glued = sign and name and (not left or name.lower() in options)
        left += [name, "=", *filter(None, (value,))] if glued else [word]
    depths = accumulate(sum(map(word.count, _OPENING)) - sum(map(word.count, _CLOSING)) for word in left)
    signs = [at for at, (depth, word) in enumerate(zip(depths, left[1:], strict=False)) if word == "=" and not depth]
    begins = [0, *filter(None, signs)]
    found = []
    for start, end in zip(begins, [*begins[1:], len(left)], strict=True):
        given = left[start + 1 : end]
        found.append((left[start] if left else "", given[1:] if given[:1] == ["="] else given))
    if not all(name and value for name, value in found):
        raise ValueError(_USAGE["set"])
    return found


def _value(option: Option, words: Sequence[str], origin: str) -> Value:
    """What stands behind an option's name: one word, or a list or dictionary as in a file. Raises ValueError."""
    composed = option.type in CONTAINERS or option.type == "paths"
    if len(words) == 1 and not (composed and words[0][:1] in _OPENING):
        return Word(words[0], Position(origin, 0, 0), quoted=True)
    if not composed:
        raise ValueError(f"{option.name} has {len(words)} values: it takes one, in quotes if it has spaces")
    pairs = option.type == "dictionary"
    text = words[0] if len(words) == 1 else " ".join(_again(word, pairs=pairs) for word in words)
    read, faults = parse(f"x = {text}", origin)
    if faults or len(read) != 1 or not isinstance(read[0], Setting):
        why = faults[0].message if faults else "it is no one value"
        raise ValueError(f"{option.name}: {why}")
    return read[0].value


def _again(word: str, *, pairs: bool) -> str:
    """A word of a list, or with `pairs` of a dictionary, with the quotes that the console has taken off it."""
    opened = word.lstrip(_OPENING)
    core = opened.rstrip(f"{_CLOSING},")
    before, after = word[: len(word) - len(opened)], opened[len(core) :]
    name, sign, value = core.partition("=") if pairs else (core, "", "")
    inner = [*filter(None, (name and written.quoted(name), sign, value and written.quoted(value)))]
    return " ".join([*before, *inner, *after])
