"""Scripts to the purposes that the manual's pages show, side by side in one server, with one message through all of them."""

from __future__ import annotations

import asyncio
import smtplib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from quillon.policy.hook import Phase
from tests.support.scripts import Stage
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.unit.mailauth.test_mailauth import _record

SCRIPTS = {
    "ehlo": """
        function mod:validate_ehlo(str, ac, vctx)
          print("ehlo", msys.expandMacro("%{vctx_conn:ehlo_string}"))
          return msys.core.VALIDATE_CONT end""",
    "capability": """
        require("msys.extended.ac")
        function mod:validate_connect(ac, vctx) ac:esmtp_capability_add("X-COMPAT") return msys.core.VALIDATE_CONT end""",
    "tarpit": """
        require("msys.extended.vctx")
        function mod:validate_connect(ac, vctx) vctx:tarpit(0.1) return msys.core.VALIDATE_CONT end""",
    "disconnect": """
        function mod:validate_mailfrom(str, ac, vctx)
          if vctx:get(msys.core.VCTX_MESS, "mailfrom_domain") == "evil.test" then
            vctx:disconnect(421, "go away")
            return msys.core.VALIDATE_DONE
          end
          return msys.core.VALIDATE_CONT end""",
    "recipients": """
        require("msys.extended.vctx")
        local function all(list) local s = "" for i = 0, #list do s = s .. list[i] .. " " end return s end
        function mod:validate_data(msg, ac, vctx)
          vctx:add_recipient("archive@partner.test")
          print("recipients", all(vctx:recipient_list()))
          return msys.core.VALIDATE_CONT end""",
    "ids": """
        require("msys.extended.message")
        function mod:validate_data(msg, ac, vctx)
          print("ids", msg.batch_id != "", msg:listener_addr("ip"), msg:reception_peer("ip"))
          return msys.core.VALIDATE_CONT end""",
    "disclaimer": """
        require("msys.extended.message")
        function mod:validate_data(msg, ac, vctx)
          local top = msg:mime(false)
          if top.parts != nil then
            local part = msg:makePart("text/plain", "Disclaimer")
            part.body_start = 0 part.body_end = #"Disclaimer"
            print("disclaimer", top:addLastChild(part))
          else
            print("disclaimer", msg:text_replace("\\r\\n.\\r\\n", "\\r\\nDisclaimer\\r\\n.\\r\\n"))
          end
          return msys.core.VALIDATE_CONT end""",
    "parts": """
        require("msys.extended.message")
        function mod:validate_data_spool_each_rcpt(msg, ac, vctx)
          local part, seen = msg:mime(true), {}
          while part != nil do seen[#seen + 1] = part:content_type().mimetype part = part.thread end
          print("parts", table.concat(seen, ","))
          return msys.core.VALIDATE_CONT end""",
    "binding": """
        require("msys.extended.message")
        function mod:validate_set_binding(msg)
          local localpart, domain = msys.core.string_new(), msys.core.string_new()
          msg:get_envelope2(msys.core.EC_MSG_ENV_FROM, localpart, domain)
          if tostring(domain) == "sender.test" then msg:binding("fast") end
          msg.priority = 1
          return msys.core.VALIDATE_CONT end""",
    "message_id": """
        require("msys.extended.message")
        function mod:validate_data_spool(msg, ac, vctx)
          msys.runInPool("IO", function()
            local found = msg:header("Message-ID")
            if found ~= nil and found[1] ~= nil then msg:context_set(msys.core.ECMESS_CTX_MESS, "cl_MID", found[1]) end
          end)
          print("message_id", msg:context_get(msys.core.ECMESS_CTX_MESS, "cl_MID"))
          return msys.core.VALIDATE_CONT end""",
    "bounce": """
        require("msys.bounce")
        function mod:validate_data_spool(msg, ac, vctx)
          local code, name = msys.bounce.classify_smtp_response("550 5.1.1 unknown user")
          print("bounce", code, name, (msys.bounce.classify(msg)))
          return msys.core.VALIDATE_CONT end""",
    "audit": """
        require("msys.audit") require("msys.audit_series") require("msys.counter") require("msys.gauge_cache")
        local count = msys.counter.open("/site/compat")
        function mod:init()
          msys.audit_series.define("compat", "cidr", 86400, 5)
          msys.gauge_cache.define("gauge", 10, 60)
          return true
        end
        function mod:validate_mailfrom(str, ac, vctx)
          msys.counter.inc(count) msys.audit_series.add("compat") msys.gauge_cache.inc("gauge", "k")
          print("audit", msys.audit.connections("86400,1") >= 1, msys.audit_series.count("compat", "/32") >= 1,
            msys.counter.read(count) >= 1, msys.gauge_cache.get("gauge", "k") >= 1, ac:inbound_session_count("/32") >= 1)
          return msys.core.VALIDATE_CONT end""",
    "lookup": """
        require("msys.pcre") require("msys.dumper")
        function mod:validate_connect(ac, vctx)
          local found, fault = msys.dnsLookup("nowhere.invalid", "A")
          local lines = msys.pcre.split(msys.dumper.Dumper(found or fault), "\\n")
          print("lookup", #lines >= 1, fault != nil)
          return msys.core.VALIDATE_CONT end""",
    "timers": """
        require("msys.timer")
        function mod:init()
          once = msys.timer.after(0.05, function() print("timer once") end, "once")
          again = msys.timer.every(0.05, function() print("timer again") again:stop() end, "again")
          return true
        end
        function mod:validate_ehlo(str) return msys.core.VALIDATE_CONT end""",
    "pool": """
        require("thread")
        local lock, log = thread.mutex(), "pool.csv"
        function mod:validate_data_spool(msg, ac, vctx)
          local ok, value = msys.runInPool("IO", function() lock:lock() local v = 6 * 7 lock:unlock() return v end)
          msys.runInPool("IO", function()
            local file = msys.core.io_wrapper_open(log, msys.core.O_CREAT | msys.core.O_APPEND | msys.core.O_WRONLY, 420)
            file:write("line\\n", #"line\\n")
          end, true)
          print("pool", ok, value)
          return msys.core.VALIDATE_CONT end""",
    "library": """
        local json, xml = require("json"), require("xml")
        function mod:validate_data_spool(msg, ac, vctx)
          local obj = json.decode('{"foo": "bar"}') obj.int = 4 obj.arr = json.encode({0, 1, 3})
          local doc = xml.parsexml("<a><b/></a>") doc:root():addchild("c", "text")
          print("library", json.decode(tostring(obj)).arr[3], doc:tostring(), msys.idn.to_idn("bücher.example"))
          return msys.core.VALIDATE_CONT end""",
}
EXPECTED = (
    "ehlo ehlo compat.test", "recipients b@partner.test archive@partner.test ", "ids true 127.0.0.1 127.0.0.1", "disclaimer true",
    "parts text/plain", "message_id <compat@sender.test>", "bounce 10 BC_INVALID_RECIPIENT", "audit true true true true true",
    "lookup true true", "timer once", "timer again", "pool true 42", "library 3 <a><b /><c>text</c></a> xn--bcher-kva.example",
)  # fmt: skip


