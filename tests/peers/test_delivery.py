"""Delivery into a real Postfix, for each kind of certificate and each value of TLS and TLS_Verify."""

import itertools
import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import MESSAGE
from tests.support.postfix import KINDS, Postfix
from tests.support.server import Server, free_port, until

pytestmark = pytest.mark.peer
TLS = ("no", "ifavailable", "required")
VERIFY = ("no", "ca", "host", "Optional")
CERTIFICATES = tuple(kind for kind in KINDS if kind != "client")
CAUSE = {
    "self-signed": "self_signed",
    "expired": "expired",
    "not-yet": "not_yet_valid",
    "wrong-ca": "unknown_issuer",
    "no-chain": "unknown_issuer",
}


def _name(kind: str, tls: str, verify: str) -> str:
    return f"{kind}.{tls}.{verify.lower()}.test"


@pytest.fixture(scope="module", params=["openssl", "gnutls"])
def events(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Path
) -> Iterator[dict[str, dict[str, Any]]]:
    """The first attempt for each combination, by domain."""
    folder = tmp_path_factory.mktemp("delivery")
    postfix = Postfix(folder, pki)
    postfix.start()
    port = free_port()
    domains = [
        f'Domain "{_name(kind, tls, verify)}" {{ Gateway = "127.0.0.1:{postfix.ports[kind]}" TLS = {tls}'
        f' TLS_Verify = "{verify}" TLS_CA = {pki}/ca.pem }}'
        for kind, tls, verify in itertools.product(CERTIFICATES, TLS, VERIFY)
    ]
    gateway = f'Gateway = "127.0.0.1:{postfix.ports["client"]}" TLS = required'
    domains += [
        f"Domain with-client.test {{ {gateway} TLS_Certificate = {pki}/client.pem TLS_Key = {pki}/client.key }}",
        f"Domain without-client.test {{ {gateway} }}",
        f"Domain fallback.test {{ {gateway.replace('required', 'ifavailable')} }}",
        f"Domain no-fallback.test {{ {gateway.replace('required', 'ifavailable')} TLS_Ifavailable_Fallback = false }}",
        f'Domain tls13.test {{ Gateway = "127.0.0.1:{postfix.ports["tls12"]}" TLS = required TLS_Protocols = "+TLSv1.3" }}',
        (
            f'Domain again.test {{ Gateway = "127.0.0.1:{postfix.ports["good"]}" TLS = required TLS_Verify = host'
            f" TLS_CA = {pki}/ca.pem TLS_Session_Resumption = true }}"
        ),
        'Domain "127.0.0.1" { Max_Deliveries_Per_Connection = 1 }',
        f'Binding_Group g {{ TLS = required Binding b1 {{ }} }}\nDomain bound.test {{ Gateway = "127.0.0.1:{postfix.ports["plain"]}" }}',
    ]
    config = f"""TLS_Engine = {request.param}
    ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
    scriptlet "scriptlet" {{ script "bind" {{ source = bind }} }}
    """
    server = Server(folder / "q", config + "\n".join(domains))
    (folder / "q/bind.lua").write_text(
        """local m = {}
        function m:validate_set_binding(msg)
          if msg:rcptto() == "x@bound.test" then msg:binding("b1") end
          return msys.core.VALIDATE_CONT
        end
        msys.registerModule("bind", m)"""
    )
    server.start()
    names = [_name(*combination) for combination in itertools.product(CERTIFICATES, TLS, VERIFY)]
    names += [
        "with-client.test",
        "without-client.test",
        "fallback.test",
        "no-fallback.test",
        "tls13.test",
        "bound.test",
    ]
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        for name in names:
            client.sendmail("alice@example.test", [f"x@{name}"], MESSAGE)
    attempts = server.wait_attempts(*(f"x@{name}" for name in names), patience=90)
    found: dict[str, Any] = {recipient.partition("@")[2]: event for recipient, event in attempts.items()}
    found["again"] = {"events": _one_by_one(server, port, "again.test", 3)}
    found["log"] = {"postfix": postfix.log(), "mainlog": server.log("mainlog.ec")}
    yield found
    server.stop()
    postfix.stop()


