"""The manual's configurations do what the pages say, and the commands of the cause codes show what they promise."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.cli.main import main
from quillon.lab.farm import Farm
from quillon.lab.faults import FAULTS, BrokenPeer
from quillon.tls.causes import CAUSES
from quillon.tls.certificate import Certificate
from tests.support.clients import MESSAGE, context
from tests.support.peers import require
from tests.support.server import Server, free_port, until

DOCS = Path(__file__).parents[2] / "docs"


def example(page: str, name: str) -> str:
    """A block of a page that begins with `# example: name`."""
    blocks = re.findall(r"```\w*\n(.*?)```", (DOCS / page).read_text(), re.S)
    (found,) = [block for block in blocks if block.startswith(f"# example: {name}\n")]
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, pki: Path) -> Path:
    """A configuration's folder with the certificates that the pages name."""
    made = tmp_path / "q"
    made.mkdir()
    (made / "pki").symlink_to(pki)
    return made


def test_receiving(server: Callable[..., Server], folder: Path, pki: Path) -> None:
    ports = {"25": free_port(), "465": free_port()}
    text = example("receiving.md", "receiving")
    for number, port in ports.items():
        text = text.replace(f'":{number}"', f'"127.0.0.1:{port}"')
    running = server(text + "\nSuspend_Delivery = true").start()

    def shown(name: str) -> str:
        tls = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        with smtplib.SMTP("127.0.0.1", ports["25"], timeout=30) as client:
            client._host = name  # type: ignore[attr-defined]
            client.starttls(context=tls)
            client.sendmail("a@example.test", ["b@partner.test"], MESSAGE)
            return Certificate(client.sock.getpeercert(True)).subject_cn  # type: ignore[union-attr]

    assert [shown(name) for name in ("mx.one.test", "a.two.test", "localhost")] == [
        "mx.one.test", "*.two.test", "mx.partner.test"
    ]  # fmt: skip
    with smtplib.SMTP_SSL("127.0.0.1", ports["465"], context=context(pki), timeout=30) as client:
        client.sendmail("a@example.test", ["b@partner.test"], MESSAGE)
    assert running.wait_events("reception", 4)[-1]["tls"]["verified"] is True


def test_client_certificates(server: Callable[..., Server], folder: Path, pki: Path) -> None:
    ports = {"25": free_port(), "587": free_port()}
    text = example("client-certificates.md", "client-certificates")
    for number, port in ports.items():
        text = text.replace(f'":{number}"', f'"127.0.0.1:{port}"')
    pin = Certificate(ssl.PEM_cert_to_DER_cert((pki / "client-self-signed.pem").read_text())).sha256
    (folder / "partners.py").write_text(example("client-certificates.md", "partners.py").replace("0" * 64, pin))
    server(text + "\nSuspend_Delivery = true").start()

    def send(certificate: str, port: str = "25", recipient: str = "b@partner.test") -> str:
        with smtplib.SMTP("127.0.0.1", ports[port], timeout=30) as client:
            try:
                client.starttls(context=context(pki, "", certificate))
                client.sendmail("a@bank.fi", [recipient], MESSAGE)
            except smtplib.SMTPSenderRefused as error:
                return error.smtp_error.decode() if isinstance(error.smtp_error, bytes) else error.smtp_error
            except smtplib.SMTPRecipientsRefused:
                return "relaying denied"
            except OSError:
                return "no session"
        return "taken"

    assert send("client") == "taken"
    assert send("client-self-signed") == "taken"
    assert send("client-expired") == "5.7.1 bank.fi sends with a verified client certificate (expired)"
    assert send("") == "5.7.1 bank.fi sends with a verified client certificate (none was presented)"
    assert send("", "587") == "no session"
    assert send("client", "587", "x@anywhere.test") == "taken"
    assert send("client", "25", "x@anywhere.test") == "relaying denied"


def test_contracts(server: Callable[..., Server], folder: Path, farm: Farm) -> None:
    """The page's bank.fi in clear, and its old.example with its own key and another one."""
    port = free_port()
    running = server(example("contracts.md", "contracts").replace('":25"', f'"127.0.0.1:{port}"')).start()
    answers = []
    for sender in ("a@bank.fi", "a@x.hospital.example"):
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            answers.append(client.mail(sender)[0])
    assert answers == [451, 250]
    running.stop()
    text = example("contracts.md", "pinned").replace("pki/ca.pem", str(farm.ca))
    own = ssl.PEM_cert_to_DER_cert((farm.folder / "self-signed.pem").read_text())
    outcomes = []
    for number, pin in enumerate(("0" * 64, Certificate(own).spki_sha256)):
        routes = f'Domain "old.example" {{ Routes = ( "smtp://127.0.0.1?port={farm.ports["self-signed"]}" ) }}'
        listener = f'ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}'
        running = server(f"{text.replace('0' * 64, pin)}\n{routes}\n{listener}", name=f"p{number}").start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@example.test", ["b@old.example"], MESSAGE)
        event = running.wait_events("attempt")[0]
        outcomes.append((event["outcome"], event.get("cause", "")))
        running.stop()
    assert outcomes == [("transient_failure", "key_mismatch"), ("delivered", "")]


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("evidence.md", "stamps"),
        ("standards.md", "tls-report-receiver"),
        ("standards.md", "own-policy"),
        ("standards.md", "acme"),
    ],
)
def test_what_can_be_loaded_as_it_stands(server: Callable[..., Server], folder: Path, page: str, name: str) -> None:
    assert main(["check", "-c", str(server(example(page, name)).file)]) == 0


