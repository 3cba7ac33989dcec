"""What parts of Quillon cost: CPU time per message without any, and with each.

    python bench/prices.py [--repeat N] [--kinds none,lua,...] [--workers]

The same load of messages of 10 KiB goes to a fresh server of each kind in turn, so that what else the machine does
falls on all of them. Then one phase of policies alone, in this process, in turns: the least of some rounds, which other
work on the machine disturbs less. A hook is a module's validate_mailfrom that reads two keys of the context and writes
one.

`--workers` compares the messages a second that one worker relays with those of two, while generator and sink are no
limit: each has a processor time of its own, so that this needs four cores or more to say something.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.rrset
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

import run
from quillon.config.load import load
from quillon.mailauth.dkim import DkimSigner, sign
from quillon.modules import load as policies
from quillon.net.clock import SystemClock
from quillon.net.eager import at_once
from quillon.policy.context import Context
from quillon.policy.hook import Call, Phase, Policy, Session

HOOKS = 10
ROUNDS, CALLS = 9, 5000
MESSAGES = 6000
LUA = """local m = {}
function m:validate_mailfrom(str, ac, vctx)
  if vctx:get(msys.core.VCTX_MESS, "mailfrom_domain") == "bank.fi" and vctx:get(msys.core.VCTX_CONN, "tls") ~= "on" then
    vctx:set_code(550, "5.7.1 mail of bank.fi comes over TLS")
  end
  vctx:set(msys.core.VCTX_MESS, "seen", "yes")
  return msys.core.VALIDATE_CONT
end
msys.registerModule("%s", m)
"""
EMPTY = 'msys.registerModule("%s", {init = function() return true end})\n'
IDLE = """local m = {}
function m:validate_mailfrom(str, ac, vctx) return msys.core.VALIDATE_CONT end
msys.registerModule("%s", m)
"""
PYTHON = """from quillon.policy.python import Session


def validate_mailfrom(session: Session) -> None:
    if session.message_context["mailfrom_domain"] == "bank.fi" and session.connection_context.get("tls") != "on":
        session.reject(550, "5.7.1 mail of bank.fi comes over TLS")
    session.message_context["seen"] = "yes"
"""
NO_PHASES = (Phase.TLS_POST_ACCEPT, Phase.AUTH, Phase.DEALLOC)  # that this load does not come to
CALLOUTS = [phase.value for phase in Phase if phase not in NO_PHASES]
EACH = "\n".join(
    [
        "local m = {}",
        *(f"function m:{name}() return msys.core.VALIDATE_CONT end" for name in CALLOUTS),
        'msys.registerModule("%s", m)',
    ]
)
SCRIPTS = {"empty": EMPTY, "idle": IDLE, "lua": LUA, "each": EACH}
DKIM = """opendkim "dkim" { verify = VERIFY dkim_domain "bench.example" { selector = "s" key = "dkim.pem" } }
Opendkim_Sign = SIGN
DNS_Servers = ( "127.0.0.1:PORT" )"""


@dataclass(frozen=True)
class Kind:
    """What is in the configuration, and whether the messages are signed."""

    title: str
    stanzas: str = ""
    signed: bool = False


KINDS = {
    "none": Kind("nothing"),
    "empty": Kind("a Lua module without callouts"),
    "idle": Kind(f"{HOOKS} Lua hooks that only return"),
    "lua": Kind(f"{HOOKS} Lua hooks"),
    "python": Kind(f"{HOOKS} Python hooks"),
    "each": Kind("a Lua hook in each phase"),
    "jsonlog": Kind("jsonlog", 'ec_logger "json" { jsonlog = events.json }'),
    "sign": Kind("DKIM signing, RSA 2048", DKIM.replace("VERIFY", "false").replace("SIGN", "true")),
    "signed": Kind("nothing, of signed messages", signed=True),
    "verify": Kind("DKIM verification, RSA 2048", DKIM.replace("VERIFY", "true").replace("SIGN", "false"), signed=True),
}
BESIDE = {"verify": "signed"}  # else beside none


def write(folder: Path, kind: str) -> str:
    """The files of a kind of policy; gives the stanzas that load them."""
    if kind == "python":
        for n in range(HOOKS):
            (folder / f"p{n}.py").write_text(PYTHON)
        return "\n".join(f'policy "p{n}" {{ module = p{n}.py }}' for n in range(HOOKS))
    if kind not in SCRIPTS:
        return ""
    names = [f"s{n}" for n in range(1 if kind in ("empty", "each") else HOOKS)]
    for name in names:
        (folder / f"{name}.lua").write_text(SCRIPTS[kind] % name)
    return 'scriptlet "scriptlet" { ' + " ".join(f'script "{n}" {{ source = {n} }}' for n in names) + " }"


class Dns:
    """Answers every question with the key of bench.example."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        octets = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        text = f"v=DKIM1; p={base64.b64encode(octets).decode()}"
        self._record = " ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            octets, peer = self._sock.recvfrom(4096)
            question = dns.message.from_wire(octets)
            answer = dns.message.make_response(question)
            answer.answer = [dns.rrset.from_text(question.question[0].name, 3600, "IN", "TXT", self._record)]
            self._sock.sendto(answer.to_wire(), peer)


