"""`quillon tls-probe --listen`: what a running Listen offers and accepts, found out by connecting to it."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
from typing import Any

from quillon.cli.certificates import certificate_row
from quillon.config.endpoint import parse_endpoint
from quillon.config.model import Config
from quillon.config.settings import InboundTls, OutboundTls
from quillon.config.values import PROTOCOLS
from quillon.net.clock import SystemClock
from quillon.tls.context import Contexts
from quillon.tls.engine import ContextError, Engine
from quillon.tls.verdict import HandshakeFailure

_ANY = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"
_SUITES = ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256")
_MAX_SUITES = 64
_PATIENCE = 10.0  # seconds


class _Silent(Exception):
    """There is nobody, or no TLS to be had; the message says which."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    host: str
    port: int
    implicit: bool
    contexts: Contexts

    async def shake(self, tls: OutboundTls) -> Engine:
        """An engine whose handshake has ended, well or not. Raises _Silent and ContextError."""
        engine = self.contexts.client(tls, "")
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    if not self.implicit:
                        await _starttls(reader, writer)
                    engine.start()
                    while not engine.established and engine.failure is None:
                        writer.write(engine.data_to_send())
                        data = await reader.read(65536)
                        if data:
                            engine.receive(data)
                        else:
                            engine.eof()
                finally:
                    writer.close()
        except TimeoutError:
            raise _Silent(f"no answer within {_PATIENCE:.0f} seconds") from None
        except OSError as error:
            raise _Silent(f"cannot connect to {self.host} port {self.port}: {error.strerror or error}") from None
        return engine


async def _starttls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _reply(reader)
    writer.write(b"EHLO probe.test\r\n")
    if not any(line[4:].strip().upper() == "STARTTLS" for line in await _reply(reader)):
        raise _Silent("STARTTLS is not offered")
    writer.write(b"STARTTLS\r\n")
    answer = await _reply(reader)
    if not answer[0].startswith("220"):
        raise _Silent(f"STARTTLS is refused: {answer[0]}")


async def _reply(reader: asyncio.StreamReader) -> list[str]:
    lines: list[str] = []
    while not lines or lines[-1][3:4] == "-":
        line = (await reader.readline()).decode("latin-1").rstrip()
        if not line:
            raise _Silent("the connection was closed")
        lines.append(line)
    return lines


async def run(config: Config, name: str, *, as_json: bool) -> int:
    """Print what was found; 0 if TLS can be had. Raises ValueError for a Listen that is not there or not reached."""
    node = config.inbound.listen_node(name)
    if node is None:
        known = ", ".join(listen.name for listen in config.inbound.listens()) or "none"
        raise ValueError(f"there is no Listen {name!r}; there are {known}")
    ip, port, path = parse_endpoint(node.label)
    if path:
        raise ValueError(f"{name} is a Unix socket, which this cannot connect to")
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)  # noqa: S104 - any address is reached by loopback
    settings, inbound = config.inbound.reception(node.label, ipaddress.ip_address(local))
    _, base = config.outbound.delivery("default", "default", "localhost")
    place = _Place(local, port, settings.use_ssl, Contexts(SystemClock().now))
    base = dataclasses.replace(
        base, tls="required", tls_verify="no", tls_engine="openssl", tls_certificate=None, tls_key=None
    )
    try:
        row = await _find_out(place, base)
    except _Silent as error:
        raise ValueError(f"{name}: {error}") from None
    row["configured"] = _configured(inbound)
    print(json.dumps(row, indent=2)) if as_json else _print(name, row)
    return 0 if row["protocols"] else 1


async def _find_out(place: _Place, base: OutboundTls) -> dict[str, Any]:
    row: dict[str, Any] = {"protocols": {}, "chain": [], "groups": []}
    for version in PROTOCOLS:
        suites, failure = await _suites(place, base, version)
        row["protocols"][version] = suites or failure
    best = await place.shake(dataclasses.replace(base, tls_ciphers=_ANY))
    if best.established:
        verdict = best.verdict()
        row["groups"] = [verdict.group]
        row["chain"] = [certificate_row(certificate) for certificate in best.chain()]
    row["accepted"] = [version for version, found in row["protocols"].items() if isinstance(found, list)]
    return row


async def _suites(place: _Place, base: OutboundTls, version: str) -> tuple[list[str], str]:
    """The suites of one version in the order of the server's choice; or the cause why there is none."""
    found: list[str] = []
    while len(found) < _MAX_SUITES:
        tls = dataclasses.replace(base, tls_protocols=frozenset({version}))
        if version == "TLSv1.3":
            left = [suite for suite in _SUITES if suite not in found]
            if not left:
                break
            tls = dataclasses.replace(tls, tlsv13_ciphersuites=":".join(left))
        else:
            tls = dataclasses.replace(tls, tls_ciphers=_ANY + "".join(f":!{suite}" for suite in found))
        try:
            engine = await place.shake(tls)
        except ContextError:
            break
        if not engine.established:
            failure = engine.failure or HandshakeFailure("handshake_failed")
            return found, failure.cause
        found.append(engine.verdict().cipher)
    return found, ""


def _configured(tls: InboundTls) -> dict[str, Any]:
    modes = {"none": "not asked for", "require": "required", None: "asked for, optional"}
    return {
        "tls_engine": tls.tls_engine,
        "client_certificates": modes[tls.tls_verify_mode],
        "tls_client_ca": tls.tls_client_ca or "",
        "session_resumption": tls.tls_session_resumption,
        "renegotiation": tls.tls_allow_renegotiation,
        "identities": [identity.name for identity in tls.tls_identities],
    }


def _print(name: str, row: dict[str, Any]) -> None:
    print(name)
    for version, found in row["protocols"].items():
        print(f"  {version:8}  {', '.join(found) if isinstance(found, list) else f'no ({found})'}")
    print(f"  group     {row['groups'][0] if row['groups'] else ''}")
    for n, certificate in enumerate(row["chain"]):
        print(f"  {'chain' if n == 0 else '':8}  {n} {certificate['subject']}, issued by {certificate['issuer']}")
        print(
            f"            {certificate['key']} bits, {certificate['signature']}, until {certificate['not_after'][:10]}"
        )
    configured = row["configured"]
    print(
        f"  clients   certificate {configured['client_certificates']}; authorities {configured['tls_client_ca'] or '-'}"
    )
    print(f"  engine    {configured['tls_engine']}, names {', '.join(configured['identities']) or '-'}")
