"""Reception from clients of other projects, over STARTTLS and implicit TLS, and with every kind of client certificate."""

import re
import shutil
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quillon.tls.certificate import Certificate
from tests.support.clients import CLIENTS, MESSAGE, RECIPIENT, SENDER, context
from tests.support.server import Server, free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


def _config(pki: Path, ports: dict[str, int], more: str = "") -> str:
    return f"""
    Domain partner.test {{ Suspend_Delivery = true }}
    ESMTP_Listener {{
      Relay_Hosts = ( 127.0.0.0/8 )
      TLS_Certificate = {pki}/server.pem
      TLS_Key = {pki}/server.key
      TLS_Client_CA = {pki}/ca.pem
      SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" )
      Listen "127.0.0.1:{ports["starttls"]}" {{ }}
      Listen "127.0.0.1:{ports["implicit"]}" {{ Use_SSL = true }}
      Listen "127.0.0.1:{ports["require"]}" {{ TLS_Verify_Mode = "require" }}
      Listen "127.0.0.1:{ports["none"]}" {{ TLS_Verify_Mode = none }}
      Listen "127.0.0.1:{ports["rsa"]}" {{
        TLS_Certificate = {pki}/server-rsa.pem TLS_Key = {pki}/server-rsa.key TLS_Protocols = "+TLSv1.2"
      }}
    }}
    {more}
    """


