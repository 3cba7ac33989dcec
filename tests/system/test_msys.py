"""The functions of the manual's Lua API, one by one, as scripts call them."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.config.settings import ScriptSettings
from quillon.lua.runtime import load_scripts
from quillon.mail.reply import Reply
from quillon.policy import mime
from quillon.policy.environment import Datasource
from quillon.policy.hook import Phase, Policy, PolicyError
from quillon.policy.message import Content, MessageView
from tests.support.scripts import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def _said(stage: Stage, body: str, phase: Phase = Phase.DATA_SPOOL, init: str = "") -> list[str]:
    assert stage.run(body, phase, init=init) is None, stage.reports
    assert stage.faults == []
    return stage.said


ENVELOPE = """local l, d = msys.core.string_new(), msys.core.string_new()
msg:get_envelope2(msys.core.EC_MSG_ENV_FROM, l, d) out(tostring(l), d .. '!', #d)
msg:get_envelope2(msys.core.EC_MSG_ENV_TO | msys.core.EC_MSG_ENV_COMPLETE, l, d) out(l)"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        # contexts
        ("out(vctx:get(msys.core.VCTX_CONN, 'tls'), vctx:get('VCTX_MESS', 'nothing'))", "on|nil"),
        ("vctx:set(msys.core.VCTX_MESS, 'k', 1) out(msg:context_get(msys.core.ECMESS_CTX_MESS, 'k'))", "1"),
        ("out(msg:context_get(2, 'no'), msg:context_exists(2, 'no'), msg:context_exists_and_get(1, 'tls'))", "|0|1|on"),
        ("msg:context_set(2, 'ä', 'ö') out(msg:context_get(2, 'ä'), msg:context_delete(2, 'ä'), msg:context_delete(2, 'ä'))", "ö|1|0"),
        ("out(msys.expandMacro('%{vctx_conn:tls}/%{vctx_mess:mailfrom_domain}/%{vctx_conn:none}'))", "on/bank.fi/"),
        ("vctx:add_recipient({'e@d.test', 'e@d.test'}) out(vctx:recipient_list()[0], vctx:recipient_list()[1])", "e@d.test|nil"),
        ("out(-1 >> 63, -1 >> 64, 1 >> 64, 1 << 64, (pcall(function() return 1e300 | 1 end)), (pcall(function() return 0/0 & 1 end)))", "-1|-1|0|0|false|false"),
        # charsets are those of mail: what a sender names does not choose among all codecs of the server
        ("out(msys.qp.decode('=E4', 'iso-8859-1'), (pcall(msys.qp.decode, 'a', 'punycode')))", "ä|false"),
        # the session
        ("out(ac.remote_addr, ac.conn_id, ac.protocol == msys.core.P_ESMTP, ac.inst.address)", "192.0.2.7:1234|00/00-00001-00000000|true|127.0.0.1:25"),
        ("out(msys.core.accept_construct_get_message_construct(ac).ctx:get(1, 'tls'))", "on"),
        ("out(msg.id, msg.batch_id, msg.conn_id, msg:mailfrom(), msg:rcptto())", "id|batch|conn|alice@bank.fi|b@example.com"),
        ("out(msg:reception_peer('ip'), msg:reception_peer('port'), msg:reception_peer(), msg:listener_addr('all'))", "192.0.2.7|1234|192.0.2.7:1234|127.0.0.1:25"),
        ("out(msg:get_message_size() > 100, msg:get_delivery_method(), msg:is_mcmt())", "true|esmtp|false"),
        (
            ENVELOPE,
            "alice|bank.fi!|7\nb@example.com",
        ),
        # header
        ("out(msg:header('subject')[1], #msg:header('x-a'), msg:header('x-a')[2], #msg:header('none'))", "café|2|2|0"),
        ("out(msg:header('X-A', '')) out(#msg:header('X-A')) out(msg:header('X-A', ''))", "true\n0\nfalse"),
        ("msg:header('X-A', 'new') out(#msg:header('X-A'), msg:header('X-A')[1])", "1|new"),
        ("msg:header('X-A', {'p', 'q'}, 'prepend') out(table.concat(msg:header('X-A'), ','))", "p,q,1,2"),
        ("msg:header('X-A', '3', 'append') out(table.concat(msg:header('X-A'), ','))", "1,2,3"),
        ("msg:header('Subject', 'naïve') out(msg:header('Subject')[1])", "naïve"),
        ("out(msg:address_header('From', 'domain')[1], msg:address_header('From', 'detail')[1], msg:address_header('From')[1])", "bank.fi|tag|alice+tag@bank.fi"),
        ("out(table.concat(msys.parseRFC2822Addresses('A <a@x.fi>, \"b, c\" <d+e@y.fi>', 'user'), ','))", "a,d"),
        # body
        ("out(msg:body()) out(select(2, msg:raw()) == #msg:raw())", "Hello world??\ntrue"),
        ("msg:body('new\\n.\\nend\\r\\n.\\r\\n') out(msg:body())", "new??.??end??"),
        ("out(msg:body_match('w(or)(?<n>ld)')[1], msg:body_match('w(or)(?P<n>ld)').n, msg:body_match('none'))", "or|ld|false"),
        ("out(msg:body_replace('Hello', 'Bye'), msg:body())", "true|Bye world??"),
        ("out(msg:text(), msg:text_match('wor')[0])", "Hello world??|wor"),
        ("msg:text_replace('\\r\\n.\\r\\n', '\\r\\nDisclaimer\\r\\n.\\r\\n') out(msg:text())", "Hello world??Disclaimer??"),
        ("msg:text('grüße', 'text/plain', 'utf-8') out(msg:text()) out(msg:header('Content-Transfer-Encoding')[1])", "grüße??\nquoted-printable"),
        ("out(msg:raw_match('X-A: (2)')[1])", "2"),
        # texts
        ("out(msys.base64.encode('a\\0b'), msys.base64.decode('YWJj') )", "YQBi|abc"),
        ("out(msys.qp.encode('ä=', 'iso-8859-1'), msys.qp.decode('=C3=A4=3D'))", "=E4=3D|ä="),
        ("out(msys.idn.to_idn('bücher.example'), msys.idn.to_utf8('xn--bcher-kva.example'))", "xn--bcher-kva.example|bücher.example"),
        ("local m, e = msys.pcre.match('2026-11', '(?P<y>\\\\d+)-(\\\\d+)') out(m[0], m.y, m[2], e)", "2026-11|2026|11|nil"),
        ("local m, e, n = msys.pcre.match('x', '(') out(m, e ~= nil, n)", "nil|true|1"),
        ("out(msys.pcre.replace('a-b', '(a)-(b)', '$2+\\\\1'), table.concat(msys.pcre.split('a, b,c', ',\\\\s*'), '|'))", "b+a|a|b|c"),
        ("out(msys.pcre.match('aaa[', '^[[:alpha:]]++\\\\[')[0])", "aaa["),
        ("local o = json.decode('{\"a\": [1, {\"b\": null}], \"s\": \"ü\"}') out(o.a[1], o.a[2].b == json.null, o.s) o.i = 4 out(tostring(json.encode({1, 2})))", "1|true|ü\n[1,2]"),
        ("local o, code, err = json.decode('{') out(o, code, err ~= nil, json.strerror(code))", "nil|1|true|malformed JSON"),
        ("local o = json.new() o.name = 'v' out(o) out(json.encode('x'))", '{"name":"v"}\n"x"'),
        ("local d = xml.parsexml('<a><b k=\"1\">t</b></a>') local n = d:xpath('//b')[1] out(n:name(), n:attribute('k'), n:contents(), n:unlink(), d:tostring())", "b|1|t|true|<a />"),
        ("out((msys.dumper.Dumper({a = {1}}):gsub('%s', '')))", '{["a"]={[1]=1}}'),
        ("out(msys.type(msg), msys.type({}), msys.type(msys.core.string_new()))", "msg|table|ec_string"),
        # operators
        ("out(6 & 3, 6 | 3, 6 ^^ 3, 1 << 4, 256 >> 4, ~0, 7 \\ 2, -7 \\ 2, 1 != 2)", "2|7|5|16|16|-1|3|-4|true"),
        ("out(0xFFFFFFFF & 0xFFFFFF00, 1 << 31, 1 << 32, -1 & 0xFF, 7.9 & 15, -256 >> 4, ~5, 3000000000 ^^ 1)", "4294967040|2147483648|4294967296|255|7|-16|-6|3000000001"),
        # Lua's own
        ("out(os.time(), os.date('!%Y', 0), os.time({year = 2000, month = 1, day = 1, hour = 12}) > 9e8, type(os.clock()))", "1700000000|1970|true|number"),
        ("out(xpcall(function() error('x', 0) end, function(e) return debug.traceback(e):match('^x.stack') end))", "false|x?stack"),
        ("out(loadstring('return 6 & 3, limit')()) out((loadstring('x = = 1'))) out(collectgarbage('count') > 1, collectgarbage())", "2|nil\nnil\ntrue|0"),
        ("out(select(2, pcall(io.open, 'x')):match('io.open is not in this version') ~= nil)", "true"),
        ("out(select(2, pcall(require('curl').new)):match('use msys.http.client$') ~= nil)", "true"),
        ("out(msys.pcre.replace('a5b', 'a(.)', '$$${1}$1'))", "$55b"),
        ("out(msys.expandMacro('%{spfv1:i} %{spfv1:d} %{spfv1:v} %{vctx_conn:ehlo_domain}'))", "192.0.2.7 bank.fi in-addr client.test"),
        ("local d = xml.parsexml('<a><b/><b/><c/></a>') local s = '' for n in d:root():children() do s = s .. n:name() end for n in d:xpath('//b') do s = s .. n:name() end out(s, #d:xpath('//b'))", "bbcbb|2"),
        # counters
        ("local c = msys.counter.open('/site/x') msys.counter.inc(c) msys.counter.add(c, 5) out(msys.counter.read('/site/x')) msys.counter.reset(c) out(msys.counter.read(c)) msys.counter.unlink(c)", "6\n0"),
        # bounces
        ("out(msys.bounce.classify_smtp_response('550 5.1.1 user unknown'))", "10|BC_INVALID_RECIPIENT|Invalid Recipient"),
        ("out((msys.bounce.classify_smtp_response('this domain is no longer used')))", "10"),
        ("out((msys.bounce.classify_smtp_response('452 4.2.2 mailbox full')), (msys.bounce.classify_smtp_response('no idea')))", "22|1"),
        # waiting
        ("out(msys.asyncOk()) msys.sleep(0) out('slept')", "true\nslept"),
        ("local r, e = msys.dnsLookup('nowhere.test') out(r, e)", "nil|nxdomain"),
        ("out(msys.runInPool('IO', function() return 1, 'two' end))", "true|1|two"),
        ("out(msys.runInPool('IO', function() error('no', 0) end))", "false|no"),
        ("local co = coroutine.wrap(function() msys.sleep(0) coroutine.yield('mid') msys.sleep(0) return 'end' end) out(co()) out(co())", "mid\nend"),
        ("out(pcall(function() msys.sleep(0) error('inside', 0) end))", "false|inside"),
    ],
)  # fmt: skip
def test_functions(stage: Stage, code: str, said: str) -> None:
    assert _said(stage, code) == said.split("\n")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("msys.dnsLookup('x', 'WRONG')", "'WRONG' is no record type"),
        ("msys.sleep(1e9)", "sleep takes 0 to 300 seconds"),
        ("msg:header('Bad Name', 'x')", "is no header field name"),
        ("msg:header('X', 'a\\r\\nInjected: yes')", "holds a line end"),
        ("msg:binding('x')", "is chosen in validate_set_binding"),
        ("msg.header('x')", "no object of the server"),
        ("vctx:set(1, 'k', {})", "a context holds texts, no table"),
        ("vctx:get(1, print)", "a context holds texts, no function"),
        ("msg:context_exists({}, 'k')", "a context holds texts, no table"),
        ("vctx:get('VCTX_NONE', 'k')", "VCTX_CONN or msys.core.VCTX_MESS"),
        ("msg.colour = 1", "msg.colour cannot be set"),
        ("vctx:add_recipient('not an address')", "is no address"),
        ("msys.gauge_cache.inc('none', 'k')", "there is no gauge cache 'none'"),
        ("msys.audit.connections('60,1')", "there is no monitor '60,1'"),
        ("msys.db.query('none', 'SELECT 1')", "there is no datasource 'none'"),
        ("msys.counter.inc('nope')", "is no path of a counter"),
        ("msys.snmpTrap('x')", "msys.snmpTrap is not in this version: there is no SNMP agent"),
        ("msys.av.scan(msg)", "msys.av.scan is not in this version"),
        ("msys.pcre.match(('a'):rep(800), '(.*)(.*)(.*)(.*)(.*)[^a]')", "took more than"),
        ("msys.config('set', 'x', 'y')", "a running configuration is changed in its files"),
        ("xml.parsexml('<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>')", "a document type declaration is not read"),
        ("tostring(json.encode({a = function() end}))", "a function has no place here"),
        ("coroutine.yield(1)", "yielded outside of any coroutine"),
        ("msys.unlock('never')", "there is no lock"),
    ],
)
def test_wrong_calls_say_script_and_line(stage: Stage, code: str, words: str) -> None:
    if "pcre" in code:
        assert stage.run(f"local m, e = {code} out(m, e)") is None
        assert words in stage.said[0]
        return
    assert stage.run("\n" + code) == Reply(451, "4.3.0", "policy error, please try later")
    assert words in stage.faults[0]
    if "yield" not in code:
        assert "t0.lua:8: " in stage.faults[0], stage.faults[0]
    assert "validate_data_spool error in t" in stage.faults[0]


