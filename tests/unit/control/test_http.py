"""The listener that all the world reaches: whoever holds connections holds nobody else's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quillon.control import http
from quillon.control.http import HttpServers
from quillon.control.messages import HttpSettings
from quillon.lab.pki import Authority
from quillon.net.clock import SystemClock

REQUEST = b"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.own.test\r\n\r\n"


def settings(**changes: Any) -> HttpSettings:
    given: HttpSettings = {
        "certificate": None,
        "key": None,
        "client_ca": None,
        "by_certificate": False,
        "users": None,
        "oidc": None,
        "policies": {"own.test": "version: STSv1\n"},
        "rights": None,
    }
    return {**given, **changes}  # type: ignore[typeddict-item]


def bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    return sock


def served(tmp_path: Path, work: Callable[[HttpServers], Awaitable[None]]) -> None:
    async def run() -> None:
        servers = HttpServers(None, SystemClock(), tmp_path)  # type: ignore[arg-type]
        await work(servers)
        await servers.listen({}, {})
        await asyncio.sleep(0.1)  # whatever is being closed is

    asyncio.run(asyncio.wait_for(run(), 30))


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the other side hangs up, whatever it says before."""
    try:
        async with asyncio.timeout(5):
            while await reader.read(1000):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("said", [b"", b"GET / HT", REQUEST, REQUEST + b"G"])
def test_who_does_not_ask_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)

    async def work(servers: HttpServers) -> None:
        sock = bound()
        assert await servers.listen({"public": sock}, {"public": settings()}) == []
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(said)
        assert await ended(reader)
        writer.close()

    served(tmp_path, work)


def test_who_asks_again_and_again_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.4)

    async def work(servers: HttpServers) -> None:
        sock = bound()
        await servers.listen({"public": sock}, {"public": settings()})
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        for _ in range(4):
            writer.write(REQUEST)
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(15) == b"version: STSv1\n"
            await asyncio.sleep(0.2)
        writer.close()

    served(tmp_path, work)


def test_one_client_has_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_CLIENT", 3)

    async def work(servers: HttpServers) -> None:
        sock = bound()
        await servers.listen({"public": sock}, {"public": settings()})
        held = [await asyncio.open_connection(*sock.getsockname()) for _ in range(3)]
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await ended(reader)
        writer.close()
        held[0][1].close()
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(REQUEST)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        for _, other in [*held, (reader, writer)]:
            other.close()

    served(tmp_path, work)


def test_a_certificate_that_cannot_be_loaded_costs_no_other_listener(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one", ["localhost"]), authority.issue("other", ["localhost"])

    async def work(servers: HttpServers) -> None:
        good = settings(certificate=str(one.certificate), key=str(one.key))
        bad = settings(certificate=str(other.certificate), key=str(one.key))
        socks = {"a": bound(), "b": bound(), "c": bound()}
        told = await servers.listen(socks, {"a": bad, "b": good, "c": settings()})
        assert [line.partition(":")[0] for line in told] == ["a"]
        assert "does not answer" in told[0]
        assert await servers.refresh() == []
        for name in ("b", "c"):
            _, writer = await asyncio.open_connection(*socks[name].getsockname())
            writer.close()
        other.certificate.write_bytes(one.certificate.read_bytes())
        assert await servers.refresh() == []
        assert set(servers._running) == {"a", "b", "c"}
        one.certificate.write_text("none")
        (line,) = await servers.refresh()
        assert "stays in use" in line
        assert set(servers._running) == {"a", "b", "c"}

    served(tmp_path, work)
