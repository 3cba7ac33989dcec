"""Callouts around the copies of a message and around the log of its delivery, in both languages."""

from __future__ import annotations

import smtplib
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.mail.reply import Reply
from quillon.smtp.events import RcptTo
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

MESSAGE = "From: a@sender.test\r\nTo: b@partner.test\r\nSubject: x\r\n\r\nhello\r\n"
LUA = """local m = {}
local function note(...) print("CALLED " .. table.concat({...}, " ")) end
function m:core_pre_msg_each_rcpt(msg, ac, vctx) note("pre", msg:rcptto()) end
function m:core_validate_data_spool_each_rcpt(msg, ac, vctx) note("each", msg:rcptto()) return 0 end
function m:core_post_msg_each_rcpt(msg, ac, vctx) note("post", msg:rcptto()) end
function m:core_final_validation(msg, ac, vctx) note("final") return msys.core.EC_HOOK_CONT end
function m:core_post_final_validation(msg, ac, vctx) note("last") msg:header("X-Last", "yes") end
function m:core_log_delivery_v1(msg, dr, now, text, len) note("delivered", dr.domain, text) end
function m:core_log_transient_failure_v1(msg, dr, now, text, len)
  note("later", msg:get_code()) msg:context_set(msys.core.ECMESS_CTX_MESS, "seen", "yes")
end
function m:core_log_permanent_failure_v1(msg, dr, now, text, len) note("failed", text) msg:set_code(554, "5.0.0 as logged") end
function m:core_pre_mailq_message_requeue(msg, now) note("requeued", msg:context_get(msys.core.ECMESS_CTX_MESS, "seen")) end
msys.registerModule("m", m)"""
PYTHON = """
from quillon.policy.python import Delivery, Message, Session

def note(*words):
    print("CALLED", *words, flush=True)

def core_pre_msg_each_rcpt(session, message): note("pre", message.recipient)
def core_validate_data_spool_each_rcpt(session, message): note("each", message.recipient)
def core_post_msg_each_rcpt(session, message): note("post", message.recipient)
def core_final_validation(session, message): note("final")
def core_post_final_validation(session, message):
    note("last")
    message.set_header("X-Last", "yes")
def core_log_delivery_v1(delivery, domain, binding, now, text): note("delivered", domain, text)
def core_log_transient_failure_v1(delivery, domain, binding, now, text):
    note("later", text)
    delivery.message_context["seen"] = "yes"
def core_log_permanent_failure_v1(delivery, domain, binding, now, text): note("failed", text)
def core_pre_mailq_message_requeue(delivery, now): note("requeued", delivery.message_context["seen"])
"""


@pytest.mark.parametrize("language", ["lua", "python"])
def test_what_is_called_around_a_copy_and_its_delivery(
    server: Callable[..., Server], tmp_path: Path, language: str
) -> None:
    answers = {"gone": Reply(550, "5.1.1", "no such user"), "later": Reply(450, "4.2.1", "mailbox busy")}
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(LUA)
    (tmp_path / "q/p.py").write_text(PYTHON)
    script = (
        'scriptlet "scriptlet" { script "s" { source = s } }' if language == "lua" else 'policy "p" { module = p.py }'
    )
    with SinkThread(lambda e: answers.get(e.mailbox.local) if isinstance(e, RcptTo) else None) as sink:
        running = server(
            f"""Routes = ( "127.0.0.1:{sink.port}" ) Generate_Bounces = false {script}
            ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
        ).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@sender.test", ["ok@partner.test", "gone@partner.test", "later@partner.test"], MESSAGE)
        events = running.wait_events("attempt", 3)
        (message,) = sink.messages
        assert b"X-Last: yes" in message.data

    def called() -> list[str]:
        return [line.partition("CALLED ")[2] for line in running.said().splitlines() if "CALLED " in line]

    until(lambda: len(called()) >= 19, "callouts")
    for name in ("ok", "gone", "later"):
        steps = [step for step in called() if step.endswith(f" {name}@partner.test")]
        assert steps == [f"{step} {name}@partner.test" for step in ("pre", "each", "post")]
    assert called().count("final") == called().count("last") == 3
    rest = {step for step in called() if step.split()[0] in ("delivered", "later", "failed", "requeued")}
    assert {step.split()[0] for step in rest} == {"delivered", "later", "failed", "requeued"}
    assert "requeued yes" in rest
    assert any(step.startswith("later 450 4.2.1") for step in rest)
    replies = {event["recipient"]: event["reply"] for event in events}
    assert replies["gone@partner.test"] == ("554 5.0.0 as logged" if language == "lua" else "550 5.1.1 no such user")


def test_errors_of_functions_speak_lua(tmp_path: Path) -> None:
    """Whatever a script gives to a function, no word of Python shows through."""
    from quillon.lua import msys
    from quillon.lua.msys.api import Api, words_for_scripts
    from quillon.policy.environment import Environment

    api = Api(Environment(lambda: 0.0, print))
    msys.give(api)
    for error in (
        TypeError("f() missing 1 required positional argument: 'x'"),
        TypeError("unsupported operand type(s) for /: 'PosixPath' and 'NoneType'"),
        AttributeError("'NoneType' object has no attribute 'strip'"),
        KeyError("n"),
        ValueError("invalid literal for int() with base 10: 'r'"),
    ):
        words = words_for_scripts(error)
        assert words.startswith("wrong arguments"), words
        assert not any(word in words for word in ("NoneType", "Posix", "literal", "attribute", "operand"))
