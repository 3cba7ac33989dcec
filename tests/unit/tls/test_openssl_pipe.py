"""The pipe through an OpenSSL connection: that both forms do the same, in whatever pieces octets come."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest
from OpenSSL import SSL

from quillon.tls import openssl_pipe
from quillon.tls.openssl_pipe import OpenSSLPipe, PythonPipe, _bound, pipe_of, reason

Make = Callable[[SSL.Connection], OpenSSLPipe]


@pytest.fixture(params=(PythonPipe, pipe_of), ids=("python", "compiled"))
def make(request: pytest.FixtureRequest) -> Make:
    if request.param is pipe_of and openssl_pipe.compiled is None:
        pytest.skip("Quillon was installed without a compiler")
    made: Make = request.param
    return made


class Ends:
    """A server and a client, each with its connection and its pipe."""

    def __init__(self, pki: Path, make: Make) -> None:
        inbound = SSL.Context(SSL.TLS_SERVER_METHOD)
        inbound.use_certificate_chain_file(str(pki / "server.pem"))
        inbound.use_privatekey_file(str(pki / "server.key"))
        inbound.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        outbound = SSL.Context(SSL.TLS_CLIENT_METHOD)
        outbound.use_certificate_chain_file(str(pki / "client.pem"))
        outbound.use_privatekey_file(str(pki / "client.key"))
        outbound.load_verify_locations(str(pki / "ca.pem"))
        outbound.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        self.connections = [SSL.Connection(inbound, None), SSL.Connection(outbound, None)]
        self.connections[0].set_accept_state()
        self.connections[1].set_connect_state()
        self.connections[1].set_tlsext_host_name(b"mx.partner.test")
        self.server, self.client = map(make, self.connections)

    def shake(self, size: int) -> None:
        """A handshake in pieces of a size."""
        done = {self.server: False, self.client: self.client.handshake(b"")}
        for _ in range(4):
            for one, other in ((self.client, self.server), (self.server, self.client)):
                for piece in pieces(one.take(), size):
                    if done[other]:
                        assert other.read(piece) == b""
                    else:
                        done[other] = other.handshake(piece)
        assert all(done.values())


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 3, 700, 100000])
def test_octets_pass_in_whatever_pieces(pki: Path, make: Make, size: int) -> None:
    ends = Ends(pki, make)
    ends.shake(size)
    data = bytes(range(256)) * 1024  # more than either form has room for
    assert ends.client.write(data)
    assert b"".join(map(ends.server.read, pieces(ends.client.take(), max(size, 500)))) == data
    assert ends.server.write(b"250 OK\r\n")
    assert ends.client.read(ends.server.take()) == b"250 OK\r\n"
    assert ends.client.take() == b""
    assert (ends.server.error, ends.client.error) == (0, 0)


def test_more_than_the_room_comes_at_once(pki: Path, make: Make) -> None:
    ends = Ends(pki, make)
    ends.shake(100000)
    for size in (65535, 65536, 65537, 131072, 300000):
        assert ends.client.write(b"x" * size)
        ciphertext = ends.client.take()
        assert len(ciphertext) > size
        assert ends.server.read(ciphertext) == b"x" * size


def test_what_is_found_out(pki: Path, make: Make) -> None:
    ends = Ends(pki, make)
    ends.shake(100000)
    protocol, cipher, bits, group, asked = ends.server.facts()
    assert (protocol, cipher, bits) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
    assert group
    assert asked == b"mx.partner.test"
    assert ends.server.facts() == PythonPipe(ends.connections[0]).facts()
    assert ends.client.facts() == PythonPipe(ends.connections[1]).facts()
    assert ends.client.peer() == PythonPipe(ends.connections[1]).peer() is not None
    assert ends.client.verified() == PythonPipe(ends.connections[1]).verified()
    assert ends.client.verified()[0] == ends.client.peer()


def test_nothing_is_found_out_before_a_handshake(pki: Path, make: Make) -> None:
    server = Ends(pki, make).server
    assert server.facts()[1:] == ("", 0, "", b"")
    assert server.peer() is None
    assert server.verified() == []


def test_the_end_and_what_breaks_it_have_their_reasons(pki: Path, make: Make) -> None:
    ends = Ends(pki, make)
    ends.shake(100000)
    assert ends.client.write(b"QUIT\r\n")
    ends.connections[1].shutdown()
    assert ends.server.read(ends.client.take()) == b"QUIT\r\n"
    assert ends.server.error
    assert isinstance(reason(ends.connections[0]), SSL.ZeroReturnError)

    ends = Ends(pki, make)
    ends.shake(100000)
    assert ends.server.read(b"\x17\x03\x03\x00\x20" + bytes(32)) == b""
    found = reason(ends.connections[0])
    assert ends.server.error
    assert "decryption failed or bad record mac" in str(found)

    ends = Ends(pki, make)
    assert ends.server.handshake(b"EHLO mx.example\r\n") is False
    assert ends.server.error
    assert isinstance(reason(ends.connections[0]), SSL.Error)


def test_an_error_of_another_connection_is_not_taken_for_ones_own(pki: Path, make: Make) -> None:
    """The library has one queue of errors for all."""
    ends = Ends(pki, make)
    ends.shake(100000)
    Ends(pki, make).server.handshake(b"EHLO mx.example\r\n")
    assert ends.server.read(b"") == b""
    assert ends.server.error == 0


def test_nothing_is_bound_where_a_type_differs() -> None:
    used: list[dict[str, int]] = []
    other = types.SimpleNamespace(types=lambda: {"SSL_read": "int(*)(SSL *, void *, size_t)"}, bind=used.append)
    assert _bound(other) is False
    assert not used
    assert _bound(None) is False


def test_a_function_without_an_address_is_not_bound() -> None:
    if openssl_pipe.compiled is None:
        pytest.skip("Quillon was installed without a compiler")
    for wrong in ({}, {"SSL_do_handshake": 0}):
        with pytest.raises(ValueError, match="SSL_do_handshake"):
            openssl_pipe.compiled.bind(wrong)
    with pytest.raises(TypeError):
        openssl_pipe.compiled.bind(["SSL_read"])
    assert _bound(openssl_pipe.compiled)
