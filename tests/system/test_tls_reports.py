"""Reports of SMTP TLS (RFC 8460): what hosts did is counted, and told to who wants to know."""

from __future__ import annotations

import base64
import email
import email.policy
import gzip
import json
import os
import smtplib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from quillon.cli.main import main
from quillon.lab.pki import DAY, Authority
from quillon.lab.sink import inbound_tls
from quillon.mail import tls_report
from quillon.mailauth import dkim
from quillon.standards.tlsrpt import day_of
from tests.support.peers import require_root
from tests.support.policies import Answer, PolicyHost
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.support.unbound import port_on
from tests.support.zones import Zones

pytestmark = pytest.mark.peer
POLICY = "version: STSv1\nmode: {mode}\nmx: mx.{domain}\nmax_age: 604800\n"
MODES = {"good.test": "enforce", "expired.test": "enforce", "testing.test": "testing", "clear.test": "testing"}


class World:
    """Domains with a policy, of which one is good; all want reports at reports.test, which has no policy, but for
    own.test, whose host is another Quillon and takes them itself. quillon.test signs."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder, "Authority of the web")
        self.ca = authority.write()
        at = {name: f"127.0.5.{n}" for n, name in enumerate([*MODES, "reports.test", "own.test"], 1)}
        self.own = at["own.test"]
        self.port = port_on(list(at.values()))
        self.web: list[PolicyHost] = []
        self.sinks: dict[str, SinkThread] = {}
        rows = [f"reports.test. 2 IN MX 10 mx.reports.test.\nmx.reports.test. 2 IN A {at['reports.test']}"]
        self.sinks["reports.test"] = SinkThread(host=at["reports.test"], port=self.port)
        for n, (name, mode) in enumerate({**MODES, "own.test": "enforce"}.items(), 1):
            web = f"127.0.6.{n}"
            body = POLICY.format(mode=mode, domain=name).encode()
            issued = authority.issue(f"web-{name}", [f"mta-sts.{name}"])
            self.web.append(PolicyHost(web, issued, Answer(body)))
            bad = {"start": -30 * DAY, "life": 10 * DAY} if name in ("expired.test", "testing.test") else {}
            own = authority.issue(f"mx-{name}", [f"mx.{name}"], **bad)  # type: ignore[arg-type]
            tls = inbound_tls(str(own.certificate), str(own.key)) if name != "clear.test" else None
            if name != "own.test":
                self.sinks[name] = SinkThread(host=at[name], port=self.port, tls=tls)
            rows += [f"{name}. 2 IN MX 10 mx.{name}.", f"mx.{name}. 2 IN A {at[name]}", f"mta-sts.{name}. 2 IN A {web}"]
            rows += [f'_mta-sts.{name}. 2 IN TXT "v=STSv1; id=1"']
            rua = "reports@own.test" if name == "own.test" else f"tls%2B{n}@reports.test"
            rows += [f'_smtp._tls.{name}. 2 IN TXT "v=TLSRPTv1; rua=mailto:{rua}"']
        self.key = ed25519.Ed25519PrivateKey.generate()
        (folder / "s1.key").write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = base64.b64encode(self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
        rows += [f's1._domainkey.quillon.test. 2 IN TXT "v=DKIM1; k=ed25519; s=tlsrpt; p={public}"']
        self.folder = folder
        self.zones = Zones(folder / "dns", "\n".join(rows) + "\n")

    def config(self, port: int, more: str = "") -> str:
        return f"""
