"""Files to a configuration, or every fault with its place."""

from pathlib import Path

import pytest

from quillon.config.load import Loaded, load
from quillon.config.options import table


def _load(folder: Path, text: str) -> Loaded:
    file = folder / "ecelerity.conf"
    file.write_text(text)
    return load(file)


def _errors(loaded: Loaded) -> list[str]:
    return [f"{fault.position.line}:{fault.position.column}: {fault.message}" for fault in loaded.errors]


def _warnings(loaded: Loaded) -> list[str]:
    return [fault.message for fault in loaded.faults if fault.warning]


def test_a_certificate_and_a_key_that_are_missing_are_both_told(tmp_path: Path) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text("TLS_Certificate = no.pem\nTLS_Key = no.key\n")
    assert [fault.position.line for fault in load(file).errors] == [1, 2]


def test_every_option_has_a_known_type_status_and_default() -> None:
    from quillon.config.options import default

    rows = [*table().options.values(), *(o for m in table().modules.values() for o in m.options.values())]
    assert len(rows) > 200
    for option in rows:
        assert option.status in ("honoured", "accepted", "refused"), option.name
        assert option.doc.endswith("."), option.name
        assert option.scopes, option.name
        default(option, "/")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Idle_Tme = 3", "1:1: unknown option Idle_Tme"),
        ("Retry_Intervall = 3", "did you mean retry_interval?"),
        ("TLS = maybe", "1:7: tls = 'maybe': it is one of no, ifavailable, required"),
        ("Frob { }", "1:1: unknown stanza Frob"),
        ("Domian x.test { }", "did you mean domain?"),
        ("Listen :25 { }", "Listen cannot stand at the top of the file; it belongs in ESMTP_Listener"),
        ("Domain a.test { Idle_Time = 3 }", "Idle_Time cannot stand in Domain; it belongs in"),
        ("ESMTP_Listener { Listen :25 { Peer 10.0.0.1/8 { } } }", "is no IP address or CIDR block"),
        ("ESMTP_Listener { Listen :99999 { } }", "no address to listen on"),
        ("ESMTP_Listener { Relay_Hosts = ( foo.com ) }", "no IP address or CIDR block"),
        ("MailerDaemon = \"a b@x\"", "malformed local part"),
        ("Retry_Interval = 20m", "no whole number"),
        ("Retry_Interval = -1", "cannot be negative"),
        ("Use_IPv6 = perhaps", "no boolean"),
        ("TLS_Protocols = +ALL:-TLSv9", "no protocol"),
        ("TLS_Protocols = -ALL", "leaves no protocol"),
        ("XCLIENT = required", "cannot be honoured"),
        ("Delivery_Method = LMTP", "ESMTP and SMTP only"),
        ("ESMTP_Listener { Listen :25 { TLS_Verify_Mode = requrie } }", "it is one of none, require; leave it out"),
        ("ESMTP_Listener { Listen :465 { Use_SSL = true } }", "needs TLS_Certificate"),
        ("Domain \"/[/\" { }", "no regular expression"),
        ("Binding { }", "needs a name"),
        ("Security \"x\" { }", "takes no name"),
        ("scriptlet \"a\" { }\nscriptlet \"b\" { }", "there is one scriptlet only"),
        ("TLS_Ciphers = NOSUCHCIPHER", "names no usable cipher"),
        ("TLSv13_Ciphersuites = TLS_AES_128_GCM_SHA256:FOO", "'FOO' is unknown"),
        ("TLSv13_Ciphersuites = \"\"", "'' is unknown"),
        ("TLS_EC_Curve_Names = \"a::b\"", "a name is missing between the colons"),
        ("TLS_Engine = nss", "it is one of openssl, gnutls"),
        ("ESMTP_Listener { TLS_Identity \"[1.2.3.4]\" { TLS_Certificate = x.pem } }", "is no server name"),
        ("ESMTP_Listener { TLS_Identity \"a.test\" { } }", "needs TLS_Certificate"),
        ("TLS_Identity \"a.test\" { }", "cannot stand at the top of the file"),
        ("Control_Listener { Listen \":2025\" { } }", "listens on Unix sockets only"),
        ("Control_Listener { Listen \"/tmp/x\" { } }\nESMTP_Listener { Listen \"/tmp/x\" { } }", "an ESMTP listener's address too"),
        ("ESMTP_Listener { Listen \"/" + "x" * 120 + "\" { } }", "too long for a Unix socket"),
        ("custom_logger \"a\" { namespace = \"custom_logger,outbound_tls\" delivery_format = x }", "needs a tls_macros stanza"),
        ("policy \"a\" { }", "has no module"),
        ("TLS_CA = nowhere.pem", "cannot read"),
        ("include nowhere.conf", "cannot find 'nowhere.conf'"),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, text: str, error: str) -> None:
    loaded = _load(tmp_path, text)
    assert loaded.config is None
    assert any(error in line for line in _errors(loaded)), _errors(loaded)