def test_names_with_dots_and_slashes_and_what_the_manual_requires(stage: Stage) -> None:
    names = (
        "msys.core msys.extended.message msys.extended.message_routing msys.extended.ac msys.extended.vctx msys.timer"
        " msys.pcre msys.base64 msys.qp msys.db msys.datasource msys.cidr msys.counter msys.gauge_cache msys.audit"
        " msys.audit_series msys.bounce msys.rfc3464 msys.dumper msys.validate.opendkim msys.threadpool msys.os json xml"
        " thread msys msys.http.client msys.idn msys.tls_params opendkim.dkim msys.validate.openarc"
    )
    body = "\n".join(f'require("{name}")' for name in names.split())
    assert _said(stage, body + "\nout('all')") == ["all"]


def test_dns(stage: Stage) -> None:
    stage.lookups = {
        ("bank.fi", "MX"): [(5, "a.bank.fi"), (10, "b.bank.fi")],
        ("bank.fi", "TXT"): [(0, "v=spf1 -all")],
    }
    code = """local r = msys.dnsLookup('bank.fi', 'mx') out(table.concat(r, ','))
    r = msys.dnsLookup('bank.fi', 'MX', {priority = true}) out(r[2][1], r[2][2])
    out(msys.dnsLookup('bank.fi', 'TXT')[1])"""
    assert _said(stage, code) == ["a.bank.fi,b.bank.fi", "10|b.bank.fi", "v=spf1 -all"]


