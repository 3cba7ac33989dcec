"""Both engines in memory: verdicts, resumption, groups, and that no input from a peer raises out of them."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from quillon.config.options import table
from quillon.config.scope import resolve
from quillon.config.settings import InboundTls, OutboundTls, TlsIdentity, build
from quillon.lab.pki import CLIENT, DAY, Authority
from quillon.lab.sink import inbound_tls
from quillon.policy.certificates import names_one_of
from quillon.tls import identity, openssl_pipe
from quillon.tls.causes import CAUSES
from quillon.tls.certificate import Certificate, escaped, unescaped
from quillon.tls.context import Contexts
from quillon.tls.engine import ContextError, Engine
from quillon.tls.gnutls_context import priority_string
from quillon.tls.openssl import OpenSSLEngine
from quillon.tls.verdict import TlsVerdict

ENGINES = ("openssl", "gnutls")
NOW = 1_800_000_000.0


@pytest.fixture(params=("compiled", "python"), autouse=True, scope="module")
def pipe(request: pytest.FixtureRequest) -> Iterator[None]:
    """The OpenSSL engine in both forms."""
    if request.param == "compiled" and openssl_pipe.compiled is None:
        pytest.skip("Quillon was installed without a compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(openssl_pipe, "_USED", None)
        yield


def outbound(**changes: Any) -> OutboundTls:
    options = table().options
    made = build(OutboundTls, lambda name: resolve(options[name], [], "/").value)
    return dataclasses.replace(made, **changes)


class Pair:
    """Contexts with a clock that can be turned, and settings of both sides."""

    def __init__(self, pki: Path, server: str, client: str, **changes: Any) -> None:
        self.now = [NOW]
        self.contexts = Contexts(lambda: self.now[0])
        certificate = changes.pop("certificate", "client")
        version = changes.pop("version", "TLSv1.3")
        self.inbound: InboundTls = inbound_tls(
            str(pki / "server.pem"), str(pki / "server.key"),
            **{"tls_engine": server, "tls_verify_mode": None, "tls_client_ca": str(pki / "ca.pem"), **changes},
        )  # fmt: skip
        self.outbound = outbound(
            tls="required", tls_verify="host", tls_ca=str(pki / "ca.pem"), tls_engine=client,
            tls_protocols=frozenset({version}),
            tls_certificate=str(pki / f"{certificate}.pem") if certificate else None,
            tls_key=str(pki / f"{certificate}.key") if certificate else None,
            tls_session_resumption=changes.get("tls_session_resumption", False),
        )  # fmt: skip

    def connect(self, name: str = "mx.partner.test", *, close: bool = False) -> tuple[Engine, Engine]:
        """A handshake, and a word each way behind it. A session is good for another one if it was closed."""
        server = self.contexts.server(self.inbound)
        client = self.contexts.client(self.outbound, name, "192.0.2.1 25")
        shake(server, client)
        if server.established and client.established:
            server.send(b"250 hello\r\n")
            assert client.verdict() is not None  # as a stream's owner does, before anything is read
            assert client.receive(server.data_to_send()) == b"250 hello\r\n"
            client.send(b"x" * 40000)
            assert server.receive(client.data_to_send()) == b"x" * 40000
        if close:
            end(client, server)
        return server, client


def end(client: Engine, server: Engine) -> None:
    """close_notify both ways."""
    client.close()
    server.receive(client.data_to_send())
    server.close()
    client.receive(server.data_to_send())


def shake(server: Engine, client: Engine, meddle: Callable[[bytes], bytes] = lambda data: data) -> None:
    """Pass octets between two engines until neither has more to say."""
    client.start()
    for _ in range(12):
        if data := client.data_to_send():
            server.receive(meddle(data))
        if data := server.data_to_send():
            client.receive(data)


BOTH = list(itertools.product(ENGINES, ENGINES))
VERSIONS = ("TLSv1.2", "TLSv1.3")
CERTIFICATES = {
    "client": "",
    "client-chained": "",
    "client-expired": "expired",
    "client-not-yet": "not_yet_valid",
    "client-self-signed": "self_signed",
    "client-wrong-ca": "unknown_issuer",
    "client-wrong-purpose": "wrong_purpose",
    "client-no-chain": "unknown_issuer",
    "": "no_certificate",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("server", "client"), BOTH)
@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_verdicts_are_the_same(pki: Path, certificate: str, server: str, client: str, version: str) -> None:
    pair = Pair(pki, server, client, certificate=certificate, version=version)
    ours, theirs = pair.connect()
    assert ours.established, ours.failure
    verdict, other = ours.verdict(), theirs.verdict()
    shown = certificate
    if client == "gnutls" and certificate in ("client-self-signed", "client-wrong-ca", "client-no-chain"):
        shown = ""  # GnuTLS does not present a certificate of an issuer that the server did not name (RFC 5246 7.4.6)
    assert verdict.cause == CERTIFICATES[shown]
    assert (verdict.protocol, other.protocol) == (version, version)
    assert verdict.sni == "mx.partner.test"
    assert (other.chain_verified, other.cause) == (True, "")
    if shown:
        assert verdict.certificate is not None
        assert verdict.certificate.alternative_names == ("DNS:client.bank.fi",)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_mode_none_asks_for_nothing(pki: Path, engine: str, version: str) -> None:
    server, _ = Pair(pki, engine, "openssl", version=version, tls_verify_mode="none").connect()
    verdict = server.verdict()
    assert (verdict.certificate, verdict.checked, verdict.cause) == (None, False, "")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("server", "client"), BOTH)
def test_the_mode_require_ends_the_handshake_without_a_certificate(
    pki: Path, server: str, client: str, version: str
) -> None:
    pair = Pair(pki, server, client, version=version, certificate="", tls_verify_mode="require")
    ours, theirs = pair.connect()
    assert ours.failure is not None
    assert ours.failure.cause == "no_client_certificate"
    assert theirs.failure is not None
    assert theirs.failure.cause in ("alert_certificate_required", "alert_handshake_failure", "alert_bad_certificate")


# resumption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("server", "client"), BOTH)
@pytest.mark.parametrize("certificate", ["client", "client-expired", ""])
def test_resumption_keeps_the_verdict(pki: Path, certificate: str, server: str, client: str, version: str) -> None:
    pair = Pair(pki, server, client, version=version, certificate=certificate, tls_session_resumption=True)
    found = [tuple(engine.verdict() for engine in pair.connect(close=True)) for _ in range(3)]
    assert [(ours.resumed, theirs.resumed) for ours, theirs in found] == [(False, False), (True, True), (True, True)]
    assert {ours.cause for ours, _ in found} == {CERTIFICATES[certificate]}
    assert {theirs.chain_verified for _, theirs in found} == {True}
    assert len({ours.certificate.sha256 if ours.certificate else "" for ours, _ in found}) == 1


@pytest.mark.parametrize(("server", "client"), BOTH)
def test_without_the_option_nothing_is_resumed(pki: Path, server: str, client: str) -> None:
    pair = Pair(pki, server, client)
    assert not any(engine.verdict().resumed for _ in range(2) for engine in pair.connect(close=True))


def test_a_certificate_that_expires_meanwhile_is_found_on_resumption(pki: Path) -> None:
    pair = Pair(pki, "openssl", "openssl", tls_session_resumption=True)
    assert pair.connect(close=True)[0].verdict().cause == ""
    pair.now[0] += 400 * 86400.0
    ours, theirs = pair.connect(close=True)
    assert not theirs.verdict().resumed, "a session past its certificate is not offered"
    del ours


def test_a_server_finds_a_resumed_certificate_expired(pki: Path) -> None:
    """The client still offers the session: its clock stands still."""
    pair = Pair(pki, "openssl", "openssl", tls_session_resumption=True)
    frozen = Contexts(lambda: NOW)

    def connect() -> Engine:
        server = pair.contexts.server(pair.inbound)
        client = frozen.client(pair.outbound, "mx.partner.test", "192.0.2.1 25")
        shake(server, client)
        client.verdict()
        server.send(b"250 hello\r\n")
        client.receive(server.data_to_send())
        end(client, server)
        return server

    assert connect().verdict().cause == ""
    pair.now[0] += 400 * 86400.0
    verdict = connect().verdict()
    assert (verdict.resumed, verdict.cause) == (True, "expired")


def test_a_session_is_offered_to_the_same_host_only(pki: Path) -> None:
    pair = Pair(pki, "openssl", "openssl", tls_session_resumption=True)
    pair.connect(close=True)
    server = pair.contexts.server(pair.inbound)
    client = pair.contexts.client(pair.outbound, "mx.partner.test", "192.0.2.2 25")
    shake(server, client)
    assert not client.verdict().resumed
    changed = dataclasses.replace(pair.outbound, tls_verify="ca")
    client = pair.contexts.client(changed, "mx.partner.test", "192.0.2.1 25")
    shake(pair.contexts.server(pair.inbound), client)
    assert not client.verdict().resumed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("server", "client"), BOTH)
def test_an_untrusted_host_stays_untrusted_on_resumption(pki: Path, server: str, client: str, version: str) -> None:
    """Also where its first data comes together with the end of the handshake."""
    pair = Pair(pki, server, client, version=version, tls_session_resumption=True)
    changed = dataclasses.replace(pair.outbound, tls_ca=str(pki / "other-ca.pem"))
    for _ in range(4):
        ours = pair.contexts.server(pair.inbound)
        theirs = pair.contexts.client(changed, "mx.partner.test", "192.0.2.1 25")
        theirs.start()
        for _ in range(6):
            if data := theirs.data_to_send():
                ours.receive(data)
            if ours.established:
                ours.send(b"250 at once\r\n")
            if data := ours.data_to_send():
                theirs.receive(data)
        assert theirs.verdict().cause == "unknown_issuer"
        ours.send(b"250 and more\r\n")
        theirs.receive(ours.data_to_send())
        end(theirs, ours)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("server", ENGINES)
def test_an_authority_that_expires_ends_resumption(tmp_path: Path, server: str, version: str) -> None:
    """The anchor is not sent, and counts all the same."""
    begin = datetime.datetime.now(datetime.UTC).timestamp()
    authority = Authority(tmp_path, life=datetime.timedelta(hours=30))  # begun a day ago
    authority.write()
    for name in ("server", "client"):
        authority.issue(name, ["mx.partner.test"])
    pair = Pair(tmp_path, server, "openssl", version=version, tls_session_resumption=True)
    pair.now[0] = begin
    assert [engine.verdict().resumed for _ in range(2) for engine in pair.connect(close=True)] == [
        False,
        False,
        True,
        True,
    ]
    pair.now[0] = begin + 7 * 3600
    assert not pair.connect(close=True)[1].verdict().resumed


def test_a_server_finds_a_resumed_authority_expired(tmp_path: Path) -> None:
    begin = datetime.datetime.now(datetime.UTC).timestamp()
    authority = Authority(tmp_path, life=datetime.timedelta(hours=30))
    authority.write()
    for name in ("server", "client"):
        authority.issue(name, ["mx.partner.test"])
    pair = Pair(tmp_path, "openssl", "openssl", tls_session_resumption=True)
    frozen = Contexts(lambda: begin)
    causes = []
    for now in (begin, begin + 7 * 3600):
        pair.now[0] = now
        server = pair.contexts.server(pair.inbound)
        client = frozen.client(pair.outbound, "mx.partner.test", "192.0.2.1 25")
        shake(server, client)
        client.verdict()
        server.send(b"250 hello\r\n")
        client.receive(server.data_to_send())
        end(client, server)
        causes.append((server.verdict().resumed, server.verdict().cause))
    assert causes == [(False, ""), (True, "expired")]


def test_a_session_is_not_offered_for_ever(pki: Path) -> None:
    pair = Pair(pki, "openssl", "openssl", tls_session_resumption=True)
    found = []
    for _ in range(5):
        pair.now[0] += 100.0
        found.append(pair.connect(close=True)[1].verdict().resumed)
    assert found == [False, True, True, False, True]


@pytest.mark.parametrize("engine", ENGINES)
def test_new_contexts_end_resumption(pki: Path, engine: str) -> None:
    pair = Pair(pki, engine, engine, tls_session_resumption=True)
    pair.connect(close=True)
    assert pair.connect(close=True)[0].verdict().resumed
    assert all(done for done, _ in pair.contexts.renew())
    assert not pair.connect(close=True)[0].verdict().resumed


# settings -------------------------------------------------------------------------------------------------------


def test_groups_are_offered_in_their_order(pki: Path) -> None:
    pair = Pair(pki, "openssl", "openssl", tls_ec_curve_names="secp384r1:prime256v1")
    assert pair.connect()[1].verdict().group == "secp384r1"
    pair = Pair(pki, "openssl", "openssl", tls_ec_curve_names="X25519MLKEM768")
    assert pair.connect()[1].verdict().group == "X25519MLKEM768"
    with pytest.raises(ContextError, match="TLS_EC_Curve_Names 'P-999': a group is unknown to OpenSSL"):
        Pair(pki, "openssl", "openssl", tls_ec_curve_names="P-999").connect()


def test_suites_of_tls_1_3(pki: Path) -> None:
    pair = Pair(pki, "openssl", "openssl", tlsv13_ciphersuites="TLS_CHACHA20_POLY1305_SHA256")
    assert pair.connect()[1].verdict().cipher == "TLS_CHACHA20_POLY1305_SHA256"


@pytest.mark.parametrize("engine", ENGINES)
def test_identities(pki: Path, engine: str) -> None:
    found = {}
    identities = (
        TlsIdentity("mx.one.test", ((str(pki / "one.pem"), str(pki / "one.key")),)),
        TlsIdentity("*.two.test", ((str(pki / "two.pem"), str(pki / "two.key")),)),
    )
    pair = Pair(pki, engine, "openssl", tls_identities=identities)
    for name in ("mx.one.test", "MX.One.Test", "a.two.test", "a.b.two.test", "elsewhere.test", ""):
        certificate = pair.connect(name)[1].verdict().certificate
        assert certificate is not None
        found[name] = certificate.subject_cn
    assert found == {
        "mx.one.test": "mx.one.test",
        "MX.One.Test": "mx.one.test",
        "a.two.test": "*.two.test",
        "a.b.two.test": "mx.partner.test",
        "elsewhere.test": "mx.partner.test",
        "": "mx.partner.test",
    }


def test_priority_strings() -> None:
    base = ":-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:%PROFILE_MEDIUM"
    assert priority_string(outbound()) == "NORMAL" + base
    assert priority_string(outbound(tls_ciphers="DEFAULT")) == "NORMAL" + base
    assert priority_string(outbound(tls_ciphers="NORMAL:-VERS-SSL3.0")) == "NORMAL:-VERS-SSL3.0:%PROFILE_MEDIUM"
    assert priority_string(outbound(tls_ciphers="SECURE256:%PROFILE_HIGH")).startswith(
        "SECURE256:%PROFILE_HIGH:-VERS-ALL"
    )
    assert "-DHE-RSA" in priority_string(outbound(tls_enable_dhe_ciphers=False))


def test_a_file_that_openssl_cannot_open_is_said(pki: Path) -> None:
    contexts = Contexts(lambda: NOW)
    with pytest.raises(ContextError, match=r"^TLS_CA /nowhere\.pem: No such file or directory$"):
        contexts.load_client(outbound(tls_verify="ca", tls_ca="/nowhere.pem"))
    with pytest.raises(ContextError, match=r"^TLS_Certificate /nowhere\.pem: No such file or directory$"):
        contexts.load(inbound_tls("/nowhere.pem", str(pki / "server.key")))


def test_what_gnutls_cannot_read_is_said(pki: Path) -> None:
    contexts = Contexts(lambda: NOW)
    with pytest.raises(ContextError, match="is no GnuTLS priority string"):
        contexts.load_client(outbound(tls_engine="gnutls", tls_ciphers="DEFAULT:!LOW:!EXP"))
    with pytest.raises(ContextError, match=r"nowhere\.pem: No such file"):
        contexts.load_client(outbound(tls_engine="gnutls", tls_verify="ca", tls_ca="/nowhere.pem"))
    with pytest.raises(ContextError, match="TLS_Certificate is not set"):
        contexts.load(inbound_tls("", "", tls_engine="gnutls"))
    with pytest.raises(ContextError, match="key"):
        contexts.load(inbound_tls(str(pki / "server.pem"), str(pki / "client.key"), tls_engine="gnutls"))


# files that change ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_changed_file_is_loaded_again_and_a_broken_one_is_not(tmp_path: Path, engine: str) -> None:
    authority = Authority(tmp_path)
    authority.write()
    issued = authority.issue("mx", ["mx.partner.test"])
    contexts = Contexts(lambda: NOW)
    inbound = inbound_tls(str(issued.certificate), str(issued.key), tls_engine=engine)

    def shown() -> str:
        client = contexts.client(outbound(tls_verify="no"), "mx.partner.test")
        shake(contexts.server(inbound), client)
        certificate = client.verdict().certificate
        assert certificate is not None
        return certificate.sha256

    first = shown()
    assert contexts.refresh() == []
    authority.issue("mx", ["mx.partner.test"])
    ((done, said),) = contexts.refresh()
    assert done
    assert said.startswith("loaded again: ")
    assert "mx.pem" in said
    second = shown()
    assert second != first
    issued.certificate.write_text("-----BEGIN CERTIFICATE-----\nnothing\n")
    ((done, said),) = contexts.refresh()
    assert not done
    assert "cannot be loaded, the old one stays in use" in said
    assert contexts.refresh() == [], "said once for each state of the file"
    assert shown() == second
    issued.key.unlink()
    assert len(contexts.refresh()) == 1
    assert shown() == second


def test_a_key_of_a_kind_that_tls_does_not_use_is_said(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("mx", ["mx.partner.test"])
    odd = x25519.X25519PrivateKey.generate()
    issued.key.write_bytes(
        odd.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(ContextError, match="TLS_Key"):
        Contexts(lambda: NOW).load(inbound_tls(str(issued.certificate), str(issued.key)))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_cache_knows_what_is_in_use(pki: Path, engine: str) -> None:
    pair = Pair(pki, engine, engine)
    engines = [pair.connect() for _ in range(3)]
    assert [(row.kind, row.in_use) for row in pair.contexts.rows()] == [("server", 3), ("client", 3)]
    engines.pop()
    assert [row.in_use for row in pair.contexts.rows()] == [2, 2]


def test_groups_have_one_name(pki: Path) -> None:
    found = {
        server: Pair(pki, server, "openssl", tls_ec_curve_names="X25519").connect()[0].verdict().group
        for server in ENGINES
    }
    assert len(set(found.values())) == 1, found


# hostile peers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("role", ["server", "client"])
@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=400), max_size=5),
    header=st.sampled_from([b"", b"\x16\x03\x01", b"\x15\x03\x03", b"\x17\x03\x03"]),
)
def test_no_octets_raise(pki: Path, engine: str, role: str, parts: list[bytes], header: bytes) -> None:
    pair = Pair(pki, engine, engine)
    hostile = pair.contexts.server(pair.inbound) if role == "server" else pair.contexts.client(pair.outbound, "x.test")
    hostile.start()
    for part in parts:
        data = header + len(part).to_bytes(2, "big") + part if header else part
        assert hostile.receive(data) == b""
        hostile.data_to_send()
    hostile.eof()
    assert not hostile.established
    assert hostile.failure is not None
    hostile.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None)
@given(
    turn=st.integers(0, 3),
    kind=st.sampled_from(["flip", "cut", "double", "insert"]),
    permille=st.integers(0, 999),
    mask=st.integers(1, 255),
    extra=st.binary(max_size=20),
)
def test_no_mutation_of_a_handshake_raises(
    pki: Path, engine: str, version: str, turn: int, kind: str, permille: int, mask: int, extra: bytes
) -> None:
    """A flight with octets changed, left out or doubled ends in a failure with a cause, or in a good session."""
    pair = Pair(pki, engine, engine, version=version)
    flights = itertools.count()

    def meddle(octets: bytes) -> bytes:
        if next(flights) != turn:
            return octets
        at = len(octets) * permille // 1000
        if kind == "flip":
            return octets[:at] + bytes([octets[at] ^ mask]) + octets[at + 1 :]
        if kind == "cut":
            return octets[:at]
        return octets[:at] + (octets[at:] if kind == "double" else extra) + octets[at:]

    server, client = pair.contexts.server(pair.inbound), pair.contexts.client(pair.outbound, "mx.partner.test")
    shake(server, client, meddle)
    for one in (server, client):
        one.eof()
        assert one.established or one.failure is not None
        if one.failure is not None:
            assert one.failure.cause in CAUSES or one.failure.cause.startswith("alert_")
        one.send(b"x")
        one.data_to_send()
        one.close()


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None)
@given(rest=st.binary(min_size=1, max_size=300))
def test_no_octets_behind_a_handshake_raise(pki: Path, engine: str, rest: bytes) -> None:
    pair = Pair(pki, engine, engine)
    server, _ = pair.connect()
    assert server.receive(rest) == b""
    server.send(b"250 still there\r\n")
    server.data_to_send()
    server.eof()
    server.close()


MALFORMED = {
    "version 4": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03"),
    "an extension twice": (b"\x06\x03\x55\x1d\x25", b"\x06\x03\x55\x1d\x13"),
    "a name that is no UTF-8": (b"\x0c\x0fmx.partner.test", b"\x0c\x0f\xff\xfe.partner.test"),
    "a date that is none": (b"\x17\x0d", b"\x17\x0d9"),
    "a name of an odd kind": (b"\x82\x0fmx.partner.test", b"\xa3\x0fmx.partner.test"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_certificate_is_no_exception(pki: Path, kind: str) -> None:
    der = ssl.PEM_cert_to_DER_cert((pki / "good.pem").read_text())
    old, new = MALFORMED[kind]
    assert old in der
    at = der.index(old)
    certificate = Certificate(der[:at] + new + der[at + len(new) :])
    assert certificate.sha256
    for value in (certificate.subject, certificate.issuer, certificate.subject_cn, certificate.spki_sha256):
        assert isinstance(value, str)
    assert isinstance(certificate.alternative_names, tuple)
    assert not identity.matches(certificate, ["mx.elsewhere.test"])
    verdict = TlsVerdict("TLSv1.3", "X", 256, 256, "", certificate, True, (("self_signed", 0, ""),))
    assert verdict.facts(verified=False, cause="self_signed").cause == "self_signed"


@pytest.mark.parametrize("client", ENGINES)
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_host_with_a_malformed_certificate_is_judged(pki: Path, kind: str, client: str, tmp_path: Path) -> None:
    """Where its own library loads it at all."""
    old, new = MALFORMED[kind]
    der = ssl.PEM_cert_to_DER_cert((pki / "self-signed.pem").read_text())
    at = der.index(old)
    file = tmp_path / "mx.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(der[:at] + new + der[at + len(new) :]))
    contexts = Contexts(lambda: NOW)
    try:
        server = contexts.server(inbound_tls(str(file), str(pki / "self-signed.key")))
    except ContextError:
        assert kind == "a name that is no UTF-8", "OpenSSL loads the others"
        return
    wanted = outbound(tls="required", tls_verify="host", tls_engine=client, tls_session_resumption=True)
    other = contexts.client(wanted, "mx.partner.test", "192.0.2.1 25")
    shake(server, other)
    if other.established:
        assert other.verdict().cause
        assert other.chain() is not None
        server.send(b"250 hello\r\n")
        other.receive(server.data_to_send())
    else:
        assert other.failure is not None


def test_sixteen_errors_of_a_chain_are_enough(tmp_path: Path) -> None:
    """A long chain of expired certificates does not fill memory."""
    authority = Authority(tmp_path)
    authority.write()
    parent = authority
    for n in range(20):
        parent = Authority(tmp_path, f"middle {n}", parent)
    issued = parent.issue("long", ["client.test"], usage=[CLIENT], start=-30 * DAY, life=10 * DAY)
    server_pair = authority.issue("server", ["mx.partner.test"])
    contexts = Contexts(lambda: NOW)
    inbound = inbound_tls(
        str(server_pair.certificate), str(server_pair.key), tls_verify_mode=None, tls_client_ca=str(tmp_path / "ca.pem")
    )
    server = contexts.server(inbound)
    shake(server, contexts.client(outbound(tls_certificate=str(issued.certificate), tls_key=str(issued.key)), "x.test"))
    assert 0 < len(server.verdict().errors) <= 16


@pytest.mark.parametrize("trusted", ["root", "middle", "leaf", "other"])
@pytest.mark.parametrize("sent", [1, 2, 3])
@pytest.mark.parametrize(("server", "client"), BOTH)
def test_every_anchor_is_one_verdict(tmp_path: Path, trusted: str, sent: int, server: str, client: str) -> None:
    """A certificate in the CA file is trusted, be it a root, an intermediate or the one shown (RFC 5280 6.1.1 d)."""
    root, other = Authority(tmp_path, "root"), Authority(tmp_path, "other")
    middle = Authority(tmp_path, "middle", root)
    issued = middle.issue("leaf", ["mx.partner.test"])
    own = x509.load_pem_x509_certificates(issued.certificate.read_bytes())[0]
    pem = [one.public_bytes(serialization.Encoding.PEM) for one in (own, middle.certificate, root.certificate)]
    issued.certificate.write_bytes(b"".join(pem[:sent]))
    file = tmp_path / "trusted.pem"
    trust = {"root": root.certificate, "middle": middle.certificate, "leaf": own, "other": other.certificate}[trusted]
    file.write_bytes(trust.public_bytes(serialization.Encoding.PEM))
    contexts = Contexts(lambda: NOW)
    inbound = inbound_tls(
        str(issued.certificate), str(issued.key), tls_engine=server, tls_verify_mode=None, tls_client_ca=str(file)
    )
    out = outbound(
        tls="required", tls_verify="host", tls_ca=str(file), tls_engine=client, tls_protocols=frozenset({"TLSv1.3"}),
        tls_certificate=str(issued.certificate), tls_key=str(issued.key),
    )  # fmt: skip
    one, two = contexts.server(inbound), contexts.client(out, "mx.partner.test", "192.0.2.1 25")
    shake(one, two)
    good = (trusted in ("middle", "leaf") and sent >= {"middle": 1, "leaf": 1}[trusted]) or (
        trusted == "root" and sent >= 2
    )
    verdicts = [one.verdict(), two.verdict()]
    if client == "gnutls" and verdicts[0].cause == "no_certificate":
        verdicts = verdicts[1:]  # it shows no certificate whose issuer is not among the names that the server hints at
    for verdict in verdicts:
        assert verdict.cause == ("" if good else "unknown_issuer")
        anchor = verdict.anchor.der if verdict.anchor is not None else None
        assert anchor == (trust.public_bytes(serialization.Encoding.DER) if good else None)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.1", ""), ("[192.0.2.1]", ""), ("2001:db8::1", ""), ("IPv6:2001:db8::1", ""), ("fe80::1%eth0", ""),
        ("MX.Partner.test.", "mx.partner.test"), ("b\u00fccher.test", "xn--bcher-kva.test"), ("a b", ""), ("", ""),
    ],
)  # fmt: skip
def test_what_is_sent_as_server_name(pki: Path, engine: str, host: str, name: str) -> None:
    pair = Pair(pki, engine, engine)
    server, client = pair.contexts.server(pair.inbound), pair.contexts.client(pair.outbound, host, "192.0.2.1 25")
    shake(server, client)
    assert server.established
    assert server.verdict().sni == name


def test_a_client_hello_fits_into_a_packet_and_gets_the_hybrid_group(pki: Path) -> None:
    pair = Pair(pki, "openssl", "openssl")
    client = pair.contexts.client(pair.outbound, "mx.partner.test", "192.0.2.1 25")
    client.start()
    assert 0 < len(client.data_to_send()) < 600
    server, client = pair.connect()
    assert server.verdict().group == client.verdict().group == "X25519MLKEM768"
    pair = Pair(pki, "openssl", "openssl", version="TLSv1.2")
    assert pair.connect()[1].established


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("server", "client"), BOTH)
@pytest.mark.parametrize(("count", "taken"), [(2000, True), (20000, False)])
def test_certificates_with_very_many_names(
    tmp_path: Path, pki: Path, server: str, client: str, version: str, count: int, taken: bool
) -> None:
    issued = Authority(tmp_path, "many").issue("many", [f"n{n}.partner.test" for n in range(count)])
    pair = Pair(pki, server, client, version=version)
    pair.outbound = dataclasses.replace(
        pair.outbound, tls_certificate=str(issued.certificate), tls_key=str(issued.key), tls_verify="no"
    )
    one, two = pair.contexts.server(pair.inbound), pair.contexts.client(pair.outbound, "mx.partner.test", "x")
    for _ in range(3):
        shake(one, two)
    if client == "gnutls" and not taken:
        assert one.verdict().certificate is None  # it does not even send so large a one
        return
    assert one.established is taken
    if not taken:
        assert one.failure is not None
        assert one.failure.cause == "handshake_too_large"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("offered", "taken"), [([b"smtp"], True), ([b"h2", b"smtp"], True), ([b"h2", b"http/1.1"], False)]
)
def test_what_a_client_offers_by_alpn(pki: Path, engine: str, offered: list[bytes], taken: bool) -> None:
    """RFC 9325 3.8: a handshake that is meant for a web server ends."""
    pair = Pair(pki, engine, engine)
    server = pair.contexts.server(pair.inbound)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos(offered)
    client = OpenSSLEngine(context, server=False, checked=False)
    shake(server, client)
    assert server.established is taken
    if not taken:
        assert server.failure is not None
        assert server.failure.cause == "no_application_protocol"


def test_names_of_a_certificate_read_as_one_thing(tmp_path: Path) -> None:
    """A comma within a name, a slash within a subject (as CVE-2021-44532 and 44533 had them)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Evil/CN=admin.test"),
            x509.NameAttribute(NameOID.COMMON_NAME, "x.test"),
        ]
    )

    def certificate(*names: x509.GeneralName) -> Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + DAY)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Certificate(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))

    evil = certificate(x509.DNSName("a,DNS:admin.test"), x509.DNSName("b.test"))
    assert evil.subject == "/O=Evil\\/CN=admin.test/CN=x.test"
    text = ",".join(map(escaped, evil.alternative_names))
    assert text == "DNS:a\\,DNS:admin.test,DNS:b.test"
    assert unescaped(text) == list(evil.alternative_names)
    assert not names_one_of(text, "admin.test")
    assert names_one_of(text, "c.test,b.test")
    other = certificate(x509.UniformResourceIdentifier("https://x.test"))
    assert not identity.matches(other, ["x.test"])  # a SAN of any kind rules the common name out