def test_refused_options_may_say_what_happens_anyway(tmp_path: Path) -> None:
    assert _load(tmp_path, "XCLIENT = no\nOutbound_SMTP_Auth_Type = false").errors == []


def test_certificates_are_looked_at(tmp_path: Path, pki: Path) -> None:
    (tmp_path / "text.pem").write_text("hello")
    loaded = _load(
        tmp_path,
        f"""TLS_CA = text.pem
        Domain a.test {{ TLS_Certificate = {pki}/good.pem TLS_Key = {pki}/client.key }}
        Domain b.test {{ TLS_Certificate = {pki}/good.pem }}
        Domain c.test {{ TLS_Certificate = {pki}/expired.pem TLS_Key = {pki}/expired.key }}
        Domain d.test {{ TLS_Certificate = text.pem TLS_Key = {pki}/good.key }}
        TLS_DHParams_File = text.pem
        """,
    )
    errors = "\n".join(_errors(loaded))
    assert "text.pem holds no certificate in PEM" in errors
    assert "client.key does not match the certificate" in errors
    assert "good.pem holds no private key in PEM and TLS_Key is not set" in errors
    assert "text.pem holds no Diffie-Hellman parameters" in errors
    assert any("expired on" in warning for warning in _warnings(loaded))
    assert len(loaded.errors) == 5


def test_a_certificate_of_none_cancels_an_inherited_one(tmp_path: Path, pki: Path) -> None:
    text = f"TLS_Certificate = {pki}/good.pem TLS_Key = {pki}/good.key Domain x.test {{ TLS_Certificate = none }}"
    config = _load(tmp_path, text).config
    assert config is not None
    assert config.outbound.delivery("default", "default", "x.test")[1].tls_certificate is None
    assert str(config.outbound.delivery("default", "default", "y.test")[1].tls_certificate).endswith("good.pem")


def test_includes_are_found_beside_the_file_in_folders_and_on_the_search_path(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "conf.d/10-a").write_text("Retry_Interval = 10")
    (tmp_path / "conf.d/20-b").write_text("Retry_Interval = 20\ninclude deeper")
    (tmp_path / "conf.d/.hidden").write_text("broken {")
    (tmp_path / "conf.d/deeper").write_text("Max_Retries = 3")
    (tmp_path / "far/other.conf").write_text("Hostname = far.test")
    (tmp_path / "ecelerity.conf").write_text(
        "include conf.d\ninclude other.conf\nDomain x.test { include conf.d/deeper }"
    )
    loaded = load(tmp_path / "ecelerity.conf", "far")
    assert loaded.config is not None, loaded.faults
    settings, _ = loaded.config.outbound.delivery("default", "default", "x.test")
    assert (settings.retry_interval, settings.max_retries) == (20, "3")
    assert loaded.config.node().hostname == "far.test"


def test_an_include_of_itself_is_a_fault(tmp_path: Path) -> None:
    assert "includes itself" in _errors(_load(tmp_path, "include ecelerity.conf"))[0]


def test_repeated_scopes_merge_and_later_options_win(tmp_path: Path) -> None:
    text = "Binding b { Retry_Interval = 1 }\nBinding b { Max_Retries = 2 Retry_Interval = 3 }\nBinding B { TLS = required }"
    config = _load(tmp_path, text).config
    assert config is not None
    settings, tls = config.outbound.delivery("default", "b", "x.test")
    assert (settings.retry_interval, settings.max_retries, tls.tls) == (3, "2", "no")


def test_names_and_enum_values_know_no_case(tmp_path: Path) -> None:
    config = _load(tmp_path, "dOmAiN Bank.FI { tLs = REQUIRED TLS_VERIFY = optional }").config
    assert config is not None
    assert config.outbound.delivery("default", "default", "bank.fi")[1].tls == "required"


