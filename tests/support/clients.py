"""Mail clients of other projects, each able to send one message in the ways that tests need."""

from __future__ import annotations

import smtplib
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.peers import require

SENDER, RECIPIENT = "alice@example.test", "bob@partner.test"
MESSAGE = f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nSubject: hello\r\nDate: Sat, 21 Nov 2026 00:00:00 +0000\r\n\r\nhi\r\n"
COMMANDS = (
    f"EHLO client.test\nMAIL FROM:<{SENDER}>\nRCPT TO:<{RECIPIENT}>\nDATA\n"
    + MESSAGE.replace("\r\n", "\n")
    + ".\nQUIT\n"
)

Send = Callable[[int, bool, str, Path], None]  # port, implicit TLS, version (1.2 or 1.3), PKI folder


def ask_console(path: Path | str, command: str) -> str:
    """What a console answers at its socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        sock.sendall(command.encode() + b"\n")
        said = b""
        while data := sock.recv(65536):
            said += data
    return said.decode()


def _run(command: list[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]} {done.stderr[-2000:]}"


def openssl(port: int, implicit: bool, version: str, pki: Path) -> None:
    how = [] if implicit else ["-starttls", "smtp"]
    _run(
        [require("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *how, "-quiet", "-crlf", "-verify_return_error",
         "-CAfile", f"{pki}/ca.pem", f"-tls{version.replace('.', '_')}",
         "-cert", f"{pki}/client.pem", "-key", f"{pki}/client.key"], COMMANDS
    )  # fmt: skip


def gnutls(port: int, implicit: bool, version: str, pki: Path) -> None:
    how = [] if implicit else ["--starttls-proto=smtp"]
    _run(
        [require("gnutls-cli"), *how, "-p", str(port), "--x509cafile", f"{pki}/ca.pem",
         "--x509certfile", f"{pki}/client.pem", "--x509keyfile", f"{pki}/client.key",
         "--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{version}", "127.0.0.1"], COMMANDS.replace("\n", "\r\n")
    )  # fmt: skip


def swaks(port: int, implicit: bool, version: str, pki: Path) -> None:
    how = "--tls-on-connect" if implicit else "--tls"
    _run(
        [require("swaks"), "--server", f"127.0.0.1:{port}", how, "--tls-protocol", f"tlsv{version.replace('.', '_')}",
         "--tls-cert", f"{pki}/client.pem", "--tls-key", f"{pki}/client.key", "--tls-ca-path", f"{pki}/ca.pem", "--tls-verify",
         "--from", SENDER, "--to", RECIPIENT]
    )  # fmt: skip


def curl(port: int, implicit: bool, version: str, pki: Path) -> None:
    scheme = "smtps" if implicit else "smtp"
    only = ["--tls-max", version, f"--tlsv{version}"]
    _run(
        [require("curl"), "-sS", f"{scheme}://127.0.0.1:{port}/client.test", "--ssl-reqd", "--cacert", f"{pki}/ca.pem", *only,
         "--cert", f"{pki}/client.pem", "--key", f"{pki}/client.key",
         "--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "-T", "-"], MESSAGE
    )  # fmt: skip


def context(pki: Path, version: str = "", client: str = "client") -> ssl.SSLContext:
    """A client context of Python's ssl; `client` names a certificate of the PKI, or is empty."""
    made = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    if version:
        made.minimum_version = made.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    if client:
        made.load_cert_chain(pki / f"{client}.pem", pki / f"{client}.key")
    return made


def smtplib_(port: int, implicit: bool, version: str, pki: Path) -> None:
    tls = context(pki, version)
    if implicit:
        with smtplib.SMTP_SSL("127.0.0.1", port, context=tls, timeout=30) as client:
            client.sendmail(SENDER, [RECIPIENT], MESSAGE)
        return
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.starttls(context=tls)
        client.sendmail(SENDER, [RECIPIENT], MESSAGE)


CLIENTS: dict[str, Send] = {
    "openssl": openssl,
    "gnutls-cli": gnutls,
    "swaks": swaks,
    "curl": curl,
    "smtplib": smtplib_,
}