def test_what_waits_can_in_set_binding_but_not_at_the_end(stage: Stage) -> None:
    assert stage.run("msys.sleep(0) out(msg:rcptto())", Phase.SET_BINDING) is None
    assert stage.said == ["b@example.com"]
    assert stage.run("do return msys.core.VALIDATE_AGAIN end", Phase.SET_BINDING) is not None
    assert "VALIDATE_AGAIN: validate_set_binding cannot be called again" in stage.faults[0]
    policy = stage.load("""local m = {} function m:validate_data() return 0 end
        function m:validate_dealloc() msys.sleep(0) end msys.registerModule("m", m)""")
    asyncio.run(stage.call(policy, Phase.DATA))
    asyncio.run(stage.call(policy, Phase.DEALLOC))
    assert "msys.sleep would have to wait, which this phase cannot" in stage.faults[-1]


def test_what_waits_can_while_scripts_load(stage: Stage) -> None:
    (stage.folder / "list").write_text("bank.fi")
    (stage.folder / "lib.lua").write_text("msys.sleep(0) return msys.readfile('list')")
    stage.lookups["bank.fi", "TXT"] = [(0, "v=spf1 -all")]
    (stage.folder / "s.lua").write_text("""local list = require("lib") local m = {}
    function m:init() record = msys.dnsLookup("bank.fi", "TXT")[1] return true end
    function m:validate_data() print("OUT " .. list .. record) return 0 end
    msys.registerModule("m", m)""")

    async def play() -> None:
        modules = await load_scripts(ScriptSettings((("s", "s"),), 200, 200, True), [stage.folder], stage.environment)
        await stage.call(Policy(modules, stage.reports.append), Phase.DATA)

    asyncio.run(play())
    assert stage.reports == ["scriptlet: OUT bank.fiv=spf1 -all"]


