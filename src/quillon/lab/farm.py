"""The fault farm: one process with a peer for each way in which TLS mail goes wrong, on loopback ports.

Each peer is a small SMTP server of its own, apart from Quillon's: what is to be tested must not test itself. Only the
TLS engine is shared. `records` keeps every octet that came in, in clear and inside TLS, so that a test can show that
nothing was sent in clear.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from quillon.config.settings import InboundTls
from quillon.lab import farm_pki
from quillon.lab.faults import FAULTS, BrokenPeer
from quillon.lab.sink import inbound_tls
from quillon.net.clock import SystemClock
from quillon.tls.context import Contexts
from quillon.tls.engine import Engine

DRIP = 0.0005  # seconds between octets of a slow peer
TRICKLE = 0.2
_HANDSHAKE = 0x16


@dataclasses.dataclass
class PeerRecord:
    """One connection: octets that came before TLS and inside it, and how many messages were taken each way."""

    clear: bytearray = dataclasses.field(default_factory=bytearray)
    secured: bytearray = dataclasses.field(default_factory=bytearray)
    taken_in_clear: int = 0
    taken_in_tls: int = 0


class Farm:
    """`folder` holds the certificates, which are made if it has none. `ports` and `records` go by the peer's name."""

    def __init__(self, folder: Path, faults: Iterable[BrokenPeer] = FAULTS) -> None:
        self.folder = folder
        self.faults = tuple(faults)
        self.ca = folder / "ca.pem"
        if not (folder / "good.pem").exists():
            farm_pki.write(folder)
        self.contexts = Contexts(SystemClock().now)
        self.ports: dict[str, int] = {}
        self.records: defaultdict[str, list[PeerRecord]] = defaultdict(list)
        self.open: set[_Session] = set()
        self._servers: list[asyncio.Server] = []

    async def start(self, host: str = "127.0.0.1", first_port: int = 0) -> None:
        """Listen: on ports from `first_port` on, in the order of the faults, or on any free ones. Raises OSError."""
        loop = asyncio.get_running_loop()
        for n, fault in enumerate(self.faults):
            port = first_port + n if first_port else 0
            server = await loop.create_server(lambda fault=fault: _Session(self, fault), host, port)  # type: ignore[misc]
            self._servers.append(server)
            self.ports[fault.name] = int(server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Stop listening and cut off what stands."""
        for server in self._servers:
            server.close()
        for session in list(self.open):
            session.abort()

    def settings(self, fault: BrokenPeer) -> InboundTls:
        """The TLS settings of a peer."""
        certificate, key = self.folder / f"{fault.certificate}.pem", self.folder / f"{fault.certificate}.key"
        changes = dict(fault.tls)
        for name in ("tls_client_ca",):
            if name in changes:
                changes[name] = str(self.folder / changes[name])
        return inbound_tls(str(certificate), str(key), **changes)


class _Session(asyncio.Protocol):
    """One connection to a peer."""

    def __init__(self, farm: Farm, fault: BrokenPeer) -> None:
        self._farm = farm
        self._fault = fault
        self._quirk, _, self._word = fault.quirk.partition(" ")
        self._record = PeerRecord()
        self._engine: Engine | None = None
        self._buffer = b""
        self._in_data = False
        self._raw = False
        self._queue = b""
        self._dripping = False
        self._closing = False
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._farm.open.add(self)
        self._farm.records[self._fault.name].append(self._record)
        self._say(f"220 {self._fault.host} ESMTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._farm.open.discard(self)

    def abort(self) -> None:
        self._transport.abort()

    # octets ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._raw:
            self._hello_came()
        elif self._engine is None:
            self._record.clear += data
            self._read(data)
        else:
            self._decrypt(self._engine, data)

    def _decrypt(self, engine: Engine, data: bytes) -> None:
        was_established = engine.established
        plaintext = engine.receive(data)
        out = engine.data_to_send()
        if self._quirk == "close" and self._word == "flight" and out:
            self._transport.write(out[: len(out) // 2])
            self._transport.close()
            return
        self._transport.write(out)
        if engine.established and not was_established and self._quirk == "close":
            self._transport.close()
            return
        if engine.failure is not None or engine.closed:
            self._transport.close()
        self._record.secured += plaintext
        self._read(plaintext)

    def _hello_came(self) -> None:
        """The ClientHello of a handshake that will not be one."""
        if self._quirk == "garbage":
            self._transport.write(bytes(range(160, 250)) * 3)
        elif self._quirk == "text":
            self._transport.write(b"500 5.5.1 I did not understand that\r\n")
        elif self._quirk == "alert":
            self._transport.write(bytes((21, 3, 3, 0, 2, 2, 40)))
            self._transport.close()
        elif self._quirk == "trickle":
            self._trickle(bytes((_HANDSHAKE, 3, 3, 64, 0, 2, 0, 63, 252, 3, 3)))
        elif self._quirk == "close":
            self._transport.close()

    def _trickle(self, octets: bytes) -> None:
        if self._lost or self._transport.is_closing():
            return
        self._transport.write(octets[:1])
        asyncio.get_running_loop().call_later(TRICKLE, self._trickle, octets[1:] or b"\0")

    # lines ----------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        self._buffer += data
        while b"\n" in self._buffer and not self._raw:
            line, _, self._buffer = self._buffer.partition(b"\n")
            if self._in_data:
                if line.rstrip(b"\r") == b".":
                    self._in_data = False
                    self._end_of_data()
            else:
                self._command(line.decode("latin-1").strip())

    def _command(self, line: str) -> None:
        verb = line[:4].upper()
        secured = self._engine is not None
        special, reply = self._fault.reply
        if secured and verb == special:
            self._say(reply)
        elif verb in ("EHLO", "HELO"):
            self._say(*self._hello(verb, secured))
        elif verb == "STAR":
            self._starttls()
        elif verb == "DATA":
            self._in_data = True
            self._say("354 go on")
        elif verb == "QUIT":
            self._say("221 2.0.0 bye")
            self._close()
        else:
            self._say("250 2.0.0 OK")

    def _hello(self, verb: str, secured: bool) -> list[str]:
        if verb == "HELO":
            return [f"250 {self._fault.host}"]
        words = ["8BITMIME", "ENHANCEDSTATUSCODES"]
        if self._quirk == "shy":
            words = [*words, "PIPELINING", "SIZE 1000000"] if secured else []
        if (not secured and self._quirk != "unoffered") or self._quirk == "again":
            words.append("STARTTLS")
        lines = [self._fault.host, *words]
        return [f"250-{word}" for word in lines[:-1]] + [f"250 {lines[-1]}"]

    def _end_of_data(self) -> None:
        verb, reply = self._fault.reply
        if self._engine is not None and verb == ".":
            self._say(reply)
            return
        if self._engine is not None:
            self._record.taken_in_tls += 1
        else:
            self._record.taken_in_clear += 1
        self._say("250 2.0.0 taken")

    def _starttls(self) -> None:
        quirk = self._quirk
        if quirk == "silent":
            return
        if quirk == "drop":
            self._transport.close()
        elif quirk == "refuse":
            self._say(self._word)
        elif quirk == "inject":
            self._say("220 2.0.0 go ahead", "250-injected", "250 SIZE")
        else:
            self._send(b"220 2.0.0 go ahead\r\n")
            self._buffer = b""
            if quirk == "close" and self._word == "220":
                self._transport.close()
            elif quirk in ("garbage", "text", "alert", "trickle", "mute") or (quirk, self._word) == ("close", "hello"):
                self._raw = True
            else:
                self._engine = self._farm.contexts.server(self._farm.settings(self._fault))

    # replies --------------------------------------------------------------------------------------------------

    def _say(self, *lines: str) -> None:
        data = "".join(f"{line}\r\n" for line in lines).encode()
        if self._quirk != "slow":
            self._send(data)
            return
        self._queue += data
        if not self._dripping:
            self._dripping = True
            self._drip()

    def _drip(self) -> None:
        if not self._queue or self._lost:
            self._dripping = False
            if self._closing:
                self._close()
            return
        self._send(self._queue[:1])
        self._queue = self._queue[1:]
        asyncio.get_running_loop().call_later(DRIP, self._drip)

    def _send(self, data: bytes) -> None:
        if self._lost:
            return
        if self._engine is None:
            self._transport.write(data)
        elif self._engine.established:
            self._engine.send(data)
            self._transport.write(self._engine.data_to_send())

    def _close(self) -> None:
        if self._dripping:
            self._closing = True
            return
        if self._engine is not None and self._quirk != "rude":
            self._engine.close()
            self._transport.write(self._engine.data_to_send())
        self._transport.close()
