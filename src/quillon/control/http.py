"""HTTP servers of the control process, one for each Listen of HTTP_Listener: uvicorn around `site`. Shell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from quillon.config.settings import OidcProvider
from quillon.control import well_known
from quillon.control.authority import AccessRules
from quillon.control.console import Console
from quillon.control.guard import Guard
from quillon.control.messages import HttpSettings
from quillon.control.oidc import OidcLogin
from quillon.control.site import WebSite
from quillon.control.submission import Workers
from quillon.net.clock import Clock

MOST = 200  # connections at a time of all listeners with a console: descriptors are left for that
MOST_PUBLIC = 200  # and of all that everybody may ask
MOST_CLIENT = 20  # of them of one address
HEAD_SECONDS = 10.0  # until a request has begun, the first of a connection and each that follows
HANDSHAKE_SECONDS = 5.0
DRAIN = 2  # seconds that a server gives its clients when it ends


class _Protocol(H11Protocol):
    """uvicorn's own, which tells the application of the client's certificate (`request.state.certificate`), takes so
    many connections, and waits so long for each request to begin."""

    open: ClassVar[Counter[str]] = Counter()  # connections by the name of a pool, and by address of the public one
    pool: ClassVar[str] = "console"
    most: ClassVar[int] = MOST
    _counted: tuple[str, ...] = ()
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        own = (self.pool, *self._places(transport))
        if _Protocol.open[own[0]] >= self.most or any(_Protocol.open[name] >= MOST_CLIENT for name in own[1:]):
            transport.abort()
            return
        self._counted = own
        _Protocol.open.update(own)
        certificate = transport.get_extra_info("peercert")
        if certificate:
            self.app_state = {**self.app_state, "certificate": certificate}
        self._wait()

    def _places(self, transport: asyncio.Transport) -> tuple[str, ...]:
        """What is counted beside the pool."""
        return ()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in self._counted:
            _Protocol.open[name] -= 1
            if not _Protocol.open[name]:
                del _Protocol.open[name]
        self._counted = ()
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._begun_or_closed)

    def _begun_or_closed(self) -> None:
        begun = self.cycle is not None and not self.cycle.response_complete
        if not begun and not self.transport.is_closing():
            self.transport.abort()


class _PublicProtocol(_Protocol):
    """Of a listener that all the world reaches, which takes none of the others' connections."""

    pool = "public"
    most = MOST_PUBLIC

    def _places(self, transport: asyncio.Transport) -> tuple[str, ...]:
        peer = transport.get_extra_info("peername")
        return (str(peer[0]),) if isinstance(peer, tuple) else ()


class _Server(uvicorn.Server):
    """One that leaves signals to the process, and gives clients little time for a handshake."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        await self.lifespan.startup()
        tls = self.config.ssl
        patience = HANDSHAKE_SECONDS if tls is not None else None
        backlog = self.config.backlog
        self.servers = [
            await loop.create_server(protocol, sock=one, ssl=tls, ssl_handshake_timeout=patience, backlog=backlog)
            for one in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


Stamps = list[tuple[int, int, int]]


def _stamps(given: HttpSettings) -> Stamps:
    """What tells one state of the files of a certificate from another; zeros for one that is gone."""
    found = []
    for path in filter(None, (given["certificate"], given["key"], given["client_ca"])):
        try:
            state = os.stat(path)
            found.append((state.st_mtime_ns, state.st_size, state.st_ino))
        except OSError:
            found.append((0, 0, 0))
    return found


@dataclass
class _Running:
    server: uvicorn.Server
    task: asyncio.Task[None]
    settings: HttpSettings
    stamps: Stamps


class HttpServers:
    """All Listens of HTTP_Listener. `base` is the folder of the spool, where workers take messages."""

    def __init__(self, console: Console, clock: Clock, base: Path) -> None:
        self._console = console
        self._clock = clock
        self._base = base
        self._workers = Workers(base)
        self._sockets: dict[str, socket.socket] = {}
        self._running: dict[str, _Running] = {}
        self._wanted: dict[str, HttpSettings] = {}
        self._refused: dict[str, Stamps] = {}  # states of files that could not be loaded, and were told of

    async def listen(self, new: Mapping[str, socket.socket], settings: Mapping[str, HttpSettings]) -> list[str]:
        """Take over newly bound sockets by name; what is not in `settings` ends. A Listen whose settings and files are
        as they were is left alone; another begins anew with the socket that it has. Gives a line for each whose
        certificate cannot be loaded, which goes on with what it had, and is tried again when its files change."""
        self._sockets |= new
        for name in self._sockets.keys() - settings.keys():
            await self._end(name)
            self._sockets.pop(name).close()
        self._wanted = {name: given for name, given in settings.items() if name in self._sockets}
        self._refused.clear()
        return await self.refresh()

    async def refresh(self) -> list[str]:
        """Begin anew where settings or files have changed, as `listen`."""
        problems = []
        for name, given in self._wanted.items():
            stamps, running = _stamps(given), self._running.get(name)
            known = (running.settings, running.stamps) if running is not None else None
            if known == (given, stamps) or self._refused.get(name) == stamps:
                continue
            try:
                config = self._configured(name, given)
            except OSError as error:  # ssl.SSLError is one
                self._refused[name] = stamps
                kept = "the certificate that it had stays in use" if running is not None else "it does not answer"
                problems.append(f"{name}: {error}; {kept}")
                continue
            await self._end(name)
            self._start(name, given, stamps, config)
        return problems

    def _start(self, name: str, given: HttpSettings, stamps: Stamps, config: uvicorn.Config) -> None:
        server = _Server(config)
        task = asyncio.get_running_loop().create_task(server.serve(sockets=[self._sockets[name].dup()]))
        self._running[name] = _Running(server, task, given, stamps)
        self._refused.pop(name, None)

    def _configured(self, name: str, given: HttpSettings) -> uvicorn.Config:
        """Raises OSError for certificates that cannot be loaded."""
        tls: dict[str, Any] = {}
        if given["certificate"]:
            tls = {"ssl_certfile": given["certificate"], "ssl_keyfile": given["key"]}
            if given["client_ca"]:
                tls |= {"ssl_ca_certs": given["client_ca"], "ssl_cert_reqs": ssl.CERT_OPTIONAL}
        config = uvicorn.Config(
            self._application(name, given),
            http=_PublicProtocol if given["policies"] is not None else _Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=DRAIN,
            **tls,
        )
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # whoever connects could write to the journal
        config.load()
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        return config

    def _application(self, name: str, given: HttpSettings) -> Starlette:
        if given["policies"] is not None:
            return well_known.application(given["policies"], self._base)
        rights = given["rights"]
        guard = Guard(
            self._clock,
            given["users"],
            by_certificate=given["by_certificate"] and given["client_ca"] is not None,
            rights=AccessRules(*rights) if rights is not None else None,
            oidc=OidcLogin(OidcProvider(**given["oidc"]), self._clock) if given["oidc"] is not None else None,
        )
        return WebSite(name, self._console, guard, self._workers).application

    async def _end(self, name: str) -> None:
        running = self._running.pop(name, None)
        if running is None:
            return
        running.server.should_exit = True
        with contextlib.suppress(Exception):
            await running.task
