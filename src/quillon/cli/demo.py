"""`quillon demo`: Quillon on loopback with a test PKI and a destination that enforces nothing but is held to TLS."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from quillon.lab.pki import Authority
from quillon.lab.sink import Caught, Sink, inbound_tls

STARTTLS_PORT, TLS_PORT, SINK_PORT = 2525, 2465, 2626
PATIENCE = 20.0  # seconds until a step that does not happen has failed

CONFIG = f"""\
# Quillon's demonstration. Relative paths start at this file's folder.
Hostname = mx.quillon.test
PidFile  = quillon.pid
SpoolBase = spool
Workers = 1

ec_logger "main" {{
  mainlog   = log/mainlog.ec
  rejectlog = log/rejectlog.ec
  paniclog  = log/paniclog.ec
  jsonlog   = log/events.json      # every event with its TLS facts
}}

ESMTP_Listener {{
  Relay_Hosts     = ( 127.0.0.0/8 )
  TLS_Certificate = pki/server.pem
  TLS_Key         = pki/server.key
  TLS_Client_CA   = pki/ca.pem     # a client may show a certificate; policy scripts see whether it verified
  Listen "127.0.0.1:{STARTTLS_PORT}" {{ SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" ) }}
  Listen "127.0.0.1:{TLS_PORT}" {{ Use_SSL = true }}
}}

# Mail for partner.test goes out with enforced TLS only, to a host whose certificate is ours and names it.
Domain "partner.test" {{
  Gateway    = "127.0.0.1:{SINK_PORT}"
  TLS        = required
  TLS_Verify = host
  TLS_CA     = pki/ca.pem
}}
"""


class _DemoFailure(Exception):
    """A step of the demonstration did not happen; the message says which."""


def add(commands: Any) -> None:
    parser = commands.add_parser("demo")
    parser.add_argument("--folder", default="demo", help="where everything is written (default: demo)")
    parser.add_argument("--once", action="store_true", help="end after one message; status 0 only if it arrived")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    folder = Path(given.folder).absolute()
    try:
        asyncio.run(_demo(folder, given.once))
    except _DemoFailure as error:
        print(f"quillon demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped")
    return 0


async def _demo(folder: Path, once: bool) -> None:
    _prepare(folder)
    sink = Sink(inbound_tls(str(folder / "pki/partner.pem"), str(folder / "pki/partner.key")))
    try:
        await sink.start("127.0.0.1", SINK_PORT)
    except OSError as error:
        raise _DemoFailure(f"port {SINK_PORT} of the destination: {error.strerror}") from None
    server = _serve(folder)
    try:
        await _until(lambda: _answers(STARTTLS_PORT), server, "Quillon does not answer")
        await asyncio.to_thread(_send, folder)
        await _until(lambda: bool(sink.caught), server, "the message did not arrive")
        await _until(lambda: _logged(folder, '"outcome":"delivered"'), server, "the delivery is not in the log")
        _show(folder, sink.caught[0])
        if not once:
            await _stay(folder, server)
    finally:
        sink.stop()
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(40)


def _serve(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quillon", "serve", "-c", str(folder / "ecelerity.conf")]
    return subprocess.Popen(command)  # noqa: S603 - our own program and file


def _prepare(folder: Path) -> None:
    """The PKI, once, and the configuration."""
    for port in (STARTTLS_PORT, TLS_PORT):
        if _answers(port):
            raise _DemoFailure(f"port {port} is in use; is another demonstration running?")
    pki = folder / "pki"
    if not (pki / "ca.pem").exists():
        authority = Authority(pki)
        authority.issue("server", ["mx.quillon.test", "localhost", "127.0.0.1"])
        authority.issue("client", ["client.example.test"])
        authority.issue("partner", ["mx.partner.test", "127.0.0.1"])
        authority.write()
    log = folder / "log"
    if log.is_dir():
        for file in log.iterdir():
            file.unlink()
    (folder / "ecelerity.conf").write_text(CONFIG)
    print(f"demo folder    {folder} (test PKI, ecelerity.conf, log, spool)")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _logged(folder: Path, text: str) -> bool:
    file = folder / "log/events.json"
    return file.exists() and text in file.read_text()


async def _until(happened: Any, server: subprocess.Popen[bytes], otherwise: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        if server.poll() is not None:
            raise _DemoFailure(f"{otherwise}: it ended with status {server.returncode}")
        if time.monotonic() > end:
            raise _DemoFailure(f"{otherwise} within {PATIENCE:.0f} seconds")
        await asyncio.sleep(0.05)


def _send(folder: Path) -> None:
    """One message over STARTTLS, with a client certificate."""
    context = ssl.create_default_context(cafile=str(folder / "pki/ca.pem"))
    context.load_cert_chain(folder / "pki/client.pem", folder / "pki/client.key")
    message = EmailMessage()
    message["From"] = "alice@example.test"
    message["To"] = "bob@partner.test"
    message["Subject"] = "A message held to TLS"
    message.set_content("This message may leave Quillon over verified TLS only.\n")
    try:
        with smtplib.SMTP("localhost", STARTTLS_PORT, local_hostname="client.example.test", timeout=10) as client:
            client.starttls(context=context)
            client.ehlo()
            sock = client.sock
            assert isinstance(sock, ssl.SSLSocket)
            cipher = sock.cipher()
            print(f"client         STARTTLS on port {STARTTLS_PORT}: {sock.version()} {cipher[0] if cipher else ''}")
            client.send_message(message)
    except (smtplib.SMTPException, OSError) as error:
        raise _DemoFailure(f"the message was not accepted: {error}") from None


def _show(folder: Path, caught: Caught) -> None:
    events = [json.loads(line) for line in (folder / "log/events.json").read_text().splitlines()]
    for event in events:
        tls = event.get("tls") or {}
        if event["event"] == "reception":
            verdict = f"client certificate verified={tls.get('verified')} {tls.get('subject')}"
            print(f"reception      {event['message_id']} accepted over {tls.get('protocol')}; {verdict}")
        elif event["event"] == "attempt":
            print(f"delivery       {event['outcome']} over {tls.get('protocol')} {tls.get('cipher')}")
            print(
                f"               certificate verified={tls.get('verified')} {tls.get('subject')} by {tls.get('issuer')}"
            )
    for line in (folder / "log/mainlog.ec").read_text().splitlines():
        if not line.endswith("@@@@M"):
            print(f"mainlog        {line}")
    head = caught.data.split(b"\r\n\r\n")[0].decode("ascii", "replace").split("\r\n")
    received = [head[0]]
    for line in head[1:]:
        if not line.startswith((" ", "\t")):
            break
        received.append(line)
    print("delivered      with this Received field:")
    for line in received:
        print(f"               {line.strip()}")


def _curl(folder: Path) -> str:
    """A command for the shell that sends one more message. `--crlf`: a lone line feed is refused."""
    return (
        f"echo 'Subject: hello' | curl -sS --crlf --ssl-reqd --cacert {folder}/pki/ca.pem"
        f" smtp://localhost:{STARTTLS_PORT} --mail-from alice@example.test --mail-rcpt bob@partner.test -T -"
    )


async def _stay(folder: Path, server: subprocess.Popen[bytes]) -> None:
    print()
    print("Quillon stays up. To send more, from another terminal:")
    print(f"  {_curl(folder)}")
    print(f"  openssl s_client -connect localhost:{TLS_PORT} -crlf -quiet -CAfile {folder}/pki/ca.pem")
    print(f"To watch:      tail -f {folder}/log/mainlog.ec {folder}/log/events.json")
    command = Path(sys.executable).parent / "quillon"
    print(f"To understand: {command} explain -c {folder}/ecelerity.conf --domain partner.test --option tls")
    print("To stop:       Ctrl-C")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    while not stop.is_set() and server.poll() is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.5)
