"""kill -9 at random moments: nothing that was acknowledged is lost."""

import os
import random
import re
import signal
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

KILLS = int(os.environ.get("QUILLON_KILLS", "20"))
MARK = re.compile(rb"X-Mark: (\d+-\d+)")
SIZES = (100, 3000, 40000, 200000)  # the last one lies in a file of its own


class Sender(threading.Thread):
    """Sends as fast as it can and remembers what was acknowledged."""

    def __init__(self, number: int, port: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.acknowledged: set[str] = set()
        self.sent = 0
        self._number, self._port, self._halt = number, port, stop

    def run(self) -> None:
        chance = random.Random(self._number)
        while not self._halt.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", self._port, timeout=10) as client:
                    while not self._halt.is_set():
                        self._send(client, chance)
            except (OSError, smtplib.SMTPException):
                time.sleep(0.02)

    def _send(self, client: smtplib.SMTP, chance: random.Random) -> None:
        self.sent += 1
        mark = f"{self._number}-{self.sent}"
        size = chance.choices(SIZES, (60, 30, 9, 1))[0]
        recipients = (
            ["a@partner.test"] if chance.random() < 0.8 else ["a@partner.test", "b@partner.test", "c@other.test"]
        )
        body = f"From: x@y.test\r\nX-Mark: {mark}\r\nX-Count: {len(recipients)}\r\n\r\n" + ("x" * 70 + "\r\n") * (
            size // 72
        )
        refused = client.sendmail("alice@example.test", recipients, body)
        assert not refused
        self.acknowledged.update(f"{mark} {recipient}" for recipient in recipients)


def test_nothing_acknowledged_is_lost(server: Callable[..., Server]) -> None:
    sink = SinkThread()
    port = free_port()
    running = server(
        f"""ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
        Retry_Interval = 1 Max_Retry_Interval = 1 Host_Failure_Retry = 1 Max_Retries = none
        Gateway = "127.0.0.1:{sink.port}" """,
        workers=2,
    ).start()
    stop = threading.Event()
    senders = [Sender(number, port, stop) for number in range(6)]
    for sender in senders:
        sender.start()
    chance = random.Random(1)
    for kill in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.6))
        if kill % 4:
            running.kill()  # everything at once, as when the power fails
            running.start()
        else:
            os.kill(chance.choice(until(running.workers, "workers")), signal.SIGKILL)
    stop.set()
    for sender in senders:
        sender.join(30)
    acknowledged = set().union(*(sender.acknowledged for sender in senders))

    def arrived() -> Counter[str]:
        found: Counter[str] = Counter()
        for caught in list(sink.sink.caught):
            mark = MARK.search(caught.data)
            assert mark is not None
            found.update(f"{mark[1].decode()} {recipient}" for recipient in caught.recipients)
        return found

    until(lambda: acknowledged <= arrived().keys(), "every acknowledged message arrives", 90)
    found = arrived()
    lost = acknowledged - found.keys()
    duplicates = sum(count - 1 for count in found.values())
    print(f"kills {KILLS}, acknowledged {len(acknowledged)}, lost {len(lost)}, duplicates {duplicates}")
    assert not lost
    assert len(acknowledged) > 1000
    assert duplicates < len(acknowledged) / 4
    running.stop()
    sink.stop()
