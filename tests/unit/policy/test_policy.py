"""Lua scripts: what they can do, and what they cannot."""

import time
from pathlib import Path

import pytest

from quillon.config.settings import ScriptSettings
from quillon.lua.runtime import load_scripts
from quillon.mail.reply import Reply
from quillon.net.eager import at_once
from quillon.policy.context import Context, tls_variables
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Phase, Policy, PolicyError, Session
from quillon.policy.message import Content, MessageView
from quillon.tls.verdict import TlsVerdict

SESSION = Session("192.0.2.1:1234", "127.0.0.1:25", "00/00-00001-00000000")


def _policy(folder: Path, *scripts: str) -> tuple[Policy, list[str]]:
    reports: list[str] = []
    names = []
    for number, text in enumerate(scripts):
        (folder / f"s{number}.lua").write_text(text)
        names.append((f"s{number}", f"s{number}"))
    settings = ScriptSettings(tuple(names), 200, 200, True)
    return Policy(
        at_once(load_scripts(settings, [folder], Environment(lambda: 12.5, reports.append))), reports.append
    ), reports


def _run(policy: Policy, phase: Phase = Phase.MAILFROM, context: Context | None = None, **more: object) -> Reply | None:
    context = context or Context({"tls": "on"}, {"mailfrom_domain": "bank.fi"})
    return at_once(policy.run(Call(phase, SESSION, context, "MAIL FROM:<a@bank.fi>", **more)))  # type: ignore[arg-type]


def _module(body: str, phase: str = "validate_mailfrom", arguments: str = "str, ac, vctx", name: str = "m") -> str:
    return f"""require("msys.core")
    local mod = {{}}
    function mod:{phase}({arguments}) {body} return msys.core.VALIDATE_CONT end
    msys.registerModule("{name}", mod)"""


def test_a_script_reads_the_context_and_refuses(tmp_path: Path) -> None:
    policy, reports = _policy(
        tmp_path,
        _module("""
          if vctx:get(msys.core.VCTX_CONN, "tls") == "on" and vctx:get(msys.core.VCTX_CONN, "tls_client_verified") == nil
             and str == "MAIL FROM:<a@bank.fi>" and ac.remote_addr == "192.0.2.1:1234" then
            vctx:set_code(550, "5.7.1 certificate needed")
          end"""),
    )
    assert _run(policy) == Reply(550, "5.7.1", "certificate needed")
    assert _run(policy, context=Context({"tls": "on", "tls_client_verified": "yes"})) is None
    assert reports == []


def test_modules_run_in_order_until_one_is_done_or_refuses(tmp_path: Path) -> None:
    mark = 'vctx:set(msys.core.VCTX_MESS, "{0}", 1)'
    policy, _ = _policy(
        tmp_path,
        _module(mark.format("first"), name="one"),
        _module(mark.format("second") + " do return msys.core.VALIDATE_DONE end", name="two"),
        _module(mark.format("third"), name="three"),
    )
    context = Context()
    assert _run(policy, context=context) is None
    assert context.message == {"first": "1", "second": "1"}


def test_disconnect(tmp_path: Path) -> None:
    policy, _ = _policy(tmp_path, _module('vctx:disconnect("421", "4.7.1 bye\\r\\nnow")'))
    context = Context()
    assert _run(policy, context=context) == Reply(421, "4.7.1", "bye\nnow")
    assert context.disconnect
    assert context.module == "m"


def test_hanging_up_is_never_a_positive_answer(tmp_path: Path) -> None:
    policy, _ = _policy(tmp_path, _module('vctx:disconnect(250, "fine")'))
    assert _run(policy) == Reply(421, "", "fine")


def test_message_and_bindings(tmp_path: Path) -> None:
    policy, _ = _policy(
        tmp_path,
        _module(
            'if msg:header("subject")[1] == "folded twice" and #msg:header("x") == 2 then msg:binding("b1") end',
            "validate_set_binding",
            "msg",
        ),
    )
    view = MessageView("i", "b", "c", "a@x", "b@y", Content(b"Subject: folded\r\n twice\r\nX: 1\r\nx: 2\r\n\r\n", 10))
    assert _run(policy, Phase.SET_BINDING, message=view) is None
    assert view.binding == "b1"


