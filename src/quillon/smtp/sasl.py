"""SASL mechanisms of the receiving role (RFC 4422), as machines without I/O.

An exchange is begun with the initial response, if the client sent one, and is then given each further response. It
answers with a `Challenge` to be sent, an `Attempt` that is over, or a `Malformed` response. Mechanisms that never see
the password (CRAM-MD5, DIGEST-MD5, SCRAM-SHA-256) decide by themselves, with what a `Lookup` knows of the user; PLAIN
and LOGIN give the password to whoever can check it.

Which one to offer: SCRAM-SHA-256. CRAM-MD5 (RFC 2195) and DIGEST-MD5 (RFC 2831, moved to historic by RFC 6331) are
here because the manual has them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

MAX_RESPONSE = 12288  # octets of base64, RFC 4954 4
CLEARTEXT = ("PLAIN", "LOGIN")
MECHANISMS = ("SCRAM-SHA-256", "DIGEST-MD5", "CRAM-MD5", "LOGIN", "PLAIN")
_SCRAM_RECORD = re.compile(r"SCRAM-SHA-256\$([0-9]{1,7}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
MIN_ITERATIONS = 4096  # RFC 7677 4


class Challenge(NamedTuple):
    """Octets for the client, to be sent as 334 and base64."""

    data: bytes


class AuthOutcome(NamedTuple):
    """The exchange is over. `ok` None leaves it to a check of the password, `error` says why nobody could decide."""

    user: str
    ok: bool | None
    password: str = ""
    error: str = ""


class Malformed(NamedTuple):
    """The response is not what the mechanism has."""

    why: str


Step = Challenge | AuthOutcome | Malformed


class SourceError(Exception):
    """The source of credentials cannot be read; the message says which and why."""


class ScramSecret(NamedTuple):
    """What a server keeps of a password (RFC 5803)."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes


@dataclass(frozen=True, slots=True)
class Secret:
    """What is known of a user: the password itself, DIGEST-MD5's hash by realm (hex), or what SCRAM keeps."""

    password: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    scram: ScramSecret | None = None


class CredentialLookup(Protocol):
    def __call__(self, user: str) -> Secret | None:
        """What is known of a user, None for one that is not known. Raises SourceError."""


@dataclass(frozen=True, slots=True)
class SaslServer:
    """What mechanisms need: the host name, DIGEST-MD5's realm, credentials, a source of nonces, and a key from
    which the salt of users that do not exist is made, with rounds and octets of salt as the others have them."""

    hostname: str
    realm: str
    lookup: CredentialLookup
    nonce: Callable[[], str]
    key: bytes
    iterations: int = MIN_ITERATIONS
    salt_length: int = 16


class Exchange(Protocol):
    def step(self, response: bytes | None) -> Step:
        """The next step; None stands for a missing initial response."""


