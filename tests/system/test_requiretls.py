"""REQUIRETLS and TLS-Required (RFC 8689): what a sender wants of the way of a message, from the session to the next host."""

from __future__ import annotations

import dataclasses
import smtplib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quillon.cli.main import main
from quillon.lab.pki import DAY, Authority
from quillon.lab.sink import inbound_tls
from quillon.mail.address import Mailbox
from quillon.mail.message import NULL_ID, Batch, MessageId, Origin
from quillon.reception.content import tls_request
from quillon.spool import record
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.support.unbound import port_on
from tests.support.zones import Zones

OFFERED = ("ENHANCEDSTATUSCODES", "STARTTLS", "REQUIRETLS")
HOSTS = ("passes", "does-not", "expired", "insecure")


class World:
    """Hosts in a signed zone, but for one; `passes` offers REQUIRETLS, and so do `expired` and `insecure`."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        self.ca = authority.write()
        at = {name: f"127.0.7.{n}" for n, name in enumerate(HOSTS, 1)}
        self.port = port_on(list(at.values()))
        self.sinks: dict[str, SinkThread] = {}
        for name in HOSTS:
            host = "mx.insecure" if name == "insecure" else f"mx.{name}.test"
            bad = {"start": -30 * DAY, "life": 10 * DAY} if name == "expired" else {}
            own = authority.issue(name, [host], **bad)  # type: ignore[arg-type]
            sink = SinkThread(host=at[name], port=self.port, tls=inbound_tls(str(own.certificate), str(own.key)))
            if name != "does-not":
                sink.sink.settings = dataclasses.replace(sink.sink.settings, smtp_extensions=OFFERED)
            self.sinks[name] = sink
        rows = [f"{n}.test. 2 IN MX 10 mx.{n}.test.\nmx.{n}.test. 2 IN A {at[n]}" for n in HOSTS if n != "insecure"]
        below = f"x.insecure. 2 IN MX 10 mx.insecure.\nmx.insecure. 2 IN A {at['insecure']}\n"
        self.zones = Zones(folder / "dns", "\n".join(rows) + "\n", below)

    def config(self, port: int, pki: Path, more: str = "") -> str:
        return f"""
