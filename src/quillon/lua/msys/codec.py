"""Values of scripts as one string, for the way between Lua and Python. Pure.

While a coroutine of Lua runs, no table can be read or made from outside of it: lupa does that on the main thread's
stack, which is not at rest then. So what crosses is plain values, and a table crosses as text:

    n nil, T true, F false, d<number>; s<octets>:<text> t<pairs>:<key><value>...
    o<place>,<kind>; an object, which crosses beside the text: the place counts from 0

Texts are octets as latin-1 characters, which is what strings of lupa are here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 100  # of nested tables
_HEAD = re.compile(r"([nTF])|d([^;]*);|s(\d+):|t(\d+):|o(\d+),(\w*);")


@dataclass(frozen=True, slots=True)
class Object:
    """A result that becomes an object of a script: its kind, and the value behind it."""

    kind: str
    value: object


def to_octets(text: str) -> str:
    """Text as the octets of its UTF-8 form, one character each, which is what strings of a script are made of."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


def from_octets(text: str) -> str:
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")


def encode(value: Any, objects: list[object]) -> str:
    """A value as text; objects in it are added to `objects`. Raises ValueError for what no script can hold."""
    if value is None:
        return "n"
    if value is True or value is False:
        return "T" if value else "F"
    if isinstance(value, (int, float)):
        return f"d{value!r};"
    if isinstance(value, bytes):
        return f"s{len(value)}:{value.decode('latin-1')}"
    if isinstance(value, str):
        text = to_octets(value)
        return f"s{len(text)}:{text}"
    if isinstance(value, list):
        return f"t{len(value)}:" + "".join(f"d{n};{encode(item, objects)}" for n, item in enumerate(value, 1))
    if isinstance(value, dict):
        pairs = (encode(key, objects) + encode(item, objects) for key, item in value.items())
        return f"t{len(value)}:" + "".join(pairs)
    if isinstance(value, Object):
        objects.append(value.value)
        return f"o{len(objects) - 1},{value.kind};"
    raise ValueError(f"a {type(value).__name__} cannot be given to a script")


def decode(text: str, objects: Sequence[object], *, octets: bool) -> Any:
    """The value of a text that a script's side has made: strings as bytes if `octets`, else as text from UTF-8.

    Tables with keys 1 to n become lists, others dictionaries. Raises ValueError.
    """
    value, _ = _read(text, 0, objects, octets, 0)
    return value


def _read(text: str, at: int, objects: Sequence[object], octets: bool, depth: int) -> tuple[Any, int]:
    match = _HEAD.match(text, at)
    if match is None or depth > MAX_DEPTH:
        raise ValueError("a table is nested too deeply, or holds itself")
    at = match.end()
    word, number, length, pairs, place, _ = match.groups()
    if word:
        return {"n": None, "T": True, "F": False}[word], at
    if number is not None:
        return plain_number(float(number)), at
    if length is not None:
        piece = text[at : at + int(length)]
        return (piece.encode("latin-1") if octets else from_octets(piece)), at + int(length)
    if place is not None:
        return objects[int(place)], at
    found: dict[Any, Any] = {}
    for _ in range(int(pairs)):
        key, at = _read(text, at, objects, octets, depth + 1)
        found[key], at = _read(text, at, objects, octets, depth + 1)
    keys = found.keys()
    if found and all(isinstance(key, int) for key in keys) and keys == set(range(1, len(found) + 1)):
        return [found[n] for n in range(1, len(found) + 1)], at
    return found, at


def plain_number(value: float) -> float:
    """A whole number as an int."""
    return int(value) if value.is_integer() else value


def number_text(value: object) -> str:
    """A value as Lua prints it: whole numbers without a point, nothing for nil."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