@pytest.fixture(scope="module", params=["openssl", "gnutls"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Path
) -> Iterator[tuple[Server, dict[str, int]]]:
    ports = {name: free_port() for name in ("starttls", "implicit", "require", "none", "rsa")}
    config = _config(pki, ports, f"TLS_Engine = {request.param}")
    server = Server(tmp_path_factory.mktemp("reception"), config).start()
    yield server, ports
    server.stop()


@pytest.mark.peer
@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("client", CLIENTS)
def test_clients(running: tuple[Server, dict[str, int]], pki: Path, client: str, implicit: bool, version: str) -> None:
    server, ports = running
    before = len(server.events("reception"))
    CLIENTS[client](ports["implicit" if implicit else "starttls"], implicit, version, pki)
    event = server.wait_events("reception", before + 1)[-1]
    assert event["tls"]["protocol"] == f"TLSv{version}"
    assert event["tls"]["verified"] is True
    assert event["tls"]["subject"] == "/CN=client.bank.fi"
    assert event["recipient"] == RECIPIENT


CERTIFICATES = {
    "": None,
    "client": "",
    "client-chained": "",
    "client-expired": "expired",
    "client-not-yet": "not_yet_valid",
    "client-no-chain": "unknown_issuer",
    "client-self-signed": "self_signed",
    "client-wrong-ca": "unknown_issuer",
    "client-wrong-purpose": "wrong_purpose",
}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize("mode", ["starttls", "require", "none"], ids=["unset", "require", "none"])
def test_client_certificates(
    running: tuple[Server, dict[str, int]], pki: Path, mode: str, certificate: str, version: str
) -> None:
    server, ports = running
    before = len(server.events("handshake"))
    refused = False
    with smtplib.SMTP("127.0.0.1", ports[mode], timeout=30) as client:
        try:
            client.starttls(context=context(pki, version, certificate))
            code, _ = client.ehlo()
            assert code == 250  # whatever the certificate, the session goes on
        except (ssl.SSLError, smtplib.SMTPServerDisconnected, OSError):
            refused = True
            client.close()
    assert refused == (mode == "require" and not certificate)
    event = server.wait_events("handshake", before + 1)[-1]
    assert event["ok"] is not refused
    cause = CERTIFICATES[certificate]
    if refused:
        assert event["tls"]["cause"] == "no_client_certificate"
    elif mode == "none" or cause is None:
        assert (event["tls"]["verified"], event["tls"]["cause"]) == (None, "")
    else:
        assert (event["tls"]["verified"], event["tls"]["cause"]) == (cause == "", cause)


def test_what_a_listener_does_not_share_with_a_client_has_a_cause(
    running: tuple[Server, dict[str, int]], pki: Path
) -> None:
    server, ports = running
    before = len(server.events("handshake"))
    with smtplib.SMTP("127.0.0.1", ports["rsa"], timeout=30) as client, pytest.raises(OSError):
        client.starttls(context=context(pki, "1.3"))
    with smtplib.SMTP("127.0.0.1", ports["rsa"], timeout=30) as client, pytest.raises(OSError):
        tls = context(pki, "1.2")
        tls.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        client.starttls(context=tls)
    with socket.create_connection(("127.0.0.1", ports["implicit"])) as sock:
        sock.sendall(b"EHLO what.test\r\n")
        while sock.recv(100):
            pass
    causes = [event["tls"]["cause"] for event in server.wait_events("handshake", before + 3)[before:]]
    assert causes == ["protocol_mismatch", "no_shared_cipher", "not_tls"]


def test_a_handshake_on_a_port_that_begins_in_clear_is_logged_by_its_cause(
    running: tuple[Server, dict[str, int]],
) -> None:
    server, ports = running
    before = len(server.events("handshake"))
    with (
        socket.create_connection(("127.0.0.1", ports["starttls"]), timeout=30) as sock,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        ssl.create_default_context().wrap_socket(sock, server_hostname="mx.quillon.test")
    event = server.wait_events("handshake", before + 1)[-1]
    assert (event["ok"], event["tls"]["cause"]) == (False, "tls_on_clear_port")


def test_commands_behind_starttls_end_the_session_and_are_logged(running: tuple[Server, dict[str, int]]) -> None:
    server, ports = running
    with socket.create_connection(("127.0.0.1", ports["starttls"])) as sock:
        sock.recv(1000)
        sock.sendall(b"STARTTLS\r\nMAIL FROM:<evil@x.test>\r\n")
        said = b""
        while data := sock.recv(1000):
            said += data
    assert said == b"503 5.5.1 bad sequence of commands\r\n"
    event = server.wait_events("rejection")[-1]
    assert event["reply"] == "503 5.5.1 bad sequence of commands"


def test_the_received_field_tells_of_tls(server: Callable[..., Server], pki: Path) -> None:
    ports = {name: free_port() for name in ("starttls", "implicit", "require", "none", "rsa")}
    running = server(_config(pki, ports)).start()
    CLIENTS["smtplib"](ports["starttls"], False, "1.3", pki)
    running.stop()
    ((_, body),) = running.spooled()
    head = body.decode().split("\r\nFrom:")[0].replace("\r\n\t", " ")
    assert head.startswith("Received: from [127.0.0.1] ([127.0.0.1:")
    assert "with ESMTPS (TLSv1.3 TLS_" in head
    assert "client-certificate-verified=yes)" in head
    assert body.endswith(MESSAGE[MESSAGE.index("To:") :].encode())


@pytest.mark.parametrize("language", ["lua", "python"])
def test_the_shipped_policy_lets_bank_fi_in_with_a_verified_certificate_only(
    server: Callable[..., Server], pki: Path, tmp_path: Path, language: str
) -> None:
    port = free_port()
    folder = tmp_path / "q"
    shutil.copytree(EXAMPLES / "enforced-partner", folder)
    (folder / "pki").symlink_to(pki)
    running = server("", name="q")
    config = (EXAMPLES / "enforced-partner/ecelerity.conf").read_text()
    if language == "python":
        config = re.sub(
            r'scriptlet "scriptlet" \{.*?\n\}', 'policy "partners" { module = "partners.py" }', config, flags=re.S
        )
        assert "partners.py" in config
    pin = Certificate(ssl.PEM_cert_to_DER_cert((pki / "client.pem").read_text())).spki_sha256.upper()
    pinned = ":".join(pin[n : n + 2] for n in range(0, 64, 2))
    with (folder / "partners").open("a") as file:
        file.write(f"pinned.fi pki/ca.pem * {pinned}\nother-pin.fi pki/ca.pem * {'0' * 64} # nobody has it\n")
        file.write("other.fi pki/other-ca.pem *\nnamed.fi pki/ca.pem mail.named.fi\n")
    both = (pki / "ca.pem").read_text() + (pki / "other-ca.pem").read_text()
    (folder / "both.pem").write_text(both)
    config = config.replace("TLS_Client_CA   = pki/ca.pem", "TLS_Client_CA   = both.pem")
    assert "both.pem" in config
    auth = 'AuthPlainParameters = [ uri = "file://users" ] Auth_In_Clear = ( "PLAIN" ) Auth_Failure_Delay = 0'
    (folder / "users").write_text("alice:secret\n")
    config = config.replace(
        '"STARTTLS" )', f'"STARTTLS" "AUTH PLAIN" )\n  {auth.replace("users", str(folder / "users"))}'
    )
    running.file.write_text(
        config.replace("127.0.0.1:2525", f"127.0.0.1:{port}") + "\nSuspend_Delivery = true\nWorkers = 1"
    )
    running.start()

    def send(sender: str, certificate: str | None) -> str:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            if certificate is not None:
                client.starttls(context=context(pki, "", certificate))
            try:
                client.sendmail(sender, ["bob@example.com"], MESSAGE)
            except smtplib.SMTPSenderRefused as error:
                return f"{error.smtp_code} {error.smtp_error!r}"
        return "taken"

    assert send("a@bank.fi", "client") == "taken"
    assert send("a@other.test", None) == "taken"
    assert "over TLS only" in send("a@BANK.fi", None)
    assert "verified client certificate (no_client_certificate)" in send("a@bank.fi", "")
    assert "verified client certificate (expired)" in send("a@bank.fi", "client-expired")
    rejected = running.wait_events("rejection", 3)
    assert {row["module"] for row in rejected} == {"partners"}
    assert "M=partners" in running.log("rejectlog.ec")[-1]
    assert send("a@pinned.fi", "client") == "taken"
    assert "needs its own client certificate" in send("a@other-pin.fi", "client")
    assert send("a@other.fi", "client-wrong-ca") == "taken"
    # one of another authority that we trust, and one for another name, is not the partner's
    assert "needs its own client certificate" in send("a@bank.fi", "client-wrong-ca")
    assert "needs its own client certificate" in send("a@other.fi", "client")
    assert "needs its own client certificate" in send("a@named.fi", "client")
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        assert client.docmd("AUTH", "PLAIN AGFsaWNlAHNlY3JldA==") == (530, b"5.7.0 Must issue a STARTTLS command first")
        client.starttls(context=context(pki, "", ""))
        client.ehlo()
        assert client.docmd("AUTH", "PLAIN AGFsaWNlAHNlY3JldA==")[0] == 235
    (folder / "partners").unlink()
    if language == "python":  # the script in Lua keeps what it has read for a minute
        assert send("a@other.test", None).startswith("451")


def test_relaying_is_denied_to_strangers(server: Callable[..., Server]) -> None:
    port = free_port()
    config = f"""Relay_Domains = ( "*.mine.test" )
    Suspend_Delivery = true
    ESMTP_Listener {{ Listen "127.0.0.1:{port}" {{ Peer 127.0.0.2 {{ Relay_Hosts = ( 127.0.0.2 ) }} }} }}"""
    running = server(config).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        client.mail(SENDER)
        assert client.rcpt("bob@elsewhere.test") == (550, b"5.7.1 relaying denied")
        assert client.rcpt("bob@a.mine.test")[0] == 250
    with smtplib.SMTP("127.0.0.1", port, timeout=30, source_address=("127.0.0.2", 0)) as client:
        client.sendmail(SENDER, ["bob@elsewhere.test"], MESSAGE)
    assert "relaying denied" in running.log("rejectlog.ec")[-1]


def test_a_message_that_is_larger_than_memory_is_meant_for(server: Callable[..., Server]) -> None:
    port = free_port()
    config = f"""Suspend_Delivery = true
    ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    running = server(config).start()
    body = MESSAGE + ".leading dot\r\n" + ("x" * 70 + "\r\n") * 20000
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail(SENDER, [RECIPIENT], body)
    running.stop()
    (file,) = (running.folder / "spool/worker-0/bodies").iterdir()
    assert file.read_bytes().endswith(body[body.index("Subject") :].encode())
