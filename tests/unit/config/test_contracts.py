"""Contracts are floors, whatever else is configured; what is only reported; where each value is said to come from."""

from pathlib import Path

import pytest

from quillon.config.load import load
from quillon.config.model import Config
from quillon.config.outbound import Routing
from quillon.lab.pki import Authority

PIN = "ab" * 32
LISTEN = (
    'ESMTP_Listener { TLS_Certificate = mx.pem TLS_Key = mx.key SMTP_Extensions = ( STARTTLS ) Listen ":2525" { } }\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority(tmp_path)
    authority.write()
    authority.issue("mx", ["mx.quillon.test"])
    return tmp_path


def config(folder: Path, text: str) -> Config:
    file = folder / "ecelerity.conf"
    file.write_text(LISTEN + text)
    loaded = load(file)
    assert loaded.config is not None, [str(fault) for fault in loaded.errors]
    return loaded.config


def faults(folder: Path, text: str, listen: str = LISTEN) -> list[str]:
    file = folder / "ecelerity.conf"
    file.write_text(listen + text)
    return [fault.message for fault in load(file).faults]


def test_a_contract_raises_what_is_less_and_leaves_what_is_more(folder: Path) -> None:
    found = config(
        folder,
        f"""TLS = no
        TLS_Contract "bank.fi" {{ CA = ca.pem Names = ( "mx.bank.fi" ) SPKI = ( {PIN} ) Min_Version = TLSv1.3 }}
        TLS_Contract "plain.fi" {{ }}
        TLS_Contract "keyed.fi" {{ SPKI = ( "{PIN}" ) }}
        Domain "plain.fi" {{ TLS = required TLS_Verify = ca TLS_CA = ca.pem TLS_Protocols = "TLSv1.3" }}
        TLS_Contract "in.fi" {{ Outbound = no }}""",
    ).outbound
    _, bank = found.delivery("default", "default", "bank.fi")
    assert (bank.tls, bank.tls_verify, bank.tls_ca) == ("required", "host", str(folder / "ca.pem"))
    assert (bank.tls_names, bank.tls_spki) == (("mx.bank.fi",), (PIN,))
    assert bank.tls_protocols == {"TLSv1.3"}
    _, plain = found.delivery("default", "default", "plain.fi")
    assert (plain.tls, plain.tls_verify, plain.tls_ca) == ("required", "host", str(folder / "ca.pem"))
    assert plain.tls_protocols == {"TLSv1.3"}
    _, keyed = found.delivery("default", "default", "keyed.fi")
    assert (keyed.tls, keyed.tls_verify, keyed.tls_ca, keyed.tls_spki) == ("required", "no", None, (PIN,))
    assert found.delivery("default", "default", "in.fi")[1].tls == "no"
    assert found.delivery("default", "default", "other.fi")[1].tls == "no"


def test_it_holds_behind_a_gateway_and_in_every_binding(folder: Path) -> None:
    found = config(
        folder,
        """Binding "b" { TLS = no Gateway = "relay.test" }
        TLS_Contract "bank.fi" { }""",
    ).outbound
    routing = found.routing("default", "b", "bank.fi")
    assert (routing.domain, routing.via) == ("relay.test", "bank.fi")
    assert found.delivery("default", "b", routing.domain, routing.via)[1].tls == "required"
    assert found.routing("default", "b", "other.fi").via == ""


def test_the_first_pattern_and_the_name_itself_decide(folder: Path) -> None:
    contracts = config(
        folder,
        """TLS_Contract "*bank.fi" { Min_Version = TLSv1.3 }
        TLS_Contract "Open.Bank.FI" { Outbound = no }
        TLS_Contract "off.fi" { Enabled = false }""",
    ).contracts
    assert [contracts.inbound_of(name) for name in ("elsewhere.fi", "off.fi", "")] == [None, None, None]
    for name, inbound in (("a.bank.fi", "*bank.fi"), ("bank.fi", "*bank.fi"), ("open.bank.fi", "open.bank.fi")):
        found = contracts.inbound_of(name), contracts.outbound_of(name)
        assert [one.domain for one in found if one is not None] == [inbound, "*bank.fi"]


def test_a_recipient_behind_a_gateway_has_what_both_have_agreed_on(folder: Path) -> None:
    found = config(
        folder,
        """TLS_Contract "bank.fi" { Inbound = no Names = ( a.test b.test ) }
        TLS_Contract "relay.test" { Inbound = no CA = ca.pem Names = ( b.test c.test ) Min_Version = TLSv1.3 }
        TLS_Contract "shop.fi" { SPKI = ( """
        + "ab" * 32
        + """ ) Outbound = no }
        TLS_Contract "other.fi" { Inbound = no Names = ( d.test ) }""",
    ).outbound
    (_, tls) = found.delivery("default", "default", "relay.test", "bank.fi")
    assert (tls.tls_names, tls.tls_protocols, tls.tls_agreed) == (("b.test",), frozenset({"TLSv1.3"}), True)
    assert str(tls.tls_ca).endswith("ca.pem")
    assert found.delivery("default", "default", "relay.test", "other.fi")[1].tls_names == ("invalid",)
    assert found.delivery("default", "default", "relay.test", "shop.fi")[1].tls_names == ("b.test", "c.test")


def test_policy_routes_no_mail_out_of_its_contract(folder: Path) -> None:
    found = config(folder, 'TLS_Contract "bank.fi" { }\nDomain "out.test" { TLS = no }').outbound
    assert found.way("default", "default", "out.test", "bank.fi") == Routing("out.test", "bank.fi")
    assert found.way("default", "default", "out.test", "other.fi") == Routing("out.test")
    assert found.way("default", "default", "", "bank.fi") == Routing("bank.fi")
    assert found.delivery("default", "default", "out.test", "bank.fi")[1].tls == "required"


def test_where_a_demand_comes_from_is_said(folder: Path) -> None:
    found = config(
        folder,
        'TLS_CA = ca.pem\nDomain "bank.fi" { TLS = ifavailable }\nTLS_Contract "bank.fi" {\n  Outbound = required\n}\n',
    ).outbound
    demand = found.demand("default", "default", "bank.fi")
    assert (demand.tls, demand.verify) == ("required", "host")
    assert demand.scopes[:2] == ('TLS_Contract "bank.fi"',) * 2
    assert demand.places[0].endswith(":5:3")
    rows = {row.option.name: row for row in found.explain("default", "default", "bank.fi")}
    assert rows["tls"].value == "required"
    assert [entry.text for _, entry in rows["tls"].beaten] == ["ifavailable"]
    assert rows["tls_ca"].node is not None
    assert rows["tls_ca"].node.kind == "global"


def test_what_is_only_reported_is_loosened_and_says_so(folder: Path) -> None:
    found = config(
        folder,
        """Domain "a.fi" { TLS = required TLS_Verify = host TLS_CA = ca.pem TLS_Enforce = report }
        Domain "b.fi" { TLS = required TLS_Enforce = report }
        TLS_Contract "b.fi" { }""",
    ).outbound
    _, tls = found.delivery("default", "default", "a.fi")
    assert (tls.tls, tls.tls_verify) == ("ifavailable", "optional")
    assert found.reported("default", "default", "a.fi") == ("required", "host", True)
    assert found.reported("default", "default", "c.fi") is None
    demand = found.demand("default", "default", "a.fi")
    assert (demand.tls, demand.verify, demand.scopes[0]) == ("ifavailable", "optional", 'Domain "a.fi"')
    assert found.delivery("default", "default", "b.fi")[1].tls == "required"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('TLS_Contract "bank.fi" { Inbound = no Outbound = no }', "demands nothing"),
        ('TLS_Contract "bank.fi" { CA = no.pem }', "no.pem"),
        ('TLS_Contract "bank.fi" { Inbound = no }\nTLS_Contract "Bank.FI." { Outbound = no }', "stands at"),
        ('TLS_Contract "bank.fi" { SPKI = ( abc ) }', "no SHA-256 of a public key"),
        ('TLS_Contract "bank.fi" { Names = ( "*.bank.fi" ) CA = ca.pem }', "no host name"),
        ('TLS_Contract "bank.fi" { CA = system }', "lets any certificate speak for the domain"),
        ('TLS_Contract "bank.fi" { Names = ( mx.bank.fi ) }', "no client certificate verifies"),
        ('TLS_Contract "bank fi" { }', "is no domain"),
        ("TLS_Contract { }", "needs a name"),
        ('TLS_Contract "a.fi" { Min_Version = TLSv1.3 } Domain "a.fi" { TLS_Protocols = "TLSv1.2" }', "leaves nothing"),
        ('TLS_Contract "a.fi" { Outbund = no }', "did you mean outbound"),
        ('Domain "a.fi" { TLS = required TLS_Enforce = report }', "holds no mail back"),
        ('Domain "a.fi" { TLS_Enforce = report }', "has nothing to report"),
    ],
)
def test_contracts_that_nothing_can_keep_are_faults(folder: Path, text: str, words: str) -> None:
    assert any(words in fault for fault in faults(folder, text)), faults(folder, text)


def test_a_listen_has_to_offer_what_was_agreed_on(folder: Path) -> None:
    plain = 'ESMTP_Listener { Listen ":2525" { } }\n'
    silent = LISTEN.replace("TLS_Key", "TLS_Verify_Mode = none TLS_Key")
    assert any("no Listen has TLS" in fault for fault in faults(folder, 'TLS_Contract "a.fi" { }', plain))
    assert any("asks for a client" in f for f in faults(folder, 'TLS_Contract "a.fi" { CA = ca.pem }', silent))
    assert not faults(folder, 'TLS_Contract "a.fi" { CA = ca.pem }')
