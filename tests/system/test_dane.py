"""DANE on the way out (RFC 7672): a real server, a real validating resolver over signed zones, hosts with certificates of
every kind. What Postfix makes of the same hosts stands beside it."""

from __future__ import annotations

import hashlib
import json
import os
import smtplib
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.cli.main import main
from quillon.lab.pki import DAY, Authority
from quillon.lab.sink import inbound_tls
from quillon.tls.tlsa import public_key
from tests.support.peers import require, require_root
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.support.unbound import port_on
from tests.support.zones import Zones

pytestmark = pytest.mark.peer

CLEAR, TLS, DANE = "clear", "tls", "dane"  # delivered, and over what


@dataclass
class Chain:
    """What a host has: its certificate, the ones that it sends, and the authorities above it, in DER."""

    leaf: bytes
    middle: bytes
    root: bytes


Records = Callable[[Chain], list[bytes]]


@dataclass(frozen=True)
class Case:
    """One domain. `cert` says what is particular about its host's certificate, `sends` whether root and intermediate go
    along; `expected` is what becomes of mail, a cause if it waits. `names` are those of the certificate."""

    records: Records
    expected: str
    cert: dict[str, Any] = field(default_factory=dict)
    by: str = "root"
    sends_root: bool = False
    names: tuple[str, ...] = ("{host}",)


def tlsa(usage: int, selector: int, matching: int, der: bytes) -> bytes:
    data = der if selector == 0 else public_key(der)
    assert data is not None
    if matching:
        data = hashlib.new("sha256" if matching == 1 else "sha512", data).digest()
    return bytes([usage, selector, matching]) + data


def ee(selector: int = 1, matching: int = 1) -> Records:
    return lambda chain: [tlsa(3, selector, matching, chain.leaf)]


def ta(selector: int, matching: int, of: str = "root") -> Records:
    return lambda chain: [tlsa(2, selector, matching, getattr(chain, of))]


def both(*parts: Records) -> Records:
    return lambda chain: [line for part in parts for line in part(chain)]


def fixed(*lines: str) -> Records:
    return lambda _: [bytes(map(int, line.split()[:3])) + bytes.fromhex(line.split()[3]) for line in lines]


WRONG = "ab" * 32
EXPIRED = {"start": -30 * DAY, "life": 10 * DAY}
CASES = {
    "ee-key": Case(ee(), DANE),
    "ee-certificate": Case(ee(0), DANE),
    "ee-sha512": Case(ee(1, 2), DANE),
    "ee-whole-key": Case(ee(1, 0), DANE),
    "ee-whole-certificate": Case(ee(0, 0), DANE),
    "ee-expired": Case(ee(), DANE, EXPIRED),
    "ee-wrong-name": Case(ee(), DANE, names=("mx.elsewhere.test",)),
    "ee-self-signed": Case(ee(), DANE, {"self_signed": True}),
    "ee-mismatch": Case(fixed(f"3 1 1 {WRONG}"), "tlsa_mismatch"),
    "ta-root-sent": Case(ta(0, 1), DANE, sends_root=True),
    "ta-root-not-sent": Case(ta(0, 1), "tlsa_mismatch"),
    "ta-whole-not-sent": Case(ta(0, 0), DANE),
    "ta-middle": Case(ta(1, 1, "middle"), DANE, by="middle"),
    "ta-for-the-domain": Case(ta(0, 0), DANE, names=("{domain}",)),
    "ta-wrong-name": Case(ta(0, 0), "name_mismatch", names=("mx.elsewhere.test",)),
    "ta-expired": Case(ta(0, 0), "expired", EXPIRED),
    "ta-of-another": Case(ta(0, 0, "middle"), "unknown_issuer"),
    "ta-names-the-leaf": Case(lambda chain: [tlsa(2, 1, 1, chain.leaf)], "tlsa_mismatch"),
    "stale-ee-and-good-ta": Case(both(fixed(f"3 1 1 {WRONG}"), ta(0, 0)), DANE),
    "good-ee-and-stale-ta": Case(both(fixed(f"2 0 1 {WRONG}"), ee()), DANE),
    "strongest-digest-is-wrong": Case(both(fixed(f"3 1 2 {WRONG}{WRONG}"), ee()), "tlsa_mismatch"),
    "usages-0-and-1": Case(both(fixed(f"1 1 1 {WRONG}"), fixed(f"0 0 1 {WRONG}")), TLS),
    "unknown-matching": Case(fixed(f"3 1 9 {WRONG}"), TLS),
    "wrong-length": Case(fixed("3 1 1 abcd"), TLS),
    "wrong-length-beside-a-good-one": Case(both(fixed("3 1 1 abcd"), ee()), DANE),
    "no-records": Case(fixed(), CLEAR),
}
ODD = {  # those that zones make odd, with a good certificate
    "no-mx": DANE,
    "alias": DANE,
    "alias-out": DANE,
    "insecure-host": CLEAR,
    "insecure": CLEAR,
    "malformed-alone": TLS,
    "malformed-beside": DANE,
    "lame": "tlsa_lookup_failed",
    "bogus": "",
}


