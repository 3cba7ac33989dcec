"""TLS contracts: both directions held to what was agreed on, by both engines, and told of; what is only reported."""

from __future__ import annotations

import json
import smtplib
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.cli.main import main
from quillon.lab.pki import DAY, SERVER, Authority, Issued
from quillon.lab.sink import inbound_tls
from quillon.tls.verdict import Certificate
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

ENGINES = pytest.mark.parametrize("engine", ["openssl", "gnutls"])
NAMES = ["mx.bank.test"]


def pin(issued: Issued) -> str:
    own = x509.load_pem_x509_certificates(issued.certificate.read_bytes())[0]
    return Certificate(own.public_bytes(Encoding.DER)).spki_sha256


class World:
    """Two authorities, and certificates of theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        bank, shop = Authority(folder, "Bank"), Authority(folder, "Shop")
        self.bank_ca, self.shop_ca = bank.write("bank.pem"), shop.write("shop.pem")
        middle = Authority(folder, "Middle", bank)
        self.certificates = {
            "good": bank.issue("good", NAMES),
            "below": middle.issue("below", NAMES),
            "server only": bank.issue("server-only", NAMES, usage=(SERVER,)),
            "another name": bank.issue("another-name", ["mx.shop.test"]),
            "another authority": shop.issue("another-authority", NAMES),
            "expired": bank.issue("expired", NAMES, start=-10 * DAY, life=DAY),
            "self-signed": bank.issue("self-signed", NAMES, self_signed=True),
        }
        self.ours = shop.issue("ours", ["mx.quillon.test"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("contracts"))


def client(world: World, name: str = "", newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=world.shop_ca)
    context.check_hostname = False
    context.maximum_version = newest
    if name:
        issued = world.certificates[name]
        context.load_cert_chain(issued.certificate, issued.key)
    return context


def answer(port: int, context: ssl.SSLContext | None, sender: str) -> str:
    """What is said to MAIL FROM."""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as session:
        if context is not None:
            session.starttls(context=context)
        session.ehlo()
        code, text = session.mail(sender)
        return f"{code} {text.decode()}"


INBOUND = [
    ("a@bank.test", "good", "250"),
    ("a@bank.test", "below", "250"),
    ("a@bank.test", "server only", "250"),
    ("a@bank.test", "another name", "name_mismatch"),
    ("a@bank.test", "another authority", "unknown_issuer"),
    ("a@bank.test", "expired", "expired"),
    ("a@bank.test", "self-signed", "self_signed"),
    ("a@bank.test", "", "no_certificate"),
    ("a@BANK.test", "", "no_certificate"),
    ("a@sub.bank.test", "", "250"),
    ("a@keyed.test", "self-signed", "250"),
    ("a@keyed.test", "good", "key_mismatch"),
    ("a@tls.test", "", "250"),
    ("a@out.test", "", "250"),
    ("a@other.test", "", "250"),
    ("", "", "250"),
]


LOOSE = """
from quillon.policy.python import *

def get_outbound_tls_parameters(message: Message, parameters: TlsParameters) -> None:
    parameters.use_tls = "no"
    parameters.tls_verify = "no"
