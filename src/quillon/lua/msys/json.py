"""`json`: values to text and back. What decode and encode give prints as JSON and can be changed like a table."""

from __future__ import annotations

import json
from typing import Any

from quillon.lua.msys.api import Library, Object

library = Library()

MAX_TEXT = 2**20  # octets; reading and handing over so many takes a second or less, which no limit stops


class _Null:
    """JSON's null, which a table cannot hold as nil."""


NULL = _Null()


def _with_null(value: Any) -> Any:
    if value is None:
        return Object("null", NULL)
    if isinstance(value, list):
        return [_with_null(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_null(item) for key, item in value.items()}
    return value


def _default(value: object) -> Any:
    if isinstance(value, _Null):
        return None
    raise ValueError(f"a {type(value).__name__} has no JSON")


@library.function("json.parse")
def parse(text: str) -> Any:
    """The value, or nil, a number and words."""
    if len(text) > MAX_TEXT:
        return None, 2, "the text is too long"
    try:
        return _with_null(json.loads(text))
    except (ValueError, RecursionError) as error:
        return None, 1, f"malformed JSON: {error}"


@library.function("json.text")
def text(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(value, default=_default, ensure_ascii=False, separators=(",", ":"))


@library.function("json.strerror")
def strerror(number: int) -> str:
    """What a number that json.decode gave stands for."""
    return {0: "no error", 1: "malformed JSON", 2: "text too long"}.get(number, "unknown error")
