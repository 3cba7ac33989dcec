"""What policies cost: CPU time per message without one, with an empty one, with ten hooks in Lua and ten in Python.

    python bench/policy.py [--repeat N]

The same load goes to a fresh server of each kind in turn, so that what else the machine does falls on all of them. A
hook here is a module's validate_mailfrom that reads a key of the message context and writes one. Then the phase alone,
in this process, in turns: the least of some rounds, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import run
from quillon.config.load import load
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


SCRIPTS = {"empty": EMPTY, "idle": IDLE, "lua": LUA}


def write(folder: Path, kind: str) -> str:
    """The files of a kind of policy; gives the stanzas that load them."""
    if kind == "none":
        return ""
    if kind == "python":
        for n in range(HOOKS):
            (folder / f"p{n}.py").write_text(PYTHON)
        return "\n".join(f'policy "p{n}" {{ module = p{n}.py }}' for n in range(HOOKS))
    names = [f"s{n}" for n in range(1 if kind == "empty" else HOOKS)]
    for name in names:
        (folder / f"{name}.lua").write_text(SCRIPTS[kind] % name)
    return 'scriptlet "scriptlet" { ' + " ".join(f'script "{n}" {{ source = {n} }}' for n in names) + " }"


@contextlib.contextmanager
def serving(kind: str) -> Iterator[tuple[int, int]]:
    """A server with one worker: its process id and port."""
    folder = Path(tempfile.mkdtemp(prefix="bench-policy-"))
    port = run.free_port()
    (folder / "ecelerity.conf").write_text(
        f"""Hostname = mx.bench.example Workers = 1 PidFile = quillon.pid SpoolBase = spool
        ec_logger "main" {{ mainlog = mainlog.ec rejectlog = rejectlog.ec paniclog = paniclog.ec }}
        {write(folder, kind)}
        Suspend_Delivery = true
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    )
    command = [str(Path(sys.executable).parent / "quillon"), "serve", "-c", str(folder / "ecelerity.conf")]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        while "ready:" not in (line := process.stdout.readline()):
            if not line:
                raise RuntimeError(f"the server with policy {kind} did not start")
        yield process.pid, port
    finally:
        for pid in reversed(run.descendants(process.pid)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def measure(kind: str) -> float:
    """CPU microseconds per message."""
    with serving(kind) as (root, port):
        run.load(port, ("-m", "100"), 1000)
        time.sleep(0.5)
        before = run.cpu_seconds(root)
        done = run.load(port, ("-m", "100"), MESSAGES)
        if done != MESSAGES:
            raise RuntimeError(f"{kind}: {done} of {MESSAGES} messages")
        return (run.cpu_seconds(root) - before) / MESSAGES * 1e6


def loaded(folder: Path, kind: str) -> Policy:
    """A policy of a kind in this process."""
    folder.mkdir()
    (folder / "ecelerity.conf").write_text(write(folder, kind))
    config = load(str(folder / "ecelerity.conf")).config
    assert config is not None
    return asyncio.run(policies.load(config, SystemClock(), print)).policy


def phase_alone(kinds: tuple[str, ...]) -> dict[str, float]:
    """CPU microseconds of a phase, by kind of policy."""
    session = Session("192.0.2.1:1234", "127.0.0.1:25", "00/00-00001-00000000")
    with tempfile.TemporaryDirectory(prefix="bench-policy-") as folder:
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


TITLES = {
    "none": "no policy",
    "empty": "a Lua module without callouts",
    "idle": f"{HOOKS} Lua hooks that only return",
    "lua": f"{HOOKS} Lua hooks",
    "python": f"{HOOKS} Python hooks",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    given = parser.parse_args()
    run.build()
    found: dict[str, list[float]] = {kind: [] for kind in TITLES}
    for _ in range(given.repeat):
        for kind, values in found.items():
            values.append(measure(kind))
    base = statistics.median(found["none"])
    print(f"CPU per message of 10 KiB, median of {given.repeat} (least to most), one worker")
    for kind, values in found.items():
        median = statistics.median(values)
        scatter = f"({min(values):.0f} to {max(values):.0f})"
        print(f"{TITLES[kind]:<32}{median:7.0f} us {scatter:<16} {median - base:+6.0f} us, x{median / base:.2f}")
    print(f"CPU of the phase alone, least of {ROUNDS} rounds")
    for kind, least in phase_alone(("none", "idle", "lua", "python")).items():
        print(f"{TITLES[kind]:<32}{least:7.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