@pytest.mark.parametrize(
    "body",
    [
        "error('boom')",
        "local x = nil + 1",
        "vctx:set_code('many', 'x')",
        "vctx:set_code(99, 'x')",
        "vctx:get(7, 'x')",
        "do return 42 end",
        "do return nil end",
    ],
)
def test_a_failing_script_is_a_451_and_a_line_that_names_it(tmp_path: Path, body: str) -> None:
    policy, reports = _policy(tmp_path, _module(body))
    reply = _run(policy)
    assert reply is not None
    assert (reply.code, reply.enhanced) == (451, "4.3.0")
    assert len(reports) == 1
    assert "validate_mailfrom error in m" in reports[0]


def test_who_returns_nothing_has_decided_nothing_but_what_was_refused(tmp_path: Path) -> None:
    policy, reports = _policy(tmp_path, _module("do return end"))
    assert _run(policy) is None
    assert len(reports) == 1
    assert reports[0].endswith("it returned nothing")
    for ending in ("do return end", "do return nil end", "do return true end"):
        policy, reports = _policy(tmp_path, _module(f"vctx:set_code(550, 'no') {ending}"))
        assert _run(policy) == Reply(550, "", "no")
        assert len(reports) == (ending != "do return end")


def test_globals_belong_to_a_script(tmp_path: Path) -> None:
    (tmp_path / "helper.lua").write_text("function twice(n) return 2 * n end return {count = 0}")
    (tmp_path / "old.lua").write_text("module('old.style', package.seeall) function f() return tostring(1) end")
    scripts = [
        f"""mod = {{}} limit = {n} helper = require('helper') require('old')
        function mod:validate_mailfrom(str, ac, vctx)
          helper.count = helper.count + 1
          vctx:set(2, 'seen{n}', limit .. twice({n}) .. helper.count .. old.style.f() .. tostring(_G.limit) .. tostring(other))
          return msys.core.VALIDATE_CONT
        end
        msys.registerModule('m{n}', mod)"""
        for n in (1, 2)
    ]
    policy, reports = _policy(tmp_path, *scripts)
    context = Context()
    assert _run(policy, context=context) is None, reports
    assert (context.message["seen1"], context.message["seen2"]) == ("12111nil", "24112nil")