def test_recipients(stage: Stage) -> None:
    from quillon.mail.address import Mailbox

    stage.session.recipients.replace([Mailbox("a", "x.fi"), Mailbox("b", "x.fi")])
    code = """
    local t = vctx:recipient_list() local s = "" for i = 0, #t do s = s .. t[i] .. " " end out(s)
    vctx:add_recipient("c@x.fi") vctx:add_recipient({"d@x.fi", "a@x.fi"}) vctx:remove_recipient("<b@x.fi>")
    out(#vctx:recipient_list()) vctx:recipient_list({"e@x.fi"})"""
    assert _said(stage, code, Phase.DATA) == ["a@x.fi b@x.fi ", "2"]
    assert [str(mailbox) for mailbox in stage.session.recipients] == ["e@x.fi"]
    assert stage.run("vctx:add_recipient('z@x.fi')", Phase.FINAL_VALIDATION) is not None
    assert "the recipients cannot be changed in core_final_validation" in stage.faults[0]


def test_ec_message_build_inject_and_forward(stage: Stage) -> None:
    code = """
    local new = msys.core.ec_message_new(nil)
    new:build({From = "From: a@bank.fi", Subject = "s"},
      {["text/plain"] = "grüße", ["text/html; charset=utf-8"] = "<b>x</b>"},
      {{type = "text/csv", name = "./t.csv", headers = "X-Own: 1", content = "1,2"}, {content = msg}})
    out(new:inject("a@bank.fi", "b@x.fi, c@x.fi"), new:address_header("From", "domain")[1])
    out(msg:forward("f@bank.fi", "d@x.fi", "see below", "Fwd"))"""
    assert _said(stage, code) == ["true|bank.fi", "true"]
    (sender, recipients, data), (_, _, forwarded) = stage.injected
    assert (str(sender), [str(r) for r in recipients]) == ("a@bank.fi", ["b@x.fi", "c@x.fi"])
    built = message_from_bytes(data)
    assert [part.get_content_type() for part in built.walk()] == [
        "multipart/mixed", "multipart/alternative", "text/plain", "text/html", "text/csv", "message/rfc822", "text/plain",
    ]  # fmt: skip
    assert built["Date"]
    assert built["Message-ID"]
    parts = list(built.walk())
    assert parts[2].get_payload(decode=True) == "grüße".encode()
    assert (parts[4].get_filename(), parts[4]["X-Own"]) == ("t.csv", "1")
    assert stage.message in forwarded
    assert b"Subject: Fwd\r\n" in forwarded


def test_mime_parts(stage: Stage) -> None:
    boundary = "b1"
    stage.message = (
        b"From: a@x.fi\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b1\r\n\r\n"
        b"--b1\r\nContent-Type: text/plain\r\n\r\nplain\r\n"
        b"--b1\r\nContent-Type: application/pdf; name=x.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJD\r\n--b1--\r\n"
    )
    code = """
    local p = msg:mime(true) local s = "" while p != nil do
      local ct = p:content_type() s = s .. ct.mimetype .. (ct.filename or "") .. (ct.is_attachment and "+" or "") .. " "
      p = p.thread end out(s)
    p = msg:mime(false) out(#p.parts, p.parts[1]:text(), p.parts[1].parts)
    local d = msg:makePart("text/plain", "Disclaimer") d.body_start = 0 out(p:addLastChild(d), #p.parts)
    local h = msg:makePart("text/html", "<b>ä</b>", msys.core.EC_MIME_TE_BASE64)
    out(h:insertBefore(p.parts[1]), p.parts[1]:content_type().mimetype, p.parts[2]:unlink(), #p.parts)
    p.parts[1]:header("X-Part", "v") out(p.parts[1]:header("x-part")[1])
    out(pcall(function() msg:mime().parts[1]:unlink() end))"""
    said = _said(stage, code)
    assert said[0] == "multipart/mixed text/plain application/pdfx.pdf+ "
    assert said[1:5] == ["2|plain|nil", "true|3", "true|text/html|true|3", "v"]
    assert "read-only" in said[5]
    assert boundary


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", "grüße"),
        ("iso-8859-1", "grÃ¼Ã\x9fe"),
        ("utf-7", None),
        ("punycode", "grÃ¼Ã\x9fe"),
        ("idna", "grÃ¼Ã\x9fe"),
    ],
)
def test_what_a_sender_names_is_a_charset_or_nothing(stage: Stage, charset: str, text: str | None) -> None:
    """Some of Python's codecs take time that grows with the square of the text, others raise what no part of mail may."""
    body = "grüße".encode() if text else b"gr+APwA3w-e"
    stage.message = (
        f"Subject: =?{charset}?q?gr=C3=BC=C3=9Fe?=\r\nContent-Type: text/plain; charset*={charset}''{charset}\r\n"
        f"Content-Disposition: attachment; filename*={charset}''gr%C3%BC%C3%9Fe\r\n\r\n"
    ).encode() + body
    said = _said(stage, "local p = msg:mime() out(p:text()) out(p:content_type().filename, p:content_type().charset)")
    assert said[0] == (text or "grüße")
    assert said[1].endswith(f"|{charset}")


@pytest.mark.parametrize("count", [3, 3000])
def test_parts_within_parts(stage: Stage, count: int) -> None:
    """Beyond some hundred levels a message is one part: nobody's script fails for it, and none takes long."""
    stage.message = b"Content-Type: message/rfc822\r\n\r\n" * count + b"Subject: x\r\n\r\ninner\r\n"
    code = "local p, n = msg:mime(), 0 while p do n = n + 1 p = p.thread end out(n)"
    assert _said(stage, code) == [str(count + 1 if count < 100 else 1)]