class World:
    """Hosts, their zones, and a resolver; `domains` are those that mail goes to, by case."""

    def __init__(self, folder: Path) -> None:
        self.addresses = {name: f"127.0.2.{n}" for n, name in enumerate([*CASES, *ODD], 1)}
        self.port = port_on(list(self.addresses.values()))
        self.root = Authority(folder, "Root of the test")
        self.middle = Authority(folder, "Middle of the test", self.root)
        self.folder = folder
        self.sinks: list[SinkThread] = []
        self.domains = {name: f"{name}.test" for name in [*CASES, *ODD]}
        self.domains |= {"insecure": "x.insecure", "bogus": "x.bogus"}
        self.tlsa: dict[str, list[bytes]] = {}
        rows = [row for name, case in CASES.items() for row in self._case(name, case)]
        odd, self._insecure, self._bogus = self._odd()
        self._rows = "\n".join(rows) + "\n" + odd
        self.resolver = "127.0.2.250" if os.geteuid() == 0 else ""
        self.zones = Zones(folder / "dns", self._rows, self._insecure, self._bogus, self.tlsa, second=self.resolver)

    def rewrite(self) -> None:
        """Let DNS tell what `tlsa` has now."""
        self.zones.write(self._rows, self._insecure, self._bogus, self.tlsa)
        self.zones.restart()

    def _chain(self, issued: Path) -> Chain:
        certificates = x509.load_pem_x509_certificates(issued.read_bytes())
        der = [one.public_bytes(Encoding.DER) for one in certificates]
        return Chain(
            der[0],
            self.middle.certificate.public_bytes(Encoding.DER),
            self.root.certificate.public_bytes(Encoding.DER),
        )

    def _listen(self, name: str, issued: Any) -> None:
        tls = inbound_tls(str(issued.certificate), str(issued.key))
        self.sinks.append(SinkThread(host=self.addresses[name], port=self.port, tls=tls))

    def _case(self, name: str, case: Case) -> list[str]:
        host = f"mx.{name}.test"
        names = [text.format(host=host, domain=f"{name}.test") for text in case.names]
        authority = self.root if case.by == "root" else self.middle
        issued = authority.issue(name, names, **case.cert)
        if case.sends_root:
            with issued.certificate.open("ab") as file:
                file.write(self.root.certificate.public_bytes(Encoding.PEM))
        self._listen(name, issued)
        if records := case.records(self._chain(issued.certificate)):
            self.tlsa[f"_{self.port}._tcp.{host}."] = records
        return [f"{name}.test. 60 IN MX 10 {host}.", f"{host}. 60 IN A {self.addresses[name]}"]

    def _odd(self) -> tuple[str, str, str]:
        names = {name: f"mx.{name}.test" for name in ODD}
        names |= {"no-mx": "no-mx.test", "insecure-host": "mx.insecure", "insecure": "mx.insecure", "bogus": "mx.bogus"}
        names |= {"alias": "real.alias.test", "alias-out": "mx.alias-out.test"}
        good: dict[str, bytes] = {}
        for name, host in names.items():
            issued = self.root.issue(name, [host])
            self._listen(name, issued)
            good[name] = ee()(self._chain(issued.certificate))[0]
        at, under = self.addresses, f"_{self.port}._tcp"
        rows = f"""
no-mx.test. 60 IN A {at["no-mx"]}
alias.test. 60 IN MX 10 mx.alias.test.
mx.alias.test. 60 IN CNAME real.alias.test.
real.alias.test. 60 IN A {at["alias"]}
alias-out.test. 60 IN MX 10 mx.alias-out.test.
mx.alias-out.test. 60 IN CNAME out.insecure.
insecure-host.test. 60 IN MX 10 mx.insecure.
lame.test. 60 IN MX 10 mx.lame.test.
mx.lame.test. 60 IN A {at["lame"]}
_tcp.mx.lame.test. 60 IN NS ns.lame.test.
ns.lame.test. 60 IN A 127.0.0.99
malformed-alone.test. 60 IN MX 10 mx.malformed-alone.test.
mx.malformed-alone.test. 60 IN A {at["malformed-alone"]}
malformed-beside.test. 60 IN MX 10 mx.malformed-beside.test.
mx.malformed-beside.test. 60 IN A {at["malformed-beside"]}
"""
        insecure = f"""
x.insecure. 60 IN MX 10 mx.insecure.
mx.insecure. 60 IN A {at["insecure"]}
out.insecure. 60 IN A {at["alias-out"]}
{under}.mx.insecure. 60 IN TLSA 3 1 1 {good["insecure"][3:].hex()}
"""
        self.tlsa |= {
            f"{under}.no-mx.test.": [good["no-mx"]],
            f"{under}.real.alias.test.": [good["alias"]],
            f"{under}.mx.alias-out.test.": [good["alias-out"]],
            f"{under}.mx.malformed-alone.test.": [b"\x03\x01"],
            f"{under}.mx.malformed-beside.test.": [b"\x03\x01", good["malformed-beside"]],
        }
        bogus = f"x.bogus. 60 IN MX 10 mx.bogus.\nmx.bogus. 60 IN A {at['bogus']}\n"
        return rows, insecure, bogus

    def config(self, port: int, more: str = "") -> str:
        return f"""
{more}
dane {{ }}
DNS_Servers = ( "127.0.0.1:{self.zones.port}" )
Remote_SMTP_Port = {self.port}
ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
"""

    def stop(self) -> None:
        self.zones.stop()
        for sink in self.sinks:
            sink.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("dane"))
    yield made
    made.stop()


