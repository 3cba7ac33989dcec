"""The CPU limit of policies in Python."""

from __future__ import annotations

import asyncio
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.mail.reply import Reply
from quillon.net.eager import at_once
from quillon.policy.context import Context
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Hook, Phase, Policy, PolicyError, Session
from quillon.policy.python_module import load_module
from tests.support.server import Server, free_port, until

SESSION = Session("192.0.2.1:1234", "127.0.0.1:25", "00/00-00001-00000000")


def _policy(folder: Path, body: str, *, limit: int = 100) -> tuple[Policy, list[str]]:
    reports: list[str] = []
    (folder / "p.py").write_text("import asyncio, re, time\n" + body)
    environment = Environment(time.time, reports.append)
    return Policy([at_once(load_module("p", folder / "p.py", environment, limit))], reports.append), reports


def _run(policy: Policy, key: str = "loop") -> Reply | None:
    async def run() -> Reply | None:
        return await policy.run(Call(Phase.MAILFROM, SESSION, Context({}, {key: "yes"})))

    return asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "while True: session.message_context['n'] = '1'",
        "sum(n for n in iter(int, 1))",
        "def again():\n        while True: pass\n    again()",
        "while True:\n        try:\n            str(1)\n        except Exception: pass",
        "try:\n        while True: pass\n    finally: session.message_context['end'] = 'yes'",
        "try:\n        while True: pass\n    except BaseException:\n        while True: pass",
        "for n in range(10**9): re.match('a+$', 'a' * 1000)",
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_callout_that_loops_is_stopped(tmp_path: Path, body: str, kind: str) -> None:
    policy, reports = _policy(
        tmp_path,
        f"""
{kind} validate_mailfrom(session):
    if "loop" not in session.message_context: return
    {"await asyncio.sleep(0)" if kind == "async def" else ""}
    {body}
""",
    )
    for count in (1, 2):
        begun = time.process_time()
        assert _run(policy) == Reply(451, "4.3.0", "policy error, please try later")
        assert time.process_time() - begun < 3
        assert len(reports) == count
        assert _run(policy, "well") is None
    assert reports[0].startswith(f"policy: validate_mailfrom error in p: {tmp_path}/p.py:")
    assert reports[0].endswith("stopped after more than 100 ms of CPU")