def decode(text: bytes) -> bytes | None:
    """A response line as octets; None if it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def exchange(mechanism: str, server: SaslServer) -> Exchange:
    """A machine for one of MECHANISMS."""
    return _KINDS[mechanism](server)


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


class Plain:
    """RFC 4616: authorization identity, user and password, with NUL between them."""

    def __init__(self, server: SaslServer) -> None:
        pass

    def step(self, response: bytes | None) -> Step:
        if response is None:
            return Challenge(b"")
        text = _text(response)
        parts = text.split("\0") if text is not None else []
        if len(parts) != 3 or not parts[1]:
            return Malformed("not authzid NUL authcid NUL password")
        authzid, user, password = parts
        if authzid not in ("", user):
            return AuthOutcome(user, False)  # nobody may act for somebody else
        return AuthOutcome(user, None, password)


class LoginMechanism:
    """The old mechanism without an RFC: two challenges, user and password."""

    def __init__(self, server: SaslServer) -> None:
        self._user: str | None = None

    def step(self, response: bytes | None) -> Step:
        if response is None:
            return Challenge(b"Username:")
        text = _text(response)
        if text is None or "\0" in text:
            return Malformed("not UTF-8")
        if self._user is None:
            self._user = text
            return Challenge(b"Password:")
        return AuthOutcome(self._user, None, text)


class CramMd5:
    """RFC 2195."""

    def __init__(self, server: SaslServer) -> None:
        self._server = server
        self._challenge = f"<{server.nonce()}@{server.hostname}>".encode("ascii", "replace")

    def step(self, response: bytes | None) -> Step:
        if response is None:
            return Challenge(self._challenge)
        user, space, digest = (_text(response) or "").rpartition(" ")
        if not space or not re.fullmatch(r"[0-9a-fA-F]{32}", digest):
            return Malformed("not user and digest")
        try:
            secret = self._server.lookup(user)
        except SourceError as error:
            return AuthOutcome(user, False, error=str(error))
        known = secret.password if secret is not None else None
        expected = hmac.new((known or "").encode(), self._challenge, hashlib.md5).hexdigest()
        return AuthOutcome(user, hmac.compare_digest(expected, digest.lower()) and known is not None)


_PAIR = re.compile(r'\s*([a-zA-Z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|\Z)')


class DigestMd5:
    """RFC 2831, with qop=auth and without a security layer."""

    def __init__(self, server: SaslServer) -> None:
        self._server = server
        self._nonce = server.nonce()
        self._proved: AuthOutcome | None = None

    def step(self, response: bytes | None) -> Step:
        if self._proved is not None:
            return self._proved  # the client has acknowledged our proof
        if response is None:
            server = self._server
            words = f'realm="{server.realm}",nonce="{self._nonce}",qop="auth",charset=utf-8,algorithm=md5-sess'
            return Challenge(words.encode())
        fields = self._fields(response)
        if fields is None:
            return Malformed("not a digest response")
        user = fields["username"]
        try:
            secret = self._server.lookup(user)
        except SourceError as error:
            return AuthOutcome(user, False, error=str(error))
        start = self._start(user, secret)
        if start is None or not self._fits(fields):
            return AuthOutcome(user, False)
        if not hmac.compare_digest(
            _digest(start, fields, "AUTHENTICATE").encode(), fields["response"].lower().encode()
        ):
            return AuthOutcome(user, False)
        self._proved = AuthOutcome(user, True)
        return Challenge(b"rspauth=" + _digest(start, fields, "").encode("ascii"))

    def _fields(self, response: bytes) -> dict[str, str] | None:
        text = _text(response)
        at, found = 0, dict[str, str]()
        while text is not None and at < len(text):
            match = _PAIR.match(text, at)
            if match is None or match[1].lower() in found:
                return None
            quoted = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
            found[match[1].lower()] = quoted
            at = match.end()
        needed = ("username", "nonce", "cnonce", "nc", "digest-uri", "response")
        return found if all(name in found for name in needed) else None

    def _fits(self, fields: Mapping[str, str]) -> bool:
        return (
            fields["nonce"] == self._nonce
            and fields["nc"] == "00000001"
            and fields.get("qop", "auth") == "auth"
            and fields.get("realm", "") == self._server.realm
            and fields["digest-uri"].lower().startswith("smtp/")
        )

    def _start(self, user: str, secret: Secret | None) -> bytes | None:
        """H(user:realm:password)."""
        if secret is None:
            return None
        known = secret.digests.get(self._server.realm)
        if known is not None:
            return bytes.fromhex(known)
        if secret.password is None:
            return None
        return digest_hash(user, self._server.realm, secret.password)


def digest_hash(user: str, realm: str, password: str) -> bytes:
    """What htdigest files hold, as octets (RFC 2831 2.1.2.1)."""
    return hashlib.md5(f"{user}:{realm}:{password}".encode(), usedforsecurity=False).digest()


def _digest(start: bytes, fields: Mapping[str, str], method: str) -> str:
    def md5(data: bytes) -> str:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    a1 = start + f":{fields['nonce']}:{fields['cnonce']}".encode()
    if fields.get("authzid"):
        a1 += f":{fields['authzid']}".encode()
    a2 = f"{method}:{fields['digest-uri']}".encode()
    middle = f":{fields['nonce']}:{fields['nc']}:{fields['cnonce']}:auth:"
    return md5((md5(a1) + middle + md5(a2)).encode())


class ScramSha256:
    """RFC 5802 and 7677, without channel binding."""

    def __init__(self, server: SaslServer) -> None:
        self._server = server
        self._user = ""
        self._secret: ScramSecret | None = None
        self._known = False
        self._first = ""
        self._header = ""
        self._nonce = ""
        self._server_first = ""
        self._proved: AuthOutcome | None = None

    def step(self, response: bytes | None) -> Step:
        if self._proved is not None:
            return self._proved
        if response is None:
            return Challenge(b"")
        text = _text(response)
        if text is None:
            return Malformed("not UTF-8")
        return self._answer_final(text) if self._server_first else self._answer_first(text)

    def _answer_first(self, text: str) -> Step:
        match = re.fullmatch(r"([nyp](?:=[A-Za-z0-9.-]+)?,(a=[^,]*)?,)(n=([^,]*),r=([!-+\--~]+))", text)
        if match is None:
            return Malformed("not a client-first-message")
        if match[1].startswith("p"):
            return Malformed("channel binding is not offered")
        user = match[4].replace("=2C", ",").replace("=3D", "=")
        self._user, self._header, self._first = user, match[1], match[3]
        if match[2] and match[2][2:] not in ("", match[4]):
            return AuthOutcome(user, False)
        try:
            found = self._server.lookup(user)
        except SourceError as error:
            return AuthOutcome(user, False, error=str(error))
        self._secret = self._secret_of(found)
        self._known = found is not None and (found.scram is not None or found.password is not None)
        self._nonce = match[5] + self._server.nonce()
        salt = base64.b64encode(self._secret.salt).decode("ascii")
        self._server_first = f"r={self._nonce},s={salt},i={self._secret.iterations}"
        return Challenge(self._server_first.encode())

    def _secret_of(self, found: Secret | None) -> ScramSecret:
        """What is kept of the password; for a user that does not exist something that looks the same each time."""
        if found is not None and found.scram is not None:
            return found.scram
        server = self._server
        salt = (hmac.digest(server.key, self._user.encode(), "sha256") * 4)[: server.salt_length]
        if found is None or found.password is None:
            return ScramSecret(server.iterations, salt, salt.ljust(32, b"\0")[:32], b"\0" * 32)
        return scram_secret(found.password, salt, server.iterations)

    def _answer_final(self, text: str) -> Step:
        match = re.fullmatch(r"(c=([A-Za-z0-9+/=]+),r=([!-+\--~]+)(?:,[^p][^,]*)*),p=([A-Za-z0-9+/=]+)", text)
        proof = decode(match[4].encode("ascii")) if match else None
        if match is None or proof is None or self._secret is None:
            return Malformed("not a client-final-message")
        fits = decode(match[2].encode("ascii")) == self._header.encode() and match[3] == self._nonce
        auth = f"{self._first},{self._server_first},{match[1]}".encode()
        signature = hmac.digest(self._secret.stored_key, auth, "sha256")
        key = bytes(a ^ b for a, b in zip(proof, signature, strict=False))
        good = len(proof) == len(signature) and hmac.compare_digest(
            hashlib.sha256(key).digest(), self._secret.stored_key
        )
        if not (good and fits and self._known):
            return AuthOutcome(self._user, False)
        self._proved = AuthOutcome(self._user, True)
        ours = hmac.digest(self._secret.server_key, auth, "sha256")
        return Challenge(b"v=" + base64.b64encode(ours))


def scram_secret(password: str, salt: bytes, iterations: int) -> ScramSecret:
    """What to keep of a password (RFC 5802 3)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return ScramSecret(iterations, salt, hashlib.sha256(client_key).digest(), server_key)