def send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: dane\r\n\r\nhello\r\n")


def outcome(event: dict[str, Any]) -> str:
    """As the tables have it."""
    if event["outcome"] != "delivered":
        return str(event["cause"])
    return (
        CLEAR
        if event["tls"] is None or not event["tls"]["protocol"]
        else DANE
        if event["tls"]["level"] == DANE
        else TLS
    )


def test_the_matrix(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(world.config(port, "use_dane = true\nTLS = no")).start()
    wanted = {name: case.expected for name, case in CASES.items()} | ODD
    recipients = {name: f"b@{world.domains[name]}" for name in wanted}
    send(port, *recipients.values())
    events = running.wait_attempts(*recipients.values(), patience=60)
    found = {name: outcome(events[recipient]) for name, recipient in recipients.items()}
    assert found == wanted
    matched = events[recipients["ee-key"]]["tls"]
    assert matched["matched"].startswith("TLSA 3 1 1 ")
    assert (matched["verified"], matched["standard"]) == (True, "dane")
    mismatch = events[recipients["ee-mismatch"]]
    assert "demanded by the TLSA records of _" in mismatch["reply"], mismatch["reply"]


def test_posttls_finger_is_of_one_mind(world: World) -> None:
    """Postfix finds a host verified wherever Quillon finds that DANE authenticates it, and nowhere else."""
    require_root()  # for a resolv.conf of its own
    finger = require("posttls-finger")
    unshare = require("unshare")
    file = world.folder / "resolv.conf"
    file.write_text(f"nameserver {world.resolver}\noptions trust-ad\n")

    def opinion(name: str) -> str:
        script = f'mount --bind {file} /etc/resolv.conf && exec {finger} -c -t 20 -l dane -L summary "$0"'
        command = [unshare, "-m", "sh", "-c", script, f"{world.domains[name]}:{world.port}"]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        words = said.stdout + said.stderr
        return DANE if "Verified TLS connection established" in words else "" if "TLS connection" in words else words

    names = [*CASES, *(name for name, expected in ODD.items() if expected in (DANE, TLS, CLEAR))]
    expected = {name: case.expected for name, case in CASES.items()} | ODD
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(names, pool.map(opinion, names), strict=True))
    assert found == {name: DANE if expected[name] == DANE else "" for name in names}


