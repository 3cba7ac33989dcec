"""Policy in a running server: every phase, in Lua and in Python, over real SMTP sessions."""

from __future__ import annotations

import smtplib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import MESSAGE
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

NOTE = """
require("msys.core")
require("msys.extended.message")
require("msys.extended.vctx")
local m = {}
local function note(name, ...) print("PHASE " .. name, ...) return msys.core.VALIDATE_CONT end
function m:init() return true end
function m:deinit() print("PHASE deinit") return true end
function m:validate_connect(ac, vctx) ac:esmtp_capability_add("X-OWN 1") ac:esmtp_capability_remove("HELP") return note("connect", ac.remote_addr) end
function m:validate_ehlo(str, ac, vctx) return note("ehlo", (str:gsub("[\\r\\n]", "?"))) end
function m:validate_mailfrom(str, ac, vctx) return note("mailfrom", str) end
function m:validate_rcptto(msg, str, ac, vctx) return note("rcptto", msg:rcptto(), vctx:get(1, "message_rcpt_count")) end
function m:validate_rcptto_list(list, vctx) vctx:add_recipient("added@partner.test") return note("rcptto_list", #list + 1) end
function m:validate_rcptto_list_final(list, vctx) return note("rcptto_list_final", #list + 1) end
function m:validate_data(msg, ac, vctx) msys.sleep(0.01) return note("data", msg:header("Subject")[1]) end
function m:validate_data_spool(msg, ac, vctx) return note("data_spool") end
function m:validate_data_spool_each_rcpt(msg, ac, vctx)
  if msg:rcptto() == "other@partner.test" then msg:header("X-For", "other") msg:context_set(2, "mine", "yes") end
  if msg:rcptto() == "refused@partner.test" then vctx:set_code(550, "5.7.1 not for you") end
  if msg:rcptto() == "dropped@partner.test" then msg:discard("550 dropped") end
  return note("each_rcpt", msg:rcptto())
end
function m:validate_set_binding(msg) return note("set_binding", msg:rcptto(), msg:context_get(2, "mine")) end
function m:core_final_validation(msg, ac, vctx) return note("final", msg:rcptto(), #msg:header("X-For")) end
function m:validate_dealloc() print("PHASE dealloc") end
msys.registerModule("m", m)
"""


def _config(port: int, sink: int, more: str = "", listener: str = "") -> str:
    return f"""
    {more}
    Retry_Interval = 1
    Domain "partner.test" {{ Routes = ( "127.0.0.1:{sink}" ) }}
    Domain "sender.test" {{ Routes = ( "127.0.0.1:{sink}" ) }}
    ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) {listener} Listen "127.0.0.1:{port}" {{ }} }}"""


SCRIPT = 'scriptlet "scriptlet" { script "s" { source = s } }'


def _phases(running: Server) -> list[str]:
    lines = [line.split("PHASE ", 1)[1] for line in running.log("paniclog.ec") if "PHASE " in line]
    return [line for line in lines if line]


