"""The table of options: name, type, values, default, scopes, status and one line of documentation each.

The rows stand in `options/*.toml`, one file per chapter. `convert` turns a value as written into a Python value, or
raises ValueError with words for the operator. Types and what they become:

    boolean -> bool            integer, seconds -> int      mode -> int (octal text)
    string, enum -> str        path -> str (absolute)       list, paths -> tuple[str, ...]
    dictionary -> dict         cidr_list -> tuple of ip_network
    domain_list -> tuple[str]  throttle -> Throttle         regex -> re.Pattern
    address -> Mailbox         domain -> str                gateway -> (host, port or 0)
    limit -> int (-1: none)    port -> int                  routes -> tuple of checked str
    protocols -> frozenset[str]                             extensions -> tuple[str] in upper case
    pins -> tuple of SHA-256 in hexadecimal digits

`honoured` options work; `accepted` ones are read without effect and warned about; `refused` ones are errors unless
they say what would happen anyway (their default), because leaving them out would weaken what was asked for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from quillon.config.syntax import ListValue, Position, Value, Word
from quillon.config.values import CONTAINERS, SCALARS, path, words

OUTBOUND = ("binding", "binding_group", "domain", "global")
INBOUND = ("esmtp_listener", "listen", "pathway", "pathway_group", "peer")


@dataclass(frozen=True, slots=True)
class Option:
    """One row. `default` is text as in a file, or None; `none` says that the word "none" cancels an inherited
    value, `secret` that no value of it is shown.

    `gateway` tells what becomes of the option in the Domain of a recipient whose mail goes to a Gateway: `recipient`,
    it holds, behind that of the gateway's own stanza; empty, it concerns connections, which are the gateway's.
    """

    name: str
    type: str
    chapter: str
    scopes: frozenset[str]
    status: str
    doc: str
    values: tuple[str, ...] = ()
    default: str | None = None
    none: bool = False
    restart: bool = False
    secret: bool = False
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """A module stanza and its options. `children` maps sub-scopes to module rows."""

    name: str
    doc: str
    options: Mapping[str, Option]
    children: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class OptionTable:
    options: Mapping[str, Option]
    modules: Mapping[str, ModuleRow]
    inert: frozenset[str]


def _row(name: str, chapter: str, row: Mapping[str, Any], scopes: frozenset[str]) -> Option:
    return Option(
        name,
        row["type"],
        chapter,
        scopes,
        row["status"],
        row["doc"],
        tuple(row.get("values", ())),
        row.get("default"),
        row.get("none", False),
        row.get("restart", False),
        row.get("secret", False),
        row.get("gateway", ""),
    )


@cache
def table() -> OptionTable:
    """The whole table, read once."""
    options: dict[str, Option] = {}
    modules: dict[str, ModuleRow] = {}
    inert: frozenset[str] = frozenset()
    for file in sorted(resources.files(__package__).joinpath("options").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        chapter = file.name.removesuffix(".toml")
        rows = tomllib.loads(file.read_text(encoding="utf-8"))
        if chapter == "modules":
            inert = frozenset(rows.pop("inert")["names"])
            modules = {name: _module(name, row) for name, row in rows.items()}
            continue
        for name, row in rows.items():
            scopes: set[str] = set()
            for scope in row["scopes"]:
                scopes.update(OUTBOUND if scope == "outbound" else INBOUND if scope == "inbound" else (scope,))
            options[name] = _row(name, chapter, row, frozenset(scopes))
    return OptionTable(options, modules, inert)


def _module(name: str, row: Mapping[str, Any]) -> ModuleRow:
    options = {key: _row(key, name, value, frozenset({name})) for key, value in row["options"].items()}
    return ModuleRow(name, row["doc"], options, row.get("children", {}))


def convert(option: Option, value: Value, folder: str) -> Any:
    """The Python value of what was written; relative paths start at `folder`. Raises ValueError."""
    kind = CONTAINERS.get(option.type)
    if kind is not None:
        return kind(value)
    if option.type == "paths":
        return tuple(path(word.text, folder) for word in words(value))
    if isinstance(value, ListValue) and len(value.items) == 1:
        value = value.items[0]
    if not isinstance(value, Word):
        raise ValueError(f"{option.name} takes one value, not a list or dictionary")
    text = value.text
    if option.none and text.lower() == "none":
        return None
    if option.type == "path":
        return path(text, folder)
    if option.type == "enum":
        return _enum(option, text)
    try:
        return SCALARS[option.type](text)
    except ValueError as error:
        raise ValueError(f"{option.name}: {error}") from None


LISTS = ("list", "routes", "cidr_list", "domain_list", "extensions", "mechanisms", "patterns", "pins")


def default(option: Option, folder: str) -> Any:
    """The Python value of an option that nobody set; None where it has no default."""
    if option.default is None:
        return () if option.type in LISTS else None
    return convert(option, Word(option.default, Position("default", 0, 0)), folder)


def _enum(option: Option, text: str) -> str:
    for value in option.values:
        if value.lower() == text.lower():
            return value
    words = ", ".join(option.values)
    raise ValueError(f"{option.name} = {text!r}: it is one of {words}{_unset_hint(option)}")


def _unset_hint(option: Option) -> str:
    return "; leave it out to have neither" if option.name == "tls_verify_mode" else ""