def test_a_resolver_that_does_not_validate_holds_mail_rather_than_let_it_go_without(
    world: World, tmp_path: Path, server: Callable[..., Server]
) -> None:
    port = free_port()
    blind = Zones(tmp_path, "bare.test. 60 IN A 127.0.0.13\n", validating=False)
    try:
        config = world.config(port, "use_dane = true\nTLS = no").replace(str(world.zones.port), str(blind.port))
        running = server(config + 'Domain "two.test" { use_dane = false Remote_SMTP_Port = 1 }').start()
        words = "dane: mail that use_dane rules waits: 127.0.0.1 does not validate: the NS records of the root come without AD"
        until(lambda: words in "\n".join(running.log("paniclog.ec")), "it is told at the start")
        send(port, "b@bare.test", "b@two.test")
        events = running.wait_attempts("b@bare.test", "b@two.test")
        assert events["b@bare.test"]["cause"] == "resolver_not_validating"
        assert events["b@two.test"]["cause"] == ""
    finally:
        blind.stop()


def test_where_it_is_mandatory_mail_waits_for_hosts_without_records(
    world: World, server: Callable[..., Server]
) -> None:
    port = free_port()
    running = server(world.config(port, "use_dane = mandatory\nTLS = ifavailable")).start()
    names = {
        "ee-key": DANE,
        "no-records": "tlsa_missing",
        "usages-0-and-1": "tlsa_missing",
        "insecure": "tlsa_missing",
        "ee-mismatch": "tlsa_mismatch",
    }
    recipients = {name: f"m@{world.domains[name]}" for name in names}
    send(port, *recipients.values())
    events = running.wait_attempts(*recipients.values())
    assert {name: outcome(events[to]) for name, to in recipients.items()} == names


