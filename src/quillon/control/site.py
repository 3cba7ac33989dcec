"""What HTTP_Listener serves: metrics, health, the console as pages and as JSON, and mail in. An ASGI application.

Whatever is shown or done goes through `Console.ask`, as on a Unix socket: with the same commands, rights and log.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, quote

import jinja2
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from quillon import __version__
from quillon.control import partners, rendering, submission
from quillon.control.commands import Command, Role
from quillon.control.console import Console, ConsoleClient, ConsoleError, DeniedError
from quillon.control.guard import Guard, RequestRefused
from quillon.control.openapi import DESCRIPTION
from quillon.control.responses import problem, with_headers
from quillon.control.sign_in import SignIn
from quillon.control.submission import BadMessage, Workers
from quillon.log.posture import of_row
from quillon.mail.shown import printable

LARGEST = 64 << 20  # octets of a request that brings mail
COMMAND = 16384  # octets of a request that brings a command
BODY_SECONDS = 60.0  # until a request has come whole
HELD = 256 << 20  # octets of mail that have come and are not handed over
AT_ONCE = 2  # requests whose messages are built at a time
BEAT = 2.0  # seconds between two events of the stream
SHOWN = 500  # domains on a page
STREAMS = 50  # that are served at a time
SUBMIT = Command("submit", "", "mail in by HTTP", Role.OPERATE)
STATIC = {
    "icon.svg": "image/svg+xml",
    "style.css": "text/css",
    "app.js": "text/javascript",
    "uplot.min.js": "text/javascript",
    "uplot.min.css": "text/css",
}

Endpoint = Callable[[Request, ConsoleClient], Awaitable[Response]]


class WebSite:
    """The application of one Listen, by its name."""

    def __init__(self, name: str, console: Console, guard: Guard, workers: Workers) -> None:
        self._name = name
        self._console = console
        self._guard = guard
        self._sign_in = SignIn(guard.oidc, guard) if guard.oidc is not None else None
        self._workers = workers
        self._key = secrets.token_bytes(32)
        self._streams = 0
        self._held = 0
        self._room = asyncio.Semaphore(AT_ONCE)
        self._submissions: set[asyncio.Future[list[dict[str, Any]]]] = set()
        loader = jinja2.PackageLoader("quillon.control", "web")
        self._pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        self._pages.filters |= {"when": rendering.date, "span": rendering.span, "shown": printable}
        routes = [
            Route("/healthz", self._health),
            Route("/readyz", self._ready),
            Route("/static/{file}", self._static),
            Route("/favicon.ico", self._static),  # browsers ask for it beside what is no page, too
            *(self._sign_in.routes if self._sign_in is not None else []),
            self._route("/metrics", self._metrics),
            self._route("/", self._now),
            self._route("/events", self._events),
            self._route("/queues", self._queues),
            self._route("/domain/{domain:path}", self._domain),
            self._route("/message/{id:path}", self._message),
            self._route("/partners", self._partners),
            self._route("/partners/{domain:path}", self._partner),
            self._route("/configuration", self._configuration),
            self._route("/certificates", self._certificates),
            self._route("/order", self._order, "POST"),
            self._route("/api/v1/openapi.json", self._description),
            self._route("/api/v1/commands", self._commands, "POST"),
            self._route("/api/v1/queues", self._api_queues),
            self._route("/api/v1/messages", self._api_find),
            self._route("/api/v1/messages", self._submit, "POST"),
            self._route("/api/v1/messages/{id:path}", self._api_message),
        ]
        self.application = Starlette(routes=routes, exception_handlers={HTTPException: _problem, Exception: _problem})

    def _route(self, path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        """A route for those who may ask, with the headers that every answer has."""

        async def answer(request: Request) -> Response:
            try:
                peer = _endpoint(*(request.client or ("127.0.0.1", 0)))
                client = dataclasses.replace(await self._guard.client(request), listen=self._name, peer=peer)
                response = await endpoint(request, client)
            except RequestRefused as refused:
                response = problem(refused.status, str(refused))
                if refused.status == 401 and self._sign_in is not None and self._sign_in.leads(request):
                    response = self._sign_in.lead(request)
                elif refused.status == 401 and (self._guard.by_password or self._sign_in is None):
                    response.headers["WWW-Authenticate"] = 'Basic realm="quillon", charset="UTF-8"'
            except BadMessage as bad:
                response = problem(400, str(bad))
            except DeniedError as denied:
                response = problem(403, str(denied))
            except ConsoleError as error:
                response = problem(400, str(error))
            return with_headers(response)

        return Route(path, answer, methods=[method])

    async def _ask(self, client: ConsoleClient, *words: str) -> Any:
        """The merged answer to a command. Raises ConsoleError."""
        _, answer = await self._console.ask(client, shlex.join(words))
        if answer.error:
            raise ConsoleError(answer.error)
        return answer.merged

    # for machines ---------------------------------------------------------------------------------------------

    async def _health(self, _request: Request) -> Response:
        """Whether the processes are there."""
        return await self._state(lambda values: values.get("quillon_workers", 0) > 0, "no worker answers")

    async def _ready(self, _request: Request) -> Response:
        """Whether all workers take mail."""
        return await self._state(
            lambda values: values.get("quillon_workers", 0) > 0 and not values.get("quillon_spool_refusing"),
            "no new mail is taken",
        )

    async def _state(self, good: Callable[[dict[str, float]], bool], words: str) -> Response:
        try:
            values = await self._ask(ConsoleClient("health", None), "metrics")
        except ConsoleError as error:
            return PlainTextResponse(f"{error}\n", 503)
        return PlainTextResponse("ok\n") if good(values) else PlainTextResponse(f"{words}\n", 503)

    async def _metrics(self, _request: Request, client: ConsoleClient) -> Response:
        command, answer = await self._console.ask(client, "metrics")
        return PlainTextResponse(command.render(answer.merged), media_type="text/plain; version=0.0.4")

    async def _commands(self, request: Request, client: ConsoleClient) -> Response:
        """Any command of the console: `{"command": "mailq 5"}`, answered as `--json` does, or as text."""
        given = await _json(request, COMMAND)
        if not isinstance(given, dict) or not isinstance(given.get("command"), str):
            raise BadMessage('{"command": "..."} is expected')
        command, answer = await self._console.ask(client, given["command"])
        status = 400 if answer.error else 200
        if "text/plain" in request.headers.get("accept", ""):
            text = f"{answer.error}\n" if answer.error else answer.text(command)
            return PlainTextResponse(rendering.printable_lines(text), status)
        return JSONResponse(answer.told(), status)

    async def _api_queues(self, request: Request, client: ConsoleClient) -> Response:
        return JSONResponse(await self._ask(client, "mailq", request.query_params.get("limit", "20")))

    async def _api_find(self, request: Request, client: ConsoleClient) -> Response:
        return JSONResponse(await self._ask(client, "find", *_selection(request)))

    async def _api_message(self, request: Request, client: ConsoleClient) -> Response:
        """All that waits of a reception or of one message, with the reasons."""
        number = request.path_params["id"]
        found = await self._ask(client, "find", "--id", number)
        if not found["total"]:
            return problem(404, "nothing of this id waits: it is done, being delivered, or never was")
        why = await self._ask(client, "message", "why", found["items"][0]["id"])
        return JSONResponse({**found, "reasons": why.get("reasons", [])})

    async def _description(self, _request: Request, _client: ConsoleClient) -> Response:
        return JSONResponse({**DESCRIPTION, "info": {**DESCRIPTION["info"], "version": __version__}})

    # mail in --------------------------------------------------------------------------------------------------

    async def _submit(self, request: Request, client: ConsoleClient) -> Response:
        client.may(SUBMIT, SUBMIT.name)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("message/rfc822", "application/json"):
            return problem(415, "message/rfc822 or application/json is expected")
        octets = await self._mail(request)
        try:
            async with self._room:
                posted = await asyncio.to_thread(_posted, kind, octets, request.query_params)
            digest = hashlib.sha256(f"{request.url.query}\n".encode() + octets).digest()
        finally:
            self._held -= len(octets)
        key = request.headers.get("idempotency-key", "")
        # carried on although the client, or this server, goes: what became of it stays known by its key
        task = asyncio.ensure_future(self._workers.submit(posted, self._name, client.peer, client.user, key, digest))
        self._submissions.add(task)
        task.add_done_callback(self._submissions.discard)
        try:
            replies = await asyncio.shield(task)
        except OSError as error:
            return problem(503, str(error))
        worst = max((reply["code"] for reply in replies), default=250)
        status = 202 if worst < 400 else 503 if worst < 500 else 422
        return JSONResponse({"results": replies}, status)

    async def _mail(self, request: Request) -> bytes:
        """The octets of a request that brings mail. Raises Refused where too many are held already."""
        size = 0

        def count(octets: int) -> None:
            nonlocal size
            size += octets
            self._held += octets
            if self._held > HELD:
                raise RequestRefused(503, "too much mail is coming in at this moment")

        try:
            return await _body(request, LARGEST, count)
        except BaseException:
            self._held -= size
            raise

    # pages ----------------------------------------------------------------------------------------------------

    def _page(self, name: str, client: ConsoleClient, **values: Any) -> Response:
        values |= {"user": client.user, "token": self._token(client), "signs_out": self._sign_in is not None}
        text = self._pages.get_template(name).render(version=__version__, time=time.time(), **values)
        return HTMLResponse(text)

    def _token(self, client: ConsoleClient) -> str:
        """What a form of ours has, and one of another page can't."""
        return hmac.new(self._key, client.user.encode(), hashlib.sha256).hexdigest()

    async def _now(self, _request: Request, client: ConsoleClient) -> Response:
        summary, largest = await self._ask(client, "summary"), await self._ask(client, "mailq", "10")
        spool, held = await self._ask(client, "spool", "show"), await self._ask(client, "suspended")
        return self._page("now.html", client, summary=summary, queues=largest["queues"], spool=spool, held=held)

    async def _queues(self, request: Request, client: ConsoleClient) -> Response:
        if name := request.query_params.get("domain", "").strip():
            return RedirectResponse(f"/domain/{quote(name)}", 303)
        which = "delayed" if request.query_params.get("by") == "delayed" else "active"
        found = await self._ask(client, which)
        return self._page("queues.html", client, found=found, which=which)

    async def _domain(self, request: Request, client: ConsoleClient) -> Response:
        name = request.path_params["domain"]
        rows = await self._ask(client, "domain", name)
        found = await self._ask(client, "find", "--domain", name, "--limit", "50")
        return self._page("domain.html", client, domain=name, rows=rows, found=found)

    async def _message(self, request: Request, client: ConsoleClient) -> Response:
        found = await self._ask(client, "message", "why", request.path_params["id"])
        return self._page("message.html", client, message=found["message"], reasons=found.get("reasons", []))

    async def _configuration(self, request: Request, client: ConsoleClient) -> Response:
        """What holds for a domain, with places; that of no domain in particular without one."""
        domain = request.query_params.get("domain", "").strip() or "example.invalid"
        option = request.query_params.get("option", "").strip()
        try:
            found, problem = await self._ask(client, "config", "explain", domain, *([option] if option else [])), ""
        except DeniedError:
            raise
        except ConsoleError as error:
            found, problem = {"goes_to": "", "options": []}, str(error)
        return self._page("configuration.html", client, domain=domain, option=option, found=found, problem=problem)

    async def _partners(self, request: Request, client: ConsoleClient) -> Response:
        """What all domains that mail was sent to did with TLS in the last days."""
        if name := request.query_params.get("domain", "").strip():
            return RedirectResponse(f"/partners/{quote(name)}", 303)
        try:
            found, trouble = await self._ask(client, "posture", "all", "7"), ""
        except DeniedError:
            raise
        except ConsoleError as error:
            found, trouble = {"domains": []}, str(error)
        return self._page(
            "partners.html", client, domains=found["domains"][:SHOWN], problem=trouble, soon=partners.SOON
        )

    async def _partner(self, request: Request, client: ConsoleClient) -> Response:
        """One domain day by day, with what others report of it if it is ours."""
        domain = request.path_params["domain"]
        try:
            found, trouble = await self._ask(client, "posture", domain, "90"), ""
        except DeniedError:
            raise
        except ConsoleError as error:
            found, trouble = {"days": [], "reports": []}, str(error)
        plot = partners.plotted(found["days"])
        days = [partners.day_lines(of_row(row), row["changes"]) for row in reversed(found["days"])]
        reports = [line for row in reversed(found["reports"]) for line in partners.report_lines(row)]
        return self._page("partner.html", client, domain=domain, plot=plot, days=days, reports=reports, problem=trouble)

    async def _certificates(self, _request: Request, client: ConsoleClient) -> Response:
        values = await self._ask(client, "metrics")
        prefix = 'quillon_certificate_expiry_timestamp_seconds{file="'
        ends = {name.removeprefix(prefix)[:-2]: end for name, end in values.items() if name.startswith(prefix)}
        failures = {name: count for name, count in values.items() if name.startswith("quillon_tls_failures_total")}
        return self._page("certificates.html", client, ends=sorted(ends.items()), failures=sorted(failures.items()))

    async def _order(self, request: Request, client: ConsoleClient) -> Response:
        """A command that a form sends, counted first and done once it is confirmed."""
        try:
            given = dict(parse_qsl((await _body(request, COMMAND)).decode("utf-8", "replace"), max_num_fields=20))
        except ValueError:
            raise BadMessage("more fields than a form of ours has") from None
        if not hmac.compare_digest(str(given.get("token", "")).encode(), self._token(client).encode()):
            raise RequestRefused(403, "this form is too old, or not of this page: load it again")
        line = str(given.get("command", ""))
        if given.get("yes"):
            line += " --yes"
        command, answer = await self._console.ask(client, line)
        if answer.error.endswith(rendering.CONFIRM):
            return self._page(
                "confirm.html", client, command=line, count=answer.merged["count"], what=answer.merged["what"]
            )
        if answer.error:
            raise ConsoleError(answer.error)
        back = str(given.get("back", "/"))
        text = answer.text(command)
        return self._page("done.html", client, command=line, text=text, back=back if back.startswith("/") else "/")

    async def _events(self, _request: Request, client: ConsoleClient) -> Response:
        """Sizes and rates, as server-sent events."""
        if self._streams >= STREAMS:
            return problem(503, "too many streams")

        client = dataclasses.replace(client, listen="")

        async def stream() -> AsyncIterator[str]:
            self._streams += 1
            try:
                while True:
                    try:
                        yield f"data: {json.dumps(await self._ask(client, 'summary'))}\n\n"
                    except ConsoleError as error:
                        yield f"event: trouble\ndata: {json.dumps(str(error))}\n\n"
                    await asyncio.sleep(BEAT)
            finally:
                self._streams -= 1

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _static(self, request: Request) -> Response:
        name = request.path_params.get("file", "icon.svg")
        if name not in STATIC:
            raise HTTPException(404)
        data = await asyncio.to_thread((files("quillon.control") / "web" / name).read_bytes)
        return with_headers(Response(data, media_type=STATIC[name], headers={"Cache-Control": "max-age=3600"}))