def test_all_phases_in_their_order(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(NOTE)
    with SinkThread() as sink:
        running = server(_config(port, sink.port, SCRIPT)).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo("client.test")
            assert client.esmtp_features["x-own"] == "1"
            assert "help" not in client.esmtp_features
            recipients = [f"{name}@partner.test" for name in ("one", "other", "refused", "dropped")]
            assert client.sendmail("a@sender.test", recipients, MESSAGE) == {}
        messages = until(lambda: sink.messages if len(sink.messages) >= 3 else None, "delivery")
        until(lambda: "dealloc" in _phases(running), "dealloc")
        assert running.stop() == 0
    said = _phases(running)
    assert [line.split()[0] for line in said[:9]] == [
        "connect", "ehlo", "mailfrom", "rcptto", "rcptto", "rcptto", "rcptto", "rcptto_list", "rcptto_list_final",
    ]  # fmt: skip
    assert "ehlo ehlo client.test??" in said[1].lower()
    assert said[3] == "rcptto one@partner.test 1"
    assert said[8] == "rcptto_list_final 5"
    assert said[9:11] == ["data t", "data_spool"] or said[9].startswith("data ")
    assert [line for line in said if "other@" in line and "rcptto" not in line.split()[0][:6]] == [
        "each_rcpt other@partner.test", "set_binding other@partner.test yes", "final other@partner.test 1",
    ]  # fmt: skip
    assert said[-1] == "deinit"
    assert sum(b"X-For: other\r\n" in message.data for message in messages) == 1
    events = running.events("reception")
    assert sorted(event["recipient"] for event in events if event["sender"]) == [
        "added@partner.test", "one@partner.test", "other@partner.test", "refused@partner.test",
    ]  # fmt: skip
    # the sender is told of the recipient that policy refused; the one that was dropped has a line in the rejectlog
    notice = next(message.data for message in messages if b"multipart/report" in message.data)
    assert b"refused@partner.test" in notice
    assert b"550 5.7.1 not for you" in notice
    assert [line for line in running.log("rejectlog.ec") if "E=550" in line and "dropped" in line]


@pytest.mark.parametrize(
    ("code", "reply"),
    [
        ('vctx:set_code(550, "5.7.1 no")', (550, b"5.7.1 no")),
        ('vctx:set_code(451, "4.7.1 later")', (451, b"4.7.1 later")),
        ('if msg:rcptto():find("two") then vctx:set_code(450, "4.7.1 one later") end', (450, b"4.7.1 one later")),
        ("error('x')", (451, b"4.3.0 policy error, please try later")),
    ],
)
def test_refusals_of_all_recipients_and_transient_ones_are_of_the_transaction(
    server: Callable[..., Server], tmp_path: Path, code: str, reply: tuple[int, bytes]
) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    script = f"local m = {{}} function m:validate_data_spool_each_rcpt(msg, ac, vctx) {code} return 0 end msys.registerModule('m', m)"
    (tmp_path / "q/s.lua").write_text(script)
    running = server(_config(port, 1, SCRIPT)).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client, pytest.raises(smtplib.SMTPDataError) as caught:
        client.sendmail("a@sender.test", ["one@partner.test", "two@partner.test"], MESSAGE)
    assert caught.value.args == reply
    assert running.events("reception") == []


def test_words_senders_routes_and_recipients_of_scripts(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text("""local m, c = {}, msys.core
    function m:validate_mailfrom(str, ac, vctx) vctx:set_code(250, "2.1.0 welcome " .. vctx:get(c.VCTX_CONN, "connection_message_count")) end
    function m:validate_rcptto(msg, str, ac, vctx)
      if msg:rcptto():find("^routed") then msg:routing_domain("OTHER.test") vctx:set_code(251, "2.1.5 I send it\\r\\nelsewhere") end
      if msg:rcptto():find("^renamed") then msg:mailfrom("new@sender.test") end
      return c.VALIDATE_CONT
    end
    function m:validate_data(msg, ac, vctx)
      msg:header("X-Dateless", vctx:get(c.VCTX_MESS, "rfc2822_date_missing") or "no") return c.VALIDATE_CONT
    end
    function m:validate_data_spool_each_rcpt(msg, ac, vctx)
      if msg:rcptto():find("^routed") then
        vctx:add_recipient("added@partner.test") vctx:remove_recipient("removed@partner.test") msg:header("X-Route", msg:routing_domain())
      end
      return c.VALIDATE_CONT
    end
    function m:validate_set_binding(msg)
      if msg:binding("nowhere") == nil and msg:binding("default") == "default" and msg:binding_group("none") == nil then
        msg:binding_group("default") msg:mailfrom("verp+" .. msg:rcptto():gsub("@", "=") .. "@sender.test")
      end
      return c.VALIDATE_CONT
    end
    msys.registerModule("m", m)""")
    with SinkThread() as sink, SinkThread() as other:
        config = _config(port, sink.port, SCRIPT)
        server(config + f' Domain "other.test" {{ Gateway = "127.0.0.1:{other.port}" }}').start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            assert client.mail("a@sender.test") == (250, b"2.1.0 welcome 0")
            assert client.rcpt("routed@partner.test") == (251, b"2.1.5 I send it\n2.1.5 elsewhere")
            assert client.rcpt("removed@partner.test")[0] == 250
            assert client.data(MESSAGE)[0] == 250
            assert client.mail("a@sender.test") == (250, b"2.1.0 welcome 1")
            assert client.rcpt("renamed@partner.test")[0] == 250
            assert client.data("Subject: no date\r\n\r\nhi\r\n")[0] == 250
        got = until(lambda: found if len(found := sink.messages + other.messages) == 3 else None, "delivery")
        by = {message.recipients[0]: message for message in got}
        assert by.keys() == {"routed@partner.test", "added@partner.test", "renamed@partner.test"}
        assert by["added@partner.test"].sender == "verp+added=partner.test@sender.test"
        assert b"X-Route: other.test\r\n" in by["routed@partner.test"].data
        assert b"X-Dateless: no\r\n" in by["routed@partner.test"].data
        assert b"X-Dateless: true\r\n" in by["renamed@partner.test"].data
        assert [message.recipients for message in other.messages] == [("routed@partner.test",)]


def test_bodies_large_and_small_that_policy_changes(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text("""local m = {}
    function m:validate_data(msg, ac, vctx) msg:header("X-All", "yes") return 0 end
    function m:validate_data_spool_each_rcpt(msg, ac, vctx)
      if msg:rcptto() == "other@partner.test" then msg:body_replace("Hello", "Bye") end return 0 end
    msys.registerModule("m", m)""")
    with SinkThread() as sink:
        running = server(_config(port, sink.port, SCRIPT + " Large_Message_Threshold = 4096")).start()
        for size in (10, 20000):
            sink.messages.clear()
            body = b"Subject: t\r\n\r\nHello\r\n" + b"line\r\n" * size
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.sendmail("a@sender.test", ["one@partner.test", "other@partner.test"], body)
            got = until(lambda: list(sink.messages) if len(sink.messages) == 2 else None, "delivery")
            by = {message.recipients[0]: message.data for message in got}
            for name, word in (("one", b"Hello"), ("other", b"Bye")):
                data = by[f"{name}@partner.test"]
                assert data.startswith(b"Received: ")
                assert data.count(b"X-All: yes\r\n") == 1
                assert data.endswith(b"\r\n\r\n" + word + b"\r\n" + b"line\r\n" * size)
        until(lambda: not list((running.folder / "spool/worker-0/bodies").iterdir()), "bodies to go")


def test_a_waiting_policy_holds_up_its_own_session_only(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text("""local m = {}
    function m:validate_mailfrom(str, ac, vctx)
      if str:find("slow") then msys.sleep(0.6) end
      if str:find("never") then msys.sleep(60) end
      return 0 end
    function m:validate_connect(ac, vctx) msys.sleep(0.05) return 0 end
    msys.registerModule("m", m)""")
    running = server(_config(port, 1, SCRIPT, "Policy_Time = 1")).start()
    slow = smtplib.SMTP("127.0.0.1", port, timeout=30)
    slow.ehlo()
    slow.putcmd("MAIL FROM:<slow@x.test>")
    begun = time.monotonic()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        assert client.mail("fast@x.test")[0] == 250
    assert time.monotonic() - begun < 0.5
    assert slow.getreply()[0] == 250
    slow.rset()
    assert slow.mail("never@x.test") == (451, b"4.3.0 policy error, please try later")
    assert slow.mail("other@x.test")[0] == 250
    assert [line for line in running.log("paniclog.ec") if "m waited longer than 1 s (Policy_Time)" in line]
    # pipelined behind a command that waits, and a client that goes away meanwhile
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"EHLO c\r\nMAIL FROM:<slow@x.test>\r\nRCPT TO:<a@partner.test>\r\nQUIT\r\n")
        said = b""
        while b"221" not in said:
            said += sock.recv(4096)
    assert [line[:3] for line in said.split(b"\r\n")[-4:-1]] == [b"250", b"250", b"221"]
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(b"EHLO c\r\nMAIL FROM:<never@x.test>\r\n")
            time.sleep(0.1)
    slow.quit()
    assert running.stop() == 0
    assert "unexpected" not in "".join(running.log("paniclog.ec"))


def test_reload_swaps_scripts_and_keeps_the_old_ones_where_new_ones_do_not_load(
    server: Callable[..., Server], tmp_path: Path
) -> None:
    port = free_port()
    script = tmp_path / "q/s.lua"
    script.parent.mkdir()
    text = "local m = {{}} function m:validate_ehlo(s, ac, vctx) vctx:set_code(550, '{0}') return 0 end msys.registerModule('m', m)"
    script.write_text(text.format("first"))
    running = server(_config(port, 1, SCRIPT)).start()

    def said() -> bytes:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            return bytes(client.ehlo()[1])

    assert said() == b"first"
    script.write_text("this is no Lua")
    running.reload()
    until(lambda: [line for line in running.log("paniclog.ec") if "reload refused" in line], "refusal")
    assert said() == b"first"
    script.write_text(text.format("second"))
    running.reload()
    until(lambda: said() == b"second", "reload")


PYTHON = """
from quillon.policy.python import Message, Session, Verdict


class Policy:
    def __init__(self) -> None:
        self.seen = 0

    async def validate_mailfrom(self, session: Session) -> None:
        self.seen += 1
        if not await session.lookup("nowhere.invalid", "MX"):
            session.message_context["checked"] = str(self.seen)

    def validate_rcptto(self, session: Session, message: Message) -> Verdict:
        if message.recipient.startswith("no"):
            session.reject(550, "5.1.1 " + session.message_context["checked"])
        return Verdict.DONE

    async def validate_data_spool_each_rcpt(self, session: Session, message: Message) -> None:
        message.set_header("X-Python", session.ip)
        await session.send("", ["copy@partner.test"], b"Subject: copy\\r\\n\\r\\n" + message.body)

    def validate_set_binding(self, message: Message) -> None:
        message.set_priority(1)
"""


def test_a_python_class_may_wait(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/p.py").write_text(PYTHON)
    with SinkThread() as sink:
        running = server(
            _config(port, sink.port, 'policy "p" { module = "p.py" } DNS_Servers = ( "127.0.0.1:1" )')
        ).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
                client.sendmail("a@sender.test", ["no@partner.test"], MESSAGE)
            assert caught.value.recipients["no@partner.test"] == (550, b"5.1.1 1")
            client.sendmail("a@sender.test", ["yes@partner.test"], MESSAGE)
        got = until(lambda: list(sink.messages) if len(sink.messages) == 2 else None, "delivery")
        assert {message.recipients[0] for message in got} == {"yes@partner.test", "copy@partner.test"}
        assert sum(b"X-Python: 127.0.0.1\r\n" in message.data for message in got) == 1
        assert running.stop() == 0


def test_many_sessions_through_waiting_scripts(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text("""local m = {}
    for _, phase in ipairs({"validate_connect", "validate_ehlo", "validate_mailfrom"}) do
      m[phase] = function(self, ...) self.n = (self.n or 0) + 1 if self.n % 2 == 0 then msys.sleep(0.001) end return 0 end
    end
    function m:validate_data_spool(msg, ac, vctx) msys.sleep(0.002) vctx:set(2, "n", self.n) return 0 end
    msys.registerModule("m", m)""")
    with SinkThread() as sink:
        running = server(_config(port, sink.port, SCRIPT)).start()

        def send() -> None:
            for _ in range(5):
                with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
                    client.sendmail("a@sender.test", ["b@partner.test"], MESSAGE)

        threads = [threading.Thread(target=send) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: len(sink.messages) == 100, "delivery")
        assert running.stop() == 0
    assert running.log("paniclog.ec") == []


def test_contexts_go_into_the_spool_and_what_is_excluded_does_not(
    server: Callable[..., Server], tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text("""local m = {}
    function m:validate_mailfrom(str, ac, vctx) vctx:set(2, "secret", "x") vctx:set(2, "kept", "y") vctx:set(2, "#own", "z")
      vctx:set(1, "token", "t") return 0 end
    function m:validate_set_binding(msg) msg:context_set(2, "to", msg:rcptto()) return 0 end
    msys.registerModule("m", m)""")
    more = (
        SCRIPT
        + ' Exclude_Vctx_Mess = ( "^sec" ) Exclude_Vctx_Conn = ( "tok" "^ehlo" ) Domain "partner.test" { Suspend_Delivery = true }'
    )
    running = server(_config(port, 1, more)).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@sender.test", ["b@partner.test", "c@partner.test"], MESSAGE)
    assert running.stop() == 0
    found = [message for message, _ in running.spooled()]
    connection, message = found[0].batch.connection_context, found[0].batch.message_context
    contexts = [message.context for message in found]
    assert message["kept"] == "y"
    assert not {"secret", "#own"} & message.keys()
    assert not {"token", "ehlo_string"} & connection.keys()
    assert connection["pathway"] == "default"
    assert sorted(context["to"] for context in contexts) == ["b@partner.test", "c@partner.test"]


HOOKS = """
local m = {}
function m:core_config_get_message_routing_domain(scope, msg, buff)
  if msg:rcptto():find("^routed") then buff:set("partner.test") end
  return #buff
end
function m:validate_set_binding(msg) msg:binding_group("g") return msys.core.VALIDATE_CONT end
function m:binding_group_choose_binding(msg, group) return msg:rcptto():find("^one") and "b1" or "b2" end
function m:get_received_header_text(ac, vctx, buff) buff:set("from nowhere (" .. group .. ")\\r\\n\\tby " .. #tostring(buff)) end
group = "secret"
function m:get_msg_expiration_params(msg, params) if msg:rcptto():find("^gone") then params.max_retries = 0 end end
function m:ec_message_set_next_attempt(msg, next, tries) if msg:rcptto():find("^late") then return next + 1000 end end
function m:generate_bounces(msg, reply) return not msg:rcptto():find("quiet") end
function m:generate_rfc3464_message_preamble(msg, reply, buff) buff:set("Sorry.\\n" .. tostring(buff)) end
msys.registerModule("m", m)
"""


def test_hooks_of_reception_and_delivery(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(HOOKS)
    from quillon.mail.reply import Reply
    from quillon.smtp.events import RcptTo

    def answer(event: object) -> Reply | None:
        if isinstance(event, RcptTo) and event.mailbox.local.startswith(("gone", "late")):
            return Reply(450, "4.2.1", "later")
        return None

    sink = SinkThread(answer=answer)
    more = SCRIPT + ' Binding_Group "g" { Binding "b1" { } Binding "b2" { } }'
    running = server(_config(port, sink.port, more)).start()
    names = [
        "one@partner.test",
        "two@partner.test",
        "routed@other.test",
        "gone@partner.test",
        "gone-quiet@partner.test",
        "late@partner.test",
    ]
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@sender.test", names, MESSAGE)
    got = until(lambda: list(sink.messages) if len(sink.messages) >= 3 else None, "delivery")
    rows = {row["recipient"]: row["binding"] for row in running.events("reception")}
    assert (rows["one@partner.test"], rows["two@partner.test"]) == ("b1", "b2")
    assert {name for message in got for name in message.recipients} == {
        "one@partner.test",
        "two@partner.test",
        "routed@other.test",
        "a@sender.test",
    }
    assert any(message.data.startswith(b"Received: from nowhere (secret)\r\n\tby ") for message in got)
    notice = next(message.data for message in got if message.recipients == ("a@sender.test",))
    assert b"\r\nSorry.\r\nYour message could not be delivered to:\r\n    gone@partner.test\r\n" in notice
    assert running.stop() == 0
    sink.stop()
    ((left, _),) = running.spooled()
    assert left.recipient.local == "late"
    assert left.next_at > time.time() + 900


RELAY = {
    "lua": """local m = {}
      function m:pre_ec_can_relay_to(domain, ac, vctx)
        if domain == "strange.test" then return 1 end
        if vctx:get(msys.core.VCTX_CONN, "ehlo_domain") ~= "partner" then return nil end
        if domain == "opened.test" then return true end
        if domain == "closed.test" then return false end
      end
      function m:config_get_domain_relay(domain) return domain == "second.test" or nil end
      msys.registerModule("s", m)""",
    "python": """from quillon.policy.python import Session


def pre_ec_can_relay_to(session: Session, domain: str) -> object:
    if domain == "strange.test":
        return 1
    if session.connection_context["ehlo_domain"] != "partner":
        return None
    return {"opened.test": True, "closed.test": False}.get(domain)


def config_get_domain_relay(session: Session, domain: str) -> bool | None:
    return True if domain == "second.test" else None
""",
}


@pytest.mark.parametrize("language", list(RELAY))
def test_policy_decides_to_which_domains_everybody_may_send(server: Callable[..., Server], language: str) -> None:
    port = free_port()
    stanza = SCRIPT if language == "lua" else 'policy "s" { module = s.py }'
    running = server(
        f"""{stanza} Relay_Domains = ( "ours.test" "closed.test" )
        ESMTP_Listener {{ Listen "127.0.0.1:{port}" {{ }} }}"""
    )
    (running.folder / ("s.lua" if language == "lua" else "s.py")).write_text(RELAY[language])
    running.start()
    asked = ("ours.test", "opened.test", "closed.test", "second.test", "strange.test")

    def answers(name: str) -> list[int]:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo(name)
            client.mail("a@sender.test")
            return [client.rcpt(f"b@{domain}")[0] for domain in asked]

    assert answers("partner") == [250, 250, 550, 250, 451]
    assert answers("another") == [250, 550, 250, 250, 451]
    assert any("pre_ec_can_relay_to returned 1" in line for line in running.log("paniclog.ec"))


FAILING = """local m = {}
function m:pre_ec_can_relay_to(domain) if domain == "broken.test" then error("no table") end end
function m:core_config_get_message_routing_domain(scope, msg, buff) if msg:rcptto():find("^broken") then error("no table") end end
function m:binding_group_choose_binding(msg)
  if msg:rcptto():find("^table") then return setmetatable({}, {__tostring = function() while true do end end}) end end
function m:validate_set_binding(msg) msg:binding_group("g") return msys.core.VALIDATE_CONT end
msys.registerModule("s", m)"""


def test_a_question_that_fails_lets_nothing_through(server: Callable[..., Server], tmp_path: Path) -> None:
    """What a script would have said, nobody knows: mail waits, instead of going where it should perhaps not."""
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(FAILING)
    with SinkThread() as sink:
        more = ' Binding_Group g { Binding b1 { } } Relay_Domains = ( "partner.test" "broken.test" )'
        running = server(_config(port, sink.port, SCRIPT + more).replace("Relay_Hosts = ( 127.0.0.0/8 )", "")).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            client.mail("a@sender.test")
            assert client.rcpt("b@broken.test")[0] == 451
            client.rset()
            for recipient in ("broken@partner.test", "table@partner.test"):
                with pytest.raises(smtplib.SMTPDataError) as raised:
                    client.sendmail("a@sender.test", [recipient], MESSAGE)
                assert raised.value.smtp_code == 451
            client.sendmail("a@sender.test", ["good@partner.test"], MESSAGE)
        until(lambda: len(sink.messages) == 1, "delivery")
    lines = running.log("paniclog.ec")
    assert any("pre_ec_can_relay_to error in s: " in line and line.endswith("no table") for line in lines)
    assert any("binding_group_choose_binding error in s: it returned a table" in line for line in lines)


REFUSING = """local m = {}
function m:validate_data_spool_each_rcpt(msg, ac, vctx)
  if msg:rcptto():find("^bad") then vctx:set_code(571, "5.7.1 not\\0for\\r\\nyou " .. ("x"):rep(20000)) end
  return msys.core.VALIDATE_CONT end
function m:get_msg_expiration_params(msg, params) params.max_retries = math.huge end
function m:ec_message_set_next_attempt(msg) return 0 / 0 end
function m:validate_ehlo(str, ac, vctx) if str:find("long") then vctx:set_code(550, ("y"):rep(2000)) end return 0 end
msys.registerModule("s", m)"""


def test_no_refusal_or_answer_of_a_script_stops_the_server(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(REFUSING)
    with SinkThread() as sink:
        running = server(_config(port, sink.port, SCRIPT)).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            assert [len(line) for line in client.ehlo("long")[1].split(b"\n")] == [500] * 4
            client.sendmail("a@sender.test", ["good@partner.test", "bad@partner.test"], MESSAGE)
        until(lambda: len(sink.messages) == 2, "delivery and a notification")
        (notice,) = [m for m in sink.messages if list(m.recipients) == ["a@sender.test"]]
        assert b"571 5.7.1 not?for you xxx" in b" ".join(notice.data.split())
        assert running.stop() == 0
        running.start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@sender.test", ["good@partner.test"], MESSAGE)
        until(lambda: len(sink.messages) == 3, "delivery after a restart")
    assert "unexpected" not in "".join(running.log("paniclog.ec"))


def test_a_tarpit_takes_no_time_of_a_policy(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(
        """local m = {} function m:validate_connect(ac, vctx) vctx:tarpit(1.5) msys.sleep(0.01) return 0 end
        function m:validate_ehlo(str, ac, vctx) msys.sleep(0.01) return 0 end
        msys.registerModule("s", m)"""
    )
    server(_config(port, 1, SCRIPT, "Policy_Time = 1")).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        assert client.ehlo()[0] == 250


CONTEXTS = """from quillon.policy.python import Session


def validate_mailfrom(session: Session) -> None:
    kind = session.message_context["mailfrom_localpart"]
    context = session.message_context if kind != "connection" else session.connection_context
    context["k" if kind != "key" else 5] = b"x" if kind != "key" else "x"
    if kind == "refused":
        session.reject(550, "5.7.1 no")
"""


def test_a_context_holds_texts(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/p.py").write_text(CONTEXTS)
    running = server(_config(port, 1, 'policy "p" { module = "p.py" }')).start()
    for kind in ("value", "key", "connection", "refused"):
        with (
            smtplib.SMTP("127.0.0.1", port, timeout=30) as client,
            pytest.raises((smtplib.SMTPDataError, smtplib.SMTPSenderRefused)) as raised,
        ):
            client.sendmail(f"{kind}@sender.test", ["b@partner.test"], MESSAGE)
        assert raised.value.smtp_code == (550 if kind == "refused" else 451), kind
    lines = running.log("paniclog.ec")
    assert sum("the context holds " in line for line in lines) == 3
    assert any("the context holds 5 = 'x', and it holds texts only" in line for line in lines)
