"""TLS of both engines against Exim, posttls-finger, sslscan, openssl and gnutls-cli."""

from __future__ import annotations

import re
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import MESSAGE, context
from tests.support.exim import Exim
from tests.support.peers import require
from tests.support.server import Server, free_port, until

pytestmark = pytest.mark.peer
ENGINES = ("openssl", "gnutls")


class Rig:
    """A server of one engine, and an Exim beside it."""

    def __init__(self, folder: Path, pki: Path, engine: str) -> None:
        self.pki = pki
        self.engine = engine
        names = ("starttls", "implicit", "names", "old", "renegotiate", "resume", "dhe")
        self.ports = {name: free_port() for name in names}
        ports = self.ports
        self.exim = Exim(folder / "exim", pki, ports["starttls"]).start()
        dhe = (
            "TLS_Ciphers = DHE-RSA-AES256-GCM-SHA384"
            if engine == "openssl"
            else 'TLS_Ciphers = "NORMAL:-KX-ALL:+DHE-RSA"'
        )
        self.server = Server(
            folder / "q",
            f"""
            TLS_Engine = {engine}
            Domain kept.test {{ Suspend_Delivery = true }}
            Domain exim.test {{
              Gateway = "127.0.0.1:{self.exim.port}" TLS = required TLS_Verify = host TLS_CA = {pki}/ca.pem
              TLS_Certificate = {pki}/client.pem TLS_Key = {pki}/client.key
            }}
            ESMTP_Listener {{
              Relay_Hosts = ( 127.0.0.0/8 )
              TLS_Certificate = {pki}/server.pem
              TLS_Key = {pki}/server.key
              TLS_Client_CA = {pki}/ca.pem
              SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" )
              Listen "127.0.0.1:{ports["starttls"]}" {{ }}
              Listen "127.0.0.1:{ports["implicit"]}" {{ Use_SSL = true }}
              Listen "127.0.0.1:{ports["old"]}" {{ Use_SSL = true TLS_Protocols = "+TLSv1.2" TLS_Verify_Mode = none }}
              Listen "127.0.0.1:{ports["renegotiate"]}" {{
                Use_SSL = true TLS_Protocols = "+TLSv1.2" TLS_Allow_Renegotiation = true TLS_Verify_Mode = none
              }}
              Listen "127.0.0.1:{ports["resume"]}" {{ Use_SSL = true TLS_Session_Resumption = true }}
              Listen "127.0.0.1:{ports["dhe"]}" {{
                Use_SSL = true TLS_Protocols = "+TLSv1.2" {dhe} TLS_Verify_Mode = none
                TLS_Certificate = {pki}/server-rsa.pem TLS_Key = {pki}/server-rsa.key
              }}
              Listen "127.0.0.1:{ports["names"]}" {{
                Use_SSL = true
                TLS_Verify_Mode = none
                TLS_Identity "mx.one.test" {{ TLS_Certificate = {pki}/one.pem TLS_Key = {pki}/one.key }}
                TLS_Identity "*.two.test" {{
                  TLS_Certificate = ( "{pki}/two.pem" "{pki}/two-rsa.pem" ) TLS_Key = ( "{pki}/two.key" "{pki}/two-rsa.key" )
                }}
              }}
            }}
            """,
        ).start()

    def close(self) -> None:
        self.server.stop()
        self.exim.stop()


@pytest.fixture(scope="module", params=ENGINES)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("peers"), pki, request.param)
    yield made
    made.close()