TLS = ifavailable
use_mta_sts = true
TLS_CA = "{self.ca}"
tls_reports {{ from = "tls-reports@quillon.test" organization = "Quillon Ltd" }}
DNS_Servers = ( "127.0.0.1:{self.zones.port}" )
Remote_SMTP_Port = {self.port}
ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
{more}
"""

    def stop(self) -> None:
        self.zones.stop()
        for host in self.web:
            host.stop()
        for sink in self.sinks.values():
            sink.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_root()  # port 443
    made = World(tmp_path_factory.mktemp("tlsrpt"))
    yield made
    made.stop()


def send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: x\r\n\r\nhello\r\n")


def the_day_is_over(folder: Path) -> None:
    """What was counted today is of a day that is over by more than the four hours that a node may wait."""
    today, older = day_of(time.time()), day_of(time.time() - 2 * 86400 + 3600)
    os.rename(folder / f"{today}.worker-0.json", folder / f"{older}.worker-0.json")


def test_what_hosts_did_is_reported_when_the_day_is_over(
    world: World, server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))
    port = free_port()
    running = server(world.config(port)).start()
    recipients = [f"b@{name}" for name in MODES]
    send(port, *recipients)
    running.wait_attempts(*recipients)
    running.stop()
    folder = running.folder / "spool/tlsrpt"
    the_day_is_over(folder)
    running.start()
    sink = world.sinks["reports.test"]
    until(lambda: len(sink.messages) >= len(MODES), "four reports", patience=80)
    found: dict[str, Any] = {}
    for caught in sink.messages:
        mail = email.message_from_bytes(caught.data, policy=email.policy.default)
        assert mail.get_content_type() == "multipart/report"
        assert mail.get_param("report-type") == "tlsrpt"
        assert (mail["TLS-Report-Submitter"], mail["TLS-Required"]) == ("quillon.test", "No")
        _, part = mail.iter_parts()
        assert part.get_content_type() == "application/tlsrpt+gzip"
        assert str(part.get_filename()).startswith(f"quillon.test!{mail['TLS-Report-Domain']}!")
        found[mail["TLS-Report-Domain"]] = json.loads(gzip.decompress(part.get_content()))
    assert set(found) == set(MODES)
    details = {name: report["policies"][0]["failure-details"] for name, report in found.items()}
    results = {name: [one["result-type"] for one in rows] for name, rows in details.items()}
    assert results == {
        "good.test": [],
        "expired.test": ["certificate-expired"],
        "testing.test": ["certificate-expired"],
        "clear.test": ["starttls-not-supported"],
    }
    good = found["good.test"]["policies"][0]
    assert good["summary"]["total-successful-session-count"] == 1
    assert good["policy"]["policy-string"][1] == "mode: enforce"
    running.stop()
    left = sorted(file.name for file in folder.iterdir())
    assert left == [], "what was reported is gone, and the reports themselves were not counted"


def test_scripts_hear_of_each_handshake(
    world: World, server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))
    (tmp_path / "s.lua").write_text(
        """local m = {}
        function m:core_smtp_tls_reporting(js)
          print(string.format("TLSRPT: %s@%s@%s", js.policy["policy-domain"], js.policy["policy-type"],
                              js.type == 0 and js["result-type"] or "OK"))
        end
        msys.registerModule("m", m)"""
    )
    (tmp_path / "p.py").write_text(
        "from quillon.policy.python import *\n"
        "def core_smtp_tls_reporting(report):\n"
        "    print('python:', report['policy']['policy-domain'], report['type'])\n"
    )
    port = free_port()
    more = f'scriptlet "scriptlet" {{ script "s" {{ source = "{tmp_path}/s.lua" }} }}\npolicy "p" {{ module = "{tmp_path}/p.py" }}'
    running = server(world.config(port, more).replace("tls_reports", "# tls_reports")).start()
    send(port, "h@good.test", "h@expired.test")
    running.wait_attempts("h@good.test", "h@expired.test")

    def said() -> str:
        return "\n".join([*running.log("paniclog.ec"), running.said()])

    until(lambda: "TLSRPT: good.test@sts@OK" in said(), "the good one is told")
    until(lambda: "TLSRPT: expired.test@sts@certificate-expired" in said(), "the expired one is told")
    assert "python: good.test 1" in said()


def test_a_stanza_without_an_address_is_refused(server: Callable[..., Server]) -> None:
    with pytest.raises(AssertionError, match="tls_reports: from has to be an address"):
        server("tls_reports { }").start()


# reports that come -----------------------------------------------------------------------------------------------

RECEIVER = """
tls_report_receiver {{ address = reports@own.test }}
alerts {{ }}
Relay_Domains = ( own.test )
Suspend_Delivery = true
DNS_Servers = ( "127.0.0.1:{dns}" )
ESMTP_Listener {{
  TLS_Certificate = "{folder}/mx-own.test.pem" TLS_Key = "{folder}/mx-own.test.key"
  SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" )
  Listen "{ip}:{port}" {{ }}
}}
"""


@pytest.fixture
def receiver(world: World, server: Callable[..., Server]) -> Server:
    text = RECEIVER.format(dns=world.zones.port, folder=world.folder, ip=world.own, port=world.port)
    return server(text, name="receiver").start()


def test_one_quillon_reports_to_another(
    world: World, receiver: Server, server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))
    port = free_port()
    signing = f"""opendkim "sign" {{ selector = s1 key = "{world.folder}/s1.key" }} opendkim_sign = true"""
    running = server(world.config(port, signing)).start()
    send(port, "b@own.test")
    assert running.wait_attempts("b@own.test")["b@own.test"]["outcome"] == "delivered"
    running.stop()
    the_day_is_over(running.folder / "spool/tlsrpt")
    running.start()
    (row,) = receiver.wait_events("tls_report", 1, patience=60)
    assert (row["submitter"], row["domain"], row["policy"]) == ("quillon.test", "own.test", "sts")
    assert (row["sessions"], row["failed_sessions"], row["failures"]) == (1, 0, [])
    assert receiver.wait_events("discard")[0]["reply"].startswith("250 2.0.0 report of quillon.test for 20")
    capsys.readouterr()
    assert main(["posture", "own.test", "-c", str(receiver.file)]) == 0
    assert "own.test, reported by quillon.test under sts: 1 sessions, 0 failed" in capsys.readouterr().out


DAY_BEFORE = day_of(time.time() - 86400)
REPORT = {
    "organization-name": "Quillon Ltd",
    "date-range": {"start-datetime": f"{DAY_BEFORE}T00:00:00Z", "end-datetime": f"{DAY_BEFORE}T23:59:59Z"},
    "contact-info": None,
    "report-id": "4711",
    "policies": [
        {
            "policy": {"policy-type": "sts", "policy-domain": "own.test"},
            "summary": {"total-successful-session-count": 5, "total-failure-session-count": 2},
            "failure-details": [
                {
                    "result-type": "certificate-expired",
                    "receiving-mx-hostname": "mx.own.test",
                    "failed-session-count": 2,
                }
            ],
        }
    ],
}


def mailed(world: World, octets: bytes, *, sign: bool = True, spoil: bool = False) -> bytes:
    """A report as mail of quillon.test."""
    mail = tls_report.render(
        "a@quillon.test", "reports@own.test", "quillon.test", "own.test", DAY_BEFORE, "4711", octets, time.time()
    )
    head, body = mail.split(b"\r\n\r\n", 1)
    signed = (
        dkim.sign(head + b"\r\n\r\n", body, dkim.DkimSigner("quillon.test", "s1", world.key), time.time())
        if sign
        else b""
    )
    return signed + head + b"\r\n\r\n" + (body + b"x\r\n" if spoil else body)


def hand_in(world: World, mail: bytes, sender: str = "a@quillon.test") -> None:
    with smtplib.SMTP(world.own, world.port, timeout=30) as client:
        client.sendmail(sender, ["reports@own.test"], mail)


def test_what_is_reported_of_us_is_kept_once_and_told(world: World, receiver: Server, capsys: Any) -> None:
    octets = gzip.compress(json.dumps(REPORT).encode())
    hand_in(world, mailed(world, octets))
    hand_in(world, mailed(world, octets))
    receiver.wait_events("discard", 2)
    assert len(receiver.events("tls_report")) == 1
    until(lambda: "reports 2 failed TLS sessions" in "".join(receiver.log("paniclog.ec")), "an alert")
    capsys.readouterr()
    assert main(["posture", "own.test", "-c", str(receiver.file)]) == 0
    told = capsys.readouterr().out
    assert f"{DAY_BEFORE} own.test, reported by quillon.test under sts: 5 sessions, 2 failed" in told
    assert "    FAILED: certificate-expired 2 at mx.own.test" in told
    assert main(["posture", "other.test", "-c", str(receiver.file)]) == 1


def packed(word: str, other: str) -> bytes:
    """A report in which one word is another."""
    return gzip.compress(json.dumps(REPORT).replace(word, other).encode())


def test_what_is_no_report_goes_on_as_mail(world: World, receiver: Server) -> None:
    octets = gzip.compress(json.dumps(REPORT).encode())
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    cases = {
        "no DKIM signature": mailed(world, octets, sign=False),
        "body has been changed": mailed(world, octets, spoil=True),
        "unpacks to more": mailed(world, bomb),
        "its end is missing": mailed(world, octets[:-12]),
        "it is no JSON": mailed(world, gzip.compress(b"<xml/>")),
        "no JSON object": mailed(world, gzip.compress(b"[" * 100_000)),
        "there is no report": b"From: a@quillon.test\r\nSubject: hello\r\n\r\nhello\r\n",
        "several authors": b"From: a@quillon.test, b@other.test\r\n\r\nhello\r\n",
        "no policy of ours": mailed(world, packed("own.test", "other.test")),
        "too old": mailed(world, packed(DAY_BEFORE, "2020-01-01")),
        "is to come": mailed(world, packed(DAY_BEFORE, "9999-12-30")),
        "several fields": b"Content-Type: text/plain\r\n" + mailed(world, octets),
    }
    # what another reader would see in it: fields of his own, a line that is none, and then the mail that was signed
    signed = mailed(world, gzip.compress(b"{}"))
    forged = (
        b"Content-Type: multipart/mixed; boundary=q\r\nno field\r\n--q\r\nContent-Type: application/tlsrpt+json\r\n"
    )
    cases["forged"] = forged + json.dumps(REPORT).encode() + b"\r\n--q--\r\n" + signed
    cases["odd names"] = b"From: a@quillon.test\r\nContent-Disposition: x; filename*=a''b; filename*0=c\r\n\r\nx\r\n"
    cases["deep"] = b"From: a@quillon.test\r\n" + b"Content-Type: message/rfc822\r\n\r\n" * 1500 + b"x\r\n"
    for number in range(300):  # a signed mail sent again, with parts where its sender had none
        cases["deep"] = cases["deep"] + b"--%d\r\n" % number
    quoted = (
        b"Hello,\r\n--q\r\nContent-Type: application/tlsrpt+json\r\n\r\n"
        + json.dumps(REPORT).encode()
        + b"\r\n--q--\r\n"
    )
    plain = b"From: a@quillon.test\r\nSubject: Re: your mail\r\n\r\n"
    again = dkim.sign(plain, quoted, dkim.DkimSigner("quillon.test", "s1", world.key), time.time())
    cases["relabelled"] = again + b"Content-Type: multipart/mixed; boundary=q\r\n" + plain + quoted
    for mail in cases.values():
        hand_in(world, mail)
    receiver.wait_events("reception", len(cases))
    assert not receiver.events("tls_report")
    assert not receiver.events("discard")
    assert not any("tls_report_receiver" in line for line in receiver.log("paniclog.ec"))


def test_a_receiver_without_an_address_is_refused(server: Callable[..., Server]) -> None:
    with pytest.raises(AssertionError, match="tls_report_receiver: address has to be"):
        server("tls_report_receiver { }").start()