def test_an_authority_of_ones_own_holds_beside_the_records(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    strict = f'use_dane = true TLS = required TLS_Verify = host TLS_CA = "{world.root.write()}"'
    running = server(world.config(port, strict)).start()
    names = {
        "ee-key": DANE,
        "ee-expired": "expired",
        "ee-self-signed": "self_signed",
        "ee-wrong-name": "name_mismatch",
        "ee-mismatch": "tlsa_mismatch",
    }
    recipients = {name: f"o@{world.domains[name]}" for name in names}
    send(port, *recipients.values())
    events = running.wait_attempts(*recipients.values())
    assert {name: outcome(events[to]) for name, to in recipients.items()} == names


def test_enable_dane_suspends_it_for_a_domain(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(world.config(port, 'use_dane = true Domain "ee-mismatch.test" { enable_dane = false }')).start()
    send(port, "e@ee-mismatch.test")
    assert outcome(running.wait_attempts("e@ee-mismatch.test")["e@ee-mismatch.test"]) == CLEAR


def test_a_resolver_elsewhere_is_refused_at_load_unless_it_is_trusted(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text('DNS_Servers = ( "192.0.2.53" )\nDomain "bank.test" {\n  use_dane = true\n}\n')
    assert main(["check", "-c", str(file)]) != 0
    said = capsys.readouterr()
    assert f"{file}:3:3: use_dane: the word of 192.0.2.53 on DNSSEC does not count" in said.out + said.err
    file.write_text("DNSSEC_Trusted_Servers = ( 192.0.2.0/24 )\n" + file.read_text())
    assert main(["check", "-c", str(file)]) == 0


def test_records_that_change_are_believed_when_their_time_is_over(world: World, server: Callable[..., Server]) -> None:
    """A connection that is kept is not used under records that hold no more."""
    port = free_port()
    running = server(world.config(port, "use_dane = true\nTLS = no\nIdle_Timeout = 60")).start()
    send(port, "r1@ee-key.test")
    assert outcome(running.wait_attempts("r1@ee-key.test")["r1@ee-key.test"]) == DANE
    name = f"_{world.port}._tcp.mx.ee-key.test."
    good = world.tlsa[name]
    world.tlsa[name] = [bytes([3, 1, 1]) + b"x" * 32]
    world.rewrite()
    try:
        time.sleep(2.1)  # the resolver gives each record two seconds
        send(port, "r2@ee-key.test")
        assert outcome(running.wait_attempts("r2@ee-key.test")["r2@ee-key.test"]) == "tlsa_mismatch"
    finally:
        world.tlsa[name] = good
        world.rewrite()


def test_explain_tells_what_dns_says_and_who_wins(world: World, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(world.config(free_port(), "use_dane = true\nTLS = no"))
    assert main(["explain", "-c", str(file), "--domain", "ee-key.test", "--option", "use_dane"]) == 0
    said = capsys.readouterr().out
    assert f":{world.port} +dnssec: TLS is required, with a certificate that a TLSA record names" in said
    assert f"    by  DANE: TLSA _{world.port}._tcp.mx.ee-key.test 3 1 1 " in said
    assert "    and configuration: TLS = no, TLS_Verify = no" in said
    assert main(["explain", "-c", str(file), "--domain", "x.insecure", "--option", "use_dane", "--json"]) == 0
    (host,) = json.loads(capsys.readouterr().out)["published"]["hosts"]
    assert (host["dnssec"], host["tls"], host["standard"]) == (False, "no", "")
    assert main(["explain", "-c", str(file), "--domain", "ee-key.test", "--option", "use_dane", "--no-dns"]) == 0
    assert "TLSA" not in capsys.readouterr().out
    assert main(["explain", "-c", str(file), "--domain", "x.bogus", "--option", "use_dane"]) == 0
    assert "no MX or A for domain (no answer from the resolver" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("ee-self-signed", 0, "dane       TLS, verified"),
        ("ee-mismatch", 1, "dane       held: tlsa_mismatch"),
        ("ta-expired", 1, "dane       held: expired"),
        ("usages-0-and-1", 1, "dane       TLS, not checked"),
    ],
)
def test_the_probe_foresees_what_delivery_does(
    world: World, tmp_path: Path, capsys: Any, name: str, status: int, words: str
) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(world.config(free_port(), "use_dane = true\nTLS = no"))
    assert main(["tls-probe", "-c", str(file), "--domain", f"{name}.test"]) == status
    assert words in capsys.readouterr().out


def test_the_console_tells_what_hosts_have_to_prove(
    world: World, tmp_path: Path, server: Callable[..., Server], capsys: Any
) -> None:
    port = free_port()
    control = f'Control_Listener {{ Listen "{tmp_path}/c" {{ }} }}'
    running = server(world.config(port, "use_dane = true\nTLS = no\n" + control), workers=2).start()

    def ask(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["console", "-c", str(running.file), *words]) == status
        said = capsys.readouterr()
        return str(said.out + said.err)

    assert "TLS is required, with a certificate that a TLSA record names" in ask("tls", "demand", "ee-key.test")
    assert "TLS = no, TLS_Verify = no" in ask("tls", "demand", "no-records.test")
    assert "does not answer in time" in ask("tls", "demand", "lame.test", status=1)
    rows = json.loads(ask("--json", "tls", "demand", "usages-0-and-1.test"))
    assert [host["standard"] for host in rows["result"]["hosts"]] == ["dane"]
