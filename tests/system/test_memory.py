"""What is left of messages in a worker's memory once they are gone: nothing."""

from __future__ import annotations

import smtplib
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from quillon.lab.pki import Authority
from tests.support.clients import MESSAGE, context
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

COUNT = """import gc, sys

def validate_mailfrom(session):
    if session.message_context["mailfrom_localpart"] == "count":
        gc.collect()
        collected = sum(one["collected"] for one in gc.get_stats())
        session.reject(550, f"5.7.1 {sys.getallocatedblocks()} {collected}")
"""
ROUND = 800  # messages, 50 a connection


@pytest.mark.parametrize("what", ["small", "large", "over TLS"])
def test_messages_leave_nothing_behind(tmp_path: Path, server: Callable[..., Server], what: str) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/p.py").write_text(COUNT)
    pki = tmp_path / "pki"
    authority = Authority(pki)
    authority.write()
    issued = authority.issue("mx", ["127.0.0.1"])
    with SinkThread() as sink:
        server(
            f"""
            policy "p" {{ module = p.py }}
            Gateway = "127.0.0.1:{sink.port}"
            Large_Message_Threshold = {100 if what == "large" else 100000}
            ESMTP_Listener {{
              Relay_Hosts = ( 127.0.0.0/8 ) Max_Receptions_Per_Connection = 0
              TLS_Certificate = {issued.certificate} TLS_Key = {issued.key} SMTP_Extensions = ( "STARTTLS" )
              Listen "127.0.0.1:{port}" {{ }} }}"""
        ).start()

        def count() -> tuple[int, int]:
            """Blocks of memory in use, and objects that the garbage collector had to take away up to now."""
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.ehlo()
                used, collected = client.mail("count@x.test")[1].split()[1:]
                return int(used), int(collected)

        def blocks() -> int:
            """Once what is put off for a second or two is done."""
            found, least = [count()[0]], 0
            while len(found) < 20 and least < 4:
                time.sleep(0.5)
                found.append(count()[0])
                least = least + 1 if found[-1] > min(found) - 3 else 0
            return min(found)

        def some() -> None:
            before = len(sink.messages)
            for _ in range(ROUND // 50):
                with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                    if what == "over TLS":
                        client.starttls(context=context(pki, "1.3", ""))
                    for _ in range(50):
                        client.sendmail("a@x.test", ["b@y.test"], MESSAGE)
            until(lambda: len(sink.messages) == before + ROUND, "delivery")

        some()
        some()
        counts = [blocks()]
        for _ in range(3):
            some()
            counts.append(blocks())
        # caches and connections have some, and no message has one
        assert min(later - sooner for sooner, later in pairwise(counts)) < ROUND // 2, counts
        # nor does one leave a cycle, with its mail data in it until the garbage collector comes
        before = count()[1]
        some()
        blocks()
        assert count()[1] - before < ROUND // 2