@pytest.mark.parametrize("limit", [0, 100])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_callout_cannot_end_the_server(tmp_path: Path, kind: str, limit: int) -> None:
    policy, reports = _policy(
        tmp_path, f"import sys\n{kind} validate_mailfrom(session):\n    sys.exit(1)\n", limit=limit
    )
    assert _run(policy) == Reply(451, "4.3.0", "policy error, please try later")
    assert reports[0].endswith("p.py:4: sys.exit would end the server")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_policy_cancels_is_its_own(tmp_path: Path, kind: str) -> None:
    policy, reports = _policy(
        tmp_path, f"{kind} validate_mailfrom(session):\n    raise asyncio.CancelledError\n", limit=100
    )
    assert _run(policy) == Reply(451, "4.3.0", "policy error, please try later")
    assert reports == [f"policy: validate_mailfrom error in p: {tmp_path}/p.py:3: CancelledError"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def validate_mailfrom(session, more): pass", "p.py:2: validate_mailfrom is called with (session): missing a"),
        ("\ndef validate_data(session): pass", "p.py:3: validate_data is called with (session, message): too many"),
        ("def pre_esmtp_auth(session): pass", "p.py:2: pre_esmtp_auth is called with (session, mechanism, user): too"),
        ("\n\ndef validate_mailfrm(session): pass", "p.py:4: validate_mailfrm is no callout; did you mean"),
        ("def Validate_Mailfrom(session): pass", "p.py:2: Validate_Mailfrom is no callout; did you mean"),
    ],
)
def test_what_could_not_be_called_does_not_load(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(PolicyError) as raised:
        _policy(tmp_path, body)
    assert words in str(raised.value)


def test_a_wrong_return_value_has_its_place(tmp_path: Path) -> None:
    policy, reports = _policy(tmp_path, "def validate_mailfrom(session): return 5\n")
    assert _run(policy) is not None
    assert reports[0].endswith("p.py:2: it returned 5, not a Verdict or nothing")


def test_a_question_and_the_end_are_within_the_limit_too(tmp_path: Path) -> None:
    policy, reports = _policy(
        tmp_path,
        "def pre_ec_can_relay_to(session, domain):\n    while True: pass\ndef deinit():\n    while True: pass\n",
    )
    assert policy.answers(Hook.RELAY_TO, Call(Hook.RELAY_TO, SESSION, Context()), "a.test") is None
    assert "pre_ec_can_relay_to error in p" in reports[0]
    with pytest.raises(PolicyError, match=r"deinit: .*p\.py:5: stopped after more than 100 ms"):
        policy.close()


def test_what_waits_uses_nothing_up_and_what_the_server_does_is_not_interrupted(tmp_path: Path) -> None:
    policy, reports = _policy(
        tmp_path, "async def validate_mailfrom(session):\n    for _ in range(4): await asyncio.sleep(0.1)\n", limit=60
    )

    async def run() -> Reply | None:
        answered = asyncio.ensure_future(policy.run(Call(Phase.MAILFROM, SESSION, Context({}, {}))))
        end = time.thread_time() + 0.5
        while time.thread_time() < end:  # noqa: ASYNC110 - another session's work
            await asyncio.sleep(0)
        return await answered

    assert asyncio.run(run()) is None
    assert reports == []


def test_the_end_of_a_process_is_not_interrupted(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("def validate_mailfrom(session): pass\n")
    (tmp_path / "ecelerity.conf").write_text(
        'policy "p" { module = p.py } ESMTP_Listener { Listen "127.0.0.1:2525" { } }'
    )
    # its globals are taken down after the interpreter's signal handlers are
    text = """import sys, time
from quillon.cli.main import main
class Slow:
    def __del__(self):
        end = time.thread_time() + 0.3
        while time.thread_time() < end: pass
import builtins
builtins.slow = Slow()
sys.exit(main(["policy", "check"]))
"""
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "p: validate_mailfrom\n"), done.stderr


def test_without_a_limit_nothing_is_stopped(tmp_path: Path) -> None:
    body = "def validate_mailfrom(session):\n    end = time.thread_time() + 0.5\n    while time.thread_time() < end: pass\n"
    policy, reports = _policy(tmp_path, body, limit=0)
    assert _run(policy) is None
    assert reports == []


def test_in_a_server_other_sessions_go_on_and_one_that_catches_all_ends_its_worker(
    server: Callable[..., Server],
) -> None:
    port = free_port()
    running = server(
        f"""policy "p" {{ module = p.py cpu_limit = 100 }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    )
    (running.folder / "p.py").write_text(
        """
def validate_mailfrom(session):
    domain = session.message_context["mailfrom_domain"]
    while domain == "loop.test": pass
    while domain == "bad.test":
        try:
            for n in iter(int, 1): str(n)
        except BaseException: pass
"""
    )
    running.start()
    (worker,) = running.workers()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as other, smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        other.ehlo()
        client.ehlo()
        for _ in range(3):
            assert client.mail("a@loop.test") == (451, b"4.3.0 policy error, please try later")
            assert other.mail("a@well.test")[0] == 250
            other.rset()
        assert running.workers() == [worker]
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.mail("a@bad.test")
    until(lambda: running.workers() not in ([], [worker]), "another worker")
    said = "\n".join(running.log("paniclog.ec"))
    assert "p.py:4: stopped after more than 100 ms of CPU" in said
    assert "catches what would stop it" in said
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        assert client.mail("a@well.test")[0] == 250
