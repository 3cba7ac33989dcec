"""MTA-STS on the way out (RFC 8461): a real server, policies over real HTTPS, hosts with certificates of every kind."""

from __future__ import annotations

import datetime
import smtplib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quillon.cli.main import main
from quillon.lab.pki import DAY, Authority
from quillon.lab.sink import inbound_tls
from tests.support.peers import require_root
from tests.support.policies import Answer, PolicyHost
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.support.unbound import port_on
from tests.support.zones import Zones

pytestmark = pytest.mark.peer

CLEAR, STS = "clear", "sts"
GOOD = "version: STSv1\nmode: enforce\nmx: mx.{domain}\nmax_age: 604800\n"
TEXT = {"Content-Type": "text/plain"}


@dataclass(frozen=True)
class Case:
    """One domain: its TXT records, its policy host, its MX host; `expected` is a cause if mail waits."""

    expected: str
    policy: str = GOOD
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: TEXT)
    txt: tuple[str, ...] = ("v=STSv1; id=20261129;",)
    web: dict[str, Any] = field(default_factory=dict)  # the certificate of the policy host
    web_names: tuple[str, ...] = ("mta-sts.{domain}",)
    host: dict[str, Any] = field(default_factory=dict)  # that of the MX host
    host_names: tuple[str, ...] = ("mx.{domain}",)
    tls: bool = True


EXPIRED = {"start": -30 * DAY, "life": 10 * DAY}
CASES = {
    "good": Case(STS),
    "crlf": Case(STS, GOOD.replace("\n", "\r\n")),
    "charset": Case(STS, headers={"Content-Type": "text/plain; charset=utf-8"}),
    "wildcard": Case(STS, GOOD.replace("mx.", "*.")),
    "extension": Case(STS, GOOD + "future: yes\n"),
    "other-txt-beside": Case(STS, txt=("v=spf1 -all", "v=STSv1; id=1")),
    "no-starttls": Case("no_starttls", tls=False),
    "host-expired": Case("expired", host=EXPIRED),
    "host-self-signed": Case("self_signed", host={"self_signed": True}),
    "host-wrong-name": Case("name_mismatch", host_names=("mx.elsewhere.test",)),
    "host-for-the-domain": Case("name_mismatch", host_names=("{domain}",)),
    "other-mx": Case("sts_mx_mismatch", GOOD.replace("mx.{domain}", "mx.elsewhere.test")),
    "testing": Case(CLEAR, GOOD.replace("enforce", "testing"), tls=False),
    "testing-other-mx": Case(CLEAR, GOOD.replace("enforce", "testing").replace("mx.{", "no.{"), tls=False),
    "none": Case(CLEAR, "version: STSv1\nmode: none\nmax_age: 60\n", tls=False),
    "missing-type": Case(CLEAR, headers={}, tls=False),
    "html": Case(CLEAR, headers={"Content-Type": "text/html"}, tls=False),
    "redirect-to-no-name": Case(CLEAR, status=301, headers=TEXT | {"Location": "https://xn--a/"}, tls=False),
    "gzip": Case(CLEAR, headers=TEXT | {"Content-Encoding": "gzip"}, tls=False),
    "redirect": Case(CLEAR, status=301, headers=TEXT | {"Location": "https://mta-sts.good.test/"}, tls=False),
    "not-found": Case(CLEAR, status=404, tls=False),
    "huge": Case(CLEAR, GOOD + "x: " + "y" * 70000, tls=False),
    "no-mx": Case(CLEAR, "version: STSv1\nmode: enforce\nmax_age: 60\n", tls=False),
    "bom": Case(CLEAR, "\ufeff" + GOOD, tls=False),
    "web-expired": Case(CLEAR, web=EXPIRED, tls=False),
    "web-wrong-name": Case(CLEAR, web_names=("www.{domain}",), tls=False),
    "web-common-name": Case(CLEAR, web={"common_name": "mta-sts.web-common-name.test"}, web_names=(), tls=False),
    "web-self-signed": Case(CLEAR, web={"self_signed": True}, tls=False),
    "two-txt": Case(CLEAR, txt=("v=STSv1; id=1", "v=STSv1; id=2"), tls=False),
    "no-id": Case(CLEAR, txt=("v=STSv1;",), tls=False),
    "long-id": Case(CLEAR, txt=("v=STSv1; id=" + "1" * 33,), tls=False),
    "txt-case": Case(CLEAR, txt=("v=stsv1; id=1",), tls=False),
    "no-txt": Case(CLEAR, txt=(), tls=False),
}


