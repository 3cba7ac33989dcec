"""Signing in with OpenID Connect: the authorization code flow with PKCE (OpenID Connect Core 1.0, RFC 6749, RFC 7636).

Whoever the provider vouches for has a session here, in memory and for hours; what he may do, the configuration and the
groups that the provider names say. Shell.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from quillon.config.settings import OidcProvider
from quillon.control.authority import AccessRules
from quillon.mail import shown
from quillon.net.clock import Clock

SESSION_SECONDS = 8 * 3600.0
LOGIN_SECONDS = 600.0  # for which a login that was begun may be finished
KNOWN_SECONDS = 3600.0  # for which what the provider publishes is good
AGAIN = 60.0  # seconds until keys are looked for again because one is unknown
REST = 5.0  # seconds for which a provider that has failed is left alone
PATIENCE = 10.0  # seconds for an answer of the provider
LEEWAY = 60  # seconds that its clock may differ
MOST = 1000  # sessions
LARGEST = 1 << 20  # octets of an answer
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class OidcError(Exception):
    """Somebody cannot be signed in; the message says why."""


class OidcUser(NamedTuple):
    """Whom the provider vouches for."""

    name: str
    groups: tuple[str, ...]
    until: float

    def rules(self, given: AccessRules | None) -> AccessRules:
        """What he may do: as configured, and as his groups say. Without Enable_Authorization the groups alone say it:
        that somebody is known to the provider does not make him an operator."""
        return replace(given or AccessRules(None, {}), claimed=self.groups)


class _Begun(NamedTuple):
    """A login that a browser has begun."""

    state: str
    nonce: str
    verifier: str
    back: str
    until: float


class OidcLogin:
    """The logins of one Listen."""

    def __init__(self, given: OidcProvider, clock: Clock) -> None:
        self._given = given
        self._clock = clock
        self._key = secrets.token_bytes(32)  # signs what a browser keeps of a login that it has begun
        self._sessions: OrderedDict[str, OidcUser] = OrderedDict()  # by the digest of the cookie
        self._provider: tuple[float, dict[str, str]] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._failed: tuple[float, OidcError] | None = None  # until when the provider is not asked again, and why
        self._one_at_a_time = asyncio.Lock()
        self._tls: ssl.SSLContext | None = None

    @property
    def _callback(self) -> str:
        return f"{self._given.url.rstrip('/')}/login/callback"

    def who(self, cookie: str) -> OidcUser | None:
        """The user of a session."""
        found = self._sessions.get(_digest(cookie))
        return found if found is not None and found.until > self._clock.now() else None

    def leave(self, cookie: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(cookie), None)

    async def begin(self, back: str) -> tuple[str, str]:
        """Where a browser has to go, and the cookie that it has to bring back: who only begins leaves nothing here.
        Raises OidcError."""
        provider = await self._published()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self._given.client_id,
            "redirect_uri": self._callback,
            "scope": "openid email profile",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = provider["authorization_endpoint"]
        begun = _Begun(state, nonce, verifier, back, self._clock.now() + LOGIN_SECONDS)
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}", self._signed(begun)

    def _signed(self, begun: _Begun) -> str:
        octets = base64.urlsafe_b64encode(json.dumps(begun).encode())
        return f"{octets.decode()}.{hmac.new(self._key, octets, hashlib.sha256).hexdigest()}"

    def _read(self, cookie: str) -> _Begun | None:
        """What was signed; None for what was not."""
        octets, _, digest = cookie.encode("utf-8", "replace").partition(b".")
        if not hmac.compare_digest(hmac.new(self._key, octets, hashlib.sha256).hexdigest().encode(), digest):
            return None
        return _Begun(*json.loads(base64.urlsafe_b64decode(octets)))

    async def finish(self, answer: Mapping[str, str], cookie: str) -> tuple[str, str]:
        """The cookie of a new session, and where its browser wanted to go; `answer` is what it brings from the
        provider, `cookie` what it has from here. Raises OidcError."""
        begun = self._read(cookie)
        state = answer.get("state", "").encode("utf-8", "replace")
        good = begun is not None and hmac.compare_digest(state, begun.state.encode())
        if begun is None or not good or begun.until <= self._clock.now():
            raise OidcError("this login was not begun here, or too long ago: begin again")
        if "error" in answer:
            raise OidcError(f"the provider says: {shown.line(answer['error'], 200)}")
        if answer.get("iss", self._given.issuer) != self._given.issuer:
            raise OidcError("the answer is of another provider")  # RFC 9207
        user = self._user(await self._claims(answer.get("code", ""), begun))
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = user
        while len(self._sessions) > MOST:
            self._sessions.popitem(last=False)
        return session, begun.back

    async def _claims(self, code: str, begun: _Begun) -> dict[str, Any]:
        """What the provider says of whoever brought a code. Raises OidcError."""
        provider = await self._published()
        try:
            secret = (await asyncio.to_thread(Path(self._given.secret_file).read_text, "utf-8")).strip()
        except (OSError, ValueError) as error:
            raise OidcError(f"the client secret cannot be read: {error}") from None
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": begun.verifier,
        }
        told = await self._ask(provider["token_endpoint"], form, (self._given.client_id, secret))
        token = told.get("id_token")
        if not isinstance(token, str):
            raise OidcError(f"the provider gives no ID token: {shown.line(str(told.get('error', '')), 200)}")
        for keys in (await self._published_keys(), None):
            try:
                found = jwt.decode(token, keys or await self._published_keys(anew=True), algorithms=ALGORITHMS)
                break
            except (JoseError, ValueError, KeyError, TypeError) as error:
                if keys is None:
                    raise OidcError(f"the ID token does not verify: {error}") from None
        claims = dict(found.claims)
        rules = jwt.JWTClaimsRegistry(
            int(self._clock.now()),
            LEEWAY,
            iss={"essential": True, "value": self._given.issuer},
            aud={"essential": True, "value": self._given.client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": begun.nonce},
        )
        try:
            rules.validate(claims)
        except (JoseError, ValueError, TypeError) as error:
            raise OidcError(f"the ID token is not good: {error}") from None
        if claims["nonce"] != begun.nonce:  # a list of many would do for the rules
            raise OidcError("the ID token is not good: nonce")
        if claims.get("azp", self._given.client_id) != self._given.client_id:
            raise OidcError("the ID token is for somebody else")
        wanted = (self._given.user, self._given.groups)
        if "userinfo_endpoint" in provider and not all(name in claims for name in wanted):
            more = await self._more(provider["userinfo_endpoint"], told.get("access_token"), claims["sub"])
            if self._given.user not in claims:
                claims.pop("email_verified", None)  # it is about the address that stands beside it
            return {**more, **claims}
        return claims

    async def _more(self, url: str, token: Any, subject: str) -> dict[str, Any]:
        """What the provider tells of a user beside the token: many tell name and groups there only (OpenID Connect Core
        1.0, 5.3 and 5.4). Raises OidcError."""
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise OidcError("the provider gives no access token to ask for the user's name and groups with")
        found = await self._ask(url, headers={"Authorization": f"Bearer {token}"})
        if found.get("sub") != subject:
            raise OidcError("what the provider tells of the user is about somebody else")
        return found

    def _user(self, claims: Mapping[str, Any]) -> OidcUser:
        """Raises OidcError."""
        claim = self._given.user
        name = claims.get(claim)
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
            raise OidcError(f"the provider does not say who this is: there is no claim {claim!r}, or none of use")
        if claim == "email" and claims.get("email_verified") is not True:
            raise OidcError("the provider has not verified the email address (email_verified)")
        groups = claims.get(self._given.groups, [])
        groups = groups if isinstance(groups, list) else [groups]
        named = tuple(group for group in groups if isinstance(group, str))
        return OidcUser(name, named, self._clock.now() + SESSION_SECONDS)

    # the provider ---------------------------------------------------------------------------------------------

    async def _published(self) -> dict[str, str]:
        """Its endpoints (OpenID Connect Discovery 1.0). Raises OidcError."""
        async with self._one_at_a_time:
            now = self._clock.now()
            if self._provider is not None and self._provider[0] > now:
                return self._provider[1]
            if self._failed is not None and self._failed[0] > now:
                raise self._failed[1]  # whoever wants to sign in need not ask again
            try:
                endpoints = await self._discovered()
            except OidcError as error:
                self._failed = (now + REST, error)
                raise
            self._provider = (now + KNOWN_SECONDS, endpoints)
            return endpoints

    async def _discovered(self) -> dict[str, str]:
        issuer = self._given.issuer
        found = await self._ask(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise OidcError(f"{issuer} says that it is {shown.line(str(found.get('issuer')), 200)}")
        names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        endpoints = {name: str(found.get(name, "")) for name in names}
        bad = next((name for name, url in endpoints.items() if not url.startswith("https://")), "")
        if bad:
            raise OidcError(f"{issuer} names no https:// address as its {bad}")
        more = str(found.get("userinfo_endpoint", ""))
        return {**endpoints, "userinfo_endpoint": more} if more.startswith("https://") else endpoints

    async def _published_keys(self, *, anew: bool = False) -> KeySet:
        """Those that it signs with; `anew`: one is unknown, so that they are looked for again, but not at will. Raises
        OidcError."""
        now = self._clock.now()
        if self._keys is not None:
            age = now - self._keys[0]
            if age < (AGAIN if anew else KNOWN_SECONDS):
                return self._keys[1]
        found = await self._ask((await self._published())["jwks_uri"])
        keys = KeySet([])
        rows = found.get("keys")
        for row in [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []:
            # RFC 7517 5: a key of a kind that we do not know is none of ours
            with contextlib.suppress(JoseError, KeyError, TypeError, ValueError):
                keys.keys += KeySet.import_key_set({"keys": [row]}).keys
        if not keys.keys:
            raise OidcError("the provider has published no key that can be read")
        self._keys = (now, keys)
        return keys

    async def _ask(
        self,
        url: str,
        form: dict[str, str] | None = None,
        login: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """An object that the provider gives. Raises OidcError."""
        status, octets = 0, b""
        try:
            if self._tls is None:
                self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._given.ca)
            # RFC 6749 2.3.1: name and secret are form-encoded before they are put together
            auth = httpx.BasicAuth(*(urlencode({"": word})[1:] for word in login)) if login else None
            async with (
                asyncio.timeout(PATIENCE),
                httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=PATIENCE, auth=auth) as client,
                client.stream("POST" if form else "GET", url, data=form, headers=headers) as answer,
            ):
                status = answer.status_code
                async for piece in answer.aiter_bytes():
                    octets += piece
                    if len(octets) > LARGEST:
                        raise OidcError(f"{url}: more than {LARGEST} octets")
            found = json.loads(octets)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise OidcError(f"{url}: {error or type(error).__name__}") from None
        except (ValueError, RecursionError):
            raise OidcError(f"{url}: the answer is no JSON (status {status})") from None
        if not isinstance(found, dict) or (status != 200 and "error" not in found):
            raise OidcError(f"{url}: status {status}")
        return found


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).hexdigest()
