"""OCSP responders that are asked: about clients, and about hosts that staple nothing; by both engines alike."""

from __future__ import annotations

import datetime
import http.server
import smtplib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from quillon.cli.main import main
from quillon.lab.pki import DAY, Authority, Issued
from quillon.lab.sink import inbound_tls
from quillon.tls import responders
from tests.support.peers import require
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
NAMES = ["localhost", "127.0.0.1"]
ENGINES = pytest.mark.parametrize("engine", ["openssl", "gnutls"])


def loaded(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificates(issued.certificate.read_bytes())[0]


class Responder:
    """Answers questions about the certificates of an authority: by the file that each is asked for."""

    def __init__(self, authority: Authority) -> None:
        self.asked: list[str] = []
        self.revoked: set[int] = set()
        responder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                octets = self.rfile.read(int(self.headers["Content-Length"]))
                responder.asked.append(self.path)
                if self.path == "/silent":
                    time.sleep(3)
                    return
                body = responder.answer(octets, self.path, authority)
                self.send_response(500 if self.path == "/broken" else 200)
                self.send_header("Content-Type", "application/ocsp-response")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, octets: bytes, path: str, authority: Authority) -> bytes:
        request = ocsp.load_der_ocsp_request(octets)
        revoked = request.serial_number in self.revoked
        status = ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD
        end = -DAY if path == "/old" else DAY
        builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
            request.issuer_name_hash,
            request.issuer_key_hash,
            request.serial_number,
            request.hash_algorithm,
            status,
            NOW - 2 * DAY,
            NOW + end,
            NOW - DAY if revoked else None,
            None,
        )
        own = authority.certificate
        signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, own).sign(authority.key, hashes.SHA256())
        return b"x" * 100_000 if path == "/large" else signed.public_bytes(serialization.Encoding.DER)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, self.other = Authority(folder, "Root"), Authority(folder, "Other")
        self.ca, self.other_ca = self.root.write(), self.other.write("other.pem")
        self.responder = Responder(self.root)
        base = self.responder.base
        self.issued = {
            name: self.root.issue(name, NAMES, responder=f"{base}/{name}")
            for name in ("good", "bad", "old", "broken", "silent", "large")
        }
        self.issued["nameless"] = self.root.issue("nameless", NAMES)
        self.issued["unreachable"] = self.root.issue("unreachable", NAMES, responder="http://127.0.0.1:1/")
        self.issued["of another"] = self.other.issue("another", NAMES, responder=f"{base}/another")
        self.responder.revoked = {loaded(self.issued["bad"]).serial_number}