class World:
    """The domains of the cases, each with a policy host and an MX host of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder, "Authority of the web")
        self.ca = self.authority.write()
        self.web: dict[str, PolicyHost] = {}
        self.sinks: list[SinkThread] = []
        at = {name: (f"127.0.3.{n}", f"127.0.4.{n}") for n, name in enumerate(CASES, 1)}
        self.port = port_on([mx for _, mx in at.values()])
        self.rows = [row for name, case in CASES.items() for row in self._case(name, case, *at[name])]
        self.zones = Zones(folder / "dns", "\n".join(self.rows) + "\n")

    def _case(self, name: str, case: Case, web: str, mx: str) -> list[str]:
        domain = f"{name}.test"

        def named(names: tuple[str, ...]) -> list[str]:
            return [text.format(domain=domain) for text in names]

        issued = self.authority.issue(f"web-{name}", named(case.web_names), **case.web)
        body = case.policy.format(domain=domain).encode()
        self.web[name] = PolicyHost(web, issued, Answer(body, case.status, case.headers))
        own = self.authority.issue(f"mx-{name}", named(case.host_names), **case.host)
        tls = inbound_tls(str(own.certificate), str(own.key)) if case.tls else None
        self.sinks.append(SinkThread(host=mx, port=self.port, tls=tls))
        rows = [f"{domain}. 2 IN MX 10 mx.{domain}.", f"mx.{domain}. 2 IN A {mx}", f"mta-sts.{domain}. 2 IN A {web}"]
        return rows + [f'_mta-sts.{domain}. 2 IN TXT "{text}"' for text in case.txt]

    def config(self, port: int, more: str = "use_mta_sts = true") -> str:
        return f"""
{more}
TLS_CA = "{self.ca}"
Retry_Interval = 1 Host_Failure_Retry = 1
DNS_Servers = ( "127.0.0.1:{self.zones.port}" )
Remote_SMTP_Port = {self.port}
ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
"""

    def stop(self) -> None:
        self.zones.stop()
        for host in self.web.values():
            host.stop()
        for sink in self.sinks:
            sink.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_root()  # port 443
    made = World(tmp_path_factory.mktemp("sts"))
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def trust(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))


def send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: sts\r\n\r\nhello\r\n")


def outcome(event: dict[str, Any]) -> str:
    """As the table has it."""
    if event["outcome"] != "delivered":
        return str(event["cause"])
    tls = event["tls"]
    return STS if tls and (tls["standard"], tls["verified"]) == ("mta-sts", True) else CLEAR


def test_the_matrix(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(world.config(port)).start()
    recipients = {name: f"b@{name}.test" for name in CASES}
    send(port, *recipients.values())
    events = running.wait_attempts(*recipients.values(), patience=60)
    assert {name: outcome(events[to]) for name, to in recipients.items()} == {n: c.expected for n, c in CASES.items()}
    wrong = events[recipients["other-mx"]]
    assert (
        "the MTA-STS policy of the domain does not name this host (other-mx.test has mx.elsewhere.test)"
        in wrong["reply"]
    )
    assert "demanded by the MTA-STS policy of no-starttls.test" in events[recipients["no-starttls"]]["reply"]
    said = "\n".join(running.log("paniclog.ec"))
    for name, result in (
        ("web-expired", "sts-webpki-invalid"),
        ("web-wrong-name", "sts-webpki-invalid"),
        ("web-common-name", "sts-webpki-invalid"),
        ("not-found", "sts-policy-fetch-error"),
        ("redirect", "sts-policy-fetch-error"),
        ("bom", "sts-policy-invalid"),
    ):
        assert f"mta_sts: {name}.test: {result}: " in said
    kept = {file.stem for file in (running.folder / "spool/mtasts").iterdir()}
    assert {"good.test", "testing.test", "none.test", "other-mx.test"} <= kept
    assert not {"html.test", "bom.test", "two-txt.test"} & kept


def test_a_policy_that_is_kept_holds_while_dns_and_web_are_gone(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(world.config(port)).start()
    send(port, "b@no-starttls.test")
    assert running.wait_attempts("b@no-starttls.test")["b@no-starttls.test"]["cause"] == "no_starttls"
    running.stop()
    world.zones.write("\n".join(row for row in world.rows if "mta-sts" not in row) + "\n")
    world.zones.restart()
    world.web["no-starttls"].down = True
    try:
        running.start()
        send(port, "c@no-starttls.test")
        assert running.wait_attempts("c@no-starttls.test")["c@no-starttls.test"]["cause"] == "no_starttls"
        running.stop()
        (running.folder / "spool/mtasts/no-starttls.test.json").unlink()
        running.start()
        send(port, "d@no-starttls.test")
        assert outcome(running.wait_attempts("d@no-starttls.test")["d@no-starttls.test"]) == CLEAR
    finally:
        world.web["no-starttls"].down = False
        world.zones.write("\n".join(world.rows) + "\n")
        world.zones.restart()


def test_a_partner_that_mends_its_policy_is_believed_at_once(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(world.config(port)).start()
    send(port, "e@other-mx.test")
    assert running.wait_attempts("e@other-mx.test")["e@other-mx.test"]["cause"] == "sts_mx_mismatch"
    host = world.web["other-mx"]
    host.answer = Answer(GOOD.format(domain="other-mx.test").encode(), 200, TEXT)
    today = datetime.date(2026, 12, 1).strftime("%Y%m%d")
    rows = [
        row.replace("id=20261129", f"id={today}") if row.startswith("_mta-sts.other-mx") else row for row in world.rows
    ]
    world.zones.write("\n".join(rows) + "\n")
    world.zones.restart()
    try:
        until(
            lambda: [e for e in running.events("attempt") if outcome(e) == STS],
            "the mail goes once the record has another id",
        )
    finally:
        world.zones.write("\n".join(world.rows) + "\n")
        world.zones.restart()


def test_enable_mta_sts_suspends_it_for_a_domain(world: World, server: Callable[..., Server]) -> None:
    port = free_port()
    more = 'use_mta_sts = true Domain "no-starttls.test" { enable_mta_sts = false }'
    running = server(world.config(port, more)).start()
    send(port, "f@no-starttls.test")
    assert outcome(running.wait_attempts("f@no-starttls.test")["f@no-starttls.test"]) == CLEAR


def test_the_console_tells_and_fetches_policies(
    world: World, tmp_path: Path, server: Callable[..., Server], capsys: Any
) -> None:
    port = free_port()
    control = f'\nControl_Listener {{ Listen "{tmp_path}/c" {{ }} }}'
    running = server(world.config(port) + control, workers=2).start()

    def ask(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["console", "-c", str(running.file), *words]) == status
        said = capsys.readouterr()
        return str(said.out + said.err)

    assert ask("mta_sts", "list", "all") == "Total domains: 0\n"
    shown = ask("mta_sts", "show", "domain", "good.test")
    assert shown.startswith("MTA-STS: good.test, mode enforce, id 20261129\n    mx mx.good.test\n    fetched 20")
    assert ask("mta_sts", "list", "all") == "good.test\nTotal domains: 1\n"
    assert "no policy in force\n    sts-policy-fetch-error: " in ask("mta_sts", "show", "domain", "not-found.test")
    asked = world.web["good"].asked
    assert ask("mta_sts", "refresh", "policy", "good.test") == "MTA-STS policy for good.test refreshed.\n"
    assert world.web["good"].asked == asked + 1
    assert "sts-policy-fetch-error" in ask("mta_sts", "refresh", "policy", "nowhere.test", status=1)
    demand = ask("tls", "demand", "good.test")
    assert "TLS = required, TLS_Verify = host, for mx.good.test" in demand
    assert "by  MTA-STS: good.test, mode enforce" in demand
    assert "by  MTA-STS: testing.test, mode testing" in ask("tls", "demand", "testing.test")
