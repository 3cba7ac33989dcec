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
from quillon.tls.certificate import Certificate
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.system.test_revocation import crl

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
        self.bank, self.middle = bank, middle
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


CONTENT = """
from quillon.policy.python import *

def get_outbound_tls_parameters(message: Message, parameters: TlsParameters) -> None:
    parameters.cipherlist = "HIGH"

def outbound_smtp_tls_verify_callback(remote, verified, certificate):
    return True

def inbound_smtp_tls_verify_callback(session, verified, certificate):
    return True

def validate_rcptto(session: Session, message: Message) -> None:
    if message.recipient.startswith("routed@"):
        message.set_routing_domain("elsewhere.test")
"""

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


def test_a_policy_that_is_content_with_everything_waives_nothing(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server], tmp_path: Path
) -> None:
    """Not with another authority's certificate, in no direction, not by another way, and not for mail that waits when
    the contract is taken out while the policy stays."""
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/content.py").write_text(CONTENT)
    contracts = f"""TLS_Contract "bank.test" {{ CA = "{world.bank_ca}" Names = ( {NAMES[0]} ) }}
        TLS_Contract "named.test" {{ Outbound = no Names = ( {NAMES[0]} ) }}"""
    rest = f"""Retry_Interval = 1 TLS = ifavailable
        policy "p" {{ module = "content.py" }}
        Domain "bank.test" {{ Routes = ( "127.0.0.1:{sinks["another authority"].port}" ) }}
        Domain "*.test" {{ Routes = ( "127.0.0.1:{sinks["clear"].port}" ) }}
        ESMTP_Listener {{ TLS_Certificate = "{world.ours.certificate}" TLS_Key = "{world.ours.key}"
          TLS_Client_CA = "{world.bank_ca}" SMTP_Extensions = ( STARTTLS )
          Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    running = server(f"{contracts}\n{rest}").start()
    before = len(sinks["clear"].messages)
    send(port, "b@bank.test", "routed@bank.test", "b@other.test")
    found = running.wait_attempts("b@bank.test", "routed@bank.test", "b@other.test")
    assert found["b@bank.test"]["cause"] == "unknown_issuer"
    assert found["routed@bank.test"]["cause"] == "no_starttls"
    assert found["b@other.test"]["outcome"] == "delivered"
    for name, cause in (("another authority", "unknown_issuer"), ("self-signed", "self_signed")):
        for sender in ("a@bank.test", "a@named.test"):
            assert f": {cause}" in answer(port, client(world, name), sender), (name, sender)
    running.configure(rest)
    running.reload()

    def lost() -> set[str]:
        return {row["recipient"] for row in running.events("attempt") if row.get("cause") == "demand_lost"}

    until(lambda: lost() == {"b@bank.test", "routed@bank.test"}, "both wait for their contract")
    assert len(sinks["clear"].messages) == before + 1


def test_names_keys_and_versions_are_remembered_and_a_stanza_may_change_its_own(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server]
) -> None:
    port = free_port()
    rest = f"""Retry_Interval = 1
        Domain "names.test" {{ TLS = required TLS_Verify = ca TLS_CA = "{world.bank_ca}"
          Routes = ( "127.0.0.1:{sinks["good"].port}" ) }}
        Domain "key.test" {{ TLS = required Routes = ( "127.0.0.1:{sinks["good"].port}" ) }}
        Domain "ca.test" {{ Routes = ( "127.0.0.1:{sinks["good"].port}" ) }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    contracts = f"""TLS_Contract "names.test" {{ Inbound = no CA = "{world.bank_ca}" Names = ( mx.elsewhere.test ) }}
        TLS_Contract "key.test" {{ Inbound = no SPKI = ( {"0" * 64} ) }}
        TLS_Contract "ca.test" {{ Inbound = no CA = "{world.shop_ca}" Names = ( {NAMES[0]} ) }}"""
    running = server(f"{contracts}\n{rest}").start()
    recipients = ["b@names.test", "b@key.test", "b@ca.test"]
    send(port, *recipients)
    causes = {to: row["cause"] for to, row in running.wait_attempts(*recipients).items()}
    assert list(causes.values()) == ["name_mismatch", "key_mismatch", "unknown_issuer"]
    ours = f'TLS_Contract "ca.test" {{ Inbound = no CA = "{world.bank_ca}" Names = ( {NAMES[0]} ) }}'
    running.configure(f"{ours}\n{rest}")
    running.reload()

    def ended(recipient: str) -> str:
        row = [row for row in running.events("attempt") if row["recipient"] == recipient][-1]
        return str(row.get("cause") or row["outcome"])

    wanted = ["demand_lost", "demand_lost", "delivered"]
    until(lambda: [ended(one) for one in recipients] == wanted, "what was agreed on is remembered")


def test_a_contract_that_says_so_itself_lets_mail_go(
    world: World, sinks: dict[str, SinkThread], server: Callable[..., Server]
) -> None:
    port = free_port()
    text = f"""Retry_Interval = 1 TLS_Contract "bank.test" {{ Inbound = no CA = "{world.bank_ca}" }}
        Domain "bank.test" {{ Routes = ( "127.0.0.1:{sinks["clear"].port}" ) }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    running = server(text).start()
    send(port, "b@bank.test")
    assert running.wait_attempts("b@bank.test")["b@bank.test"]["cause"] == "no_starttls"
    running.configure(text.replace("Inbound = no", "Inbound = no Outbound = no"))
    running.reload()
    until(lambda: running.events("attempt")[-1]["outcome"] == "delivered", "mail that nothing is agreed on for")


@ENGINES
def test_a_revoked_client_and_one_whose_authority_the_listen_does_not_name(
    world: World, server: Callable[..., Server], engine: str
) -> None:
    """The contract's authority is none of TLS_Client_CA; a Quillon with GnuTLS sends, which shows a certificate to those
    alone that name its authority, or none."""
    port, sent = free_port(), free_port()
    good, bad = world.certificates["good"], world.certificates["below"]
    lists = world.folder / "bank.crl"
    number = x509.load_pem_x509_certificates(bad.certificate.read_bytes())[1].serial_number
    lists.write_bytes(crl(world.bank, number) + crl(world.middle))
    receiver = server(
        f"""TLS_Engine = {engine} Suspend_Delivery = true
        TLS_Contract "bank.test" {{ CA = "{world.bank_ca}" }}
        ESMTP_Listener {{ TLS_Certificate = "{world.ours.certificate}" TLS_Key = "{world.ours.key}"
          TLS_Client_CA = "{world.shop_ca}" TLS_CRL = "{lists}" TLS_Session_Resumption = true
          SMTP_Extensions = ( STARTTLS ) Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}""",
        name="receiver",
    ).start()
    for _ in range(2):
        assert answer(port, client(world, "good"), "a@bank.test").startswith("250")
    assert ": revoked" in answer(port, client(world, "below"), "a@bank.test")
    sender = server(
        f"""TLS_Engine = gnutls TLS = required TLS_Certificate = "{good.certificate}" TLS_Key = "{good.key}"
        Domain "*.test" {{ Routes = ( "127.0.0.1:{port}" ) }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{sent}" {{ }} }}""",
        name="sender",
    ).start()
    with smtplib.SMTP("127.0.0.1", sent, timeout=30) as session:
        session.sendmail("a@bank.test", ["b@shop.test"], "Subject: x\r\n\r\nhello\r\n")
    assert sender.wait_attempts("b@shop.test")["b@shop.test"]["outcome"] == "delivered"
    assert receiver.wait_events("reception")[0]["sender"] == "a@bank.test"


def test_who_speaks_for_another_shows_no_certificate_of_his(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    server(
        f"""TLS_Contract "bank.test" {{ CA = "{world.bank_ca}" }}
        ESMTP_Listener {{ TLS_Certificate = "{world.ours.certificate}" TLS_Key = "{world.ours.key}"
          SMTP_Extensions = ( STARTTLS XCLIENT ) Trusted_Clients = ( 127.0.0.1 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as session:
        session.starttls(context=client(world, "good"))
        session.ehlo()
        assert session.mail("a@bank.test")[0] == 250
        session.rset()
        assert session.docmd("XCLIENT ADDR=203.0.113.9")[0] == 220
        session.ehlo()
        assert session.mail("a@bank.test")[0] == 451


def test_whoever_writes_names_behind_mail_from_writes_no_alerts(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(
        f"""TLS_Contract "*.bank.test" {{ }} alerts {{ }}
        ESMTP_Listener {{ TLS_Certificate = "{world.ours.certificate}" TLS_Key = "{world.ours.key}"
          SMTP_Extensions = ( STARTTLS ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as session:
        session.ehlo()
        for number in range(20):
            assert session.mail(f"a@x{number}.bank.test")[0] == 451
    running.wait_events("rejection", 20)
    until(lambda: "is refused for its TLS contract" in "".join(running.log("paniclog.ec")), "an alert")
    assert sum("is refused for its TLS contract" in line for line in running.log("paniclog.ec")) == 1


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
        ("good", f"TLS = required TLS_SPKI = ( {'0' * 64} )", "key_mismatch"),
        ("good", f"TLS = required TLS_SPKI = ( {pin(world.certificates['good'])} )", ""),
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
        session.starttls(context=client(world, "below"))
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
    own = pin(world.certificates["good"])
    for terms, told in (
        (f"SPKI = ( {own} )", "bank.test, "),
        (f'CA = "{world.bank_ca}"', "bank.test, "),
        (f'CA = "{world.shop_ca}"', "with a certificate of another authority 1"),
        (f"SPKI = ( {'0' * 64} )", "with another key 1"),
        ("Names = ( mx.elsewhere.test )", "with other names 1"),
    ):
        running.configure(f'TLS_Contract "bank.test" {{ Inbound = no {terms} }}\n{rest}')
        status, text = run("report", "--month", month)
        assert (told in text, status) == (True, 3 if "with " in told else 0), text
    running.configure(f'TLS_Contract "bank.test" {{ Outbound = no CA = "{world.shop_ca}" }}\n{rest}')
    status, text = run("report", "--month", month)
    assert "NOT AS AGREED: with a certificate of another authority 1" in text
    running.configure(f"{agreed}\n{rest}".replace("evidence {", "evidence { enabled = false"))
    assert "no stanza evidence" in run("report")[1]
