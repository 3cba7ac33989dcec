"""`msys.db`: SQL on the datasources of the configuration, SQLite by aiosqlite and PostgreSQL by asyncpg.

Results are cached as the datasource's stanza says. Parameters are bound, never put into the text: `?` with a list,
`:name` or `$1` as the driver has them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg

from quillon.config.datasource import postgresql_url
from quillon.lua.msys.api import Api, number_text
from quillon.policy.environment import Datasource, Environment
from quillon.policy.hook import words_of

TIMEOUT = 30.0  # seconds of one query
PATIENCE = 5.0  # seconds until a server takes a connection
REST = 30.0  # seconds for which one that did not is asked last
Row = dict[Any, Any]


_PLACE = re.compile(r"(?P<text>'(?:[^']|'')*'|\"[^\"]*\"|::)|(?P<mark>\?)|(?<![:\w]):(?P<name>[A-Za-z_]\w*)")


class DatabaseError(ValueError):
    """A query failed; the message has the driver's words."""


class Databases:
    """Open connections and cached results, by datasource."""

    def __init__(self) -> None:
        self._pools: dict[str, Any] = {}
        self._turn: dict[str, int] = {}
        self._resting: dict[str, float] = {}  # until when, by the loop's clock
        self._results: dict[str, OrderedDict[str, tuple[float, list[Row]]]] = {}

    async def rows(self, environment: Environment, name: str, sql: str, parameters: Any, *, fresh: bool) -> list[Row]:
        """The rows of a query, by column name and by number from 1. Raises DatabaseError."""
        source = _source(environment, name)
        parameters = _bound(sql, parameters)
        cache = self._results.setdefault(name, OrderedDict())
        try:
            key = json.dumps([source.uris, sql, parameters], default=str)
        except (TypeError, ValueError) as error:
            raise DatabaseError(f"{name}: parameters: {error}") from None
        known = cache.get(key)
        if known is not None and known[0] > environment.now() and not fresh and not source.no_cache:
            return known[1]
        found = await self._run(environment, name, source, sql, parameters, source.max_rows)
        if not source.no_cache:
            cache[key] = (environment.now() + source.cache_life, found)
            cache.move_to_end(key)
            while len(cache) > source.cache_size:
                cache.popitem(last=False)
        return found

    async def execute(self, environment: Environment, name: str, sql: str, parameters: Any) -> None:
        """A statement that gives no rows. Raises DatabaseError."""
        await self._run(environment, name, _source(environment, name), sql, _bound(sql, parameters), 0)

    async def close(self) -> None:
        """Let go of the connections; what is still asked fails."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.terminate()
        await asyncio.sleep(0)  # the transports close with the loop's next turn

    async def _run(
        self, environment: Environment, name: str, source: Datasource, sql: str, parameters: Any, limit: int
    ) -> list[Row]:
        """Ask the next database in turn; what cannot be reached is skipped. Raises DatabaseError."""
        turn = self._turn[name] = self._turn.get(name, -1) + 1
        uris = [source.uris[(turn + step) % len(source.uris)] for step in range(len(source.uris))]
        now = asyncio.get_running_loop().time()
        unreachable = ""
        for uri in sorted(uris, key=lambda uri: self._resting.get(uri, 0.0) > now):
            driver, _, rest = uri.partition(":")
            try:
                if driver == "sqlite":
                    return await self._run_sqlite(str(Path(environment.folder) / rest), sql, parameters, limit)
                return await self._run_postgresql(rest, sql, parameters, limit)
            except _Unreachable as error:
                unreachable = str(error)
                self._resting[uri] = asyncio.get_running_loop().time() + REST
            except DatabaseError:
                raise
            except Exception as error:
                # drivers raise many kinds; to a script they are one: the query failed
                raise DatabaseError(f"{name}: {words_of(error)}") from None
        raise DatabaseError(f"{name}: {unreachable}")

    async def _run_sqlite(self, path: str, sql: str, parameters: Any, limit: int) -> list[Row]:
        given = parameters if parameters is not None else ()
        # one connection a query: each has a thread, and one that were kept would keep the process from ending
        async with aiosqlite.connect(path, timeout=TIMEOUT) as connection:
            try:
                async with asyncio.timeout(TIMEOUT), connection.execute(sql, given) as cursor:
                    found = await (cursor.fetchmany(limit) if limit > 0 else cursor.fetchall())
                    names = [column[0] for column in cursor.description or ()]
                    await connection.commit()
            except (TimeoutError, asyncio.CancelledError):
                await connection.interrupt()
                raise
        return [_row(names, tuple(values)) for values in found]

    async def _run_postgresql(self, rest: str, sql: str, parameters: Any, limit: int) -> list[Row]:
        text, values = positional(sql, parameters)
        pool = self._pools.get(rest)
        if pool is None:
            pool = self._pools[rest] = asyncpg.create_pool(
                postgresql_url(rest),
                min_size=0,
                max_size=4,
                command_timeout=TIMEOUT,
                timeout=PATIENCE,
                init=_plain_types,
            )
        try:
            await pool
            # longer than a connection may take, for those that wait for a place
            connection = await pool.acquire(timeout=2 * PATIENCE)
        except _NOT_REACHED as error:
            raise _Unreachable(words_of(error)) from None
        try:
            if limit <= 0:
                found = await connection.fetch(text, *values)
            else:
                async with connection.transaction():
                    found = await (await connection.cursor(text, *values)).fetch(limit)
        finally:
            await pool.release(connection)
        return [_row(list(record.keys()), tuple(record.values())) for record in found]


_NOT_REACHED = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


class _Unreachable(Exception):
    """A database that did not take the connection."""


# Types whose values cross as text, as a script has them: asyncpg's own forms want a Python object of the very type.
_AS_TEXT: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), int),
    **dict.fromkeys(("float4", "float8", "numeric"), float),
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "uuid", "json", "jsonb", "inet", "cidr"), str),
    **dict.fromkeys(("date", "time", "timestamp", "timestamptz", "interval"), str),
    "bool": lambda text: text == "t",
}


async def _plain_types(connection: Any) -> None:
    for kind, decode in _AS_TEXT.items():
        await connection.set_type_codec(kind, schema="pg_catalog", encoder=number_text, decoder=decode, format="text")


def _bound(sql: str, parameters: Any) -> Any:
    """A table of a script whose nils are NULL: it has holes, or ends before the last question mark."""
    if not isinstance(parameters, (list, dict)):
        return parameters
    given = dict(enumerate(parameters, 1)) if isinstance(parameters, list) else parameters
    if any(not isinstance(key, int) for key in given):
        return parameters
    marks = sum(1 for found in _PLACE.finditer(sql) if found["mark"])
    return [given.get(n) for n in range(1, max([marks, *given]) + 1)]


def positional(sql: str, parameters: Any) -> tuple[str, list[Any]]:
    """`?` and `:name` as `$1`, which is what PostgreSQL has; text in quotes is left alone. Raises DatabaseError."""
    values: list[Any] = []
    given = list(parameters) if isinstance(parameters, list) else []
    named = parameters if isinstance(parameters, dict) else {}

    def bind(match: re.Match[str]) -> str:
        if match["text"]:
            return match["text"]
        if match["name"]:
            if match["name"] not in named:
                raise DatabaseError(f"there is no parameter {match['name']!r}")
            values.append(named[match["name"]])
        elif not given:
            raise DatabaseError("there are fewer parameters than question marks")
        else:
            values.append(given.pop(0))
        return f"${len(values)}"

    text = _PLACE.sub(bind, sql)
    return text, values or given


def _row(names: list[str], values: tuple[Any, ...]) -> Row:
    plain = [value if isinstance(value, (str, bytes, int, float, type(None))) else str(value) for value in values]
    by_name: Row = {name: value for name, value in zip(names, plain, strict=True) if value is not None}
    return by_name | {n: value for n, value in enumerate(plain, 1) if value is not None}


def _source(environment: Environment, name: str) -> Datasource:
    found = environment.datasources.get(name)
    if found is None:
        raise DatabaseError(f"there is no datasource {name!r} in the configuration")
    return found


async def close(shared: Mapping[str, Any]) -> None:
    """Let go of what the worlds with this `shared` have connected to."""
    databases: Databases | None = shared.get("databases")
    if databases is not None:
        await databases.close()


def register(api: Api) -> None:
    databases: Databases = api.environment.shared.setdefault("databases", Databases())

    async def failing(options: Any, question: Any) -> Any:
        """The answer, or nil and words where the options say raise_error = false."""
        try:
            return await question
        except DatabaseError as error:
            if isinstance(options, dict) and options.get("raise_error") is False:
                return None, str(error)
            raise

    def fresh(options: Any) -> bool:
        return isinstance(options, dict) and options.get("nocache") is True

    @api.function("db.rows")
    async def rows(cache: str, sql: str, parameters: Any = None, options: Any = None) -> Any:
        """The rows of msys.db.query."""
        return await failing(options, databases.rows(api.environment, cache, sql, parameters, fresh=fresh(options)))

    @api.function("msys.db.fetch_row")
    async def fetch_row(cache: str, sql: str, parameters: Any = None, options: Any = None) -> Any:
        """The first row, or nil; with {raise_error = false} nil and words where the query fails."""
        found = await failing(options, databases.rows(api.environment, cache, sql, parameters, fresh=fresh(options)))
        return found if isinstance(found, tuple) else (found[0] if found else None)

    @api.function("msys.db.execute")
    async def execute(cache: str, sql: str, parameters: Any = None, options: Any = None) -> Any:
        """true; with {raise_error = false} false and words where the statement fails."""
        found = await failing(options, databases.execute(api.environment, cache, sql, parameters))
        return (False, found[1]) if isinstance(found, tuple) else True