def _renewed(authority: Authority, end: datetime.timedelta) -> x509.Certificate:
    """Its certificate with the same name and key, and another end."""
    old = authority.certificate
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number + 1)
    builder = builder.not_valid_before(now - 60 * DAY).not_valid_after(now + end)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    parent = authority._parent or authority
    return builder.sign(parent.key, hashes.SHA256())


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_a_certificate_alone_is_sent_with_the_authorities_that_it_leads_to(
    tmp_path: Path, alone: bool, order: int
) -> None:
    """Among those for clients, where the library would look for them at each handshake: those that are good today, and
    each once, though authorities stand there twice, old and renewed."""
    root = Authority(tmp_path)
    middle = Authority(tmp_path, "middle", root)
    issued = middle.issue("server", ["mx.partner.test"])
    pems = x509.load_pem_x509_certificates(issued.certificate.read_bytes())
    if alone:
        issued.certificate.write_bytes(pems[0].public_bytes(serialization.Encoding.PEM))
    root.write("ca.pem")
    known = [_renewed(root, -DAY), root.certificate, _renewed(middle, -DAY), middle.certificate][::order]
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in known))
    pair = Pair(tmp_path, "openssl", "openssl", certificate=None, tls_client_ca=str(both))
    server, client = pair.connect()
    assert server.established
    assert client.verdict().chain_verified
    assert client.chain() == [pems[0], middle.certificate]
    assert isinstance(server, OpenSSLEngine)
    assert Binding.lib.SSL_CTX_set_mode(server._connection.get_context()._context, 0) & 8  # SSL_MODE_NO_AUTO_CHAIN


def test_a_certificate_that_leads_nowhere_today_is_sent_all_the_same(tmp_path: Path, pki: Path) -> None:
    root = Authority(tmp_path, "of nobody here")
    issued = root.issue("server", ["mx.partner.test"])
    root.write("ca.pem")
    pair = Pair(tmp_path, "openssl", "openssl", certificate=None, tls_client_ca=str(pki / "ca.pem"))
    server, client = pair.connect()
    assert server.established
    assert client.verdict().chain_verified
    assert client.chain() == x509.load_pem_x509_certificates(issued.certificate.read_bytes())
