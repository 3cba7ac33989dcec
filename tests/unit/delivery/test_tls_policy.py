"""TLS, TLS_Verify and TLS_Ifavailable_Fallback as a table, and the names of certificates."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.config.options import table
from quillon.config.scope import resolve
from quillon.config.settings import OutboundTls, build
from quillon.delivery.attempt import Attempt, Obstacle, TryHost
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import Turn, after_ehlo, judge
from quillon.mail import reply as replies
from quillon.mail.outcome import Stage, TransientFailure
from quillon.mail.reply import Reply
from quillon.queue.trail import Failed
from quillon.tls.certificate import Certificate
from quillon.tls.identity import name_matches
from quillon.tls.verdict import TlsVerdict

DEFAULTS = build(OutboundTls, lambda name: resolve(table().options[name], [], "/").value)
HOSTS = [Host("mx1.test", "192.0.2.1", 25), Host("mx2.test", "192.0.2.2", 25)]


def _tls(**changes: object) -> OutboundTls:
    return dataclasses.replace(DEFAULTS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tls", "offered", "in_clear", "turn"),
    [
        ("no", True, False, Turn.CLEAR),
        ("no", False, False, Turn.CLEAR),
        ("ifavailable", True, False, Turn.STARTTLS),
        ("ifavailable", False, False, Turn.CLEAR),
        ("ifavailable", True, True, Turn.CLEAR),
        ("required", True, False, Turn.STARTTLS),
        ("required", False, False, Turn.REFUSE),
        ("required", True, True, Turn.STARTTLS),  # whatever else went wrong, required stays required
        ("required", False, True, Turn.REFUSE),
    ],
)
def test_after_ehlo(tls: str, offered: bool, in_clear: bool, turn: Turn) -> None:
    assert after_ehlo(_tls(tls=tls), offered, in_clear=in_clear) is turn


@pytest.mark.parametrize(
    ("tls", "fallback", "clear"),
    [("ifavailable", True, True), ("ifavailable", False, False), ("required", True, False), ("required", False, False)],
)
def test_failed_negotiation(tls: str, fallback: bool, clear: bool) -> None:
    settings = _tls(tls=tls, tls_ifavailable_fallback=fallback)
    attempt = Attempt(HOSTS)
    step = attempt.next_step()
    assert step == TryHost(HOSTS[0])
    attempt.failed(step, Obstacle.NEGOTIATION, _failed(replies.TLS_FAILED, "handshake_eof"), settings)
    assert attempt.next_step() == (TryHost(HOSTS[0], in_clear=True) if clear else TryHost(HOSTS[1]))


@pytest.mark.parametrize("obstacle", [o for o in Obstacle if o is not Obstacle.NEGOTIATION])
@pytest.mark.parametrize("tls", ["ifavailable", "required"])
def test_whatever_fails_a_host_leads_to_the_next_one_and_not_to_clear_text(obstacle: Obstacle, tls: str) -> None:
    attempt = Attempt(HOSTS)
    for host in HOSTS:
        step = attempt.next_step()
        assert step == TryHost(host)
        attempt.failed(step, obstacle, _failed(replies.NO_VALID_HOSTS), _tls(tls=tls))
    assert attempt.next_step() is None
    assert attempt.trail.tried == {host.peer for host in HOSTS}


def test_settings_of_our_own_that_cannot_be_loaded_end_the_attempt() -> None:
    attempt = Attempt(HOSTS)
    step = attempt.next_step()
    assert step is not None
    attempt.failed(
        step, Obstacle.NEGOTIATION, _failed(replies.TLS_FAILED, "bad_local_settings"), _tls(tls="ifavailable")
    )
    assert attempt.next_step() is None


def test_an_attempt_talks_to_so_many_hosts_and_tries_so_many_addresses() -> None:
    hosts = [Host(f"mx{n}.test", f"192.0.2.{n}", 25) for n in range(9)]

    def tried(obstacle: Obstacle, sessions: int, addresses: int) -> int:
        attempt, count = Attempt(hosts, sessions=sessions, addresses=addresses), 0
        while (step := attempt.next_step()) is not None:
            count += 1
            attempt.failed(step, obstacle, _failed(replies.NO_VALID_HOSTS), _tls(tls="required"))
        return count

    assert tried(Obstacle.UNREACHABLE, 2, 7) == 7
    assert tried(Obstacle.UNWILLING, 2, 7) == 2
    assert tried(Obstacle.UNWILLING, 0, 0) == 9


def _failed(reply: Reply, cause: str = "") -> Failed:
    return Failed(TransientFailure(reply, Stage.HANDSHAKING_TLS, cause=cause))


def _verdict(pki: Path, name: str, *errors: tuple[str, int, str]) -> TlsVerdict:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = x509.load_pem_x509_certificates((pki / f"{name}.pem").read_bytes())[0]
    return TlsVerdict("TLSv1.3", "X", 256, 256, "", Certificate(pem.public_bytes(Encoding.DER)), True, errors)


@pytest.mark.parametrize(
    ("verify", "certificate", "errors", "verified", "cause", "reply"),
    [
        ("no", "self-signed", ("self_signed",), None, "", None),
        ("ca", "good", (), True, "", None),
        ("ca", "wrong-name", (), False, "", None),
        ("ca", "expired", ("expired",), False, "expired", "454 4.7.5 [internal] certificate expired"),
        ("ca", "wrong-ca", ("unknown_issuer",), False, "unknown_issuer",
         "451 4.7.5 [internal] remote node SSL certificate not signed by a valid CA"),
        ("host", "good", (), True, "", None),
        ("host", "wrong-name", (), False, "name_mismatch", "451 4.7.5 [internal] SSL certificate subject does not match host"),
        ("host", "expired", ("expired", "unknown_issuer"), False, "unknown_issuer",
         "451 4.7.5 [internal] remote node SSL certificate not signed by a valid CA"),
        ("host", "not-yet", ("not_yet_valid",), False, "not_yet_valid",
         "454 4.7.5 [internal] certificate not yet valid: possible clock skew"),
        ("optional", "good", (), True, "", None),
        ("optional", "wrong-name", (), False, "name_mismatch", None),
        ("optional", "self-signed", ("self_signed",), False, "self_signed", None),
    ],
)  # fmt: skip
def test_judgement(
    pki: Path,
    verify: str,
    certificate: str,
    errors: tuple[str, ...],
    verified: bool | None,
    cause: str,
    reply: str | None,
) -> None:
    verdict = _verdict(pki, certificate, *((error, 0, "") for error in errors))
    judgement = judge(_tls(tls="required", tls_verify=verify), verdict, ["MX.partner.test", "partner.test"])
    assert (judgement.verified, judgement.cause) == (verified, cause)
    assert (str(judgement.reply) if judgement.reply else None) == reply


def test_no_certificate_at_all_is_no_verified_one() -> None:
    verdict = TlsVerdict("TLSv1.2", "ADH", 128, 128, "", None, True)
    judgement = judge(_tls(tls_verify="host"), verdict, ["x.test"])
    assert judgement.cause == "no_certificate"
    assert judgement.reply is not None


@pytest.mark.parametrize(
    ("name", "host", "matches"),
    [
        ("mx.bank.fi", "mx.bank.fi", True),
        ("MX.Bank.FI", "mx.bank.fi", True),
        ("mx.bank.fi.", "mx.bank.fi", True),
        ("*.bank.fi", "mx.bank.fi", True),
        ("*.bank.fi", "bank.fi", False),
        ("*.bank.fi", "a.mx.bank.fi", False),
        ("m*.bank.fi", "mx.bank.fi", False),
        ("*x.bank.fi", "mx.bank.fi", False),
        ("mx.*.fi", "mx.bank.fi", False),
        ("*", "bank", False),
        ("*.fi", "bank.fi", False),
        ("*.*.fi", "mx.bank.fi", False),
        ("mx.bank.fi\0.evil.test", "mx.bank.fi", False),
        ("mx.bänk.fi", "mx.bänk.fi", False),
        ("", "", True),
    ],
)
def test_names(name: str, host: str, matches: bool) -> None:
    assert name_matches(name, host) is matches


@given(st.text(max_size=30), st.text(alphabet="abc.*-", max_size=30))
def test_no_name_raises_and_a_wildcard_never_stands_for_two_labels(name: str, host: str) -> None:
    if name_matches(name, host) and "*" in name:
        assert name.lower().removesuffix(".").count(".") == host.count(".")
