"""`msys.cidr`: values by address block, out of a file in the form of rbldnsd's ip4set, a datasource, or none."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quillon.lua.msys import files
from quillon.lua.msys.api import Api
from quillon.lua.msys.db import Databases
from quillon.lua.msys.vctx import peer_block
from quillon.policy.environment import Environment
from quillon.policy.hook import words_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Value = str | bool  # true for a block of a datasource that has no column of values
_V4 = re.compile(r"[0-9]+\.[0-9./]+(?=[:\s]|\Z)")
_WORD = re.compile(r"\s*(?=:)|\s+|\Z")


@dataclass
class CidrTable:
    """Blocks by prefix length, so that the longest match is found in as many steps as there are lengths."""

    options: dict[str, Any]
    blocks: dict[tuple[int, int], dict[int, Value]] = field(default_factory=dict)
    loaded_at: float = 0.0
    loading: asyncio.Task[None] | None = None

    def fill(self, rows: list[tuple[Network, Value]]) -> None:
        blocks: dict[tuple[int, int], dict[int, Value]] = {}
        for block, value in rows:
            key = (block.version, block.prefixlen)
            blocks.setdefault(key, {})[int(block.network_address)] = value
        self.blocks = blocks

    def query(self, ip: str) -> Value | None:
        """The value of the longest block that holds an address. Raises ValueError for what is none."""
        address = ipaddress.ip_address(ip)
        number, width = int(address), address.max_prefixlen
        for length in range(width, -1, -1):
            found = self.blocks.get((address.version, length))
            if found is not None:
                value = found.get(number >> (width - length) << (width - length))
                if value is not None:
                    return value
        return None


def parse(text: str, wanted: str = "a") -> list[tuple[Network, Value]]:
    """Lines of rbldnsd: `:address:text` holds for the lines below, `block [:address:text]` for its own.

    `wanted` is what a block gives: its address (`a`) or its text (`txt`). Raises ValueError.
    """
    rows: list[tuple[Network, Value]] = []
    value = "127.0.0.2"
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith(("#", "$", "@")):
            continue
        if line.startswith(":"):
            value = _value(line, wanted)
            continue
        # an IPv6 block has a space in front of its colon (manual, msys.cidr.define)
        word, rest = _WORD.split(line, maxsplit=1) if _V4.match(line) else (*line.split(maxsplit=1), "")[:2]
        try:
            rows.append((_block(word), _value(rest, wanted) if rest.startswith(":") else value))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return rows


def _block(word: str) -> Network:
    """An address, a block, or the head of one: `10.1` is 10.1.0.0/16."""
    if "/" not in word and "." in word and word.count(".") < 3:
        parts = word.split(".")
        word = ".".join([*parts, *["0"] * (4 - len(parts))]) + f"/{8 * len(parts)}"
    return ipaddress.ip_network(word, strict=False)


def _value(text: str, wanted: str) -> str:
    """Address or text of `:2:listed` and `:127.0.0.2:listed`."""
    _, code, rest = ([*text.split(":", 2), "", ""])[:3]
    address = code if "." in code or not code else f"127.0.0.{code}"
    return rest if wanted == "txt" else address


def _column(row: Mapping[Any, Any], name: object) -> Any:
    """A column by its name or its number from 1. Raises ValueError."""
    key = int(name) if isinstance(name, float) or (isinstance(name, str) and name.isdecimal()) else name
    if key not in row:
        raise ValueError(f"there is no column {key!r}, or it is NULL")
    return row[key]


class Tables:
    """The tables of one load of the scripts."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._tables: dict[str, CidrTable] = {}

    def define(self, name: str, options: dict[str, Any]) -> None:
        """Raises ValueError for options that do not fit, and for a file that cannot be read."""
        kind = options.get("type")
        if kind not in NEEDED:
            raise ValueError(f"{kind!r} is no type of cidr: {', '.join(NEEDED)}")
        if options.get("value", "a") not in ("a", "txt"):
            raise ValueError(f"cidr {name}: value is a or txt")
        missing = [key for key in NEEDED[str(kind)] if key not in options]
        if missing:
            raise ValueError(f"cidr {name}: {missing[0]} is missing")
        found = self._tables[name] = CidrTable(options)
        if kind == "rbldnsd":
            self._load_file(found)

    def get(self, name: str) -> CidrTable:
        """Raises ValueError for one that is not defined."""
        if name not in self._tables:
            raise ValueError(f"there is no cidr {name!r}; define it in init")
        return self._tables[name]

    def _load_file(self, found: CidrTable) -> None:
        path = str(found.options["source"])
        try:
            text = files.read(self._environment.folder, path).decode("utf-8", "replace")
            found.fill(parse(text, str(found.options.get("value", "a"))))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found.loaded_at = self._environment.now()

    async def load_rows(self, found: CidrTable) -> None:
        """Read a table from its datasource. Raises ValueError."""
        databases: Databases = self._environment.shared.setdefault("databases", Databases())
        options = found.options
        cache = str(options.get("cachename") or options.get("source"))
        rows = await databases.rows(self._environment, cache, str(options["query"]), None, fresh=True)
        cidr, value = options.get("cidr_column", 1), options.get("value_column")
        found.fill(
            [(_block(str(_column(row, cidr))), True if value is None else str(_column(row, value))) for row in rows]
        )
        found.loaded_at = self._environment.now()

    async def refresh(self, name: str, found: CidrTable) -> None:
        """Read a table anew; one that cannot be read stays as it is, and the operator is told."""
        try:
            if found.options["type"] == "datasource":
                await self.load_rows(found)
            elif found.options["type"] == "rbldnsd":
                self._load_file(found)
        except Exception as error:
            # the table that is there stays in use
            self._environment.report(f"scriptlet: cidr {name}: {words_of(error)}")
            found.loaded_at = self._environment.now()


NEEDED = {"rbldnsd": ("source",), "datasource": ("query",), "empty": ()}
"""Options that a type of table cannot do without."""


def register(api: Api) -> None:
    tables = Tables(api.environment)

    @api.function("msys.cidr.define")
    def define(name: str, options: Any) -> bool:
        """A table of type rbldnsd (source = file), datasource (cachename, query) or empty."""
        tables.define(name, options if isinstance(options, dict) else {"type": options})
        return True

    @api.function("msys.cidr.lookup")
    async def wait_for_rows(name: str) -> None:
        """Wait for a table that is read from a datasource and never has been."""
        await tables.load_rows(tables.get(name))

    @api.function("msys.cidr.ready")
    def ready(name: str) -> bool:
        """Whether a table can be asked; begins to read it anew when it is old."""
        found = tables.get(name)
        if found.options["type"] == "empty":
            return True
        refresh = float(found.options.get("refresh", 1800))
        late = refresh > 0 and api.environment.now() - found.loaded_at > refresh
        if found.loaded_at and late and (found.loading is None or found.loading.done()):
            found.loading = asyncio.ensure_future(tables.refresh(name, found))
        return bool(found.loaded_at)

    @api.function("msys.cidr.find")
    def find(name: str, ip: str | None = None) -> Value | None:
        """The value of an address; true where its table has none."""
        found = tables.get(name)
        ip = ip or peer_block(api.session_call(), "")
        value = found.query(ip.strip("[]"))
        if value is None:
            default = found.options.get("default_value")
            return None if default is None else str(default)
        return value.replace("$", ip) if isinstance(value, str) and found.options.get("interpolate") else value

    @api.function("msys.cidr.reload")
    async def reload(name: str) -> bool:
        """Read a table anew."""
        await tables.refresh(name, tables.get(name))
        return True