class Bench:
    """Key, messages and a server of DNS, for all kinds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        key = rsa.generate_private_key(65537, 2048)
        self.pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.dns = Dns(key).port
        head = b"From: <sender@bench.example>\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\nSubject: bench\r\n\r\n"
        body = (b"X" * 78 + b"\r\n") * 128
        signer = DkimSigner("bench.example", "s", load_pem_private_key(self.pem, None))  # type: ignore[arg-type]
        self.signed = folder / "signed"
        self.signed.write_bytes(sign(head, body, signer, time.time()) + head + body)

    @contextlib.contextmanager
    def serving(self, kind: str) -> Iterator[tuple[int, int]]:
        """A server with one worker: its process id and port."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        port = run.free_port()
        (folder / "dkim.pem").write_bytes(self.pem)
        (folder / "ecelerity.conf").write_text(
            f"""Hostname = mx.bench.example Workers = 1 PidFile = quillon.pid SpoolBase = spool
            ec_logger "main" {{ mainlog = mainlog.ec rejectlog = rejectlog.ec paniclog = paniclog.ec }}
            {write(folder, kind)}
            {KINDS[kind].stanzas.replace("PORT", str(self.dns))}
            Suspend_Delivery = true
            ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
        )
        command = [str(Path(sys.executable).parent / "quillon"), "serve", "-c", str(folder / "ecelerity.conf")]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            assert process.stdout is not None
            said = []
            while "ready:" not in (line := process.stdout.readline()):
                said.append(line)
                if not line:
                    raise RuntimeError(f"the server with {kind} did not start: {''.join(said)}")
            yield process.pid, port
        finally:
            for pid in reversed(run.descendants(process.pid)):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)

    def measure(self, kind: str) -> float:
        """CPU microseconds per message."""
        more = ("-F", str(self.signed)) if KINDS[kind].signed else ()
        with self.serving(kind) as (root, port):
            run.load(port, ("-m", "100", *more), 1000)
            time.sleep(0.5)
            before = run.cpu_seconds(root)
            done = run.load(port, ("-m", "100", *more), MESSAGES)
            if done != MESSAGES:
                raise RuntimeError(f"{kind}: {done} of {MESSAGES} messages")
            return (run.cpu_seconds(root) - before) / MESSAGES * 1e6


def relayed(workers: int) -> float:
    """Messages a second that so many workers relay, of two generators."""
    server = run.Server("quillon", {"MODE": "relay", "WORKERS": str(workers)})
    sink = run.Sink(server.outbound, tls=False)
    with server.running():
        try:
            sink.expect(1000)
            run.load(server.inbound, ("-m", "20"), 1000)
            sink.wait()
            sink.expect(2 * MESSAGES)
            begin = time.monotonic()
            loads = [threading.Thread(target=run.load, args=(server.inbound, ("-m", "20"), MESSAGES)) for _ in range(2)]
            for one in loads:
                one.start()
            sink.wait()
            seconds = time.monotonic() - begin
            for one in loads:
                one.join()
            return 2 * MESSAGES / seconds
        finally:
            sink.close()


def loaded(folder: Path, kind: str) -> Policy:
    """A policy of a kind in this process."""
    folder.mkdir()
    (folder / "ecelerity.conf").write_text(f"Hostname = mx.bench.example\n{write(folder, kind)}")
    config = load(str(folder / "ecelerity.conf")).config
    assert config is not None
    return asyncio.run(policies.load(config, SystemClock(), print)).policy


def phase_alone(kinds: tuple[str, ...]) -> dict[str, float]:
    """CPU microseconds of a phase, by kind of policy."""
    session = Session("192.0.2.1:1234", "127.0.0.1:25", "00/00-00001-00000000")
    with tempfile.TemporaryDirectory(prefix="bench-prices-") as folder:
        made = {kind: loaded(Path(folder) / kind, kind) for kind in kinds}
        least = dict.fromkeys(kinds, float("inf"))
        for _ in range(ROUNDS):
            for kind, policy in made.items():
                before = time.process_time()
                for _ in range(CALLS):
                    context = Context({"tls": "on"}, {"mailfrom_domain": "sender.example"})
                    refusal = at_once(
                        policy.run(Call(Phase.MAILFROM, session, context, "MAIL FROM:<a@sender.example>"))
                    )
                    assert refusal is None
                least[kind] = min(least[kind], (time.process_time() - before) / CALLS * 1e6)
    return least


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--workers", action="store_true", help="two workers beside one")
    given = parser.parse_args()
    run.build()
    if given.workers:
        pairs = [(relayed(1), relayed(2)) for _ in range(given.repeat)]
        one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(second / first for first, second in pairs)
        print(f"{one:.0f} messages a second with one worker, {two:.0f} with two: {ratio:.2f} times, {run.version()}")
        return 0
    kinds = dict.fromkeys(["none", *given.kinds.split(",")])
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="bench-prices-") as folder:
        bench = Bench(Path(folder))
        for _ in range(given.repeat):
            for kind, values in found.items():
                values.append(bench.measure(kind))
    print(f"CPU per message of 10 KiB, median of {given.repeat} (least to most), one worker, {run.version()}")
    for kind, values in found.items():
        base = found[BESIDE.get(kind, "none")]
        more = statistics.median(value - least for value, least in zip(values, base, strict=True))
        scatter = f"({min(values):.0f} to {max(values):.0f})"
        share = more / statistics.median(found["none"])
        words = f"{statistics.median(values):7.0f} us {scatter:<16} {more:+6.0f} us, {share:+.0%} of a plain message"
        print(f"{KINDS[kind].title:<34}{words}")
    print(f"CPU of the phase alone, least of {ROUNDS} rounds")
    for kind, least in phase_alone(("none", "idle", "lua", "python")).items():
        print(f"{KINDS[kind].title:<34}{least:7.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
