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
ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\r": "\\r", "\n": "\\n", "\t": "\\t"})


def quoted(text: str) -> str:
    """A word as a file has it, in quotes where they are needed."""
    return text if _BARE.fullmatch(text) and "/*" not in text else f'"{text.translate(ESCAPES)}"'


def value(entry: Entry) -> str:
    """What stands behind an option's name."""
    composed = entry.text.startswith(("( ", "[ ")) and not isinstance(entry.value, str)
    return entry.text if composed else quoted(entry.text)


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
        head = f"{indent}{spelled(child.kind)} {quoted(child.label) if child.label else ''}".rstrip()
        if not deep:
            yield f"{head} {{ ... }}"
            continue
        yield f"{head} {{"
        yield from lines(child, table, deep=True, indent=indent + _INDENT)
        yield f"{indent}}}"
