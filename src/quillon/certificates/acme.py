"""Certificates by ACME (RFC 8555), by the package `acme`. Blocks: call it in a thread. Shell.

FOLDER/account.pem      the key of our account, for whichever server
FOLDER/account-*.json   where a server has that account
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import requests
from acme import challenges, client, errors, messages
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from quillon import __version__
from quillon.certificates import files
from quillon.config.settings import AcmeSettings

PATIENCE = 30  # seconds for one answer
DEADLINE = 300.0  # seconds for a certificate, from the first challenge on


class AcmeError(Exception):
    """No certificate was had; the message says what the server says."""


class NameChallenge(NamedTuple):
    """What has to be shown: by http-01 `value` under the path of `token`, by dns-01 `value` as TXT record of `name`."""

    kind: str
    name: str
    token: str
    value: str


Show = Callable[[NameChallenge], None]


def obtain(settings: AcmeSettings, folder: Path, csr: bytes, show: Show, hide: Show) -> bytes:
    """A certificate with its chain, in PEM, for a request. `show` has a challenge answered before it returns. Raises
    AcmeError, and what `show` raises."""
    shown: list[NameChallenge] = []
    try:
        server = _client(settings, folder)
        order = server.new_order(csr)
        for authorization in order.authorizations:
            if authorization.body.status == messages.STATUS_VALID:
                continue
            body = _wanted(authorization, settings.challenge)
            response, value = body.response_and_validation(server.net.key)
            shown.append(_challenge(settings.challenge, body, authorization.body.identifier.value, value))
            show(shown[-1])
            server.answer_challenge(body, response)
        deadline = datetime.now() + timedelta(seconds=DEADLINE)
        return server.poll_and_finalize(order, deadline).fullchain_pem.encode()
    except _TROUBLE as error:
        raise AcmeError(words(error)) from None
    finally:
        for challenge in shown:
            hide(challenge)


def renewal(settings: AcmeSettings, folder: Path, certificate: bytes) -> tuple[float | None, float]:
    """When the server wants a certificate to be renewed (RFC 9773), None where it does not say, and when to ask again.
    Raises AcmeError."""
    try:
        server = _client(settings, folder)
        at, again = server.renewal_time(certificate)
        return (at.timestamp() if at is not None else None), again.timestamp()
    except _TROUBLE as error:
        raise AcmeError(words(error)) from None


def words(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, errors.ValidationError):
        found = [
            f"{authorization.body.identifier.value}: {challenge.error.detail}"
            for authorization in error.failed_authzrs
            for challenge in authorization.body.challenges
            if challenge.error is not None
        ]
        return "; ".join(found) or "a challenge was not met"
    if isinstance(error, messages.Error):
        return f"{error.typ}: {error.detail}"
    return " ".join(str(error).split()) or type(error).__name__


_TROUBLE = (messages.Error, errors.Error, JoseError, requests.RequestException, OSError, ValueError, KeyError)


def _client(settings: AcmeSettings, folder: Path) -> client.ClientV2:
    """One that acts for our account, which is made where there is none yet."""
    key = JWKEC(key=_account_key(folder))
    net = client.ClientNetwork(key, alg=ES256, user_agent=f"Quillon/{__version__}", timeout=PATIENCE)
    net.verify_ssl = cast(bool, settings.directory_ca or True)  # requests takes a file of authorities, too
    net.session.trust_env = False
    server = client.ClientV2(client.ClientV2.get_directory(settings.directory, net), net)
    place = folder / f"account-{hashlib.sha256(settings.directory.encode()).hexdigest()[:16]}.json"
    try:
        uri = str(json.loads(place.read_bytes())["uri"])
    except FileNotFoundError:
        uri = _register(server, settings)
        files.put(str(place), json.dumps({"directory": settings.directory, "uri": uri}).encode(), 0o600)
    net.account = messages.RegistrationResource(uri=uri, body=messages.Registration())
    return server


def _register(server: client.ClientV2, settings: AcmeSettings) -> str:
    more: dict[str, Any] = {"email": settings.email} if settings.email else {}
    if settings.external_account:
        assert server.net.key is not None
        bound = messages.ExternalAccountBinding.from_data(
            server.net.key.public_key(), settings.external_account, settings.external_account_key, server.directory
        )
        more["external_account_binding"] = bound
    wanted = messages.NewRegistration.from_data(terms_of_service_agreed=True, **more)
    try:
        return str(server.new_account(wanted).uri)
    except errors.ConflictError as known:
        return str(known.location)


def _account_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    path = folder / "account.pem"
    if not path.exists():
        files.put(str(path), files.key_octets(files.make_key("ecdsa")), 0o600)
    key = files.load_key(str(path))
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AcmeError(f"{path}: it holds no ECDSA key")
    return key


def _wanted(authorization: Any, kind: str) -> Any:
    """The challenge of a kind that a server offers for a name."""
    for body in authorization.body.challenges:
        if body.chall.typ == kind:
            return body
    offered = ", ".join(str(body.chall.typ) for body in authorization.body.challenges)
    raise AcmeError(f"{authorization.body.identifier.value}: the server offers no {kind} but {offered}")


def _challenge(kind: str, body: Any, name: str, value: str) -> NameChallenge:
    if kind == "dns-01":
        return NameChallenge(kind, body.chall.validation_domain_name(name), "", value)
    assert isinstance(body.chall, challenges.HTTP01)
    return NameChallenge(kind, name, os.path.basename(body.chall.path), value)


def lifetime_left(certificate: Any, now: float) -> tuple[float, float]:
    """Seconds that a certificate has, and how many of them are left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (end - begin).total_seconds(), (end - datetime.fromtimestamp(now, UTC)).total_seconds()
