"""Fallback in both directions, by the examples of the manual."""

import ipaddress
from pathlib import Path

import pytest

from quillon.config.endpoint import parse_endpoint
from quillon.config.load import load
from quillon.config.model import Config
from quillon.config.routes import split_gateway
from quillon.config.scope import glob_matches


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "ecelerity.conf"
    file.write_text(
        """
        Retry_Interval = 30
        Domain example.com { Retry_Interval = 120 Max_Outbound_Connections = 20 }
        Domain "/exam/" { Max_Outbound_Connections = 15 Max_Deliveries_Per_Connection = 5 }
        Domain "*.glob.test" { Retry_Interval = 7 }
        Binding example { Retry_Interval = 3600 }
        Binding example3 { }
        Binding_Group grp {
          Retry_Interval = 5
          Domain in-group.test { Retry_Interval = 6 }
          Binding member { Retry_Interval = 15 Domain bank.fi { Retry_Interval = 1 } }
          Binding bare { }
        }
        Binding member { Domain outer.test { Retry_Interval = 2 } }
        ESMTP_Listener {
          Idle_Time = 100
          Peer 10.0.0.0/8 { Idle_Time = 108 Max_Message_Size = 8 }
          Peer 10.1.0.0/16 { Idle_Time = 116 }
          Listen ":25" { Idle_Time = 125 Pathway = p Peer 10.2.0.0/16 { Idle_Time = 216 } }
          Listen ":26" { Banner_Hostname = b.test Pathway = q }
        }
        Pathway p { Banner_Hostname = p.test Max_Message_Size = 9 }
        Pathway_Group g { Max_Recipients_Per_Message = 3 Banner_Hostname = g.test Pathway q { Static_Banner = "220 q" } }
        """
    )
    loaded = load(file)
    assert loaded.config is not None, loaded.faults
    return loaded.config


@pytest.mark.parametrize(
    ("group", "binding", "domain", "seconds"),
    [
        ("default", "default", "other.test", 30),
        ("default", "default", "example.com", 120),
        ("default", "example", "example.com", 3600),  # a binding beats a global Domain
        ("default", "example3", "example.com", 120),  # a stanza without the option is transparent
        ("grp", "member", "bank.fi", 1),
        ("grp", "member", "outer.test", 2),
        ("grp", "member", "in-group.test", 6),  # domain in a group above the binding
        ("grp", "member", "x.test", 15),
        ("grp", "bare", "x.test", 5),  # the group itself behind the binding
        ("default", "default", "a.glob.test", 7),
        ("default", "default", "glob.test", 30),
    ],
)
def test_outbound(config: Config, group: str, binding: str, domain: str, seconds: int) -> None:
    assert config.outbound.delivery(group, binding, domain)[0].retry_interval == seconds


def test_literal_domain_goes_before_patterns_option_by_option(config: Config) -> None:
    settings, _ = config.outbound.delivery("default", "default", "example.com")
    assert (settings.max_outbound_connections, settings.max_deliveries_per_connection) == (20, 5)


@pytest.mark.parametrize(
    ("listen", "peer", "idle"),
    [
        (":25", "192.0.2.1", 125),
        (":25", "10.9.0.1", 108),  # the listener's Peer beats Listen
        (":25", "10.1.0.1", 116),  # the longest prefix
        (":25", "10.2.0.1", 216),  # the Listen's own Peer
        (":26", "192.0.2.1", 100),
    ],
)
def test_inbound(config: Config, listen: str, peer: str, idle: int) -> None:
    assert config.inbound.reception(listen, ipaddress.ip_address(peer))[0].idle_time == idle


def test_pathways_stand_behind_listeners(config: Config) -> None:
    first, _ = config.inbound.reception(":25", ipaddress.ip_address("192.0.2.1"))
    second, _ = config.inbound.reception(":26", ipaddress.ip_address("192.0.2.1"))
    peer, _ = config.inbound.reception(":25", ipaddress.ip_address("10.1.2.3"))
    assert (first.banner_hostname, first.max_message_size) == ("p.test", 9)
    assert (second.banner_hostname, second.static_banner, second.max_recipients_per_message) == ("b.test", "220 q", 3)
    assert (peer.idle_time, peer.max_message_size) == (116, 8)


def test_explain_tells_the_winner_and_what_it_beat(config: Config) -> None:
    rows = {row.option.name: row for row in config.outbound.explain("default", "example", "example.com")}
    row = rows["retry_interval"]
    assert row.value == 3600
    assert row.node is not None
    assert row.node.path == 'Binding "example"'
    assert row.entry is not None
    assert row.entry.position.line == 6
    assert [(node.path, entry.value) for node, entry in row.beaten] == [('Domain "example.com"', 120), ("global", 30)]


def test_a_gateway_rules_the_options_but_not_the_tls_of_the_domain(tmp_path: Path, pki: Path) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(
        f"""Domain bank.fi {{ Gateway = "127.0.0.1:2600" TLS = required TLS_CA = {pki}/ca.pem Retry_Interval = 5 }}
        Domain plain.test {{ Gateway = "127.0.0.1:2600" }}
        Domain 127.0.0.1 {{ Retry_Interval = 9 TLS_Verify = ca TLS_CA = {pki}/other-ca.pem }}"""
    )
    config = load(file).config
    assert config is not None
    routing = config.outbound.routing("default", "default", "bank.fi")
    assert (routing.domain, routing.via) == ("127.0.0.1:2600", "bank.fi")
    settings, tls = config.outbound.delivery("default", "default", routing.domain, routing.via)
    assert settings.retry_interval == 9
    assert (tls.tls, tls.tls_verify, tls.tls_ca) == ("required", "ca", f"{pki}/other-ca.pem")
    plain = config.outbound.routing("default", "default", "plain.test")
    assert plain.via == ""
    assert config.outbound.delivery("default", "default", plain.domain, plain.via)[1].tls == "no"


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        (":25", "0.0.0.0", 25, ""),
        ("*:25", "0.0.0.0", 25, ""),
        ("127.0.0.1:26", "127.0.0.1", 26, ""),
        ("[*]:25", "::", 25, ""),
        ("[2001:db8::1]:587", "2001:db8::1", 587, ""),
        ("/tmp/2025", "", 0, "/tmp/2025"),
    ],
)
def test_endpoints(text: str, host: str, port: int, path: str) -> None:
    assert parse_endpoint(text) == (host, port, path)


def test_gateways_and_globs() -> None:
    assert split_gateway("[::1]:2600") == ("::1", 2600)
    assert split_gateway("mx.test") == ("mx.test", 0)
    assert glob_matches(("*.x.com",), "a.x.com")
    assert not glob_matches(("*.x.com",), "x.com")
    assert glob_matches(("*x.com",), "badx.com")