"""


@ENGINES
def test_what_comes_from_a_partner(world: World, server: Callable[..., Server], engine: str) -> None:
    port = free_port()
    running = server(
        f"""TLS_Engine = {engine}
        TLS_Contract "bank.test" {{ CA = "{world.bank_ca}" Names = ( {NAMES[0]} ) }}
        TLS_Contract "keyed.test" {{ SPKI = ( {pin(world.certificates["self-signed"])} ) Min_Version = TLSv1.3 }}
        TLS_Contract "tls.test" {{ }}
        TLS_Contract "out.test" {{ Inbound = no CA = "{world.bank_ca}" }}
        alerts {{ }}
        ESMTP_Listener {{ TLS_Certificate = "{world.ours.certificate}" TLS_Key = "{world.ours.key}"
          TLS_Client_CA = "{world.shop_ca}" SMTP_Extensions = ( STARTTLS ) Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    for sender, name, expected in INBOUND:
        said = answer(port, client(world, name), sender)
        if expected == "250":
            assert said.startswith("250"), (sender, name, said)
        else:
            assert said.startswith("451 4.7.5"), (sender, name, said)
            assert f": {expected}" in said, (sender, name, said)
    for sender in ("a@bank.test", "a@keyed.test", "a@tls.test"):
        assert answer(port, None, sender).startswith("451 4.7.6"), sender
    old = answer(port, client(world, "self-signed", ssl.TLSVersion.TLSv1_2), "a@keyed.test")
    assert old.startswith("451 4.7.6")
    rows = [row for row in running.events("rejection") if row["module"] == "tls_contract"]
    assert {"contract_no_tls", "no_certificate", "unknown_issuer", "key_mismatch"} <= {row["cause"] for row in rows}
    assert sum("alert: mail from bank.test" in line for line in running.log("paniclog.ec")) == 6


def test_a_refusal_pipelined_behind_a_breach_is_not_the_contracts(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(
        f"""TLS_Contract "tls.test" {{ }}
        ESMTP_Listener {{ TLS_Certificate = "{world.ours.certificate}" TLS_Key = "{world.ours.key}"
          SMTP_Extensions = ( STARTTLS PIPELINING ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as session:
        session.ehlo()
        session.send("MAIL FROM:<a@tls.test>\r\nRCPT TO:<b@c.test>\r\nDATA\r\n")
        codes = [session.getreply()[0] for _ in range(3)]
    assert codes == [451, 503, 503]
    assert [(row["module"], row.get("cause", "")) for row in running.wait_events("rejection", 3)] == [
        ("tls_contract", "contract_no_tls"),
        ("core", ""),
        ("core", ""),
    ]


OUTBOUND = [
    ("good", "bank", ""),
    ("below", "bank", ""),
    ("another name", "bank", "name_mismatch"),
    ("another authority", "bank", "unknown_issuer"),
    ("expired", "bank", "expired"),
    ("self-signed", "keyed", ""),
    ("good", "keyed", "key_mismatch"),
]


@pytest.fixture(scope="module")
def sinks(world: World) -> Iterator[dict[str, SinkThread]]:
    made = {
        name: SinkThread(tls=inbound_tls(str(issued.certificate), str(issued.key)))
        for name, issued in world.certificates.items()
    } | {"clear": SinkThread()}
    yield made
    for sink in made.values():
        sink.stop()


def send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as session:
        for recipient in recipients:
            session.sendmail("a@sender.test", [recipient], "Subject: x\r\n\r\nhello\r\n")


@ENGINES
def test_what_goes_to_a_partner(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server], engine: str
) -> None:
    port = free_port()
    terms = {
        "bank": f'CA = "{world.bank_ca}" Names = ( {NAMES[0]} )',
        "keyed": f"SPKI = ( {pin(world.certificates['self-signed'])} )",
    }
    cases = [*OUTBOUND, ("clear", "bank", "no_starttls")]
    stanzas = "".join(
        f"""Domain "c{n}.test" {{ TLS = no Routes = ( "127.0.0.1:{sinks[host].port}" ) }}
        TLS_Contract "c{n}.test" {{ Inbound = no {terms[contract]} }}\n"""
        for n, (host, contract, _) in enumerate(cases)
    )
    running = server(
        f"""TLS_Engine = {engine} Retry_Interval = 100
        {stanzas}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    recipients = [f"b@c{n}.test" for n in range(len(cases))]
    send(port, *recipients)
    events = running.wait_attempts(*recipients)
    found = ["" if events[to]["outcome"] == "delivered" else events[to]["cause"] for to in recipients]
    assert found == [cause for *_, cause in cases]
    assert [events[to]["tls"]["level"] for to in (recipients[0], recipients[5])] == ["host", "key"]
    assert events[recipients[0]]["tls_option_at"].startswith(str(running.file))
    assert not sinks["clear"].messages


def test_no_policy_and_no_reload_makes_a_contract_less(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server], tmp_path: Path
) -> None:
    """A hook that wants no TLS is raised to the contract; a contract that is taken out holds for what waits."""
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/loose.py").write_text(LOOSE)
    contract = f'TLS_Contract "bank.test" {{ Inbound = no CA = "{world.bank_ca}" }}'
    rest = f"""Retry_Interval = 1
        Domain "*.test" {{ Routes = ( "127.0.0.1:{sinks["clear"].port}" ) }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    running = server(f'policy "p" {{ module = "loose.py" }}\n{contract}\n{rest}').start()
    send(port, "b@bank.test", "b@other.test")
    found = running.wait_attempts("b@bank.test", "b@other.test")
    assert found["b@bank.test"]["cause"] == "no_starttls"
    assert found["b@other.test"]["outcome"] == "delivered"
    running.configure(rest)
    running.reload()
    until(lambda: running.events("attempt")[-1].get("cause") == "demand_lost", "mail that waits for its contract")
    assert [message.recipients for message in sinks["clear"].messages] == [("b@other.test",)]


def test_what_is_only_reported_goes_and_is_told(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server]
) -> None:
    port = free_port()
    cases = [
        ("clear", "TLS = required", "no_starttls"),
        ("expired", f'TLS = required TLS_Verify = host TLS_CA = "{world.bank_ca}"', "expired"),
        ("another name", f'TLS = required TLS_Verify = host TLS_CA = "{world.bank_ca}"', "name_mismatch"),
        ("another name", f'TLS = required TLS_Verify = ca TLS_CA = "{world.bank_ca}"', ""),
        ("good", f'TLS = required TLS_Verify = host TLS_CA = "{world.bank_ca}" TLS_Names = ( {NAMES[0]} )', ""),
    ]
    stanzas = "".join(
        f'Domain "c{n}.test" {{ {tls} TLS_Enforce = report Routes = ( "127.0.0.1:{sinks[host].port}" ) }}\n'
        for n, (host, tls, _) in enumerate(cases)
    )
    running = server(
        f'{stanzas} evidence {{ }} ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}'
    ).start()
    recipients = [f"b@c{n}.test" for n in range(len(cases))]
    send(port, *recipients)
    events = running.wait_attempts(*recipients)
    assert {row["outcome"] for row in events.values()} == {"delivered"}
    assert [events[to].get("would_wait", "") for to in recipients] == [cause for *_, cause in cases]


def test_a_month_is_reported_to_auditors(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    port, month = free_port(), datetime.now(UTC).strftime("%Y-%m")
    agreed = f"""TLS_Contract "bank.test" {{ CA = "{world.bank_ca}" Names = ( {NAMES[0]} ) }}
        TLS_Contract "shop.test" {{ Inbound = no }}"""
    rest = f"""evidence {{ node = mx.quillon.test }} Retry_Interval = 100
        Domain "bank.test" {{ Routes = ( "127.0.0.1:{sinks["good"].port}" ) }}
        Domain "*.test" {{ Routes = ( "127.0.0.1:{sinks["clear"].port}" ) }}
        ESMTP_Listener {{ TLS_Certificate = "{world.ours.certificate}" TLS_Key = "{world.ours.key}"
          SMTP_Extensions = ( STARTTLS ) Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    running = server(f"{agreed}\n{rest}").start()
    send(port, "b@bank.test", "b@shop.test", "b@old.test")
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as session:
        session.starttls(context=client(world, "good"))
        session.sendmail("a@bank.test", ["b@old.test"], "Subject: y\r\n\r\nhello\r\n")
    assert answer(port, None, "a@bank.test").startswith("451 4.7.6")
    running.wait_attempts("b@bank.test", "b@shop.test")
    until(lambda: len(sinks["clear"].messages) >= 2, "mail in clear to those who agreed on nothing")
    running.stop()

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["contract", *words, "-c", str(running.file)])
        told = capsys.readouterr()
        return status, told.out + told.err

    status, text = run("list")
    assert status == 0
    assert "mail from it: TLS required, TLS 1.2 or later, with a client certificate\n    certificates: CA" in text
    status, text = run("report", "--month", month)
    assert status == 0, text
    bank, shop = text.split("shop.test, ")
    assert "bank.test, " in bank
    assert ": kept" in bank
    assert "from it: 1 messages; TLSv1.3 1" in bank
    assert "held back: contract_no_tls 1" in bank
    assert "to it: 1 messages; TLSv1.3 1" in bank
    assert "to it: 0 messages" in shop
    assert "held back: no_starttls 1\n" in shop
    status, text = run("report", "bank.test", "--month", month, "--json")
    found = json.loads(text)
    assert [one["domain"] for one in found["contracts"]] == ["bank.test"]
    assert [log["problems"] for log in found["logs"]] == [[]]
    page = running.folder / "report.html"
    assert run("report", "--month", month, "--html", str(page))[0] == 0
    shown = page.read_text()
    assert "<h2>shop.test: <span" in shown
    assert found["logs"][0]["checkpoint"].splitlines()[2] in shown

    assert "0 messages" in run("report", "bank.test")[1], "a month with nothing in it"
    status, text = run("report", "old.test", "--month", month)
    assert (status, "no TLS_Contract for old.test" in text) == (1, True)
    assert "it is a year and a month" in run("report", "--month", "2026")[1]
    running.configure(f'TLS_Contract "old.test" {{ Inbound = no }}\n{rest}')
    status, text = run("report", "--month", month)
    assert status == 3
    assert "old.test, " in text
    assert ": NOT KEPT" in text
    assert "NOT AS AGREED: without TLS 2" in text
    running.configure(f"{agreed}\n{rest}".replace("evidence {", "evidence { enabled = false"))
    assert "no stanza evidence" in run("report")[1]
