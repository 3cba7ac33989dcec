"""What the console sets and unsets, where that leads, and the tree as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quillon.config import place, written
from quillon.config.changes import ConfigChange
from quillon.config.load import load
from quillon.config.model import Config
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
    ],
)
def test_what_is_not_set_is_not_unset(tmp_path: Path, words: str, fault: str) -> None:
    config, errors = _changed(tmp_path, words, do="unset")
    assert config is None
    assert fault in errors[0]


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
    words = " ".join(f'"{word.translate(written.ESCAPES)}"' for word in many)
    key = f'"{one.translate(written.ESCAPES)}"'
    file.write_text(
        f"""
        opendkim {{ selector = {key} headerlist = ( {words} ) }}
        ESMTP_Listener {{ Listen ":25" {{ Context = [ {key} = "v" k = {key} ] }} }}
        """,
        newline="",
    )
    first = load(file).tree
    assert first.root.children[("opendkim", "opendkim")].settings["selector"].value == one
    file.write_text(_text(first), newline="")
    assert _shape(load(file).tree.root) == _shape(first.root)