@pytest.mark.parametrize(
    "attack",
    [
        "os.execute('true')", "io.open('/etc/passwd')", "require('ffi')", "require('os').getenv('HOME')",
        "require('io').popen('true')", "debug.getinfo(1)", "setfenv(1, {})", "module('m')", "pcall(module, 'm') error()",
        "assert(loadstring('\\27LJ'))()", "assert(loadstring('os.exit()'))()", "string.byte = function() return 1 end assert(loadstring('\\27LJ'))()",
        "package.loadlib('x', 'y')", "dofile('/etc/passwd')", "python.eval('1')", "jit.off()",
        "getmetatable(vctx).__index = nil", "vctx.get.__globals__.x()", "string.dump(print)", "require('../../etc/passwd')",
        "getfenv(0).x = 1", "vctx._call.session()", "newproxy()",
    ],
)  # fmt: skip
def test_scripts_reach_nothing_beyond_the_api(tmp_path: Path, attack: str) -> None:
    policy, reports = _policy(tmp_path, _module(attack))
    reply = _run(policy)
    assert reply is not None, attack
    assert reply.code == 451
    assert len(reports) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("local x = ", "s0.lua:1"),
        ("local x = 1", "registers no module"),
        ("msys.registerModule('m', {})", "no usable methods"),
        ("msys.registerModule('m', 5)", "s0.lua:1"),
        ("local m = {} function m:init() return false end msys.registerModule('m', m)", "did not return true"),
        ("require('nothing.here')", "there is no nothing/here.lua in"),
        ("\x1bLJ\x02", "bytecode"),
    ],
)
def test_scripts_that_cannot_be_loaded(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        _policy(tmp_path, text)


def test_scripts_share_modules_and_print_to_the_paniclog(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/words.lua").write_text("return {hello = 'hi'}")
    text = _module("print(require('lib.words').hello, 1, msys.core.get_now_ts())")
    policy, reports = _policy(tmp_path, text)
    assert _run(policy) is None
    assert reports == ["scriptlet: hi 1 12.5"]


def test_keys_without_a_client_certificate_are_absent() -> None:
    found = tls_variables(TlsVerdict("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, 256, "X25519", None, True))
    assert found["tls"] == "on"
    assert not [key for key in found if key.startswith("tls_client")]


def _limited(folder: Path, body: str, *, cpu: int = 100, memory: int = 16) -> tuple[Policy, list[str]]:
    reports: list[str] = []
    (folder / "s.lua").write_text(_module(body))
    settings = ScriptSettings((("s", "s"),), 200, 200, True, cpu, memory)
    return Policy(
        at_once(load_scripts(settings, [folder], Environment(lambda: 12.5, reports.append))), reports.append
    ), reports


@pytest.mark.parametrize(
    "body",
    [
        "while true do end",
        "local function again() return again() end again()",
        "while true do pcall(function() while true do end end) end",
        "local co = coroutine.wrap(function() while true do end end) co()",
        "local t = setmetatable({}, {__index = function(t, k) while true do end end}) local _ = t.x",
        "while true do local _ = ('x'):rep(10) end",
        "xpcall(function() while true do end end, function() while true do end end)",
        "for _ = 1, 60 do local _ = (('ab '):rep(1000000)):gsub('b', 'c') end",
        # what one search with a pattern can take
        "local _ = ('x' .. (' '):rep(200000) .. 'y'):match('^%s*(.-)%s*$')",
        "pcall(string.find, ('a'):rep(1000), ('a-'):rep(12) .. '[^a]')",
        "for _ in (('('):rep(200000)):gmatch('%b()') do end",
        "local _ = (('ab'):rep(100000)):gsub('.-.-.-[^ab]', function() end)",
        "while true do local _ = ('ab'):rep(100):find('.-.-c') end",
        "local n = 0 while true do n = n + 1 local _ = (('x'):rep(10000)):find('(.-.-)' .. n) end",
        "for _ in (('^'):rep(100000)):gmatch('^.-\\n') do end",
        "local _ = (('a'):rep(60)):find(('a?'):rep(26) .. 'b')",
        "local _ = (('b'):rep(4000)):find('[%b].-.-.-z[a]')",
        "local _ = (('a'):rep(900000)):match(('a'):rep(1900) .. '[b]')",
        "local _ = (('a'):rep(2000000)):find(('a'):rep(150000) .. 'b', 1, true)",
        "local _ = (('()'):rep(100000)):find(('%b()'):rep(100) .. 'x')",
        "local s = (' '):rep(3000000) .. 'x' for _ = 1, 60 do local _ = s:match('^%s*(.-)x?y') end",
        "local s = ('x'):rep(3000000) while true do local _ = s:reverse():upper() end",
        "local s = ('x'):rep(2000000) while true do msys.base64.encode(s) end",
        "local t = {} for i = 1, 2000000 do t[i] = -i end while true do table.insert(t, 1, 0) table.remove(t, 1) end",
        "local t = {} for i = 1, 300000 do t[i] = i * 7919 % 300007 end while true do table.sort(t) t[1] = 9e9 end",
    ],
)
def test_a_script_that_loops_is_stopped(tmp_path: Path, body: str) -> None:
    policy, reports = _limited(tmp_path, "if str == 'MAIL FROM:<a@bank.fi>' and ac.conn_id then " + body + " end")
    for _ in range(2):
        assert _run(policy) == Reply(451, "4.3.0", "policy error, please try later")
    assert len(reports) == 2
    assert "s.lua:3: stopped after more than 100 ms of CPU" in reports[0]
    assert "validate_mailfrom" in reports[0]


def test_the_next_callout_has_its_own_time(tmp_path: Path) -> None:
    policy, reports = _limited(tmp_path, "if vctx:get(msys.core.VCTX_MESS, 'loop') then while true do end end", cpu=50)
    for _ in range(3):
        assert _run(policy, context=Context({}, {"loop": "yes"})) is not None
        for _ in range(100):
            assert _run(policy, context=Context({}, {})) is None
    assert len(reports) == 3


def test_a_script_that_eats_memory_is_stopped(tmp_path: Path) -> None:
    policy, reports = _limited(
        tmp_path,
        "if vctx:get(msys.core.VCTX_MESS, 'eat') then local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1000) .. i end end",
        cpu=0,
    )
    for _ in range(3):
        assert _run(policy, context=Context({}, {"eat": "yes"})) is not None
        assert _run(policy, context=Context({}, {})) is None
    assert "the scripts hold more than 16 MiB (Memory_Limit)" in reports[0]


def test_a_script_that_keeps_what_clients_send_ends_with_451_and_no_worker(tmp_path: Path) -> None:
    """Memory that stays held: callouts are refused as long as it is, and let go of, go on."""
    (tmp_path / "s.lua").write_text(
        """local keep, n = {}, 0
        local m = {}
        function m:validate_mailfrom(str, ac, vctx)
          if vctx:get(msys.core.VCTX_MESS, "grow") then n = n + 1 keep[n] = ("x"):rep(2000) .. n end
          return msys.core.VALIDATE_CONT
        end
        msys.registerModule("m", m)"""
    )
    reports: list[str] = []
    settings = ScriptSettings((("s", "s"),), 200, 200, True, 0, 4)
    policy = Policy(
        at_once(load_scripts(settings, [tmp_path], Environment(time.monotonic, reports.append))), reports.append
    )
    answers = [_run(policy, context=Context({}, {"grow": "yes"})) for _ in range(6000)]
    assert answers[0] is None
    assert answers[-1] == Reply(451, "4.3.0", "policy error, please try later")
    assert "the scripts hold more than 4 MiB (Memory_Limit)" in reports[-1]


def test_a_late_error_of_its_own_does_not_spoil_the_next_callout(tmp_path: Path) -> None:
    policy, _ = _limited(
        tmp_path,
        "if vctx:get(msys.core.VCTX_MESS, 'bad') then for i = 1, 1e5 do local _ = i end error('own') end",
        cpu=1,
    )
    for _ in range(200):
        assert _run(policy, context=Context({}, {"bad": "yes"})) is not None
        assert _run(policy, context=Context({}, {})) is None


def test_a_script_that_loops_when_it_is_loaded_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "s.lua").write_text("while true do end")
    settings = ScriptSettings((("s", "s"),), 200, 200, True, 100, 16)
    with pytest.raises(PolicyError, match=r"s\.lua:1: stopped after more than 100 ms of CPU"):
        at_once(load_scripts(settings, [tmp_path], Environment(lambda: 12.5, print)))


def test_a_metatable_of_a_module_is_within_the_limit_and_may_have_its_callouts(tmp_path: Path) -> None:
    text = "msys.registerModule('m', setmetatable({init = true}, {__index = function(t, k) %s end}))"
    with pytest.raises(PolicyError, match="stopped after more than"):
        _policy(tmp_path, text % "while true do end")
    policy, _ = _policy(tmp_path, text % "if k == 'validate_mailfrom' then return function() error('here') end end")
    assert _run(policy) == Reply(451, "4.3.0", "policy error, please try later")


def test_a_callout_that_would_never_be_called_is_refused(tmp_path: Path) -> None:
    good = "function mod:validate_ehlo(str, ac, vctx) return 0 end "
    for name, words in (
        ("validate_mailfrm", "did you mean validate_mailfrom?"),
        ("msg_gen_data_spool", "does not have"),
    ):
        text = _module("", name).replace("msys.registerModule", good + "msys.registerModule")
        with pytest.raises(PolicyError) as error:
            _policy(tmp_path, text)
        assert words in str(error.value)
    _policy(tmp_path, _module("").replace("msys.registerModule", "function mod:helper() end msys.registerModule"))
    for name in ("check_address", "reinit", "get_tls_parameters", "init2"):
        helper = f"function mod:{name}() end msys.registerModule"
        _policy(tmp_path, _module("").replace("msys.registerModule", helper))
    for name in ("validate_address", "core_helper", "core_log_rejection"):  # beside a known one, too
        text = _module("", name).replace("msys.registerModule", good + "msys.registerModule")
        with pytest.raises(PolicyError, match="would never be called"):
            _policy(tmp_path, text)


@pytest.mark.parametrize(
    "body",
    [
        "local function f() local c = coroutine.create(f) return coroutine.resume(c) end f()",
        "local function f() coroutine.wrap(f)() end pcall(f)",
        "local function r() return (('a'):gsub('a', r)) end pcall(r)",
        "local t t = setmetatable({}, {__index = function() return (('a'):gsub('a', t)) end}) pcall(string.gsub, 'a', 'a', t)",
        "local t = {} for i = 1, 400 do pcall(function() t[i] = msys.base64.encode(('z'):rep(2000000) .. i) end) end",
        "local t = {} for i = 1, 400 do pcall(function() t[i] = ('z'):rep(2000000) .. i end) pcall(msys.dumper.Dumper, t) end",
        "local s = 'x' for i = 1, 60 do pcall(function() s = s .. s vctx:set(2, 'k', s) vctx:get(2, 'k') end) end",
        "local big = ('z'):rep(5000000) local t = {} for i = 1, 50 do pcall(function() t[i] = {msys.pcre.split(big, 'q')} end) end",
    ],
)
def test_no_script_takes_the_worker_with_it(tmp_path: Path, body: str) -> None:
    """Each of these ended the process, or never ended, before there was a limit."""
    policy, _ = _limited(tmp_path, body, cpu=2000, memory=16)
    _run(policy)
    policy, reports = _limited(tmp_path, "vctx:set(2, 'still', 'here')")
    context = Context()
    assert _run(policy, context=context) is None
    assert (context.message["still"], reports) == ("here", [])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("do return nil end", "s.lua:3: it returned nil, not VALIDATE_CONT, VALIDATE_DONE or VALIDATE_AGAIN"),
        ("do return true end", "s.lua:3: it returned true, not VALIDATE_CONT, VALIDATE_DONE or VALIDATE_AGAIN"),
        ("do return 17 end", "s.lua:3: it returned 17, not"),
        ("local _ = ('x'):find('[a')", "s.lua:3: malformed pattern (missing ']')"),
        ("local _ = (('x'):rep(9000000)):match('.*.*[a')", "s.lua:3: malformed pattern"),
        ("local _ = ('x'):find('x', {})", "s.lua:3: bad argument #2 to 'find'"),
        ("local _ = ('x'):rep({})", "s.lua:3: bad argument #2"),
        ("error({})", "validate_mailfrom error in m"),
        ("do return setmetatable({}, {__tostring = function() while true do end end}) end", "it returned a table, not"),
        ("require({})", "s.lua:3: require takes a name"),
        ("vctx:set(2, 'k', ('x'):rep(65537))", "s.lua:3: a value of a context has 65536 characters at most"),
        ("vctx:set(2, 'k\\nx', 'v')", "s.lua:3: a context has 1000 keys at most, of 256 printable characters"),
        ("for i = 1, 1001 do vctx:set(2, 'k' .. i, 'v') end", "s.lua:3: a context has 1000 keys at most"),
    ],
)
def test_every_error_has_its_place(tmp_path: Path, body: str, words: str) -> None:
    policy, reports = _limited(tmp_path, body)
    assert _run(policy) == Reply(451, "4.3.0", "policy error, please try later")
    assert words in reports[0], reports


def test_a_misspelt_callout_alone_is_named(tmp_path: Path) -> None:
    for name, words in (
        ("validate_mailfrm", "m: validate_mailfrm is no callout; did you mean validate_mailfrom?"),
        ("Validate_Mailfrom", "m: Validate_Mailfrom is no callout; did you mean validate_mailfrom?"),
        ("validate_sender", "m: validate_sender is not a callout of this version; it would never be called"),
        ("check_sender", "no usable methods found for module m in registerModule call; it has check_sender"),
    ):
        with pytest.raises(PolicyError) as raised:
            _policy(tmp_path, f"local m = {{}} function m:{name}() return 0 end msys.registerModule('m', m)")
        assert words in str(raised.value)
