"""Connections leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import ssl
import weakref
from pathlib import Path

import pytest

from quillon.lab.sink import Sink, inbound_tls
from tests.support.compiled import pure_only


@pure_only
@pytest.mark.parametrize("how", ["quit", "abort", "in TLS"])
def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector(how: str, pki: Path) -> None:
    sink = Sink(inbound_tls(str(pki / "server.pem"), str(pki / "server.key")))
    seen: list[weakref.ref[object]] = []

    async def talk() -> None:
        port = await sink.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        seen.extend(weakref.ref(session) for session in sink.open)
        writer.write(b"EHLO a.test\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
        if how == "in TLS":
            writer.write(b"STARTTLS\r\n")
            await reader.readline()
            tls = ssl.create_default_context(cafile=str(pki / "ca.pem"))
            await writer.start_tls(tls, server_hostname="localhost")
        if how == "abort":
            writer.transport.abort()
        else:
            writer.write(b"QUIT\r\n")
            await reader.read()
            writer.close()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not sink.open:
                break
        sink.stop()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(talk())
        assert len(seen) == 1
        assert seen[0]() is None
    finally:
        gc.enable()