def test_requiring(server: Callable[..., Server], folder: Path, farm: Farm) -> None:
    """The page's bank.fi, sent to hosts that are good, unknown and without TLS."""
    port = free_port()
    text = example("requiring.md", "requiring").replace("pki/ca.pem", str(farm.ca))
    listener = f'ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}'
    outcomes = {}
    for number, name in enumerate(("good", "unknown-issuer", "no-starttls")):
        routes = f'Domain "bank.fi" {{ Routes = ( "smtp://127.0.0.1?port={farm.ports[name]}" ) }}'
        names = "TLS_Verify = ca" if name == "good" else "TLS_Verify = host"  # the farm's names are not bank.fi's
        running = server(
            f"{text}\n{listener}\n{routes.replace('{ R', '{ ' + names + ' R')}",
            name="q" if not number else f"q{number}",
        ).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@example.test", ["b@bank.fi"], MESSAGE)
        event = running.wait_events("attempt")[0]
        outcomes[name] = (event["outcome"], event.get("cause", ""))
        running.stop()
    assert outcomes == {
        "good": ("delivered", ""),
        "unknown-issuer": ("transient_failure", "unknown_issuer"),
        "no-starttls": ("transient_failure", "no_starttls"),
    }


def test_when_tls_fails(server: Callable[..., Server], folder: Path, farm: Farm) -> None:
    port = free_port()
    text = example("when-tls-fails.md", "when-tls-fails").replace("pki/ca.pem", str(farm.ca))
    text = text.replace("/run/quillon/console", str(folder / "console"))
    running = server(
        f"""{text}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
        Domain partner.test {{ Routes = ( "smtp://127.0.0.1?port={farm.ports["expired"]}" ) }}
        Domain other.test {{ Routes = ( "smtp://127.0.0.1?port={farm.ports["good"]}" ) TLS = required }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@example.test", ["b@partner.test"], MESSAGE)
        client.sendmail("a@example.test", ["b@other.test"], MESSAGE)
    rows = until(lambda: rows if len(rows := running.log("tls.cl")) == 2 else None, "two lines")
    found = {row.split("@")[1]: row.split("@")[3:] for row in rows}
    assert found["T"][:3] == ["b", "partner.test", "127.0.0.1"]
    assert found["T"][3:5] == ["required", "expired"]
    assert found["D"][2:8] == ["127.0.0.1", "127.0.0.1", "TLS", "required", "TLSv1.3", "TLS_AES_256_GCM_SHA384"]
    cause = next(line for line in running.log("mainlog.ec") if "@T@" in line)
    assert cause.endswith("454 4.7.5 [internal] certificate expired (expired)")
    event = next(event for event in running.events("attempt") if event["recipient"] == "b@partner.test")
    assert (event["cause"], event["tls"]["cause"]) == ("expired", "expired")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(folder / "console"))
        sock.sendall(b"metrics\n")
        said = sock.makefile().read()
    assert 'quillon_tls_failures_total{direction="outbound",cause="expired"} 1' in said


@pytest.mark.peer
@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.cause in CAUSES and CAUSES[f.cause].says], ids=lambda fault: fault.name
)
def test_the_command_of_a_cause_shows_it(farm: Farm, fault: BrokenPeer) -> None:
    cause = CAUSES[fault.cause]
    words = {"HOST": "127.0.0.1", "PORT": str(farm.ports[fault.name]), "CA.pem": str(farm.ca), "NAME": fault.host}
    command = cause.command
    for word, value in words.items():
        command = command.replace(word, value)
    require("openssl")
    done = subprocess.run(
        command.split(), input="QUIT\n", capture_output=True, text=True, timeout=30, check=False, errors="replace"
    )
    assert cause.says in done.stdout + done.stderr, command + "\n" + done.stdout[-1500:] + done.stderr[-1500:]


def test_every_cause_of_the_farm_is_documented() -> None:
    for fault in FAULTS:
        assert not fault.cause or fault.cause in CAUSES or fault.cause.startswith("alert_"), fault
    assert len({fault.host for fault in FAULTS}) == len(FAULTS)