def test_code_discard_and_priority(stage: Stage) -> None:
    view = stage.view()
    assert stage.run("msg:code('550', '5.7.1 no spam') out(msg:code())", view=view) == Reply(550, "5.7.1", "no spam")
    assert stage.said == ["550 5.7.1 no spam"]
    for reason, reply in (
        ("", Reply(550, "5.7.0", "discarded by policy")),
        ("'550 Bounce message processed'", Reply(550, "", "Bounce message processed")),
        ("'no code'", Reply(550, "5.7.1", "[internal] discarded by policy")),
    ):
        view = stage.view()
        assert stage.run(f"msg:discard({reason})", view=view) is None
        assert view.discarded == reply
    view = stage.view()
    assert stage.run("msg.priority = 1 msg:binding_group('g')", Phase.SET_BINDING, view) is None
    assert (view.priority, view.binding_group) == (1, "g")


def test_gauge_caches_and_series(stage: Stage) -> None:
    init = """msys.gauge_cache.define("g", 2, 10) msys.audit_series.define("ips", "cidr", 60, 3)
    msys.audit_series.define("names", "string", 60, 3)"""
    code = """local g = msys.gauge_cache
    g.inc("g", "a") g.inc("g", "a") g.dec("g", "b") g.inc("g", "c")
    out(g.get("g", "a"), g.get("g", "b"), g.get("g", "c")) g.remove_item("g", "c") out(g.get("g", "c"))
    local s = msys.audit_series
    s.add("ips") s.add("ips", {key = "192.0.2.9", count = 4}) s.add("ips", ac)
    out(s.count("ips"), s.count("ips", "/24"), s.count("ips", {key = ac}), s.count("ips", {key = "192.0.2.0/24", endv = 2}))
    s.add("names", "k") s.add("names", {key = "k", count = 2}) out(s.count("names", "k")) s.remove_item("names", "k")
    out(s.count("names", "k"))"""
    assert _said(stage, code, init=init) == ["0|-1|1", "0", "2|6|2|6", "3", "0"]
    stage.time += 61
    said = _said(
        stage, 'local s = msys.audit_series out(s.count("ips"), s.count("ips", {startv = 1, endv = 1}))', init=init
    )
    assert said[-1] == "0|2"


def test_cidr(stage: Stage) -> None:
    (stage.folder / "zone").write_text("# test\n:127.0.0.3:listed $\n192.0.2\n192.0.2.128/25 :4:upper\n2001:db8::/32\n")
    (stage.folder / "addresses").write_text("10.79.0.0/16:127.0.0.3:x\n10.80.0.0/16\n1111::/64 :5:y\n")
    init = """msys.cidr.define('z', {type = 'rbldnsd', source = 'zone', interpolate = true, default_value = 'none', value = 'txt'})
    msys.cidr.define('a', {type = 'rbldnsd', source = 'addresses'})"""
    code = "out(msys.cidr.query('z'), msys.cidr.query('z', '192.0.2.200'), msys.cidr.query('z', '2001:db8::1'), msys.cidr.query('z', '10.0.0.1'))"
    assert _said(stage, code, init=init) == ["listed 192.0.2.7|upper|listed 2001:db8::1|none"]
    stage.reports.clear()
    code = "out(msys.cidr.query('a', '10.79.1.1'), msys.cidr.query('a', '10.80.1.1'), msys.cidr.query('a', '1111::1'), msys.cidr.query('a', '10.81.0.1'))"
    assert _said(stage, code, init=init) == ["127.0.0.3|127.0.0.2|127.0.0.5|nil"]
    (stage.folder / "zone").write_text("not an address\n")
    with pytest.raises(PolicyError, match="zone: line 1"):
        stage.run("", init=init)


def test_files(stage: Stage) -> None:
    (stage.folder / "f.txt").write_text("größe")
    code = """out(msys.readfile("f.txt")) local t, e = msys.readfile("none") out(t, e ~= nil)
    local f = msys.core.io_wrapper_open("log.csv", msys.core.O_CREAT | msys.core.O_APPEND | msys.core.O_WRONLY, 420)
    local line = "a,b\\n" f:write(line, #line) f:close() out(pcall(f.write, f, "x"))"""
    said = _said(stage, code)
    assert said[:2] == ["größe", "nil|true"]
    assert "is closed" in said[2]
    assert (stage.folder / "log.csv").read_text() == "a,b\n"


def test_databases(stage: Stage) -> None:
    with sqlite3.connect(stage.folder / "d.db") as database:
        database.executescript(
            "CREATE TABLE t (name TEXT, n INT); INSERT INTO t VALUES ('a', 1), ('b', 2), ('ö', NULL)"
        )
    database.close()
    stage.environment.datasources = {"c": Datasource(("sqlite:d.db",))}
    code = """
    for row in msys.db.query("c", "SELECT name, n FROM t ORDER BY name") do out(row.name, row[2]) end
    local row = msys.db.fetch_row("c", "SELECT n FROM t WHERE name = ?", {"b"}) out(row.n)
    out(msys.db.fetch_row("c", "SELECT n FROM t WHERE name = :who", {who = "none"}))
    out(msys.db.execute("c", "INSERT INTO t VALUES (?, ?)", {"x'; DROP TABLE t; --", 5}))
    out(msys.db.fetch_row("c", "SELECT count(*) AS n FROM t", nil, {nocache = true}).n)
    out(msys.db.execute("c", "NONSENSE", nil, {raise_error = false}))
    out(pcall(msys.db.query, "c", "NONSENSE"))
    local row = msys.db.fetch_row("c", "SELECT ? AS a, ? AS b, coalesce(?, '?') AS c", {nil, 2}) out(row.a, row.b, row.c)
    out(msys.db.fetch_row("c", "SELECT ? IS NULL AS a", {nil}).a)"""
    said = _said(stage, code)
    assert said[:6] == ["a|1", "b|2", "ö|nil", "2", "nil", "true"]
    assert said[6] == "4"
    assert said[7].startswith("false|c: near")
    assert said[8].startswith("false|")
    assert said[9:] == ["nil|2|?", "1"]