def _endpoint(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


async def _problem(_request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail)
    return problem(500, f"unexpected {error!r}")


def _selection(request: Request) -> list[str]:
    """Query parameters as options of the console: `domain=x.test&older=2h`, or `all`."""
    words = []
    for name, value in request.query_params.multi_items():
        words += [f"--{name}"] if name == "all" else [f"--{name}", value]
    return words


async def _body(request: Request, most: int, count: Callable[[int], None] = lambda _: None) -> bytes:
    """The octets of a request, which `count` is told of. Raises Refused for too many, or where they do not come."""
    pieces, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise RequestRefused(413, f"more than {most} octets")
                count(len(piece))
                pieces.append(piece)
    except TimeoutError:
        raise RequestRefused(408, "the request did not come whole") from None
    return b"".join(pieces)


async def _json(request: Request, most: int) -> Any:
    octets = await _body(request, most)
    try:
        return json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"no JSON: {error}") from None


def _posted(kind: str, octets: bytes, query: QueryParams) -> list[submission.Posted]:
    """The messages of a request. Raises BadMessage."""
    if kind == "message/rfc822":
        return [submission.raw(query.get("sender", ""), query.getlist("recipient"), octets)]
    try:
        given = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"no JSON: {error}") from None
    return [one for item in (given if isinstance(given, list) else [given]) for one in submission.from_json(item)]
