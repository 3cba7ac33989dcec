"""A TCP or Unix connection as asyncio.Protocol, with a TLS engine in the middle once there is one.

The owner gets plaintext whether or not TLS runs. Writes are handed to the transport as they come: callers batch.
asyncio and uvloop set TCP_NODELAY, without which a session ticket and the next reply, two small writes, would wait
40 ms for a delayed acknowledgement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast


class StreamEngine(Protocol):
    """The part of a TLS engine that a stream needs; `quillon.tls.engine.Engine` in full."""

    established: bool
    closed: bool
    failure: Any

    def start(self) -> None: ...
    def receive(self, ciphertext: bytes) -> bytes: ...
    def send(self, plaintext: bytes) -> None: ...
    def data_to_send(self) -> bytes: ...
    def eof(self) -> None: ...
    def close(self) -> None: ...


class StreamOwner(Protocol):
    """What a stream tells. `closed` comes once, last."""

    def connected(self) -> None: ...
    def received(self, data: bytes) -> None: ...
    def secured(self) -> None:
        """The handshake ended well."""

    def unsecured(self, failure: Any) -> None:
        """The handshake failed; the stream still stands so that an alert can leave, and should be closed."""

    def ended(self) -> bool:
        """The peer will send no more. True keeps the stream open for what is still to be written."""

    def closed(self) -> None: ...
    def writable(self) -> None:
        """The transport's buffer has drained after `Stream.blocked`."""


class _Nobody:
    """The owner of a stream that has ended: to hold the real one on would be a cycle, left to the garbage collector."""

    def connected(self) -> None: ...
    def received(self, data: bytes) -> None: ...
    def secured(self) -> None: ...
    def unsecured(self, failure: Any) -> None: ...
    def ended(self) -> bool:
        return False

    def closed(self) -> None: ...
    def writable(self) -> None: ...


_NOBODY = _Nobody()


class SessionStream(Protocol):
    """What a session asks of its connection; a played one has another."""

    blocked: bool
    tap: Callable[[bytes, bool], object] | None  # has the octets of a handshake; true for ours

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]: ...
    def write(self, data: bytes) -> None: ...
    def start_tls(self, engine: Any) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Stream(asyncio.Protocol):
    def __init__(self, owner: StreamOwner) -> None:
        self.owner = owner
        self.engine: StreamEngine | None = None
        self.blocked = False
        self.tap: Callable[[bytes, bool], object] | None = None
        self._reading = True
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._failed = False

    # asyncio's side -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.owner.connected()

    def data_received(self, data: bytes) -> None:
        if self.engine is None:
            self.owner.received(data)
        else:
            self._decrypt(self.engine, data)

    def _decrypt(self, engine: StreamEngine, data: bytes) -> None:
        was_established = engine.established
        if self.tap is not None:
            self.tap(data, False)
        plaintext = engine.receive(data)
        self._flush(engine)
        if engine.established and not was_established:
            self.tap = None
            self.owner.secured()
        if engine.failure is not None and not self._failed:
            self._failed = True
            self.owner.unsecured(engine.failure)
        elif plaintext:
            self.owner.received(plaintext)
        if engine.closed and not self._closing and not self.owner.ended():
            self.close()

    def eof_received(self) -> bool:
        engine = self.engine
        if engine is not None and not engine.established:
            engine.eof()
            if engine.failure is not None and not self._failed:
                self._failed = True
                self.owner.unsecured(engine.failure)
            return False
        return self.owner.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.engine is not None and not self.engine.established:
            self.eof_received()
        self._transport = None
        self._closing = True
        owner, self.owner = self.owner, _NOBODY
        owner.closed()
        self.engine = None

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self.owner.writable()

    # the owner's side -----------------------------------------------------------------------------------------

    def start_tls(self, engine: StreamEngine) -> None:
        """Put an engine in the middle; what comes from now on is ciphertext."""
        self.engine = engine
        engine.start()
        self._flush(engine)
        if engine.failure is not None:
            # our own settings leave nothing to begin with
            self._failed = True
            asyncio.get_running_loop().call_soon(self.owner.unsecured, engine.failure)

    def write(self, data: bytes) -> None:
        if self._transport is None or not data:
            return
        if self.engine is None:
            self._transport.write(data)
        else:
            self.engine.send(data)
            self._flush(self.engine)

    def _flush(self, engine: StreamEngine) -> None:
        out = engine.data_to_send()
        if out and self.tap is not None:
            self.tap(out, True)
        if out and self._transport is not None:
            self._transport.write(out)

    def close(self) -> None:
        """Close after what was written has left."""
        if self._closing or self._transport is None:
            return
        self._closing = True
        if self.engine is not None and self.engine.established and not self._failed:
            self.engine.close()
            self._flush(self.engine)
        self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._closing = True
            self._transport.abort()

    def pause_reading(self) -> None:
        if self._reading and self._transport is not None and not self._closing:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and self._transport is not None and not self._closing:
            self._reading = True
            self._transport.resume_reading()

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """(ip, port) of the remote and the local end. A Unix socket counts as loopback."""
        if self._transport is None:
            return ("0.0.0.0", 0), ("0.0.0.0", 0)  # noqa: S104 - the unknown address, not one to bind
        peer = self._transport.get_extra_info("peername")
        own = self._transport.get_extra_info("sockname")
        return _endpoint(peer), _endpoint(own)


def _endpoint(name: Any) -> tuple[str, int]:
    if not isinstance(name, tuple):
        return "127.0.0.1", 0
    ip = str(name[0])
    return (ip.removeprefix("::ffff:") if ip.startswith("::ffff:") and "." in ip else ip.partition("%")[0]), int(
        name[1]
    )