def test_a_cidr_of_a_datasource(stage: Stage) -> None:
    with contextlib.closing(sqlite3.connect(stage.folder / "d.db")) as database:
        database.executescript(
            "CREATE TABLE t (n INT, block TEXT, v TEXT); INSERT INTO t VALUES (1, '10.0.0.0/8', 'x')"
        )
    stage.environment.datasources = {"c": Datasource(("sqlite:d.db",))}
    init = """local function define(name, more)
      more.type, more.cachename, more.query = "datasource", "c", more.query or "SELECT block, v FROM t"
      msys.cidr.define(name, more)
    end
    define("first", {}) define("numbers", {query = "SELECT n, block, v FROM t", cidr_column = 2, value_column = "3"})
    define("names", {cidr_column = "block", value_column = "v"}) define("wrong", {value_column = "w"})"""
    code = """for _, name in ipairs({"first", "numbers", "names"}) do
      out(msys.cidr.query(name, "10.1.1.1"), msys.cidr.query(name, "11.1.1.1")) end
    out(select(2, pcall(msys.cidr.query, "wrong", "10.1.1.1")):match("there is no column 'w'") ~= nil)"""
    assert _said(stage, code, init=init) == ["true|nil", "x|nil", "x|nil", "true"]


def test_a_script_may_have_nothing_but_timers(stage: Stage) -> None:
    stage.environment.after = lambda seconds, function: lambda: None
    assert stage.load("t = msys.timer.after(10, function() end)").modules == []
    assert len(stage.environment.stops) == 1
    stage.environment.stop()
    assert stage.environment.stops == {}


def test_timers_that_have_run_leave_nothing_behind(stage: Stage) -> None:
    waiting: list[Callable[[], None]] = []
    stage.environment.after = lambda seconds, function: waiting.append(function) or (lambda: None)  # type: ignore[func-returns-value]

    async def play() -> list[int]:
        policy = stage.load("""local m, n, kept = {}, 0, setmetatable({}, {__mode = "k"})
        function m:validate_data()
          local own = function() n = n + 1 if n == 3 then again:start() end end
          kept[own] = true
          again = msys.timer.after(1, own)
          own = nil
          local count = 0
          for _ in pairs(kept) do count = count + 1 end
          print("OUT " .. count)
          for _ = 1, 20000 do local garbage = {} end  -- so that the collector runs
          return 0
        end
        msys.registerModule("m", m)""")
        for _ in range(200):
            await stage.call(policy, Phase.DATA)
            while waiting:
                waiting.pop()()
        return [int(line) for line in stage.said]

    counts = asyncio.run(play())
    assert stage.faults == []
    assert max(counts) < 50
    assert stage.environment.stops == {}


@pytest.fixture
def web() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(201)
            self.send_header("X-Seen", self.headers.get("X-Own", ""))
            self.end_headers()
            self.wfile.write(body.upper())

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_http(stage: Stage, web: str) -> None:
    code = f"""local http = require("msys.http.client") local c = http.new() c:set_timeout(5) c:set_header("X-Own: yes")
    out(c:do_request("POST", "{web}", "body")) out(c:get_status()) out(c:get_body())
    out(c:parse_headers(c:get_headers())["x-seen"])
    local ok, fault = c:do_request("GET", "http://127.0.0.1:1/") out(ok, fault ~= nil)"""
    assert _said(stage, code) == ["true", "201|Created", "BODY", "yes", "nil|true"]


def test_locks_and_mutexes(stage: Stage) -> None:
    policy = stage.load("""local m = {} local mutex = thread.mutex() local order = {}
    function m:validate_data(msg, ac, vctx)
      local who = vctx:get(2, "who")
      msys.lock("l") mutex:lock() order[#order + 1] = who .. "+" msys.sleep(0.01) order[#order + 1] = who .. "-"
      mutex:unlock() msys.unlock("l")
      vctx:set(2, "order", table.concat(order, " "))
      return msys.core.VALIDATE_CONT end
    msys.registerModule("m", m)""")

    async def both() -> str:
        from quillon.policy.context import Context
        from quillon.policy.hook import Call, Session

        contexts = [Context({}, {"who": who}) for who in "ab"]
        calls = [
            Call(Phase.DATA, Session("192.0.2.1:1", "", n), c, "", stage.view())
            for n, c in zip("12", contexts, strict=True)
        ]
        await asyncio.gather(*(policy.run(call) for call in calls))
        return contexts[1].message["order"]

    assert asyncio.run(both()) == "a+ a- b+ b-"
    assert stage.faults == []


def test_commands_of_the_console_have_their_own_output(stage: Stage) -> None:
    async def play() -> list[str]:
        loop = asyncio.get_running_loop()
        stage.environment.later = lambda function: [loop.call_soon(function)].clear()
        policy = stage.load("""msys.registerControl("greet", function(cc)
          print("first " .. cc.argv[1]) msys.sleep(tonumber(cc.argv[2])) print("then " .. cc.argv[1])
          msys.runInPool("IO", function() msys.sleep(0.01) print("OUT pool " .. cc.argv[1]) end, true) end)
        msys.registerModule("m", {validate_data = function() print("OUT phase") return 0 end})""")
        greet = stage.environment.control["greet"]
        said = asyncio.gather(greet(["greet", "a", "0.03"]), greet(["greet", "b", "0.01"]))
        await asyncio.sleep(0.005)
        await stage.call(policy, Phase.DATA)
        found = await said
        await asyncio.sleep(0.1)
        return list(found)

    assert asyncio.run(play()) == ["first a\nthen a", "first b\nthen b"]
    assert stage.said == ["phase", "pool b", "pool a"]


