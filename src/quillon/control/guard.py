"""Who is at the other end of HTTP, and whether a browser was led here by another page.

A certificate that verified, a name and password (Basic, RFC 7617), or a session that an OpenID provider has vouched for
say who it is. A listener that asks for neither
can be reached from this machine alone; whoever comes there may look, and nothing else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from starlette.requests import HTTPConnection

from quillon.control.authority import AccessRules
from quillon.control.commands import Role
from quillon.control.console import ConsoleClient
from quillon.control.oidc import OidcLogin
from quillon.listener.credentials import UserFile, split_uri
from quillon.net.clock import Clock
from quillon.smtp.sasl import SourceError

SESSION = "__Host-quillon"  # the cookie of somebody who has signed in
LOGIN = "__Host-quillon-login"  # and of somebody who is about to
ANYBODY = "anybody"  # as whom a client is known that need not say who it is
LOCAL = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none at all a browser says `Origin: null` of our own forms
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class RequestRefused(Exception):
    """A request that is not answered; `status` is that of HTTP."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Guard:
    """Of one Listen: `users` is the uri of the file with their passwords, `rights` what rules the commands of those who
    have proven who they are, None for nothing."""

    def __init__(
        self,
        clock: Clock,
        users: str | None,
        *,
        by_certificate: bool,
        rights: AccessRules | None,
        oidc: OidcLogin | None = None,
    ) -> None:
        self.oidc = oidc
        self._users = UserFile(*split_uri(users), clock.now) if users else None
        self._by_certificate = by_certificate
        self._rights = rights

    @property
    def asks(self) -> bool:
        """Whether a client has to prove who it is."""
        return self._users is not None or self._by_certificate or self.oidc is not None

    @property
    def by_password(self) -> bool:
        """Whether a password says who somebody is."""
        return self._users is not None

    async def client(self, request: HTTPConnection) -> ConsoleClient:
        """Who asks. Raises Refused for one that does not prove it, or that another page sends."""
        self.check_origin(request)
        if not self.asks:
            return ConsoleClient(ANYBODY, AccessRules(None, {}, Role.VIEW))
        name = common_name(getattr(request.state, "certificate", None)) if self._by_certificate else ""
        if not name and self.oidc is not None and "authorization" not in request.headers:
            user = self.oidc.who(request.cookies.get(SESSION, ""))
            if user is None:
                raise RequestRefused(401, "say who you are: sign in")
            if request.scope.get("method", "GET") not in ("GET", "HEAD") and "origin" not in request.headers:
                raise RequestRefused(403, "it is not known which page has sent this")  # a cookie comes by itself
            return ConsoleClient(user.name, user.rules(self._rights))
        return ConsoleClient(name or await self._user(request.headers.get("authorization", "")), self._rights)

    async def _user(self, header: str) -> str:
        scheme, _, text = header.partition(" ")
        if self._users is None or scheme.lower() != "basic":
            raise RequestRefused(401, "say who you are: a user and a password, or a certificate")
        try:
            user, colon, password = base64.b64decode(text, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise RequestRefused(400, "the Authorization field cannot be read") from None
        try:
            good = bool(colon) and await self._users.fits(user, password)
        except SourceError as error:
            raise RequestRefused(503, f"users cannot be looked up: {error}") from None
        if not good:
            raise RequestRefused(401, "wrong user or password")
        return user

    def check_origin(self, request: HTTPConnection) -> None:
        """A browser says which page a request comes from; a name that leads here by somebody's DNS is no name of ours
        where nothing else tells clients apart."""
        host = request.headers.get("host", "")
        if not self.asks and host.rpartition(":")[0].lower() not in LOCAL and host.lower() not in LOCAL:
            raise RequestRefused(421, f"{host!r:.80} is no name of this server")
        if request.scope.get("method", "GET") in ("GET", "HEAD"):
            return
        origin = request.headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if foreign or request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise RequestRefused(403, "another page has sent this")


def common_name(certificate: Mapping[str, Any] | None) -> str:
    """The common name of a certificate as `SSLSocket.getpeercert` gives it."""
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""