def test_relaying_for_senders_is_off_unless_written(tmp_path: Path) -> None:
    import ipaddress

    config = _load(tmp_path, 'ESMTP_Listener { Listen ":25" { } }').config
    assert config is not None
    settings, _ = config.inbound.reception(":25", ipaddress.ip_address("192.0.2.1"))
    assert settings.relay_for_sending_domains is None
    assert not settings.open_relay
    assert settings.relay_hosts == ()


def test_warnings_that_concern_tls(tmp_path: Path, pki: Path) -> None:
    loaded = _load(
        tmp_path,
        f"""Domain bank.fi {{ TLS = required TLS_Verify = host }}
        Binding b1 {{ TLS = no }}
        ESMTP_Listener {{
          SMTP_Extensions = ( "STARTTLS" )
          Listen ":25" {{ }}
          Listen ":465" {{ Use_SSL = true TLS_Certificate = {pki}/good.pem TLS_Key = {pki}/good.key }}
        }}""",
    )
    assert loaded.config is not None
    warnings = "\n".join(_warnings(loaded))
    assert "without TLS_CA: no certificate verifies" in warnings
    assert 'tls = no of Binding "b1" beats the stricter tls = required' in warnings
    assert 'STARTTLS is not offered on Listen ":25" as long as it has no TLS_Certificate' in warnings
    assert 'STARTTLS is not offered on Listen ":465", which has Use_SSL' in warnings


def test_use_ssl_and_starttls_in_one_stanza_is_a_fault(tmp_path: Path, pki: Path) -> None:
    text = f"""ESMTP_Listener {{ Listen ":465" {{ Use_SSL = true SMTP_Extensions = ( "STARTTLS" )
      TLS_Certificate = {pki}/good.pem TLS_Key = {pki}/good.key }} }}"""
    assert any("exclude each other" in line for line in _errors(_load(tmp_path, text)))


def test_known_modules_are_inert_and_said_to_be(tmp_path: Path) -> None:
    loaded = _load(tmp_path, 'smtp_rbl { zone "x" { anything = goes } }\nThreadPool "IO" { concurrency = 5 }')
    assert loaded.config is not None
    assert len(_warnings(loaded)) == 2


def test_a_missing_file_is_a_fault_without_a_line(tmp_path: Path) -> None:
    loaded = load(tmp_path / "nothing.conf")
    assert str(loaded.faults[0]).endswith(
        "cannot read " + str(tmp_path / "nothing.conf") + ": No such file or directory"
    )


SAMPLES = {
    "reception": """
ESMTP_Listener {
  Listen ":25" {
    TLS_Certificate = "PKI/server.pem"
    TLS_Key = "PKI/server.key"
    TLS_Client_CA = "PKI/ca.pem"
    TLS_Ciphers = "DEFAULT"
    TLS_Verify_Mode = "require"
    SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" )
  }
}""",
    "port 465": """
ESMTP_Listener = {
  Listen ":465" {
    TLS_Certificate = "PKI/server.pem"
    TLS_Key = "PKI/server.key"
    Use_SSL = true
  }
}""",
    "disabled": """
Esmtp_Listener {
  Listen ":587" {
    Enable = false # <-- REMOVE THIS TO ENABLE!
    TLS_Certificate = "PKI/server.pem"
    TLS_Key = "PKI/server.key"
    TLS_Client_CA = "PKI/ca.pem"
    TLS_Ciphers = "DEFAULT"
    SMTP_Extensions = (
      "ENHANCEDSTATUSCODES"
      "STARTTLS"
      "AUTH LOGIN"
    )
  }
}""",
    "delivery": """
Domain bank.fi {
  TLS = required
  TLS_CA = "PKI/ca.pem"
  TLS_Key = "PKI/client.key" # if needed.
  TLS_Certificate = "PKI/client.pem" # if needed.
  TLS_Ciphers = "DEFAULT" # OpenSSL cipher list, if you need to change it.
  TLS_Verify = "CA" # How to verify the certificate. ca/host/no
 }""",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_configurations_that_operators_bring_load(tmp_path: Path, pki: Path, name: str) -> None:
    loaded = _load(tmp_path, SAMPLES[name].replace("PKI", str(pki)))
    assert loaded.config is not None, loaded.faults
    listens = [listen.name for listen in loaded.config.inbound.listens()]
    assert listens == {"reception": [":25"], "port 465": [":465"]}.get(name, [])
    _, tls = loaded.config.outbound.delivery("default", "default", "bank.fi")
    assert (tls.tls, tls.tls_verify) == (("required", "ca") if name == "delivery" else ("no", "no"))
