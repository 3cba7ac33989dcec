"""HTTP servers of the control process, one for each Listen of HTTP_Listener: uvicorn around `site`. Shell."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from quillon.control.authority import Authority
from quillon.control.console import Console
from quillon.control.guard import Guard
from quillon.control.messages import HttpSettings
from quillon.control.site import Site
from quillon.control.submission import Workers
from quillon.net.clock import Clock

MOST = 500  # connections at a time
DRAIN = 2  # seconds that a server gives its clients when it ends


class _Protocol(H11Protocol):
    """uvicorn's own, which tells the application of the client's certificate (`request.state.certificate`)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        certificate = transport.get_extra_info("peercert")
        if certificate:
            self.app_state = {**self.app_state, "certificate": certificate}


class _Server(uvicorn.Server):
    """One that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class _Running:
    server: uvicorn.Server
    task: asyncio.Task[None]
    sock: socket.socket
    settings: HttpSettings


class HttpServers:
    """All Listens of HTTP_Listener. `base` is the folder of the spool, where workers take messages."""

    def __init__(self, console: Console, clock: Clock, base: Path) -> None:
        self._console = console
        self._clock = clock
        self._workers = Workers(base)
        self._running: dict[str, _Running] = {}

    async def listen(self, new: Mapping[str, socket.socket], settings: Mapping[str, HttpSettings]) -> None:
        """Take over newly bound sockets by name; what is not in `settings` ends, what rules one anew begins anew with
        the socket that it has. Raises OSError and ssl.SSLError for certificates that cannot be loaded."""
        sockets = {name: running.sock for name, running in self._running.items()} | dict(new)
        for name in list(self._running):
            await self._end(name, keep=name in settings)
        for name, given in settings.items():
            if name in sockets:
                self._start(name, sockets[name], given)

    def _start(self, name: str, sock: socket.socket, given: HttpSettings) -> None:
        rights = given["rights"]
        guard = Guard(
            self._clock,
            given["users"],
            by_certificate=given["by_certificate"] and given["client_ca"] is not None,
            rights=Authority(*rights) if rights is not None else None,
        )
        site = Site(name, self._console, guard, self._workers)
        tls: dict[str, Any] = {}
        if given["certificate"]:
            tls = {"ssl_certfile": given["certificate"], "ssl_keyfile": given["key"]}
            if given["client_ca"]:
                tls |= {"ssl_ca_certs": given["client_ca"], "ssl_cert_reqs": ssl.CERT_OPTIONAL}
        config = uvicorn.Config(
            site.application,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=DRAIN,
            **tls,
        )
        config.load()
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        server = _Server(config)
        task = asyncio.get_running_loop().create_task(server.serve(sockets=[sock.dup()]))
        self._running[name] = _Running(server, task, sock, given)

    async def _end(self, name: str, *, keep: bool) -> None:
        running = self._running.pop(name)
        running.server.should_exit = True
        with contextlib.suppress(Exception):
            await running.task
        if not keep:
            running.sock.close()
