"""`msys.dnsLookup`."""

from __future__ import annotations

from typing import Any

from quillon.lua.msys.api import Api, Library

library = Library()

TYPES = ("A", "AAAA", "TXT", "MX", "PTR", "NS")


@library.of_api("msys.dnsLookup")
async def dns_lookup(api: Api, name: str, kind: str = "A", options: Any = None) -> Any:
    """A table of records, best first, with {priority = true} as pairs of preference and name; or nil and words."""
    kind = (kind or "A").upper()
    if kind not in TYPES:
        raise ValueError(f"{kind!r} is no record type: {', '.join(TYPES)}")
    given = options if isinstance(options, dict) else {}
    found = await api.environment.lookup(name, kind, str(given.get("server", "")))
    if found.error or not found.records:
        return None, found.error or f"no {kind} record for {name}"
    if given.get("priority") and kind == "MX":
        return [[preference, text] for preference, text in found.records]
    return [text for _, text in found.records]
