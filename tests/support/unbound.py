"""A real resolver (unbound) with names of our own, on a port of its own."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import dns.message
import dns.query

from tests.support.peers import require
from tests.support.server import free_port, until

RECORDS = """
local-zone: "test." static
local-data: "two.test. 60 IN MX 10 mx1.two.test."
local-data: "two.test. 60 IN MX 20 mx2.two.test."
local-data: "mx1.two.test. 60 IN A 127.0.0.11"
local-data: "mx2.two.test. 60 IN A 127.0.0.12"
local-data: "bare.test. 60 IN A 127.0.0.13"
local-data: "null.test. 60 IN MX 0 ."
local-data: "nothing.test. 60 IN TXT hello"
local-data: "lost.test. 60 IN MX 10 mx.nowhere.test."
local-data: "broken.test. 60 IN MX 10 mx1.two.test."
"""


class Unbound:
    def __init__(self, folder: Path) -> None:
        program = require("unbound")
        self.port = free_port()
        file = folder / "unbound.conf"
        file.write_text(
            f"""server:
  interface: 127.0.0.1@{self.port}
  do-daemonize: no
  chroot: ""
  username: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  logfile: "{folder}/unbound.log"
  access-control: 127.0.0.0/8 allow
  {RECORDS.replace(chr(10), chr(10) + "  ")}
"""
        )
        self._process = subprocess.Popen([program, "-c", str(file), "-d"])
        until(self._answers, "unbound answers")

    def _answers(self) -> bool:
        query = dns.message.make_query("bare.test.", "A")
        try:
            return bool(dns.query.udp(query, "127.0.0.1", port=self.port, timeout=0.5).answer)
        except (OSError, dns.exception.DNSException):
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def port_on(addresses: list[str]) -> int:
    """A port that is free on several loopback addresses."""
    while True:
        port = free_port()
        try:
            for address in addresses:
                with socket.socket() as sock:
                    sock.bind((address, port))
        except OSError:
            continue
        return port