def _output(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_exim_delivers_with_a_client_certificate(rig: Rig) -> None:
    before = len(rig.server.events("reception"))
    rig.exim.send("alice@exim.test", "bob@kept.test", MESSAGE)
    event = rig.server.wait_events("reception", before + 1)[-1]
    assert (event["tls"]["verified"], event["tls"]["subject"]) == (True, "/CN=client.bank.fi")
    assert re.search(r"=> bob@kept\.test .* X=TLS1\.3:.* CV=yes", rig.exim.log())


def test_exim_receives_with_a_client_certificate(rig: Rig) -> None:
    before = len(rig.server.events("attempt"))
    with smtplib.SMTP("127.0.0.1", rig.ports["starttls"], timeout=30) as client:
        client.sendmail("alice@example.test", ["bob@exim.test"], MESSAGE)
    event = rig.server.wait_events("attempt", before + 1)[-1]
    assert (event["outcome"], event["tls"]["verified"]) == ("delivered", True)
    assert event["tls"]["protocol"] == "TLSv1.3"
    line = until(lambda: [x for x in rig.exim.log().splitlines() if "<= alice@example.test" in x], "Exim's log")[-1]
    assert "CV=yes" in line
    assert "CN=client.bank.fi" in line


def _resume(rig: Rig, version: str, certificate: str) -> list[dict[str, object]]:
    """Two connections of one client to the listener that resumes; the facts of both."""
    before = len(rig.server.events("handshake"))
    tls = context(rig.pki, version, certificate)
    session = None
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", rig.ports["resume"]), 30) as sock:
            secured = tls.wrap_socket(sock, server_hostname="127.0.0.1", session=session)
            assert secured.recv(1000).startswith(b"220 ")
            session = secured.session
            secured.close()
    return [event["tls"] for event in rig.server.wait_events("handshake", before + 2)[before:]]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(("certificate", "cause"), [("client", ""), ("client-expired", "expired")])
def test_a_resumed_session_keeps_the_verdict_on_the_client(
    rig: Rig, version: str, certificate: str, cause: str
) -> None:
    first, second = _resume(rig, version, certificate)
    assert (first["resumed"], second["resumed"]) == (False, True)
    for facts in (first, second):
        assert (facts["cause"], facts["verified"]) == (cause, not cause)
    assert first["sha256"] == second["sha256"]


def test_posttls_finger_verifies_the_listener(rig: Rig) -> None:
    said = _output(
        [require("posttls-finger"), "-c", "-l", "secure", "-F", f"{rig.pki}/ca.pem", "-P", "/nowhere",
         f"[127.0.0.1]:{rig.ports['starttls']}", "127.0.0.1", "localhost"]
    )  # fmt: skip
    assert "Verified TLS connection established" in said or "Trusted TLS connection established" in said, said


def _scan(rig: Rig, name: str) -> str:
    return _output([require("sslscan"), "--no-colour", f"127.0.0.1:{rig.ports[name]}"])


def test_sslscan_finds_two_versions_and_nothing_weak(rig: Rig) -> None:
    said = _scan(rig, "implicit")
    for version, state in (("SSLv2", "disabled"), ("SSLv3", "disabled"), ("TLSv1.0", "disabled"), ("TLSv1.1", "disabled"),
                           ("TLSv1.2", "enabled"), ("TLSv1.3", "enabled")):  # fmt: skip
        assert re.search(rf"{version}\s+{state}", said), said
    assert "Compression enabled" not in said
    assert re.search(r"TLSv1.2\s+not vulnerable to heartbleed", said)
    assert "Session renegotiation not supported" in said
    assert not re.search(r"(Accepted|Preferred).*(RC4|3DES|NULL|EXP|MD5|anon)", said), said


def _renegotiate(rig: Rig, name: str) -> str:
    """Ask for a renegotiation in the middle of a session, as `R` does in openssl s_client."""
    command = [require("openssl"), "s_client", "-connect", f"127.0.0.1:{rig.ports[name]}", "-tls1_2", "-crlf"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        said = b""
        while b"220 " not in said:
            said += client.stdout.read1(4096)  # type: ignore[attr-defined]
        client.stdin.write(b"R\n")
        client.stdin.flush()
        while b"RENEGOTIATING" not in said:
            said += client.stdout.read1(4096)  # type: ignore[attr-defined]
        client.stdin.write(b"NOOP\n")
        client.stdin.flush()
        said = b""
        try:
            while b"250 2.0.0" not in said and (data := client.stdout.read1(4096)):  # type: ignore[attr-defined]
                said += data
                if b":error:" in said:
                    break
        finally:
            client.kill()
    return said.decode()


def test_renegotiation_is_refused_unless_it_is_allowed(rig: Rig) -> None:
    assert "250 2.0.0" in _renegotiate(rig, "renegotiate")
    assert "250 2.0.0" not in _renegotiate(rig, "old")


def test_dhe_has_two_thousand_bits_at_least(rig: Rig) -> None:
    said = _output(
        [require("openssl"), "s_client", "-connect", f"127.0.0.1:{rig.ports['dhe']}", "-tls1_2", "-cipher", "DHE"],
        "QUIT\n",
    )
    found = re.search(r"(?:Server|Peer) Temp Key: DH, (\d+) bits", said)
    assert found, said
    assert int(found[1]) >= 2048


NAMES = [
    ("mx.one.test", "one", "ECDSA"),
    ("a.two.test", "two", "ECDSA"),
    ("a.two.test", "two-rsa", "RSA"),
    ("elsewhere.test", "server", "ECDSA"),
    ("a.b.two.test", "server", "ECDSA"),
]


@pytest.mark.parametrize(("name", "file", "kind"), NAMES)
def test_the_certificate_follows_the_name_that_is_asked_for(rig: Rig, name: str, file: str, kind: str) -> None:
    signatures = "rsa_pss_rsae_sha256" if kind == "RSA" else "ecdsa_secp256r1_sha256"
    said = _output(
        [require("openssl"), "s_client", "-connect", f"127.0.0.1:{rig.ports['names']}", "-servername", name,
         "-sigalgs", signatures, "-tls1_3"], "QUIT\n"
    )  # fmt: skip
    shown = said[said.index("-----BEGIN CERTIFICATE") : said.index("-----END CERTIFICATE")].split()
    assert "".join(shown) in "".join((rig.pki / f"{file}.pem").read_text().split())


def test_gnutls_cli_resumes(rig: Rig) -> None:
    said = _output(
        [require("gnutls-cli"), "-r", "-p", str(rig.ports["resume"]), "--x509cafile", f"{rig.pki}/ca.pem", "127.0.0.1"],
        "QUIT\r\n",
    )
    assert "This is a resumed session" in said, said
