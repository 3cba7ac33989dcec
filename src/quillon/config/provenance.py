"""An option's value with where it comes from and what it beat, as a row. Pure."""

from __future__ import annotations

from typing import Any

from quillon.config.scope import Entry, Resolution


def row(found: Resolution) -> dict[str, Any]:
    """`set_at` is file:line:column, `scope` the stanza; both None where the default holds."""
    entry, node = found.entry, found.node
    return {
        "option": found.option.name,
        "value": text(found, entry) if entry else found.option.default,
        "set_at": str(entry.position) if entry else None,
        "scope": node.path if node else None,
        "status": found.option.status,
        "beaten": [{"value": text(found, e), "set_at": str(e.position), "scope": n.path} for n, e in found.beaten],
    }


def text(found: Resolution, entry: Entry) -> str:
    """What was written, but for passwords."""
    return "(hidden)" if found.option.secret else entry.text
