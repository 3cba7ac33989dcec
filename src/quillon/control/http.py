"""HTTP servers of the control process, one for each Listen of HTTP_Listener: uvicorn around `site`. Shell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from quillon.control import well_known
from quillon.control.authority import AccessRules
from quillon.control.console import Console
from quillon.control.guard import Guard
from quillon.control.messages import HttpSettings
from quillon.control.site import WebSite
from quillon.control.submission import Workers
from quillon.net.clock import Clock

MOST = 200  # connections at a time, of all listeners: descriptors are left for the console
HEAD_SECONDS = 10.0  # until the first request of a connection has begun
DRAIN = 2  # seconds that a server gives its clients when it ends


class _Protocol(H11Protocol):
    """uvicorn's own, which tells the application of the client's certificate (`request.state.certificate`), takes so
    many connections, and waits so long for a request to begin."""

    open: ClassVar[int] = 0
    _counted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if _Protocol.open >= MOST:
            transport.abort()
            return
        _Protocol.open += 1
        self._counted = True
        certificate = transport.get_extra_info("peercert")
        if certificate:
            self.app_state = {**self.app_state, "certificate": certificate}
        self.loop.call_later(HEAD_SECONDS, self._begun_or_closed)

    def connection_lost(self, exc: Exception | None) -> None:
        _Protocol.open -= self._counted
        self._counted = False
        super().connection_lost(exc)

    def _begun_or_closed(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()


class _Server(uvicorn.Server):
    """One that leaves signals to the process."""

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
        self._refused: dict[str, Stamps] = {}  # states of files that could not be loaded, and were told of

    async def listen(self, new: Mapping[str, socket.socket], settings: Mapping[str, HttpSettings]) -> None:
        """Take over newly bound sockets by name; what is not in `settings` ends. A Listen whose settings and files are
        as they were is left alone; another begins anew with the socket that it has. Raises OSError and ssl.SSLError for
        certificates that cannot be loaded."""
        self._sockets |= new
        for name, running in list(self._running.items()):
            same = name in settings and (settings[name], _stamps(settings[name])) == (running.settings, running.stamps)
            if not same:
                await self._end(name)
        for name in self._sockets.keys() - settings.keys():
            self._sockets.pop(name).close()
        for name, given in settings.items():
            if name in self._sockets and name not in self._running:
                self._start(name, given)

    def _start(self, name: str, given: HttpSettings) -> None:
        server = _Server(self._configured(name, given))
        task = asyncio.get_running_loop().create_task(server.serve(sockets=[self._sockets[name].dup()]))
        self._running[name] = _Running(server, task, given, _stamps(given))
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
            http=_Protocol,
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
        )
        return WebSite(name, self._console, guard, self._workers).application

    async def refresh(self) -> list[str]:
        """Begin anew where the files of a certificate have changed; gives a line for each that cannot be loaded, once,
        and goes on with what was there."""
        problems = []
        for name, running in list(self._running.items()):
            stamps = _stamps(running.settings)
            if stamps in (running.stamps, self._refused.get(name)):
                continue
            try:
                self._configured(name, running.settings)
            except OSError as error:  # ssl.SSLError is one
                self._refused[name] = stamps
                problems.append(f"{name}: {error}; the certificate that it had stays in use")
                continue
            await self._end(name)
            self._start(name, running.settings)
        return problems

    async def _end(self, name: str) -> None:
        running = self._running.pop(name)
        running.server.should_exit = True
        with contextlib.suppress(Exception):
            await running.task
