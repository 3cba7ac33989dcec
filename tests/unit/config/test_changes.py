"""What the console sets and unsets, where that leads, and the tree as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quillon.config import place, written
from quillon.config.changes import ConfigChange, loggable
from quillon.config.load import load
from quillon.config.model import Config
from quillon.config.options import table
from quillon.config.scope import Node

FILE = """
Connect_Timeout = 20
outbound_smtp_auth_pass = "hush"
Binding "b1" {
  TLS = ifavailable
  Domain "bank.fi" { TLS = required }
}
Domain "/shop[.]/" { TLS = no }
Binding_Group "g" { Binding "b2" { Retry_Interval = 7 } }
ESMTP_Listener {
  Relay_Hosts = ( "127.0.0.0/8" "10.0.0.0/8" )
  Listen "127.0.0.1:2525" { Pathway = "in" Peer "192.0.2.0/24" { Idle_Time = 3 } }
}
Pathway "in" { Max_Message_Size = 1000 }
ec_logger { mainlog = main.ec }
"""


def _changed(folder: Path, *words: str, do: str = "set", text: str = FILE) -> tuple[Config | None, list[str]]:
    file = folder / "ecelerity.conf"
    file.write_text(text)
    loaded = load(file, changed=[ConfigChange(do, tuple(one.split()), "console (ann)") for one in words])
    return loaded.config, [str(fault) for fault in loaded.errors]


def _value(config: Config | None, words: str) -> object:
    assert config is not None
    found = place.read(words.split(), config.root, config.table)
    return place.effective(config, found, place.option(found, found.rest[0], config.table)).value


@pytest.mark.parametrize(
    ("words", "asked", "value"),
    [
        ("connect_timeout 5", "Connect_Timeout", 5),
        ("Connect_Timeout = 5", "connect_timeout", 5),
        ("connect_timeout=5", "domain x.test connect_timeout", 5),
        ("binding b1 domain bank.fi tls = no tls_verify = ca", "binding b1 domain bank.fi tls", "no"),
        ("binding b1 domain bank.fi tls = no tls_verify = ca", "binding b1 domain bank.fi tls_verify", "ca"),
        ("domain NEW.test. tls required", "domain new.test tls", "required"),
        ("esmtp_listener relay_hosts ( 127.0.0.0/8 )", "esmtp_listener listen 127.0.0.1:2525 connect_timeout", None),
        ("pathway in max_message_size 7", "esmtp_listener listen 127.0.0.1:2525 max_message_size", 7),
        ("esmtp_listener listen 127.0.0.1:2525 peer 192.0.2.0/24 idle_time 9",
         "esmtp_listener listen 127.0.0.1:2525 peer 192.0.2.0/24 idle_time", 9),
        ("ec_logger heartbeat 3", "ec_logger heartbeat", 3),
        ("ec_logger second heartbeat 3", "ec_logger second heartbeat", 3),
        ("domain bank.fi gateway [2001:db8::1]:25", "domain bank.fi gateway", ("2001:db8::1", 25)),
        ("domain bank.fi outbound_smtp_auth_user (a)", "domain bank.fi outbound_smtp_auth_user", "(a)"),
        ("domain bank.fi tls=no tls_verify=ca", "domain bank.fi tls_verify", "ca"),
        ("opendkim headerlist ( a,b c )", "opendkim headerlist", ("a,b", "c")),
        ("opendkim headerlist ( a=b c )", "opendkim headerlist", ("a=b", "c")),
        ("opendkim headerlist = (a, b)", "opendkim headerlist", ("a", "b")),
        ("esmtp_listener context = [ k = v x=y ]", "esmtp_listener context", {"k": "v", "x": "y"}),
    ],
)  # fmt: skip
def test_what_is_set_holds_where_it_was_set(tmp_path: Path, words: str, asked: str, value: object) -> None:
    config, errors = _changed(tmp_path, words)
    assert errors == []
    if value is None:
        with pytest.raises(ValueError, match="connect_timeout cannot stand in ESMTP_Listener"):
            _value(config, asked)
    else:
        assert _value(config, asked) == value


def test_fallback_is_that_of_the_manual(tmp_path: Path) -> None:
    config, _ = _changed(tmp_path)
    for asked, value in (
        ("binding b1 tls", "ifavailable"),
        ("binding b1 domain bank.fi tls", "required"),
        ("binding b1 domain other.test tls", "ifavailable"),
        ("domain bank.fi tls", "no"),  # that of b1 holds in b1 only
        ("domain a.shop.test tls", "no"),
        ("domain /shop[.]/ connect_timeout", 20),
        ("binding_group g binding b2 retry_interval", 7),
        ("binding b2 retry_interval", 7),
        ("binding_group g retry_interval", 1200),
        ("esmtp_listener listen 127.0.0.1:2525 max_message_size", 1000),
    ):
        assert _value(config, asked) == value, asked


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("domian bank.fi tls no", "there is no option or scope domian; did you mean domain"),
        ("domain bank.fi tsl no", "there is no option or scope tsl in Domain bank.fi; did you mean tls"),
        ("domain bank.fi tls perhaps", "console (ann): tls = 'perhaps': it is one of no, ifavailable, required"),
        ("domain", "domain wants a name"),
        ("domain a..b tls no", "is no domain, IP address, /pattern/ or *suffix"),
        ("connect_timeout", "config set [SCOPE [NAME]]... OPTION"),
        ("connect_timeout 1 2", "connect_timeout has 2 values"),
        ("esmtp_listener relay_hosts ( 127.0.0.0/8", "relay_hosts: the list of line 1 is not closed"),
        ("connect_timeout ( 1 ) evil { }", "connect_timeout"),
        ("listen :25 enable true", "there is no option or scope listen"),
        ("outbound_smtp_auth_pass x", "outbound_smtp_auth_pass is secret"),
        ("tls_engine schannel", "tls_engine = 'schannel'"),
        ("tls_contract bank.fi min_version TLSv1.3", "is changed in the file"),
        ("opendkim selector a\0b", "such characters are written into the file"),
        ("opendkim selector “b”", "such characters are written into the file"),
    ],
)
def test_what_is_no_change_is_refused_with_its_origin(tmp_path: Path, words: str, fault: str) -> None:
    config, errors = _changed(tmp_path, words)
    assert config is None
    assert "console (ann)" in errors[0]
    assert fault in errors[0]


def test_options_and_scopes_are_unset(tmp_path: Path) -> None:
    config, errors = _changed(tmp_path, "binding b1 domain bank.fi tls", "connect_timeout", "pathway in", do="unset")
    assert errors == []
    assert _value(config, "binding b1 domain bank.fi tls") == "ifavailable"
    assert _value(config, "connect_timeout") != 20
    assert _value(config, "esmtp_listener listen 127.0.0.1:2525 max_message_size") != 1000
    config, _ = _changed(tmp_path, "domain /shop[.]/", do="unset")
    assert config is not None
    assert config.root.matching("domain", "a.shop.test") == []


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("", "a server without options serves nobody"),
        ("domain bank.fi", "there is no Domain bank.fi"),
        ("domain /shop[.]/ connect_timeout", "connect_timeout is not set in Domain /shop[.]/"),
        ("connect_timeout 3", "config unset"),
        ("tls_contract bank.fi min_version", "is changed in the file"),
    ],
)
def test_what_is_not_set_is_not_unset(tmp_path: Path, words: str, fault: str) -> None:
    config, errors = _changed(tmp_path, words, do="unset")
    assert config is None
    assert fault in errors[0]


def test_what_peers_and_groups_have_is_what_sessions_have(tmp_path: Path) -> None:
    text = """
    ESMTP_Listener {
      Max_Message_Size = 1000
      Peer "127.0.0.0/8" { Max_Message_Size = 3000 }
      Listen ":25" { Max_Message_Size = 2000 Peer "127.0.0.0/16" { } }
    }
    Pathway_Group "pg" { Max_Message_Size = 70 Pathway "p" { } }
    Binding "default" { Connect_Timeout = 21 }
    Binding_Group "g1" { Connect_Timeout = 22 Binding "b2" { } }
    """
    config, errors = _changed(tmp_path, text=text)
    assert errors == []
    for asked, value in (
        ("esmtp_listener listen :25 peer 127.0.0.0/16 max_message_size", 3000),
        ("esmtp_listener listen :25 peer 192.0.2.1 max_message_size", 2000),
        ("esmtp_listener listen :25 max_message_size", 2000),
        ("esmtp_listener peer 127.0.0.0/8 max_message_size", 3000),
        ("pathway p max_message_size", 70),
        ("binding_group g1 domain x.test connect_timeout", 22),
        ("binding_group g1 binding b2 domain x.test connect_timeout", 22),
        ("domain x.test connect_timeout", 21),
    ):
        assert _value(config, asked) == value, asked


@pytest.mark.parametrize(
    ("words", "logged"),
    [
        (["domain", "bank.fi", "tls", "no"], "domain bank.fi tls no"),
        (["outbound_smtp_auth_pass", "lost"], "outbound_smtp_auth_pass (hidden)"),
        (["domain", "b.fi", "tls", "=", "no", "outbound_smtp_auth_pass=lost"],
         "Domain b.fi tls outbound_smtp_auth_pass (hidden)"),
        (["domain bank.fi outbound_smtp_auth_pass lost"], "(hidden)"),
        (["outbound_smtp_auth_pass = lost"], "(hidden)"),
        (["outbound_smtp_auth_passwd", "lost"], "(hidden)"),
        (["datasource", "d", "uri", "pgsql:password=lost"], "Datasource d uri (hidden)"),
        (["acme", "a", "external_account_key", "lost"], "Acme a external_account_key (hidden)"),
    ],
)  # fmt: skip
def test_no_log_has_what_is_secret(words: list[str], logged: str) -> None:
    assert loggable("set", words, table()) == logged


def test_evidence_tells_changed_configurations_apart(tmp_path: Path) -> None:
    plain, _ = _changed(tmp_path)
    changed, _ = _changed(tmp_path, "domain bank.fi tls no")
    assert plain is not None
    assert changed is not None
    assert plain.digest == plain.files_digest == changed.files_digest != changed.digest


def test_the_origin_takes_the_place_of_file_and_line(tmp_path: Path) -> None:
    config, _ = _changed(tmp_path, "domain bank.fi tls required")
    assert config is not None
    row = next(row for row in config.outbound.explain("default", "default", "bank.fi") if row.option.name == "tls")
    assert row.entry is not None
    assert str(row.entry.position) == "console (ann)"


def _text(config: Config) -> str:
    return "\n".join(written.lines(config.root, config.table, deep=True)) + "\n"


def _shape(node: Node) -> object:
    options = {name: (entry.value, entry.text) for name, entry in node.settings.items()}
    return options, {key: _shape(child) for key, child in node.children.items()}


def test_the_tree_as_text_hides_secrets_and_names_scopes(tmp_path: Path) -> None:
    config, _ = _changed(tmp_path)
    assert config is not None
    text = _text(config)
    assert "hush" not in text
    assert 'outbound_smtp_auth_pass = "(hidden)"' in text
    assert (
        "  Listen 127.0.0.1:2525 {\n    pathway = in\n    Peer 192.0.2.0/24 {\n      idle_time = 3\n    }\n  }\n"
        in text
    )
    assert list(written.lines(config.root, config.table, deep=False))[-1] == "Ec_Logger ec_logger { ... }"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0“”", exclude_categories=["Cs"]), max_size=12), max_size=3),
    st.text(st.characters(exclude_characters="\0“”", exclude_categories=["Cs"]), min_size=1, max_size=12),
)
def test_text_of_a_tree_gives_the_tree_again(
    tmp_path_factory: pytest.TempPathFactory, many: list[str], one: str
) -> None:
    file = tmp_path_factory.mktemp("tree") / "ecelerity.conf"
    words = " ".join(map(written.in_quotes, many))
    key = written.in_quotes(one)
    file.write_text(
        f"""
        opendkim {{ selector = ( {key} ) headerlist = ( {words} ) }}
        datasource "" {{ }}
        ESMTP_Listener {{ Listen ":25" {{ Context = [ {key} = "v" k = {key} ] }} }}
        """,
        newline="",
    )
    first = load(file).tree
    assert first.root.children[("opendkim", "opendkim")].settings["selector"].value == one
    file.write_text(_text(first), newline="")
    assert _shape(load(file).tree.root) == _shape(first.root)