HARD = {
    "good": "",
    "bad": "revoked",
    "old": "ocsp_outdated",
    "broken": "ocsp_missing",
    "silent": "ocsp_missing",
    "large": "ocsp_missing",
    "nameless": "ocsp_missing",
    "unreachable": "ocsp_missing",
    "of another": "unknown_issuer",
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(responders, "PATIENCE", 1.0)  # servers are forked from here
    made = World(tmp_path / "pki")
    yield made
    made.responder.server.shutdown()
    made.responder.server.server_close()


def receptions(running: Server) -> list[dict[str, Any]]:
    return [row for row in running.events("reception") if row["protocol"] == "esmtp"]


def come(world: World, running: Server, port: int, name: str, sender: str = "a@sender.test") -> Any:
    """What the reception of a mail says of its client's certificate, or the reply to MAIL FROM."""
    context = ssl.create_default_context(cafile=str(world.ca))
    context.check_hostname = False
    context.load_cert_chain(world.issued[name].certificate, world.issued[name].key)
    before = len(receptions(running))
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.starttls(context=context)
        client.ehlo()
        code, words = client.mail(sender)
        if code != 250:
            return words.decode()
        client.rset()
        client.sendmail(sender, ["b@nowhere.test"], "Subject: x\r\n\r\nhello\r\n")
    rows = until(lambda: r if len(r := receptions(running)) > before else None, "a reception")
    return rows[-1]["tls"]["cause"]


@ENGINES
@pytest.mark.parametrize("mode", ["hard", "soft", "no"])
def test_clients(world: World, server: Callable[..., Server], engine: str, mode: str) -> None:
    port = free_port()
    running = server(
        f"""TLS_Engine = {engine}
        ESMTP_Listener {{
          TLS_Certificate = "{world.issued["good"].certificate}" TLS_Key = "{world.issued["good"].key}"
          TLS_Client_CA = "{world.ca}" TLS_OCSP = {mode} Relay_Hosts = ( 127.0.0.0/8 )
          Listen "127.0.0.1:{port}" {{ SMTP_Extensions = ( "STARTTLS" ) }}
        }}"""
    ).start()
    kept = {"hard": set(HARD.values()), "soft": {"revoked", "unknown_issuer"}, "no": {"unknown_issuer"}}[mode]
    for name, cause in HARD.items():
        expected = cause if cause in kept else ""
        assert come(world, running, port, name) == expected, name
        assert come(world, running, port, name) == expected, name
    known = sorted(f"/{name}" for name in HARD if name not in ("nameless", "unreachable", "of another"))
    assert sorted(world.responder.asked) == (known if mode != "no" else []), "each once, and nothing for strangers"


@ENGINES
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_hosts_that_staple_nothing(world: World, server: Callable[..., Server], engine: str, mode: str) -> None:
    sinks = {
        name: SinkThread(tls=inbound_tls(str(issued.certificate), str(issued.key)))
        for name, issued in world.issued.items()
    }
    port = free_port()
    names = list(HARD)
    stanzas = "".join(
        f'Domain "c{n}.test" {{ Routes = ( "127.0.0.1:{sinks[name].port}" ) }}\n' for n, name in enumerate(names)
    )
    running = server(
        f"""TLS_Engine = {engine} TLS = required TLS_Verify = ca TLS_CA = "{world.ca}" TLS_OCSP = {mode}
        Retry_Interval = 100
        {stanzas}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    recipients = [f"b@c{n}.test" for n in range(len(names))]
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: x\r\n\r\nhello\r\n")
    events = running.wait_attempts(*recipients)
    kept = set(HARD.values()) if mode == "hard" else {"revoked", "unknown_issuer"}
    found = {name: events[to].get("cause", "") for name, to in zip(names, recipients, strict=True)}
    assert found == {name: cause if cause in kept else "" for name, cause in HARD.items()}
    for sink in sinks.values():
        sink.stop()


@ENGINES
def test_an_answer_that_comes_after_a_host_has_hung_up(
    world: World, server: Callable[..., Server], engine: str
) -> None:
    """It is no answer any more: the message waits for the host, and nothing else is held."""
    issued = world.issued["silent"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    listening = socket.create_server(("127.0.0.1", 0))

    def host() -> None:
        connection = listening.accept()[0]
        connection.sendall(b"220 host\r\n")
        connection.recv(1000)
        connection.sendall(b"250-host\r\n250 STARTTLS\r\n")
        connection.recv(1000)
        connection.sendall(b"220 go\r\n")
        context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=host, daemon=True)
    thread.start()
    port = free_port()
    running = server(
        f"""TLS_Engine = {engine} TLS = required TLS_Verify = ca TLS_CA = "{world.ca}" TLS_OCSP = hard
        Retry_Interval = 100
        Domain "partner.test" {{ Routes = ( "127.0.0.1:{listening.getsockname()[1]}" ) }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@sender.test", ["b@partner.test"], "Subject: x\r\n\r\nhello\r\n")
    event = running.wait_attempts("b@partner.test")["b@partner.test"]
    assert event["outcome"] == "transient_failure"
    thread.join()
    listening.close()
    assert running.stop() == 0
    assert not running.log("paniclog.ec")


@ENGINES
def test_clients_that_a_contract_trusts(world: World, server: Callable[..., Server], engine: str) -> None:
    """And the Listen does not: their responder is asked as well."""
    port = free_port()
    other = world.other.issue("ours", NAMES)
    running = server(
        f"""TLS_Engine = {engine}
        TLS_Contract "bank.test" {{ CA = "{world.ca}" Outbound = no }}
        ESMTP_Listener {{
          TLS_Certificate = "{other.certificate}" TLS_Key = "{other.key}" TLS_Client_CA = "{world.other_ca}"
          TLS_OCSP = hard Relay_Hosts = ( 127.0.0.0/8 )
          Listen "127.0.0.1:{port}" {{ SMTP_Extensions = ( "STARTTLS" ) }}
        }}"""
    ).start()
    context = ssl.create_default_context(cafile=str(world.other_ca))
    context.check_hostname = False
    said = {}
    for name in ("good", "bad", "old"):
        context.load_cert_chain(world.issued[name].certificate, world.issued[name].key)
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.starttls(context=context)
            client.ehlo()
            code, words = client.mail("a@bank.test")
            said[name] = (code, words.decode())
    assert said["good"][0] == 250
    assert "revoked" in said["bad"][1], said
    assert "ocsp_outdated" in said["old"][1], said
    running.stop()


@pytest.mark.peer
@ENGINES
def test_the_responder_of_openssl(world: World, server: Callable[..., Server], tmp_path: Path, engine: str) -> None:
    """Named by TLS_OCSP_Responder."""
    require("openssl")
    signing = world.root.issue("signing", ["ocsp.test"], usage=(x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING,))
    index = tmp_path / "index.txt"
    states = {"nameless": "V\t491231235959Z\t", "unreachable": "R\t491231235959Z\t251231235959Z"}
    index.write_text(
        "".join(
            f"{state}\t{loaded(world.issued[name]).serial_number:X}\tunknown\t/CN={name}\n"
            for name, state in states.items()
        )
    )
    asked = free_port()
    command = ["openssl", "ocsp", "-port", str(asked), "-index", str(index), "-CA", str(world.ca)]
    command += ["-rsigner", str(signing.certificate), "-rkey", str(signing.key), "-nmin", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            # it listens then; a connection without a question would hold it
            assert any("waiting" in line for line in process.stdout)
            port = free_port()
            running = server(
                f"""TLS_Engine = {engine}
                ESMTP_Listener {{
                  TLS_Certificate = "{world.issued["good"].certificate}" TLS_Key = "{world.issued["good"].key}"
                  TLS_Client_CA = "{world.ca}" TLS_OCSP = hard TLS_OCSP_Responder = "http://127.0.0.1:{asked}/"
                  Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ SMTP_Extensions = ( "STARTTLS" ) }}
                }}"""
            ).start()
            found = {name: come(world, running, port, name) for name in ("nameless", "unreachable", "good")}
            assert found == {"nameless": "", "unreachable": "revoked", "good": "ocsp_missing"}
            running.stop()
        finally:
            process.kill()


def test_a_responder_that_is_no_url(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text('TLS = required\nTLS_OCSP = hard\nTLS_OCSP_Responder = "ocsp.example"\n')
    assert main(["check", "-c", str(file)]) == 2
    said = capsys.readouterr()
    assert f"{file}:3:1: " in said.out + said.err
    assert "it is a URL" in said.out + said.err
