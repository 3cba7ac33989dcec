"""The connections that a datasource's `uri` names (manual, ds_core): `sqlite:/path` and `pgsql:host=...;dbname=...`."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlencode, urlsplit

DRIVERS = ("sqlite", "pgsql", "postgresql")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_WORDS = (
    "host",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
)
_WORD = re.compile(r"[;\s]*(?P<name>\w+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>[^;\s]*))")


def postgresql_url(text: str) -> str:
    """What stands behind `pgsql:` as a URL: the words of libpq with semicolons or spaces between, or a URL's rest.

    Raises ValueError for words that are none, a port or an sslmode that cannot be.
    """
    if text.startswith("//"):
        given = parse_qs(urlsplit("postgresql:" + text).query)
        _check_mode(given.get("sslmode", ["prefer"])[-1])
        return "postgresql:" + text
    found: dict[str, str] = {}
    rest = text.strip(" \t;")
    while rest:
        match = _WORD.match(rest)
        if match is None:
            raise ValueError(f"{rest.split(';')[0].strip()!r} is not name=value")
        name = match["name"].lower()
        if name not in _WORDS:
            raise ValueError(f"{name!r} is no word of a PostgreSQL connection: {', '.join(_WORDS)}")
        quoted = match["quoted"]
        found[name] = match["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        rest = rest[match.end() :].strip(" \t;")
    if not found.get("port", "1").isdecimal():
        raise ValueError(f"{found['port']!r} is no port")
    _check_mode(found.get("sslmode", "prefer"))
    return "postgresql://?" + urlencode(found)


def _check_mode(mode: str) -> None:
    if mode not in SSL_MODES:
        raise ValueError(f"{mode!r} is no sslmode: {', '.join(SSL_MODES)}")


def fault(uri: str) -> str | None:
    """What is wrong with a datasource's uri, or None. Says no password."""
    driver, _, rest = uri.partition(":")
    if driver not in DRIVERS:
        return f"{driver!r} is no driver that is here: a datasource is sqlite:/path or pgsql:host=...;dbname=..."
    if driver == "sqlite":
        return None if rest else "sqlite: needs a path"
    try:
        postgresql_url(rest)
    except ValueError as error:
        return f"{driver}: {error}"
    return None
