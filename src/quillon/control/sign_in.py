"""The pages of signing in: to the provider, back from it, and out again. What is known of a login is in `oidc`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from quillon.control.guard import LOGIN, SESSION, Guard, RequestRefused
from quillon.control.oidc import LOGIN_SECONDS, SESSION_SECONDS, OidcError, OidcLogin
from quillon.control.responses import problem, with_headers

LONGEST = 1000  # characters of an address that a login leads back to: it goes into a cookie
_OWN_PATH = re.compile(r"/(?![/\\])[^\x00-\x20\\]*")  # no address of another server, however a browser reads it


class SignIn:
    """Of one Listen."""

    def __init__(self, oidc: OidcLogin, guard: Guard) -> None:
        self._oidc = oidc
        self._guard = guard
        self.routes = [
            self._route("/login", self._begin, "GET", 503),
            self._route("/login/callback", self._finish, "GET", 403),
            self._route("/logout", self._leave, "POST", 403),
        ]

    def leads(self, request: Request) -> bool:
        """Whether it is a browser, which can be sent to the provider."""
        page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        return page and "authorization" not in request.headers

    def lead(self, request: Request) -> Response:
        """To the login, and from there back to what was asked for."""
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?{urlencode({'back': back})}", 303)

    def _route(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str, failed: int) -> Route:
        """A route for everybody; `failed` is the status where nobody is signed in."""

        async def answer(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except OidcError as error:
                response = problem(failed, str(error))
            except RequestRefused as refused:
                response = problem(refused.status, str(refused))
            return with_headers(response)

        return Route(path, answer, methods=[method])

    async def _begin(self, request: Request) -> Response:
        back = request.query_params.get("back", "/")
        url, begun = await self._oidc.begin(back if _OWN_PATH.fullmatch(back) and len(back) <= LONGEST else "/")
        response = RedirectResponse(url, 303)
        _set(response, LOGIN, begun, LOGIN_SECONDS)
        return response

    async def _finish(self, request: Request) -> Response:
        session, back = await self._oidc.finish(request.query_params, request.cookies.get(LOGIN, ""))
        response = RedirectResponse(back, 303)
        _set(response, LOGIN, "", 0)
        _set(response, SESSION, session, SESSION_SECONDS)
        return response

    async def _leave(self, request: Request) -> Response:
        self._guard.check_origin(request)
        self._oidc.leave(request.cookies.get(SESSION, ""))
        response = PlainTextResponse("signed out\n")
        _set(response, SESSION, "", 0)
        return response


def _set(response: Response, name: str, value: str, seconds: float) -> None:
    """A cookie of ours; with no seconds it is taken back."""
    expires = None if seconds else 0
    response.set_cookie(name, value, max_age=int(seconds), expires=expires, secure=True, httponly=True, samesite="lax")
