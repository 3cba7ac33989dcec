"""Revocation lists (TLS_CRL) for partners' hosts and for clients, by both engines alike."""

from __future__ import annotations

import datetime
import smtplib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from quillon.cli.main import main
from quillon.lab.pki import DAY, Authority, Issued
from quillon.lab.sink import inbound_tls
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

NOW = datetime.datetime.now(datetime.UTC)


def serial(issued: Issued) -> int:
    return x509.load_pem_x509_certificates(issued.certificate.read_bytes())[0].serial_number


def crl(authority: Authority, *revoked: int, until: datetime.timedelta = DAY) -> bytes:
    """A list of an authority in PEM."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    builder = builder.last_update(NOW - 10 * DAY).next_update(NOW + until)
    for number in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(NOW - DAY).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class World:
    """A root, an intermediate, and certificates of both; `lists` is what a case has in its file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Authority(folder, "Root")
        self.ca = self.root.write()
        self.middle = Authority(folder, "Middle", self.root)
        other = Authority(folder, "Root")  # of the same name, with another key
        self.good = self.root.issue("good", ["localhost", "127.0.0.1"])
        self.bad = self.root.issue("bad", ["localhost", "127.0.0.1"])
        self.below = self.middle.issue("below", ["localhost", "127.0.0.1"])
        root, middle = self.root, self.middle
        number = serial(self.bad)
        self.lists = {
            "fresh": crl(root, number) + crl(middle),
            "old": crl(root, number, until=-DAY) + crl(middle, until=-DAY),
            "old but says so": crl(root, number, until=-DAY),
            "none of the root": crl(middle),
            "none of the middle": crl(root, number),
            "forged": crl(other, serial(self.good)),
            "middle revoked": crl(root, middle.certificate.serial_number) + crl(middle),
        }

    def file(self, name: str) -> Path:
        path = self.folder / f"{name.replace(' ', '-')}.crl"
        path.write_bytes(self.lists[name])
        return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("crl"))


CASES = [
    ("fresh", "hard", "good", ""),
    ("fresh", "hard", "bad", "revoked"),
    ("fresh", "soft", "bad", "revoked"),
    ("fresh", "hard", "below", ""),
    ("old", "hard", "good", "crl_outdated"),
    ("old", "soft", "good", ""),
    ("old but says so", "soft", "bad", "revoked"),
    ("none of the root", "hard", "good", "crl_missing"),
    ("none of the root", "soft", "good", ""),
    ("none of the middle", "hard", "below", "crl_missing"),
    ("forged", "hard", "good", "crl_missing"),
    ("forged", "soft", "good", ""),
    ("middle revoked", "hard", "below", "revoked"),
    ("middle revoked", "hard", "good", ""),
]


@pytest.fixture(scope="module")
def sinks(world: World) -> Iterator[dict[str, SinkThread]]:
    made = {}
    for name in ("good", "bad", "below"):
        issued: Issued = getattr(world, name)
        made[name] = SinkThread(tls=inbound_tls(str(issued.certificate), str(issued.key)))
    yield made
    for sink in made.values():
        sink.stop()


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
def test_hosts_of_partners(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server], engine: str
) -> None:
    port = free_port()
    stanzas = "".join(
        f"""Domain "c{n}.test" {{ Routes = ( "127.0.0.1:{sinks[host].port}" ) TLS = required TLS_Verify = ca
        TLS_CRL = "{world.file(lists)}" TLS_CRL_Check = {check} }}\n"""
        for n, (lists, check, host, _) in enumerate(CASES)
    )
    head = f'TLS_Engine = {engine} TLS_CA = "{world.ca}" Retry_Interval = 100'
    listen = f'ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}'
    running = server(f"{head}\n{stanzas}\n{listen}").start()
    recipients = [f"b@c{n}.test" for n in range(len(CASES))]
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: x\r\n\r\nhello\r\n")
    events = running.wait_attempts(*recipients)
    found = ["" if events[to]["outcome"] == "delivered" else events[to]["cause"] for to in recipients]
    assert found == [cause for *_, cause in CASES]


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
def test_certificates_of_clients_and_a_list_that_is_renewed(
    world: World, server: Callable[..., Server], tmp_path: Path, engine: str
) -> None:
    port = free_port()
    file = tmp_path / "clients.crl"
    file.write_bytes(crl(world.root))
    running = server(
        f"""TLS_Engine = {engine}
        ESMTP_Listener {{
          TLS_Certificate = "{world.good.certificate}" TLS_Key = "{world.good.key}"
          TLS_Client_CA = "{world.ca}" TLS_CRL = "{file}" Relay_Hosts = ( 127.0.0.0/8 )
          Listen "127.0.0.1:{port}" {{ SMTP_Extensions = ( "STARTTLS" ) }}
        }}"""
    ).start()

    def verified() -> Any:
        context = ssl.create_default_context(cafile=str(world.ca))
        context.check_hostname = False
        context.load_cert_chain(world.bad.certificate, world.bad.key)

        def receptions() -> list[dict[str, Any]]:
            return [row for row in running.events("reception") if row["protocol"] == "esmtp"]

        before = len(receptions())
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.starttls(context=context)
            client.sendmail("a@sender.test", ["b@nowhere.test"], "Subject: x\r\n\r\nhello\r\n")
        rows = until(lambda: r if len(r := receptions()) > before else None, "a reception")
        return rows[-1]["tls"]["verified"], rows[-1]["tls"]["cause"]

    assert verified() == (True, "")
    file.write_bytes(crl(world.root, serial(world.bad)))
    until(lambda: verified() == (False, "revoked"), "the new list is read", patience=20)


def test_a_file_that_holds_no_list_is_told_with_its_line(world: World, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "ecelerity.conf"
    for name, words in ((str(world.ca), "it holds no revocation list"), (f"{tmp_path}/gone.crl", "No such file")):
        file.write_text(f'TLS_CA = "{world.ca}"\nTLS_Verify = host\nTLS = required\nTLS_CRL = "{name}"\n')
        assert main(["check", "-c", str(file)]) != 0
        said = capsys.readouterr()
        assert f"{file}:4:1: " in said.out + said.err, said
        assert words in said.out + said.err
