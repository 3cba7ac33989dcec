"""AUTH of a worker's sessions: sources of credentials, and whether what a client gave fits. Shell."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quillon.config.settings import ReceptionSettings
from quillon.listener.credentials import FILES, UserFile, split_uri
from quillon.net.clock import Clock
from quillon.policy.environment import Authenticate
from quillon.smtp import sasl
from quillon.smtp.sasl import MECHANISMS, AuthOutcome, Exchange, SaslServer, Secret, SourceError

OK, FAIL = 1, 0  # msys.core.EC_AUTH_OK, EC_AUTH_FAIL
WORKING_CHECKS = 2  # passwords that are hashed at the same time


def parameters(settings: ReceptionSettings, mechanism: str) -> Mapping[str, str] | None:
    """The AuthXxxParameters of a mechanism, names in lower case; None where the configuration has none."""
    found: Mapping[str, str] | None = {
        "PLAIN": settings.authplainparameters,
        "LOGIN": settings.authloginparameters,
        "CRAM-MD5": settings.authcrammd5parameters,
        "DIGEST-MD5": settings.authdigestmd5parameters,
        "SCRAM-SHA-256": settings.authscramsha256parameters,
    }[mechanism]
    return {key.lower(): value for key, value in found.items()} if found else None


def scheme(settings: ReceptionSettings, mechanism: str) -> str:
    """The scheme of a mechanism's uri."""
    return split_uri((parameters(settings, mechanism) or {})["uri"])[0]


def mechanisms(settings: ReceptionSettings) -> tuple[str, ...]:
    """Those that SMTP_Extensions lists and that have parameters, the best first."""
    listed = {word for name in settings.smtp_extensions if name.startswith("AUTH ") for word in name.split()[1:]}
    return tuple(m for m in MECHANISMS if m in listed and parameters(settings, m) is not None)


@dataclass
class Authenticator:
    """`schemes` are those that scripts have registered; `report` gets one line for each source that fails."""

    clock: Clock
    report: Callable[[str], None]
    schemes: Mapping[str, Authenticate] = field(default_factory=dict)
    _files: dict[tuple[str, str], UserFile] = field(default_factory=dict)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(WORKING_CHECKS))

    def begin(self, settings: ReceptionSettings, mechanism: str, hostname: str) -> Exchange:
        """A machine for the dialog of a mechanism."""
        given = parameters(settings, mechanism) or {}
        realm = given.get("realm", hostname)

        def lookup(user: str) -> Secret | None:
            secret = self._source(given)(user)
            hashed = mechanism == "DIGEST-MD5" and split_uri(given["uri"])[0] == "file"
            if hashed and secret is not None and given.get("stored_cleartext", "false").lower() != "true":
                # the manual: a source of DIGEST-MD5 holds hashes unless it says that it holds the passwords
                return Secret(digests={realm: secret.password or ""})
            return secret

        # the salt of a user that does not exist is the same in every worker, as that of one that does
        key, iterations, salt = self._likeness(given)
        server = SaslServer(hostname, realm, lookup, lambda: secrets.token_hex(16), key, iterations, salt)
        return sasl.exchange(mechanism, server)

    def _likeness(self, given: Mapping[str, str]) -> tuple[bytes, int, int]:
        """What makes up records of users that do not exist: a key, rounds, and octets of salt."""
        try:
            return self._source(given).likeness()
        except SourceError:
            return secrets.token_bytes(32), sasl.MIN_ITERATIONS, 16

    def _source(self, given: Mapping[str, str]) -> UserFile:
        """Raises SourceError for a scheme that has no file."""
        scheme, path = split_uri(given["uri"])
        if scheme not in FILES:
            raise SourceError(f"{scheme}:// gives no credentials to this mechanism")
        found = self._files.get((scheme, path))
        if found is None:
            found = self._files[(scheme, path)] = UserFile(scheme, path, self.clock.now)
        return found

    async def decide(self, settings: ReceptionSettings, mechanism: str, attempt: AuthOutcome) -> str:
        """pass, fail, or error where the source of credentials does not answer."""
        if settings.always_deny:
            return "fail"
        if settings.always_allow:
            return "pass"
        try:
            if attempt.error:
                raise SourceError(attempt.error)
            good = attempt.ok if attempt.ok is not None else await self._fits(settings, mechanism, attempt)
        except SourceError as error:
            self.report(f"auth: {mechanism}: {error}")
            return "error"
        return "pass" if good else "fail"

    async def _fits(self, settings: ReceptionSettings, mechanism: str, attempt: AuthOutcome) -> bool:
        given = parameters(settings, mechanism) or {}
        scheme, rest = split_uri(given["uri"])
        registered = self.schemes.get(scheme)
        if registered is None:
            async with self._room:  # hashing takes milliseconds: other sessions go on meanwhile
                return await self._source(given).fits(attempt.user, attempt.password)
        try:
            said = await registered(rest, given, attempt.user, attempt.password)
        except Exception as error:
            # a script that fails is a source that does not answer
            raise SourceError(f"{scheme}://: {error}") from None
        if said not in (OK, FAIL):
            raise SourceError(f"{scheme}:// answered {said!r}")
        return bool(said == OK)
