"""What was demanded of a message holds as long as the message does: no reload, restart or policy weakens it."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.cli.main import main
from quillon.config.load import load
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

MESSAGE = "From: a@sender.test\r\nTo: b@partner.test\r\nSubject: x\r\n\r\nhello\r\n"
REST = 'ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }} Retry_Interval = 1'
CHOOSE = """local m = {} function m:validate_set_binding(msg) msg:binding("strict") return 0 end msys.registerModule("m", m)"""
SCRIPT = 'scriptlet "scriptlet" { script "s" { source = s } }\n'
ROUTE = 'Domain "partner.test" {{ Routes = ( "127.0.0.1:{sink}" ) }}\n'
BEFORE = {
    "binding": 'Binding "strict" { TLS = required TLS_Verify = host Bind_Address = 127.0.0.1 }\n',
    "source": 'Binding "strict" { Bind_Address = 127.0.0.1 }\n',
    "group": 'Binding_Group "g" { Binding "strict" { TLS = required } }\n',
    "moved": 'Binding_Group "g" { Binding "strict" { TLS = required } }\n',
    "option": 'Binding "strict" { TLS = required }\n',
    "domain": 'Domain "partner.test" { TLS = required }\n',
    "pattern": 'Domain "/partner/" { TLS = required }\n',
}
AFTER = {
    "moved": 'Binding_Group "h" { Binding "strict" { } }\n',
    "option": 'Binding "strict" { Bind_Address = 127.0.0.1 }\n',
}


@pytest.mark.parametrize("restart", [False, True], ids=["reload", "restart"])
@pytest.mark.parametrize("kind", BEFORE)
def test_a_demand_outlives_its_stanza(
    server: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, restart: bool
) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(CHOOSE)
    script = SCRIPT if kind not in ("domain", "pattern") else ""
    with SinkThread() as sink:
        rest = ROUTE.format(sink=sink.port) + REST.format(port=port)
        control = f'\nControl_Listener {{ Listen "{tmp_path}/c" {{ }} }}'
        running = server(BEFORE[kind] + script + "Suspend_Delivery = true\n" + rest + control).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@sender.test", ["b@partner.test"], MESSAGE)
        running.configure(AFTER.get(kind, "") + rest + control)
        capsys.readouterr()
        assert main(["check", "-c", str(running.file)]) == 0
        assert "1 messages of the spool would wait: " in capsys.readouterr().out
        if restart:
            assert running.stop() == 0
            running.start()
        else:
            assert main(["console", "-c", str(running.file), "config", "reload"]) == 0
            assert "1 messages wait: " in capsys.readouterr().out
        (event,) = running.wait_events("attempt")[:1]
        assert event["reply"].startswith("451 4.3.5 [internal] the stanza"), event
        assert event["cause"] == "demand_lost"
        waits = "config: 1 messages wait: "
        until(lambda: any(waits in line for line in running.log("paniclog.ec")), "a panic line")
        assert sink.messages == []
        running.configure(
            BEFORE[kind].replace("TLS = required", "TLS = no").replace("TLS_Verify = host", "TLS_Verify = no")
            + rest
            + control
        )
        running.reload()  # the stanza is back and says so itself: that is the operator's word
        until(lambda: sink.messages, "a delivery")


BEATEN = {  # what is in force when the message comes, and what is added
    "binding": ('Domain "partner.test" { TLS = required }', 'Binding "default" { TLS = no }'),
    "domain": ("TLS = required", 'Domain "partner.test" { TLS = no }'),
    "binding's domain": (
        'Binding "default" { TLS = required }',
        'Binding "default" { Domain "partner.test" { TLS = ifavailable } }',
    ),
}


@pytest.mark.parametrize(("before", "added"), BEATEN.values(), ids=BEATEN)
def test_a_weaker_stanza_that_goes_before_it_frees_no_mail(
    server: Callable[..., Server], capsys: pytest.CaptureFixture[str], before: str, added: str
) -> None:
    port = free_port()
    with SinkThread() as sink:
        rest = ROUTE.format(sink=sink.port) + REST.format(port=port)
        running = server(f"{before}\nSuspend_Delivery = true\n{rest}").start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@sender.test", ["b@partner.test"], MESSAGE)
        running.configure(f"{before}\n{added}\n{rest}")
        capsys.readouterr()
        assert main(["check", "-c", str(running.file)]) == 0
        said = capsys.readouterr().out
        assert "1 messages of the spool would wait: " in said
        assert "which is weaker, goes before it" in said
        running.reload()
        (event,) = running.wait_events("attempt")[:1]
        assert event["cause"] == "demand_lost"
        assert any(line.endswith("which is weaker, goes before it") for line in running.log("paniclog.ec"))
        assert sink.messages == []
        running.configure(f"{before}\n{rest}")
        running.reload()
        until(lambda: running.events("attempt")[-1]["cause"] == "no_starttls", "an attempt under what was demanded")
        assert sink.messages == []


def test_mail_that_goes_with_less_is_told_of(server: Callable[..., Server], capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with SinkThread() as sink:
        rest = ROUTE.format(sink=sink.port) + REST.format(port=port)
        text = 'Domain "partner.test" {{ TLS = {} }}\n'
        running = server(f"{text.format('required')}Suspend_Delivery = true\n{rest}").start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@sender.test", ["b@partner.test"], MESSAGE)
        running.configure(text.format("ifavailable") + rest)
        capsys.readouterr()
        assert main(["check", "-c", str(running.file)]) == 0
        words = "TLS = required, TLS_Verify = no was demanded of them, and TLS = ifavailable, TLS_Verify = no by Domain"
        assert f"warning: 1 messages of the spool would go with less: {words}" in capsys.readouterr().out
        running.reload()
        until(lambda: sink.messages, "a delivery")
        assert any(f"config: 1 messages go with less: {words}" in line for line in running.log("paniclog.ec"))


def test_events_tell_what_was_demanded_and_where(server: Callable[..., Server]) -> None:
    port = free_port()
    with SinkThread() as sink:
        text = 'Domain "partner.test" {{ TLS = ifavailable Routes = ( "127.0.0.1:{sink}" ) }}\n' + REST
        running = server(text.format(sink=sink.port, port=port)).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@sender.test", ["b@partner.test"], MESSAGE)
        (event,) = running.wait_events("attempt")
    line = next(n for n, text in enumerate(running.file.read_text().splitlines(), 1) if "ifavailable" in text)
    assert event["tls_option_at"].startswith(f"{running.file}:{line}:")
    assert (event["tls_verify"], event["tls_verify_at"], event["local_ip"]) == ("no", "default", "127.0.0.1")


def test_options_behind_a_gateway_hold_or_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(
        'Domain "bank.fi" { Gateway = "gw.test" Suspend_Delivery = true Retry_Interval = 5 Blackhole = internal }\n'
        'Domain "gw.test" { Retry_Interval = 7 }'
    )
    config = load(file).config
    assert config is not None
    routing = config.outbound.routing("default", "default", "bank.fi")
    assert config.outbound.delivery("default", "default", routing.domain, routing.via)[0].suspend_delivery
    own = config.outbound.for_recipient("default", "default", routing.domain, "bank.fi")
    assert (own.retry_interval, own.blackhole) == (7, "internal")  # the gateway's goes first, where it has one
    for gateway in (
        'Domain "bank.fi" {{ Gateway = "gw.test" {} }}',
        'Gateway = "gw.test" Domain "bank.fi" {{ {} }}',
        'Domain "/bank/" {{ Gateway = "gw.test" }} Domain "bank.fi" {{ {} }}',
    ):
        for option in ("Max_Outbound_Connections = 1", 'Routes = ( "a.test" )', "Remote_SMTP_Port = 26"):
            file.write_text(gateway.format(option))
            (fault,) = load(file).errors
            assert "has no effect: its mail goes to the gateway gw.test" in str(fault)
    names = {name for name, option in config.table.options.items() if option.gateway}
    assert {"tls", "tls_verify", "retry_interval", "suspend_delivery", "exclude_vctx_conn"} <= names


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    from quillon.mail.address import NULL_PATH
    from quillon.mail.message import NULL_ID, Batch, Origin
    from quillon.spool.record import decode_message

    batch = Batch(NULL_ID, NULL_PATH, Origin("", "", NULL_ID), 0.0, 0, None)
    old = ["b", "partner.test", "default", "default", "partner.test", "", 1, 2.0, "450 x", 0, {}, ""]
    message = decode_message(1, json.dumps([2, *old]), batch)
    assert (message.tries, message.routed, message.demand) == (1, "", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TLS_Verify = host", "TLS_Verify in global has no effect: TLS = no there"),
        ('Domain "a.test" { TLS_CA = "/etc/hosts" }', 'TLS_CA in Domain "a.test" has no effect'),
        ('ESMTP_Listener { Listen ":25" { TLS_Verify_Mode = require } }', "TLS_Verify_Mode = require demands nothing"),
        ('ESMTP_Listener { Relay_Hosts = ( 0.0.0.0/1 128.0.0.0/1 ) Listen ":25" { } }', "this is an open relay"),
        ('ESMTP_Listener { Open_Relay = true Listen ":25" { } }', "this is an open relay"),
        ("TLS = no\nTLS = required", "TLS is set twice here: this takes the place of line 1"),
        ("# nothing\n", "is empty: no configuration found"),
        ('ESMTP_Listener { Listen ":25" { Pathway = "strict" } }', 'Pathway "strict" is not defined'),
        ('policy "p" { module = "nowhere.py" }', "cannot read"),
        ('scriptlet "scriptlet" { script "s" { source = nowhere } }', "there is no script 'nowhere'"),
        ('Routes = ( ":" )', "names no host"),
        ('Routes = ( "host:99999" )', "names no host"),
        ('Gateway = "[zz]:25"', "names no host"),
        ('Domain "/^(a+)+$/" { TLS = required }', "may take time without end"),
    ],
)
def test_what_check_names_instead_of_keeping_silent(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(text)
    said = [str(fault) for fault in load(file).faults]
    assert any(words in line for line in said), said


@pytest.mark.parametrize(
    "text",
    [
        'Domain "b" { Gateway = "[2001:db8::25]:25" TLS = required }',
        'Binding "x" { Domain "b" { Gateway = "[2001:db8::25]:25" TLS = required } }',
        'Gateway = "[2001:db8::25]:25"',
        'Domain "2001:db8::25" { TLS = required }',
        'ESMTP_Listener { Listen ":25" { Enable = false TLS_Certificate = "cert.pem" TLS_Key = "key.pem" } }',
        'custom_logger "x" { mainlog = "x.log" delivery_format = "%t" log_receptions = true }',
        'Domain "#gold" { Gateway = "10.0.0.1" }',
    ],
)
def test_what_has_to_load(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(text)
    assert load(file).errors == []


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ('ESMTP_Listener { Enable = false %s Listen ":25" { } }', False),
        ('ESMTP_Listener { Enable = false Listen ":25" { Enable = true %s } }', True),
        ('ESMTP_Listener { Enable = false %s Listen ":25" { Enable = true } }', True),
        ('ESMTP_Listener { Listen ":25" { Enable = false %s } }', False),
        ('ESMTP_Listener { Listen ":25" { Enable = false Peer "10.0.0.0/8" { %s } } }', False),
    ],
)
def test_files_of_a_listen_have_to_be_there_where_it_is_served(tmp_path: Path, text: str, served: bool) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(text % 'TLS_Certificate = "cert.pem" TLS_Key = "key.pem"')
    loaded = load(file)
    assert bool(loaded.tree.inbound.listens()) is served
    assert bool(loaded.errors) is served
    assert any("cannot read" in str(fault) for fault in loaded.faults)
