"""Certificates by ACME (RFC 8555), by the package `acme`. Blocks: call it in a thread. Shell.

FOLDER/account.pem      the key of our account, for whichever server
FOLDER/account-*.json   where a server has that account
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

from acme import challenges, client, errors, messages
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from quillon import __version__
from quillon.certificates import files
from quillon.config.settings import AcmeSettings
from quillon.mail import shown

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
    known: list[NameChallenge] = []
    with _alone(folder):
        return _obtained(settings, folder, csr, show, hide, known)


def _obtained(
    settings: AcmeSettings, folder: Path, csr: bytes, show: Show, hide: Show, known: list[NameChallenge]
) -> bytes:
    try:
        server = _client(settings, folder)
        order = server.new_order(csr)
        for authorization in order.authorizations:
            if authorization.body.status == messages.STATUS_VALID:
                continue
            body = _wanted(authorization, settings.challenge)
            response, value = body.response_and_validation(server.net.key)
            known.append(_challenge(settings.challenge, body, authorization.body.identifier.value, value))
            show(known[-1])
            server.answer_challenge(body, response)
        deadline = datetime.now() + timedelta(seconds=DEADLINE)
        return server.poll_and_finalize(order, deadline).fullchain_pem.encode()
    except (AcmeError, files.CertificateFileError):
        raise
    except Exception as error:  # what a server may say, and the packages that read it, have no bounds
        raise AcmeError(words(error)) from None
    finally:
        for challenge in known:
            hide(challenge)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process of ours orders at the same time. Raises AcmeError."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AcmeError("another process of ours has certificates made at this moment") from None
    finally:
        os.close(descriptor)


def renewal(settings: AcmeSettings, folder: Path, certificate: bytes) -> tuple[float | None, float]:
    """When the server wants a certificate to be renewed (RFC 9773), None where it does not say, and when to ask again.
    Raises AcmeError."""
    try:
        server = _client(settings, folder)
        at, again = server.renewal_time(certificate)
        return (at.timestamp() if at is not None else None), again.timestamp()
    except Exception as error:
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
    return shown.line(" ".join(str(error).split()) or type(error).__name__)


def _client(settings: AcmeSettings, folder: Path) -> client.ClientV2:
    """One that acts for our account, which is made where there is none yet."""
    key = JWKEC(key=_account_key(folder))
    net = client.ClientNetwork(key, alg=ES256, user_agent=f"Quillon/{__version__}", timeout=PATIENCE)
    net.verify_ssl = cast(bool, settings.directory_ca or True)  # requests takes a file of authorities, too
    net.session.trust_env = False
    server = client.ClientV2(client.ClientV2.get_directory(settings.directory, net), net)
    place = folder / f"account-{hashlib.sha256(settings.directory.encode()).hexdigest()[:16]}.json"
    try:
        net.account = _account(str(json.loads(place.read_bytes())["uri"]))
        server.query_registration(net.account)  # it may have forgotten us
    except (OSError, ValueError, KeyError, TypeError, messages.Error):
        net.account = None
        uri = _register(server, settings)
        files.put(str(place), json.dumps({"directory": settings.directory, "uri": uri}).encode(), 0o600)
        net.account = _account(uri)
    return server


def _account(uri: str) -> messages.RegistrationResource:
    return messages.RegistrationResource(uri=uri, body=messages.Registration())


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