TLS_CA = "{self.ca}"
Retry_Interval = 1
DNS_Servers = ( "127.0.0.1:{self.zones.port}" )
Remote_SMTP_Port = {self.port}
ESMTP_Listener {{
  Relay_Hosts = ( 127.0.0.0/8 )
  TLS_Certificate = "{pki}/server.pem"
  TLS_Key = "{pki}/server.key"
  Listen "127.0.0.1:{port}" {{ SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" "REQUIRETLS" ) }}
}}
{more}
"""

    def stop(self) -> None:
        self.zones.stop()
        for sink in self.sinks.values():
            sink.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("requiretls"))
    yield made
    made.stop()


def secured(port: int) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port, timeout=30)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client.starttls(context=context)
    client.ehlo()
    return client


def required(port: int, *recipients: str) -> None:
    with secured(port) as client:
        assert client.has_extn("requiretls")
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: x\r\n\r\nhello\r\n", mail_options=["REQUIRETLS"])


@pytest.mark.peer
def test_it_is_offered_and_taken_inside_tls_only(world: World, server: Callable[..., Server], pki: Path) -> None:
    port = free_port()
    server(world.config(port, pki)).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        assert not client.has_extn("requiretls")
        assert client.docmd("MAIL", "FROM:<a@x.test> REQUIRETLS")[0] == 555
    with secured(port) as client:
        assert client.docmd("MAIL", "FROM:<a@x.test> REQUIRETLS=yes")[0] == 501
        assert client.docmd("MAIL", "FROM:<a@x.test> REQUIRETLS REQUIRETLS")[0] == 501
        assert client.docmd("MAIL", "FROM:<a@x.test> SIZE=10 REQUIRETLS")[0] == 250
        assert client.docmd("RCPT", "TO:<b@passes.test> REQUIRETLS")[0] == 555


@pytest.mark.peer
def test_it_goes_on_to_hosts_that_pass_it_on_and_to_no_others(
    world: World, server: Callable[..., Server], pki: Path, tmp_path: Path
) -> None:
    port = free_port()
    with SinkThread() as back:
        more = f'Domain "sender.test" {{ Routes = ( "127.0.0.1:{back.port}" ) }}\nbounces_inline_original = all'
        running = server(world.config(port, pki, more)).start()
        recipients = {name: f"b@{name}.test" for name in HOSTS} | {"insecure": "b@x.insecure"}
        required(port, *recipients.values())
        events = running.wait_attempts(*recipients.values())
        found = {name: (events[to]["outcome"], events[to].get("cause", "")) for name, to in recipients.items()}
        assert found == {
            "passes": ("delivered", ""),
            "does-not": ("permanent_failure", "no_requiretls"),
            "expired": ("transient_failure", "expired"),
            "insecure": ("permanent_failure", "requiretls_insecure"),
        }
        tls = events[recipients["passes"]]["tls"]
        assert (tls["standard"], tls["verified"], tls["matched"]) == ("requiretls", True, "mx.passes.test")
        assert "550 5.7.30 [internal] REQUIRETLS support required" in events[recipients["does-not"]]["reply"]
        until(lambda: len(back.messages) == 2, "two notifications")
        assert all(b"hello" not in caught.data for caught in back.messages), "the message itself stays here"
        assert [len(world.sinks[name].messages) for name in ("does-not", "expired", "insecure")] == [0, 0, 0]


@pytest.mark.peer
def test_it_outlives_the_server_and_an_export(
    world: World, server: Callable[..., Server], pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    console = f'Control_Listener {{ Listen "{tmp_path}/c" {{ }} }}'
    running = server(world.config(port, pki, f"Suspend_Delivery = true\n{console}")).start()
    required(port, "c@does-not.test")
    capsys.readouterr()
    assert main(["console", "-c", str(running.file), "domain", "does-not.test"]) == 0
    assert "does-not.test (REQUIRETLS)" in capsys.readouterr().out
    running.stop()
    assert main(["spool", "export", "-c", str(running.file), str(tmp_path / "mail")]) == 0
    (file,) = (tmp_path / "mail").glob("*.eml")
    assert b"\r\nX-Envelope-TLS: requiretls\r\n" in file.read_bytes()
    other = server(world.config(free_port(), pki), name="other")
    assert main(["spool", "import", "-c", str(other.file), str(file)]) == 0
    other.start()
    assert other.wait_attempts("c@does-not.test")["c@does-not.test"]["cause"] == "no_requiretls"
    running.configure(world.config(port, pki))
    running.start()
    assert running.wait_attempts("c@does-not.test")["c@does-not.test"]["cause"] == "no_requiretls"


@pytest.mark.peer
def test_tls_required_no_leaves_alone_what_the_domain_wants_and_not_what_the_operator_does(
    world: World, server: Callable[..., Server], pki: Path
) -> None:
    port = free_port()
    more = 'use_dane = true TLS = ifavailable Domain "expired.test" { TLS = required TLS_Verify = host }'
    running = server(world.config(port, pki, more)).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for name in ("does-not", "expired"):
            text = "TLS-Required: No\r\nSubject: x\r\n\r\nhello\r\n"
            client.sendmail("a@sender.test", [f"n@{name}.test"], text)
    events = running.wait_attempts("n@does-not.test", "n@expired.test")
    assert events["n@does-not.test"]["outcome"] == "delivered"
    assert events["n@expired.test"]["cause"] == "expired"


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (b"TLS-Required: No\r\n\r\n", "no"),
        (b"Subject: x\r\ntls-required : no \r\n\r\n", "no"),
        (b"TLS-Required: No\r\n more\r\n\r\n", ""),
        (b"TLS-Required: Yes\r\n\r\n", ""),
        (b"TLS-Required: Nobody\r\n\r\n", ""),
        (b"Subject: TLS-Required: No\r\n\r\n", ""),
        (b"\r\nTLS-Required: No\r\n", ""),
    ],
)
def test_the_field(head: bytes, request_: str) -> None:
    section = head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if not head.startswith(b"\r\n") else b"\r\n"
    assert tls_request(section, requiretls=False) == request_
    assert tls_request(section, requiretls=True) == "requiretls"


def test_the_record_of_a_batch_keeps_it_and_is_as_it_was_without() -> None:
    def batch(request: str) -> Batch:
        made = Batch(MessageId(1, 2, 3), Mailbox("a", "x.test"), Origin("192.0.2.1", "esmtp", NULL_ID), 1.0, 5, None)
        made.tls_request = request
        return made

    for request in record.TLS_REQUESTS:
        text = record.encode_batch(batch(request))
        assert text.startswith("[2," if request else "[1,")
        assert record.decode_batch(batch("").id.number, text, "").tls_request == request
    bad = record.encode_batch(batch("no")).replace('"no"', '"perhaps"')
    with pytest.raises(record.RecordError, match="no request for TLS"):
        record.decode_batch(1, bad, "")
