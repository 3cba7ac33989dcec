"""Files with the users of AUTH, by the schemes of their uri. Shell.

    file://     user:password          clear text, as the manual has it
    digest://   user:realm:md5hex      htdigest
    scram://    user:SCRAM-SHA-256$... what a server keeps for SCRAM (RFC 5803); `quillon password` makes such lines

Lines that begin with # are comments. A file is read again when it has changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Collection
from pathlib import Path

from quillon.config.model import Config
from quillon.smtp import sasl
from quillon.smtp.sasl import MIN_ITERATIONS, Secret, SourceError, parse_scram_record

LOOK_AGAIN = 1.0  # seconds
FILES = ("file", "digest", "scram")


def split_uri(uri: str) -> tuple[str, str]:
    """Scheme in lower case, and what stands behind it. Raises ValueError."""
    scheme, mark, rest = uri.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", scheme):
        raise ValueError(f"{uri!r} is no uri of credentials, such as file:///etc/quillon/users")
    return scheme.lower(), rest


def parse(scheme: str, text: str) -> dict[str, Secret]:
    """The users of a file. Raises ValueError, which names the line and never its content."""
    found: dict[str, Secret] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if scheme == "digest":
            user, _, rest = line.partition(":")
            realm, _, digest = rest.rpartition(":")
            if not user or not realm or not re.fullmatch(r"[0-9a-fA-F]{32}", digest.strip()):
                raise ValueError(f"line {number} is not user:realm:md5hex")
            known = dict(found[user].digests) if user in found else {}
            found[user] = Secret(digests=known | {realm: digest.strip().lower()})
            continue
        user, mark, rest = line.partition(":")
        if not user or not mark or not rest:
            raise ValueError(f"line {number} is not user:{'password' if scheme == 'file' else 'SCRAM-SHA-256$...'}")
        if scheme == "scram":
            try:
                found[user] = Secret(scram=parse_scram_record(rest.strip()))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        else:
            found[user] = Secret(password=rest)
    return found


def read(scheme: str, path: str) -> dict[str, Secret]:
    """Raises SourceError."""
    try:
        return parse(scheme, Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from None


class UserFile:
    """One file of users, looked at again after a while."""

    def __init__(self, scheme: str, path: str, now: Callable[[], float]) -> None:
        self._scheme = scheme
        self._path = path
        self._now = now
        self._look_at = 0.0
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, Secret] = {}
        self._key = b""
        self._shape = (MIN_ITERATIONS, 16)

    def __call__(self, user: str) -> Secret | None:
        """What is known of a user. Raises SourceError while the file cannot be read."""
        now = self._now()
        if now >= self._look_at:
            try:
                stat = Path(self._path).stat()
            except OSError as error:
                raise SourceError(f"cannot read {self._path}: {error.strerror}") from None
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._users = read(self._scheme, self._path)
                self._stamp = stamp
                self._key = hashlib.sha256(repr(sorted(self._users.items())).encode()).digest()
                first = next((secret.scram for secret in self._users.values() if secret.scram), None)
                self._shape = (first.iterations, len(first.salt)) if first else (MIN_ITERATIONS, 16)
            self._look_at = now + LOOK_AGAIN
        return self._users.get(user)

    async def fits(self, user: str, password: str) -> bool:
        """Whether a password is the user's. Raises SourceError."""
        secret = self(user)
        if self._scheme == "file":
            known = secret.password if secret is not None else None
            return hmac.compare_digest((known or "").encode(), password.encode()) and known is not None
        return await asyncio.to_thread(sasl.password_fits, user, password, secret)

    def likeness(self) -> tuple[bytes, int, int]:
        """A key that only this file's content gives; rounds and salt's octets of its records. Raises SourceError."""
        self("")
        return self._key, *self._shape


def faults(config: Config, schemes: Collection[str]) -> list[str]:
    """What is wrong with a configuration's sources: a file that cannot be read, a scheme that nobody has registered."""
    problems = []
    for node in config.root.walk():
        for name, entry in node.settings.items():
            if not re.fullmatch(r"auth(plain|login|crammd5|digestmd5|scramsha256)parameters", name):
                continue
            uri = next((value for key, value in entry.value.items() if key.lower() == "uri"), "")
            scheme, _, path = uri.partition("://")
            try:
                if scheme.lower() in FILES:
                    read(scheme.lower(), path)
                elif scheme.lower() == "ac_auth" and config.stanzas.module_nodes("ac_auth"):
                    continue
                elif scheme.lower() == "ac_auth":
                    raise SourceError("ac_auth:// needs a stanza ac_auth { }")
                elif scheme.lower() not in schemes:
                    raise SourceError(f"{scheme}:// is a source of credentials that nobody has registered")
            except SourceError as error:
                problems.append(f"{entry.position}: {error}")
    return problems
