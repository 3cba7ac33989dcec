"""Handshakes read along: what real ones say, wherever they are cut, and what hostile octets do."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.tls.records import Side


class Said:
    """What one side has said, in words and in octets."""

    def __init__(self, end: ssl.SSLObject, out: ssl.MemoryBIO) -> None:
        self.words: list[str] = []
        self.octets = b""
        self._end, self._out, self._side = end, out, Side()

    def go_on(self) -> bytes:
        """As far as the handshake goes for now; what it sends."""
        with contextlib.suppress(ssl.SSLError):  # it wants to read, or has failed with an alert
            self._end.do_handshake()
        sent = self._out.read()
        self.octets += sent
        self.words += self._side.feed(sent)
        return sent


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[Said, Said]:
    """One between two contexts, which may fail."""
    to_server, from_client, to_client, from_server = (ssl.MemoryBIO() for _ in range(4))
    asks = Said(client.wrap_bio(to_client, from_client, server_hostname="mx.quillon.test"), from_client)
    answers = Said(server.wrap_bio(to_server, from_server, server_side=True), from_server)
    for _ in range(4):
        to_server.write(asks.go_on())
        to_client.write(answers.go_on())
    return asks, answers


def contexts(pki: Path, version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client = ssl.create_default_context(cafile=pki / "ca.pem")
    client.check_hostname = False
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki / "server.pem", pki / "server.key")
    client.minimum_version = client.maximum_version = version
    return client, server


def test_tls_1_3(pki: Path) -> None:
    client, server = contexts(pki, ssl.TLSVersion.TLSv1_3)
    client.set_alpn_protocols(["smtp"])
    asked, answered = (side.words for side in handshake(client, server))
    assert asked[0].startswith("ClientHello: versions TLS 1.3; server name mx.quillon.test; ciphers TLS_AES_256_GCM")
    assert "; ALPN smtp" in asked[0]
    assert "resume" not in asked[0]
    assert answered[0].startswith("ServerHello: TLS 1.3, TLS_AES_256_GCM_SHA384, group ")
    assert answered[1] == "ChangeCipherSpec"
    assert answered[2].startswith("encrypted, ")


def test_a_server_that_asks_for_another_group(pki: Path) -> None:
    client, server = contexts(pki, ssl.TLSVersion.TLSv1_3)
    server.set_ecdh_curve("secp384r1")
    asked, answered = (side.words for side in handshake(client, server))
    assert answered[0] == "HelloRetryRequest: TLS 1.3, TLS_AES_256_GCM_SHA384, group secp384r1"
    hellos = [line for line in asked if line.startswith("ClientHello")]
    assert [line.partition("key shares ")[2].partition(";")[0] for line in hellos][1] == "secp384r1"
    assert "ServerHello: TLS 1.3, TLS_AES_256_GCM_SHA384, group secp384r1" in answered


def test_tls_1_2(pki: Path) -> None:
    client, server = contexts(pki, ssl.TLSVersion.TLSv1_2)
    asked, answered = (side.words for side in handshake(client, server))
    assert asked[0].startswith("ClientHello: versions TLS 1.2; ")
    assert answered[0].startswith("ServerHello: TLS 1.2, ECDHE-")
    kinds = [line.partition(",")[0] for line in [*answered[1:], *asked[1:]]]
    assert kinds == [
        "Certificate", "ServerKeyExchange", "ServerHelloDone", "NewSessionTicket", "ChangeCipherSpec", "encrypted",
        "ClientKeyExchange", "ChangeCipherSpec", "encrypted",
    ]  # fmt: skip
    assert "Certificate, 1 of them, " in answered[1] or "Certificate, 2 of them, " in answered[1]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_alert(pki: Path, version: ssl.TLSVersion) -> None:
    client, server = contexts(pki, version)
    server.minimum_version = server.maximum_version = (
        ssl.TLSVersion.TLSv1_3 if version is ssl.TLSVersion.TLSv1_2 else ssl.TLSVersion.TLSv1_2
    )
    _, answered = handshake(client, server)
    assert answered.words == ["Alert, fatal: protocol_version"]


@pytest.fixture(scope="module")
def octets_of_sides(pki: Path) -> list[bytes]:
    made = [handshake(*contexts(pki, version)) for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]
    return [side.octets for both in made for side in both]


@given(st.integers(0, 3), st.lists(st.integers(0, 4000), max_size=8))
def test_wherever_it_is_cut(octets_of_sides: list[bytes], which: int, cuts: list[int]) -> None:
    octets = octets_of_sides[which]
    side, found = Side(), list[str]()
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(octets)], strict=True):
        found += side.feed(octets[begin:end])
    whole = list(Side().feed(octets))
    assert [x for x in found if x[:9] != "encrypted"] == [x for x in whole if x[:9] != "encrypted"]


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\x16\x03\x01", b"\x16\x03\x01\0\x20\1\0\0\x1c\3\3", b"\x15\x03\3\0\2"]),
)
def test_octets_of_any_kind(octets: bytes, begin: bytes) -> None:
    side = Side()
    for line in [*side.feed(begin + octets), *side.feed(octets)]:
        assert isinstance(line, str)


def test_what_is_no_tls_is_said_once() -> None:
    side = Side()
    assert list(side.feed(b"HTTP/1.1 400 Bad Request\r\n")) == ["cannot be read any more: it is no TLS"]
    assert list(side.feed(b"and more of it")) == []


def test_a_message_without_end_is_not_kept() -> None:
    side = Side()
    record = b"\x16\x03\x03\x40\0" + b"\x0b\xff\xff\xff" + bytes(0x4000 - 4)
    assert list(side.feed(record)) == ["cannot be read any more: a message of 16777215 octets"]