def test_locks_keep_timers_and_pools_apart_too(stage: Stage) -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        stage.environment.after = lambda seconds, function: loop.call_later(seconds, function).cancel
        stage.environment.later = lambda function: [loop.call_soon(function)].clear()
        policy = stage.load("""local m = {} local mutex = thread.mutex(thread.MUTEX_RECURSIVE)
        local function inside(name, waits) return function()
          msys.lock("l") mutex:lock() mutex:lock() print("OUT " .. name .. "+")
          msys.sleep(0.02)
          if waits then print("OUT " .. name .. "-") mutex:unlock() mutex:unlock() msys.unlock("l") end end end
        function m:validate_data(msg)
          msys.runInPool("IO", inside("a", true), true) msys.runInPool("IO", inside("b"), true)
          msys.timer.after(0.01, inside("c", true)) inside("d", true)() return 0 end
        msys.registerModule("m", m)""")
        await stage.call(policy, Phase.DATA)
        await asyncio.sleep(1.2)  # b ends without giving its locks back, and is found to be gone
        policy.close()

    asyncio.run(play())
    assert sorted(stage.said) == ["a+", "a-", "b+", "c+", "c-", "d+", "d-"]
    for name in "acd":
        assert stage.said[stage.said.index(f"{name}+") + 1] == f"{name}-", stage.said


def test_timers_run_and_end_with_their_scripts(stage: Stage) -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        stage.environment.after = lambda seconds, function: loop.call_later(seconds, function).cancel
        stage.environment.later = lambda function: [loop.call_soon(function)].clear()
        policy = stage.load("""local m = {} local n = 0
        function m:init() every = msys.timer.every(0.02, function() n = n + 1 print("OUT tick") end, "rep")
          once = msys.timer.after(0.01, function() print("OUT once") end) out = every:name()
          stopped = msys.timer.after(0.01, function() print("OUT never") end) stopped:stop()
          waits = msys.timer.every(0.01, function() msys.sleep(0.01) print("OUT slept") msys.sleep(5) end)
          msys.timer.at(msys.core.get_now_ts(), function() error("broken") end) return true end
        function m:validate_data(msg) print("OUT " .. out)
          msys.runInPool("IO", function() msys.sleep(0) print("OUT later") end, true)
          msys.runInPool("IO", function() msys.sleep(0) error("away") end, function(ok, said) print("OUT " .. said) end)
          return 0 end
        msys.registerModule("m", m)""")
        await stage.call(policy, Phase.DATA)
        await asyncio.sleep(0.07)
        policy.close()
        count = stage.said.count("tick")
        await asyncio.sleep(0.05)
        assert stage.said.count("tick") == count

    asyncio.run(play())
    assert stage.said.count("tick") in (1, 2, 3)
    assert {"once", "later", "rep"} <= set(stage.said)
    assert "never" not in stage.said
    assert stage.said.count("slept") == 1
    assert any("away" in line for line in stage.said)
    assert any("runInPool error" in line and "away" in line for line in stage.faults)
    assert [fault for fault in stage.faults if "timer (without name) error" in fault]


def test_rfc3464(stage: Stage) -> None:
    code = """msg:code(550, "5.1.1 no such user") out(msys.rfc3464.compute_delivery_status_string(msg, msys.core.FAILED))
    out(msys.rfc3464.compute_delivery_status(msg, msys.core.FAILED).Action, msys.rfc3464.extract_delivery_status(msg))
    out(msys.rfc3464.extract_delivery_status(msys.rfc3464.create_mdn(msg, msys.core.FAILED))["Final-Recipient"])
    local mdn = msys.rfc3464.create_mdn(msg, msys.core.DELAYED) out(mdn:header("Subject")[1], mdn:rcptto())
    out(msys.rfc3464.send_mdn(msg, msys.core.FAILED)) msg:code(250, "fine")"""
    said = _said(stage, code)
    assert "Status: 5.1.1" in said[0]
    assert said[1:3] == ["failed|nil", "rfc822; b@example.com"]
    assert said[3:] == ["Delivery status notification: delayed|alice@bank.fi", "1"]
    sender, recipients, data = stage.injected[0]
    assert (str(sender), str(recipients[0])) == ("", "alice@bank.fi")
    assert message_from_bytes(data).get_content_type() == "multipart/report"


def test_self_and_tls_are_of_the_session(stage: Stage) -> None:
    from quillon.policy.hook import Session

    policy = stage.load("""local m = {shared = "module"}
    function m:validate_data(msg, ac, vctx)
      self.count = (self.count or 0) + 1 _TLS.n = (_TLS.n or 0) + 1 _OSTLS.n = (_OSTLS.n or 0) + 1
      print("OUT " .. self.count .. _TLS.n .. _OSTLS.n .. self.shared) return 0 end
    function m:validate_dealloc() print("OUT gone " .. tostring(self.count)) end
    msys.registerModule("m", m)""")

    async def play() -> None:
        await stage.call(policy, Phase.DATA)
        await stage.call(policy, Phase.DATA)
        stage.session = Session("192.0.2.8:1", "", "2")
        await stage.call(policy, Phase.DATA)
        await stage.call(policy, Phase.DEALLOC)
        stage.session = Session("192.0.2.9:1", "", "3")
        await stage.call(policy, Phase.DEALLOC)  # no callout has run: it is not called

    asyncio.run(play())
    assert stage.said == ["111module", "222module", "113module", "gone 1"]


