"""What partners do with TLS, counted by day: on the console, by the command, on pages and in alerts."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from quillon.cli.main import main
from quillon.lab.pki import DAY, Authority
from quillon.lab.sink import inbound_tls
from quillon.standards.report_store import ReportStore
from quillon.standards.tlsrpt_received import Failure, PolicyReport, Report
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread


def send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], "Subject: x\r\n\r\nhello\r\n")


def test_days_are_counted_and_shown(tmp_path: Path, server: Callable[..., Server], capsys: Any) -> None:
    authority = Authority(tmp_path)
    ends = authority.issue("ends", ["localhost"], life=5 * DAY)
    port, http = free_port(), free_port()
    tls = inbound_tls(str(ends.certificate), str(ends.key))
    with SinkThread(tls=tls) as good, SinkThread() as clear:
        running = server(
            f"""posture {{ }} alerts {{ }} TLS = ifavailable
            Control_Listener {{ Listen "{tmp_path}/console" {{ }} }}
            HTTP_Listener {{ Listen "127.0.0.1:{http}" {{ }} }}
            Domain "bank.test" {{ Routes = ( "127.0.0.1:{good.port}" ) }}
            Domain "clear.test" {{ Routes = ( "127.0.0.1:{clear.port}" ) TLS = required TLS_Enforce = report }}
            ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}""",
            workers=2,
        ).start()

        def run(*words: str) -> str:
            capsys.readouterr()
            assert main([*words]) == 0, capsys.readouterr().err
            return str(capsys.readouterr().out)

        def console(*words: str) -> str:
            return run("console", "-c", str(running.file), *words)

        recipients = ["a@bank.test", "b@bank.test", "c@clear.test"]
        send(port, *recipients)
        running.wait_attempts(*recipients)
        shown = console("posture", "bank.test")
        assert "127.0.0.1: 2 attempts; TLSv1.3 2; " in shown
        assert "would have waited: no_starttls 1" in console("posture", "clear.test")
        text = console("posture", "all", "1")
        assert "clear.test: 1 attempts; 1 in clear" in text
        assert "bank.test: 2 attempts; TLSv1.3 2; level none 2; a certificate ends in 4 days" in text
        assert console("posture", "nowhere.test") == "nothing was sent there\n"
        until(lambda: "ends in 4 days" in "".join(running.log("paniclog.ec")), "an alert that it ends")
        running.stop()

        told = run("posture", "bank.test", "-c", str(running.file))
        assert "127.0.0.1: 2 attempts" in told
        assert ": its certificate ends in " in told
        assert "clear.test: 1 attempts" in run("posture", "all", "-c", str(running.file))
        failures = (Failure("certificate-expired", 2, mx="mx.own.test"),)
        report = Report(
            "large.test", "", "1", 1_795_900_000, 1_795_980_000, (PolicyReport("sts", "own.test", 5, 2, failures),)
        )
        assert ReportStore(running.folder / "spool/tlsrpt/received").put(report, 0.0)

        running.start()
        send(port, "d@bank.test")
        running.wait_attempts("d@bank.test")
        assert "127.0.0.1: 3 attempts" in console("posture", "bank.test"), "it goes on where it was"
        url = f"http://127.0.0.1:{http}"
        page = httpx.get(f"{url}/partners", trust_env=False).text
        assert '<a href="/partners/bank.test">bank.test</a></td><td class="number">3</td>' in page
        assert '<td class="number">1</td><td class="number bad">1</td>' in page, "what went in clear"
        page = httpx.get(f"{url}/partners?domain=bank.test", trust_env=False, follow_redirects=True).text
        points = page.partition('data-points="')[2].partition('"')[0]
        assert [line[0] for line in json.loads(points)][1:] == [3, 0, 0, 0]
        assert "3 attempts; TLSv1.3 3" in page
        page = httpx.get(f"{url}/partners/own.test", trust_env=False).text
        assert "reported by large.test under sts: 5 sessions, 2 failed" in page
        assert "FAILED: certificate-expired 2 at mx.own.test" in page


def test_what_is_not_counted_is_said(server: Callable[..., Server], tmp_path: Path, capsys: Any) -> None:
    running = server(f'Control_Listener {{ Listen "{tmp_path}/console" {{ }} }}').start()
    for words, told in ((["bank.test"], "there is no stanza posture"), ([], "wants the name of a domain")):
        capsys.readouterr()
        assert main(["console", "-c", str(running.file), "posture", *words]) == 1
        said = capsys.readouterr()
        assert told in said.out + said.err
    assert main(["posture", "bank.test", "-c", str(running.file)]) == 1
    assert "no stanza posture and none of evidence" in capsys.readouterr().err


@pytest.mark.parametrize("octets", [b"", b"[]", b"\xff", b'{"x.test": [{}]}', b'{"x.test": 4}'])
def test_a_file_that_is_broken_keeps_no_server_from_its_start(
    server: Callable[..., Server], tmp_path: Path, capsys: Any, octets: bytes
) -> None:
    import time

    from quillon.log.posture import day_of

    running = server(f'posture {{ }} Control_Listener {{ Listen "{tmp_path}/console" {{ }} }}')
    folder = running.folder / "spool/posture"
    folder.mkdir(parents=True)
    (folder / f"{day_of(time.time())}.worker-0.json").write_bytes(octets)
    (folder / "2026-01-01.worker-7.json").write_bytes(octets)
    running.start()
    assert main(["console", "-c", str(running.file), "posture", "x.test", "3660"]) in (0, 1)
    said = capsys.readouterr()
    assert "unexpected" not in said.out + said.err
    assert not any("unexpected" in line for line in running.log("paniclog.ec"))