def test_scripts_of_the_manuals_purposes(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "q"
    folder.mkdir()
    for name, body in SCRIPTS.items():
        (folder / f"{name}.lua").write_text(
            f'require("msys.core");\nlocal mod = {{}};\n{body}\nmsys.registerModule("{name}", mod);\n'
        )
    scripts = " ".join(f'script "{name}" {{ source = {name} }}' for name in SCRIPTS)
    with SinkThread() as sink:
        running = server(f"""
            alerting {{ }}
            inbound_audit {{ monitors = ( "86400,1" ) }}
            DNS_Servers = ( "127.0.0.1:1" )
            scriptlet "scriptlet" {{ script "boot" {{ source = "msys.boot" }} {scripts} }}
            Binding_Group "g" {{ Binding "fast" {{ }} }}
            Domain "partner.test" {{ Routes = ( "127.0.0.1:{sink.port}" ) }}
            ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}""").start()
        begun = time.monotonic()
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            greeted = time.monotonic()
            client.ehlo("compat.test")
            assert greeted - begun > 0.09  # the tarpit, which the banner is in already
            assert time.monotonic() - greeted > 0.09
            assert client.has_extn("x-compat")
            text = "From: a@sender.test\r\nMessage-ID: <compat@sender.test>\r\nSubject: t\r\n\r\nhello\r\n"
            client.sendmail("a@sender.test", ["b@partner.test"], text)
            assert client.mail("x@evil.test") == (421, b"go away")
        got = until(lambda: list(sink.messages) if sink.messages else None, "delivery")
        said = until(
            lambda: (
                lines
                if "pool.csv" in {p.name for p in folder.iterdir()} and (lines := "\n".join(running.log("paniclog.ec")))
                else None
            ),
            "the log",
        )
    for words in EXPECTED:
        assert words in said, (words, said)
    assert " error in " not in said
    assert sorted(r for message in got for r in message.recipients) == ["archive@partner.test", "b@partner.test"]
    assert all(message.data.endswith(b"hello\r\nDisclaimer\r\n") for message in got)
    assert {row["binding"] for row in running.events("reception")} == {"fast"}
    assert (folder / "pool.csv").read_text() == "line\n"


@pytest.fixture
def key(tmp_path: Path) -> rsa.RSAPrivateKey:
    made = rsa.generate_private_key(65537, 2048)
    pem = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "bank.fi.s1.key").write_bytes(pem)
    return made