def test_validate_again(stage: Stage) -> None:
    policy = stage.load("""local m = {}
    function m:validate_data(msg) self.n = (self.n or 0) + 1
      if self.n < 3 then return msys.core.VALIDATE_AGAIN end print("OUT " .. self.n) return msys.core.VALIDATE_DONE end
    function m:validate_set_binding(msg) return msys.core.VALIDATE_AGAIN end
    msys.registerModule("m", m)""")
    assert asyncio.run(stage.call(policy, Phase.DATA)) is None
    assert stage.said == ["3"]
    assert asyncio.run(stage.call(policy, Phase.SET_BINDING)) is not None
    assert "cannot be called again" in stage.faults[0]


def test_a_wait_that_is_given_up_unwinds_the_script(stage: Stage) -> None:
    policy = stage.load("""local m = {}
    function m:validate_data(msg) local ok, why = pcall(msys.sleep, 60) print("OUT " .. tostring(why)) return 0 end
    msys.registerModule("m", m)""")

    async def play() -> None:
        task = asyncio.ensure_future(stage.call(policy, Phase.DATA))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(play())
    assert "the session has ended" in stage.said[0]


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ('attachment; filename="=?utf-8?B?w6QudHh0?="', "\u00e4.txt"),
        ("attachment; filename==?utf-8?Q?=C3=A4?=.txt", "\u00e4.txt"),
        ("attachment; filename=safe.txt; filename*=utf-8''evil.exe", "evil.exe"),
        ("attachment; filename*=utf-8''evil.exe; filename=safe.txt", "evil.exe"),
        ("attachment; filename*0=ev; filename*1=il.exe; filename=safe.txt", "evil.exe"),
        ("attachment; filename*0*=utf-8''%C3; filename*1*=%A4.exe", "\u00e4.exe"),
        ('attachment; filename="evil.exe" (a comment)', "evil.exe"),
        ("attachment; filename=evil.exe (c)", "evil.exe"),
        ("attachment (c; filename=x); (d) filename (e) = (f) evil.exe", "evil.exe"),
        ('attachment (a " b); filename="evil.exe"', "evil.exe"),
        ("attachment (a \\) b; filename=safe.txt); filename=evil.exe", "evil.exe"),
        ("attachment (a (b) c); filename=evil.exe", "evil.exe"),
        ("attachment; filename=evil.exe (no end; filename=x", "evil.exe"),
        ('attachment; filename="a;b.exe"', "a;b.exe"),
        ('attachment; filename="open.exe', "open.exe"),
        ("attachment; filename=a.txt; filename=b.exe", "a.txt"),
        ("attachment; filename=\u00e4.txt", "\u00e4.txt"),
        ("inline", None),
    ],
)
def test_names_of_attachments(field: str, name: str | None) -> None:
    data = f"Content-Disposition: {field}\r\n\r\nx".encode()
    assert mime.filename_of(_tree(data).root) == name


def _tree(data: bytes) -> mime.MimeTree:
    end = data.index(b"\r\n\r\n") + 4
    content = Content(data[:end], len(data), lambda: data)
    return mime.tree_of(MessageView("", "", "", "", "", content, may_edit=True), writable=True)


@pytest.mark.parametrize(
    "field",
    [
        "Content-Type: multipart/mixed; boundary=B",
        "Content-Type : multipart/mixed; boundary=B",
        "Content-Type: (c) multipart/mixed; boundary=B",
        "Content-Type: multipart / mixed; boundary=B",
        "Content-Type: multipart/mixed; (c) boundary=B",
        "Content-Type: multipart/mixed; boundary (c) = B (d)",
        'Content-Type: multipart/mixed (12" disk); boundary=B; x="',
        'Content-Type: multipart/mixed; boundary="B" (c)',
        "Content-Type: MULTIPART/mixed;\r\n\tBoundary=B",
    ],
)
def test_no_spelling_hides_a_part(field: str) -> None:
    body = "--B\r\nContent-Type: text/plain\r\n\r\none\r\n--B\r\nContent-Type: application/x\r\n\r\ntwo\r\n--B--\r\n"
    tree = _tree(f"{field}\r\n\r\n{body}".encode())
    assert [node.get_content_type() for node in tree.root.walk()] == ["multipart/mixed", "text/plain", "application/x"]
    tree.changed()
    assert b"two" in mime.octets(tree.root)


@given(st.lists(st.sampled_from([
    "Content-Type: multipart/mixed\r\n", "Content-Type: multipart/mixed; boundary=B\r\n", "Content-Type: message/rfc822\r\n",
    "Content-Type: text/plain; charset=\u00e4\r\n", "Content-Type: multipart/x; boundary*=utf-8''%c3%a4\r\n", "\r\n", "--B\r\n",
    "--B--\r\n", "\u00e4\r\n", "Content-Transfer-Encoding: base64\r\n", "From x\r\n", "junk\r\n", "Content-Type :",
]), max_size=12))  # fmt: skip
def test_what_was_taken_apart_can_be_written_or_says_why(lines: list[str]) -> None:
    tree = _tree(("A: b\r\n" + "".join(lines) + "\r\n\r\n").encode())
    list(tree.root.walk())
    with contextlib.suppress(ValueError):
        tree.changed()


@pytest.mark.parametrize(("depth", "lines"), [(90, 100_000), (490, 10), (3, 1_000_000)])
def test_parts_within_parts_take_no_minutes(depth: int, lines: int) -> None:
    data = b"A: b\r\n"
    for n in range(depth):
        data += b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
    begun = time.process_time()
    tree = _tree(data + b"\r\n" + b"x\r\n" * lines)
    tree.changed()
    assert time.process_time() - begun < 3
