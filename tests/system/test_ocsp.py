"""Answers of OCSP responders: those that hosts staple are looked at, our own are stapled; by both engines alike."""

from __future__ import annotations

import dataclasses
import datetime
import smtplib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from quillon.cli.main import main
from quillon.lab.pki import DAY, SERVER, Authority, Issued
from quillon.lab.sink import inbound_tls
from quillon.tls.revocation import stapled
from tests.support.peers import require
from tests.support.server import Server, free_port
from tests.support.sinks import SinkThread

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
GOOD, REVOKED, UNKNOWN = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN


def loaded(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificates(issued.certificate.read_bytes())[0]


class World:
    """An authority, a responder of its own, and answers about one certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Authority(folder, "Root")
        self.ca = self.root.write()
        self.other = Authority(folder, "Root")  # of the same name, with another key
        self.host = self.root.issue("host", ["localhost", "127.0.0.1"])
        second = self.root.issue("second", ["localhost"])
        signing = self.root.issue("responder", ["ocsp.test"], usage=(ExtendedKeyUsageOID.OCSP_SIGNING,))
        wrong = self.root.issue("wrong", ["ocsp.test"], usage=(SERVER,))
        own = loaded(self.host)
        self.answers = {
            "good": self.answer(own, GOOD),
            "by a responder": self.answer(own, GOOD, signing),
            "by a server": self.answer(own, GOOD, wrong),
            "revoked": self.answer(own, REVOKED),
            "unknown": self.answer(own, UNKNOWN),
            "outdated": self.answer(own, GOOD, end=-DAY),
            "to come": self.answer(own, GOOD, begin=DAY),
            "another": self.answer(loaded(second), GOOD),
            "forged": self.answer(own, GOOD, authority=self.other),
            "try later": ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
                serialization.Encoding.DER
            ),
        }

    def answer(
        self,
        certificate: x509.Certificate,
        status: ocsp.OCSPCertStatus,
        signer: Issued | None = None,
        *,
        authority: Authority | None = None,
        begin: datetime.timedelta = -2 * DAY,
        end: datetime.timedelta = 5 * DAY,
    ) -> bytes:
        by = authority or self.root
        gone = NOW - 3 * DAY if status is REVOKED else None
        builder = ocsp.OCSPResponseBuilder().add_response(
            certificate, self.root.certificate, hashes.SHA1(), status, NOW + begin, NOW + end, gone, None
        )
        key: Any = by.key
        own = by.certificate
        if signer is not None:
            own = loaded(signer)
            key = serialization.load_pem_private_key(signer.key.read_bytes(), None)
            builder = builder.certificates([own])
        made = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, own).sign(key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.DER)

    def file(self, name: str) -> Path:
        path = self.folder / f"{name.replace(' ', '-')}.ocsp"
        path.write_bytes(self.answers[name])
        return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("ocsp"))


HARD = {
    "good": "",
    "by a responder": "",
    "by a server": "ocsp_invalid",
    "revoked": "revoked",
    "unknown": "ocsp_missing",
    "outdated": "ocsp_outdated",
    "to come": "ocsp_outdated",
    "forged": "ocsp_invalid",
    "try later": "ocsp_missing",
    "nothing": "ocsp_missing",
}


@pytest.fixture
def sinks(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, SinkThread]]:
    """Hosts that staple, which send what they are given as if it were fresh."""
    monkeypatch.setattr("quillon.tls.openssl_context.fresh", lambda *_: True)
    tls = inbound_tls(str(world.host.certificate), str(world.host.key))
    made = {
        name: SinkThread(tls=dataclasses.replace(tls, tls_ocsp_response=str(world.file(name))))
        for name in HARD
        if name != "nothing"
    }
    made["nothing"] = SinkThread(tls=tls)
    yield made
    for sink in made.values():
        sink.stop()


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
@pytest.mark.parametrize("mode", ["hard", "soft", "no"])
def test_what_hosts_staple(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server], engine: str, mode: str
) -> None:
    port = free_port()
    names = list(HARD)
    stanzas = "".join(
        f'Domain "c{n}.test" {{ Routes = ( "127.0.0.1:{sinks[name].port}" ) }}\n' for n, name in enumerate(names)
    )
    running = server(
        f"""TLS_Engine = {engine} TLS = required TLS_Verify = ca TLS_CA = "{world.ca}" TLS_OCSP = {mode} Retry_Interval = 100
        {stanzas}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    recipients = [f"b@c{n}.test" for n in range(len(names))]
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: x\r\n\r\nhello\r\n")
    events = running.wait_attempts(*recipients)
    found = {name: events[to].get("cause", "") for name, to in zip(names, recipients, strict=True)}
    kept = {"hard": set(HARD.values()), "soft": {"revoked"}, "no": set()}[mode]
    assert found == {name: cause if cause in kept else "" for name, cause in HARD.items()}


def test_an_answer_about_another_certificate(world: World) -> None:
    """Which OpenSSL staples to none."""
    chain, now = [loaded(world.host)], NOW.timestamp()
    found = {name: stapled(octets, chain, [world.root.certificate], now)[0] for name, octets in world.answers.items()}
    assert found == {**{name: cause for name, cause in HARD.items() if name != "nothing"}, "another": "ocsp_invalid"}
    assert stapled(b"", chain, chain, now) == ("", ""), "what is trusted as it stands"
    assert stapled(world.answers["good"], chain, [], now)[0] == "ocsp_missing"


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_whatever_is_stapled_is_looked_at(world: World, octets: bytes, at: int) -> None:
    good = world.answers["good"]
    for some in (octets, good[:at], good[:at] + octets + good[at + len(octets) :]):
        cause, _ = stapled(some, [loaded(world.host)], [world.root.certificate], NOW.timestamp())
        assert cause in ("", "ocsp_missing", "ocsp_invalid", "ocsp_outdated", "revoked")
        assert cause or some == good


@pytest.mark.peer
@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
def test_our_own_is_stapled_while_it_is_fresh(world: World, server: Callable[..., Server], engine: str) -> None:
    require("openssl")
    file = world.folder / f"own-{engine}.ocsp"
    said = {}
    for name in ("good", "outdated", "another"):
        file.write_bytes(world.answers[name])
        port = free_port()
        running = server(
            f"""TLS_Engine = {engine}
            ESMTP_Listener {{ TLS_Certificate = "{world.host.certificate}" TLS_Key = "{world.host.key}"
              TLS_OCSP_Response = "{file}" SMTP_Extensions = ( STARTTLS ) Listen "127.0.0.1:{port}" {{ }} }}""",
            name=f"s-{engine}-{name}",
        ).start()
        command = ["openssl", "s_client", "-status", "-starttls", "smtp", "-connect", f"127.0.0.1:{port}"]
        done = subprocess.run(
            [*command, "-CAfile", str(world.ca)], input="QUIT\r\n", capture_output=True, text=True, check=False
        )
        said[name] = "OCSP Response Status: successful" in done.stdout
        running.stop()
    assert said == {"good": True, "outdated": False, "another": False}


@pytest.mark.parametrize(("octets", "words"), [(None, "No such file"), (b"what?", "it holds no answer")])
def test_a_file_that_is_none_is_refused(
    world: World, server: Callable[..., Server], capsys: Any, octets: bytes | None, words: str
) -> None:
    file = world.folder / "none.ocsp"
    file.unlink(missing_ok=True)
    if octets is not None:
        file.write_bytes(octets)
    given = server(
        f"""ESMTP_Listener {{ TLS_Certificate = "{world.host.certificate}" TLS_Key = "{world.host.key}"
          TLS_OCSP_Response = "{file}" SMTP_Extensions = ( STARTTLS ) Listen "127.0.0.1:{free_port()}" {{ }} }}"""
    )
    assert main(["check", "-c", str(given.file)]) == 2
    told = capsys.readouterr()
    assert words in told.out + told.err