def scram_record(secret: ScramSecret) -> str:
    """`SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (RFC 5803 3)."""
    salt, stored, server = (
        base64.b64encode(part).decode("ascii") for part in (secret.salt, secret.stored_key, secret.server_key)
    )
    return f"SCRAM-SHA-256${secret.iterations}:{salt}${stored}:{server}"


def parse_scram_record(text: str) -> ScramSecret:
    """Raises ValueError."""
    match = _SCRAM_RECORD.fullmatch(text)
    parts = [decode(part.encode("ascii")) for part in match.groups()[1:]] if match else []
    if match is None or None in parts or len(parts[1] or b"") != 32 or len(parts[2] or b"") != 32:
        raise ValueError("this is no SCRAM-SHA-256 record (RFC 5803)")
    if int(match[1]) < MIN_ITERATIONS:
        raise ValueError(f"{match[1]} iterations are fewer than {MIN_ITERATIONS}")
    salt, stored, server = (part or b"" for part in parts)
    return ScramSecret(int(match[1]), salt, stored, server)


def password_fits(user: str, password: str, secret: Secret | None) -> bool:
    """Whether a password is the one that a secret was made from; takes as long for users that do not exist."""
    if secret is None:
        scram_secret(password, b"0123456789abcdef", MIN_ITERATIONS)
        return False
    if secret.password is not None:
        return hmac.compare_digest(secret.password.encode(), password.encode())
    if secret.scram is not None:
        made = scram_secret(password, secret.scram.salt, secret.scram.iterations)
        return hmac.compare_digest(made.stored_key, secret.scram.stored_key)
    fits = False
    for realm, digest in secret.digests.items():
        fits |= hmac.compare_digest(digest_hash(user, realm, password).hex(), digest)
    return fits


_KINDS: dict[str, Callable[[SaslServer], Exchange]] = {
    "PLAIN": Plain,
    "LOGIN": LoginMechanism,
    "CRAM-MD5": CramMd5,
    "DIGEST-MD5": DigestMd5,
    "SCRAM-SHA-256": ScramSha256,
}