def test_dkim_and_arc_by_scripts(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    stage = Stage(tmp_path)
    stage.lookups = {("s1._domainkey.bank.fi", "TXT"): [(0, _record(key))]}
    policy = stage.load("""local m = {} require("msys.validate.opendkim") require("opendkim.dkim")
    function m:core_final_validation(msg, ac, vctx)
      local options = {base_domain = "bank.fi", selector = "s1", keyfile = "%{d}.%{s}.key", header_canon = "relaxed",
        body_canon = "relaxed", digest = "rsa-sha1", headerlist = {"From", "To", "Subject"}, identity = "@bank.fi"}
      msys.validate.opendkim.sign(msg, vctx, options)
      msys.validate.openarc.seal(msg, {signing_domain = "bank.fi", selector = "s1", keyfile = "bank.fi.s1.key"}, "spf=pass")
      print("OUT " .. tostring(pcall(msys.validate.opendkim.sign, msg, vctx, {selector = "s1", base_domain = "x"})))
      return 0 end
    function m:validate_data(msg, ac, vctx)
      local dkim, status = msys.validate.opendkim.verify(msg)
      print("OUT " .. tostring(status == msys.core.DKIM_STAT_OK) .. (msys.validate.opendkim.get_num_sigs(dkim)))
      local sig = msys.validate.opendkim.get_sig(dkim, 0)
      if sig then
        local header, stat, body = msys.validate.opendkim.get_sig_canons(sig)
        print("OUT " .. (msys.validate.opendkim.get_sig_domain(sig)) .. (msys.validate.opendkim.get_sig_keysize(sig))
          .. (msys.validate.opendkim.get_sig_selector(sig)) .. header .. "/" .. body)
        print("OUT " .. tostring(msys.validate.opendkim.get_sig_hdrsigned(sig, "from")) .. stat
          .. tostring(msys.validate.opendkim.get_sig_hdrsigned(sig, "X-None")))
      end
      print("OUT " .. msys.validate.openarc.verify(msg) .. msg:context_get(2, "arc_cv"))
      return 0 end
    msys.registerModule("m", m)""")
    view = stage.view(own=True)
    asyncio.run(stage.call(policy, Phase.FINAL_VALIDATION, view))
    assert len(stage.faults) == 1
    assert "mail is signed with rsa-sha256" in stage.faults[0]
    assert b"a=rsa-sha256" in view.content.head
    stage.message = view.content.whole
    assert stage.message.startswith(b"ARC-Seal: i=1;")
    stage.context.new_message()
    asyncio.run(stage.call(policy, Phase.DATA))
    assert stage.said == ["false", "true1", "bank.fi2048s1relaxed/relaxed", "true0false", "passpass"]