def _one_by_one(server: Server, port: int, domain: str, count: int) -> list[dict[str, Any]]:
    """Messages that are each delivered before the next one is sent."""
    for number in range(count):
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            client.sendmail("alice@example.test", [f"x@{domain}"], MESSAGE)
        until(lambda n=number: len(_to(server, domain)) > n, f"delivery to {domain}")  # type: ignore[misc]
    return _to(server, domain)


def _to(server: Server, domain: str) -> list[dict[str, Any]]:
    return [event for event in server.events("attempt") if event["recipient"].endswith(f"@{domain}")]


def _expected(kind: str, tls: str, verify: str) -> tuple[str, bool | None, str, bool]:
    """Outcome, verified, cause, and whether TLS was in use at the end."""
    if tls == "no" or (kind == "plain" and tls == "ifavailable"):
        return "delivered", None, "", False
    if kind == "plain":
        return "transient_failure", None, "no_starttls", False
    if verify == "no":
        return "delivered", None, "", True
    cause = CAUSE.get(kind, "")
    if kind == "wrong-name" and verify != "ca":
        cause = "name_mismatch"
    if cause and verify != "Optional":
        return "transient_failure", False, cause, True
    return "delivered", not cause and kind != "wrong-name", cause, True


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("kind", CERTIFICATES)
def test_matrix(events: dict[str, dict[str, Any]], kind: str, tls: str, verify: str) -> None:
    event = events[_name(kind, tls, verify)]
    outcome, verified, cause, secured = _expected(kind, tls, verify)
    facts = event["tls"] or {}
    assert event["outcome"] == outcome, event
    assert facts.get("verified") == verified
    assert (event.get("cause") or facts.get("cause", "")) == cause
    assert bool(facts.get("protocol")) == secured
    if kind == "tls12" and secured:
        assert facts["protocol"] == "TLSv1.2"


def test_not_advertised_is_said_in_the_words_of_the_manual(events: dict[str, dict[str, Any]]) -> None:
    event = events["plain.required.no.test"]
    assert event["reply"] == "451 4.7.6 [internal] STARTTLS required but not advertised"
    assert event["stage"] == "after EHLO"
    line = next(line for line in events["log"]["mainlog"] if "@T@" in line and "STARTTLS required but" in line)
    assert line.split("@", 13)[9] == "11"


def test_client_certificates(events: dict[str, dict[str, Any]]) -> None:
    assert events["with-client.test"]["outcome"] == "delivered"
    assert "Trusted TLS connection established from" in events["log"]["postfix"]
    refused = events["without-client.test"]
    assert refused["outcome"] == "transient_failure" or refused["reply"].startswith("5"), refused
    assert refused["outcome"] != "delivered"


def test_a_failed_handshake_has_a_cause(events: dict[str, dict[str, Any]]) -> None:
    event = events["tls13.test"]
    assert event["outcome"] == "transient_failure"
    assert event["cause"] == "alert_protocol_version"
    assert event["reply"] == "451 4.7.5 [internal] TLS negotiation failed"


def test_a_binding_group_of_a_policy_enforces_tls(events: dict[str, dict[str, Any]]) -> None:
    event = events["bound.test"]
    assert (event["binding_group"], event["binding"]) == ("g", "b1")
    assert event["cause"] == "no_starttls"


def test_sessions_are_resumed_with_their_verdict(events: dict[str, dict[str, Any]]) -> None:
    found = events["again"]["events"]
    assert [event["outcome"] for event in found] == ["delivered"] * 3
    assert [event["tls"]["verified"] for event in found] == [True] * 3
    assert [event["tls"]["resumed"] for event in found] == [False, True, True]
