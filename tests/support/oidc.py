"""An OpenID provider that lets in whom a test names, by starlette over real TLS."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.server import answers, free_port, until


class OidcProvider:
    """`claims` are those of the next ID token beside what belongs to the login; `spoil` changes what was made of it.
    `told` is what it tells of the user beside the token, None where there is no such place. `asked` are the forms that
    came for a token."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.port = free_port()
        self.issuer = f"https://127.0.0.1:{self.port}/realm"
        self.claims: dict[str, Any] = {}
        self.told: dict[str, Any] | None = None
        self.key: RSAKey | ECKey = RSAKey.generate_key(2048, parameters={"kid": "one"})
        self.published: KeySet | None = None
        self.token: str | None = None  # given instead of what is made
        self.header: dict[str, Any] = {}
        self.asked: list[dict[str, str]] = []
        self.secrets: list[str] = []
        self.issues: dict[str, dict[str, str]] = {}  # what was asked for, by code
        config = uvicorn.Config(
            self._application(), host="127.0.0.1", port=self.port, log_config=None,
            ssl_certfile=str(certificate), ssl_keyfile=str(key), lifespan="off", ws="none",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: answers(self.port), "the provider")

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)

    def _application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/realm/.well-known/openid-configuration", self._discovery),
                Route("/realm/authorize", self._authorize),
                Route("/realm/token", self._token, methods=["POST"]),
                Route("/realm/keys", self._keys),
                Route("/realm/me", self._userinfo),
            ]
        )

    async def _discovery(self, _request: Request) -> Response:
        names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        names |= {"userinfo_endpoint": "me"} if self.told is not None else {}
        return JSONResponse({"issuer": self.issuer, **{name: f"{self.issuer}/{at}" for name, at in names.items()}})

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        code = f"code-{len(self.issues)}"
        self.issues[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}", 303)

    async def _token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.asked.append(form)
        self.secrets.append(base64.b64decode(request.headers["authorization"].split()[1]).decode())
        asked = self.issues.pop(form["code"], None)
        proven = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        if asked is None or proven.decode() != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": asked["client_id"], "sub": "1", "iat": now, "exp": now + 60,
            "nonce": asked["nonce"], "email": "ann@bank.test", "email_verified": True, **self.claims,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        algorithm = "RS256" if isinstance(self.key, RSAKey) else "ES256"
        token = self.token or jwt.encode({"alg": algorithm, "kid": "one", **self.header}, claims, self.key)
        return JSONResponse({"access_token": "x.y", "token_type": "Bearer", "id_token": token})

    async def _userinfo(self, request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer x.y":
            return JSONResponse({"error": "invalid_token"}, 401)
        return JSONResponse(self.told)

    async def _keys(self, _request: Request) -> Response:
        published = self.published or KeySet([self.key])
        return JSONResponse(published.as_dict(private=False))
