"""Reports of SMTP TLS (RFC 8460): what hosts did is counted, and told to who wants to know."""

from __future__ import annotations

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

from quillon.lab.pki import DAY, Authority
from quillon.lab.sink import inbound_tls
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
    """Domains with a policy, of which one is good; all want reports at reports.test, which has no policy."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder, "Authority of the web")
        self.ca = authority.write()
        at = {name: f"127.0.5.{n}" for n, name in enumerate([*MODES, "reports.test"], 1)}
        self.port = port_on(list(at.values()))
        self.web: list[PolicyHost] = []
        self.sinks: dict[str, SinkThread] = {}
        rows = [f"reports.test. 2 IN MX 10 mx.reports.test.\nmx.reports.test. 2 IN A {at['reports.test']}"]
        self.sinks["reports.test"] = SinkThread(host=at["reports.test"], port=self.port)
        for n, (name, mode) in enumerate(MODES.items(), 1):
            web = f"127.0.6.{n}"
            body = POLICY.format(mode=mode, domain=name).encode()
            issued = authority.issue(f"web-{name}", [f"mta-sts.{name}"])
            self.web.append(PolicyHost(web, issued, Answer(body)))
            bad = {"start": -30 * DAY, "life": 10 * DAY} if name in ("expired.test", "testing.test") else {}
            own = authority.issue(f"mx-{name}", [f"mx.{name}"], **bad)  # type: ignore[arg-type]
            tls = inbound_tls(str(own.certificate), str(own.key)) if name != "clear.test" else None
            self.sinks[name] = SinkThread(host=at[name], port=self.port, tls=tls)
            rows += [f"{name}. 2 IN MX 10 mx.{name}.", f"mx.{name}. 2 IN A {at[name]}", f"mta-sts.{name}. 2 IN A {web}"]
            rows += [f'_mta-sts.{name}. 2 IN TXT "v=STSv1; id=1"']
            rows += [f'_smtp._tls.{name}. 2 IN TXT "v=TLSRPTv1; rua=mailto:tls%2B{n}@reports.test"']
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
    today, yesterday = day_of(time.time()), day_of(time.time() - 86400)
    os.rename(folder / f"{today}.worker-0.json", folder / f"{yesterday}.worker-0.json")
    running.configure(world.config(port))
    running.start()
    # the delay of a node is up to four hours behind midnight: have it be later than that, by a file of the day before
    older = day_of(time.time() - 2 * 86400 + 3600)
    if not (folder / f"{older}.worker-0.json").exists() and (folder / f"{yesterday}.worker-0.json").exists():
        os.rename(folder / f"{yesterday}.worker-0.json", folder / f"{older}.worker-0.json")
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
