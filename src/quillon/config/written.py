"""The tree as text of a configuration file. Pure.

What is read again gives the same tree; includes are no part of it, nor are secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from quillon.config.options import OptionTable
from quillon.config.scope import Entry, Node, spelled

HIDDEN = "(hidden)"
_INDENT = "  "
_BARE = re.compile(r"[^\s#\"'={}\[\](),“”]+")
_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\r": "\\r", "\n": "\\n", "\t": "\\t"})


def quoted(text: str) -> str:
    """A word as a file has it, in quotes where they are needed."""
    return text if _BARE.fullmatch(text) and "/*" not in text else in_quotes(text)


def in_quotes(text: str) -> str:
    """A word between quotes. A typographic one can stand in a word only behind the backslash that is part of it."""
    return '"' + re.sub(r"\\\\([“”])", r"\\\1", text.translate(_ESCAPES)) + '"'


def value(entry: Entry) -> str:
    """What stands behind an option's name."""
    return quoted(entry.text) if entry.one_word else entry.text


def setting(name: str, entry: Entry, *, secret: bool) -> str:
    """`connect_timeout = 15`"""
    return f"{name} = {quoted(HIDDEN) if secret else value(entry)}"


def lines(node: Node, table: OptionTable, *, deep: bool, indent: str = "") -> Iterator[str]:
    """What a scope holds, first its options, then the scopes in it, whole if `deep`, else by their names."""
    module = table.modules.get(node.kind)
    options = module.options if module is not None else table.options
    for name, entry in node.settings.items():
        yield indent + setting(name, entry, secret=options[name].secret)
    for child in node.children.values():
        named = child.label or child.kind in table.modules
        head = f"{indent}{spelled(child.kind)} {quoted(child.label) if named else ''}".rstrip()
        if not deep:
            yield f"{head} {{ ... }}"
            continue
        yield f"{head} {{"
        yield from lines(child, table, deep=True, indent=indent + _INDENT)
        yield f"{indent}}}"
