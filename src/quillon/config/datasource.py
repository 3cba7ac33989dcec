"""The connections that a datasource's `uri` names (manual, ds_core): `sqlite:/path` and `pgsql:host=...;dbname=...`."""

from __future__ import annotations

import ipaddress
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
_WORD = re.compile(
    r"(?P<name>\w+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>(?:[^;\s'\\]|\\.)(?:[^;\s\\]|\\.)*)?)(?=[;\s]|\Z)"
)


def postgresql_url(text: str) -> str:
    """What stands behind `pgsql:` as a URL: the words of libpq with semicolons or spaces between, or a URL's rest.

    Raises ValueError for words that are none, a port or an sslmode that cannot be; its text has none of their values.
    """
    if text.startswith("//"):
        try:
            given = parse_qs(urlsplit("postgresql:" + text).query)
        except ValueError:
            raise ValueError("the URL cannot be read; octets of a password that are special go as %XX") from None
        if text.count("/") > 3 and "@" in text.split("/", 3)[-1].partition("?")[0]:
            raise ValueError("the URL has a / in front of its @; in a user or a password it goes as %2F")
        _check_mode(given.get("sslmode", ["prefer"])[-1])
        return "postgresql:" + text
    found: dict[str, str] = {}
    rest = text.strip("; \t\r\n")
    while rest:
        match = _WORD.match(rest)
        if match is None:
            raise ValueError(f"what follows {f'{list(found)[-1]}=' if found else 'pgsql:'} is not name=value")
        name = match["name"].lower()
        if name not in _WORDS:
            after = f", after {list(found)[-1]}=" if found else ""
            raise ValueError(f"a word is none of a PostgreSQL connection{after}; there are {', '.join(_WORDS)}")
        quoted = match["quoted"]
        found[name] = re.sub(r"\\(.)", r"\1", (match["plain"] or "") if quoted is None else quoted)
        rest = rest[match.end() :].strip("; \t\r\n")
    if not found.get("port", "1").isdecimal():
        raise ValueError("port= is no number")
    _check_mode(found.get("sslmode", "prefer"))
    host = found.get("host", "")
    if ":" in host and not host.startswith(("/", "[")):
        try:
            found["host"] = f"[{ipaddress.IPv6Address(host)}]"  # else its end is read as a port
        except ValueError:
            raise ValueError("host= has a colon and is no IPv6 address; a port goes into port=") from None
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
