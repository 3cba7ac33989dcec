"""What holds for a host, out of the configuration, DANE and MTA-STS."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from quillon.config.load import empty
from quillon.delivery.demand import NOTHING, Demand, Published, Refused, demand
from quillon.delivery.route import Host
from quillon.mail.outcome import PermanentFailure
from quillon.standards.dane import LOOK_AGAIN, TlsaFound
from quillon.standards.mta_sts import StsPolicy
from quillon.tls.tlsa import Tlsa

HOST = Host("mx.bank.test", "192.0.2.1", 25)
NAMES = ("mx.bank.test", "bank.test")
RECORD = Tlsa(3, 1, 1, b"x" * 32)
GOOD = TlsaFound("_25._tcp.mx.bank.test", "mx.bank.test", (RECORD,), 60)
LAME = GOOD._replace(records=(Tlsa(0, 0, 1, b"x" * 32),))
FAILED = TlsaFound("_25._tcp.mx.bank.test", "mx.bank.test", failed="SERVFAIL")
_, PLAIN = empty().outbound.delivery("default", "default", "bank.test")


def sts(mode: str = "enforce", mx: str = "mx.bank.test") -> StsPolicy:
    return StsPolicy("bank.test", "1", mode, (mx,), 86400, 0.0)


def of(tlsa: TlsaFound | None = None, policy: StsPolicy | None = None, **tls: Any) -> Demand | Refused:
    published = Published(tlsa, sts=policy, sts_until=30.0)
    return demand(dataclasses.replace(PLAIN, **tls), NAMES, HOST, "bank.test", published, 0.0)


def ruled(found: Demand | Refused) -> tuple[str, str, bool, str]:
    """TLS, TLS_Verify, whether by TLSA, and the standard."""
    assert isinstance(found, Demand)
    return found.tls.tls, found.tls.tls_verify, bool(found.tlsa), found.standard


@pytest.mark.parametrize("tls", ["no", "ifavailable", "required"])
@pytest.mark.parametrize("verify", ["no", "optional", "ca", "host"])
def test_where_nothing_is_published_the_configuration_holds(tls: str, verify: str) -> None:
    for published in (None, sts("testing"), sts("none"), sts("testing", "elsewhere.test")):
        found = of(None, published, tls=tls, tls_verify=verify)
        looked_at = verify == "no" and published is not None and published.mode == "testing"
        assert ruled(found) == (tls, "optional" if looked_at else verify, False, ""), "what is looked at holds nothing"
        assert isinstance(found, Demand)
        assert (found.names, found.words) == (NAMES, "")


@pytest.mark.parametrize("ca", [None, "system", "/etc/bank.pem"])
def test_records_do_not_stand_in_for_what_was_agreed_on(ca: str | None) -> None:
    found = of(GOOD, None, tls="required", tls_verify="host", tls_ca=ca, tls_agreed=True)
    assert ruled(found) == ("required", "host", True, "dane")


@pytest.mark.parametrize("tls", ["no", "ifavailable", "required"])
@pytest.mark.parametrize("verify", ["no", "optional", "ca", "host"])
@pytest.mark.parametrize("policy", [None, sts(), sts("testing"), sts("none")])
def test_usable_records_rule(tls: str, verify: str, policy: StsPolicy | None) -> None:
    assert ruled(of(GOOD, policy, tls=tls, tls_verify=verify, tls_ca="system")) == ("required", "no", True, "dane")
    own = of(GOOD, policy, tls=tls, tls_verify=verify, tls_ca="/etc/bank.pem")
    assert ruled(own)[1] == (verify if verify in ("ca", "host") else "no"), (
        "what an authority of one's own was to verify"
    )
    assert isinstance(own, Demand)
    assert not own.tls.tls_session_resumption
    assert own.tlsa_names == ("mx.bank.test", "bank.test")
    assert own.until == 30.0, "the TXT record is asked again before the TLSA records"


def test_records_of_which_none_is_usable_demand_tls() -> None:
    assert ruled(of(LAME, tls="no", tls_verify="no")) == ("required", "no", False, "dane")
    assert ruled(of(LAME, tls="no", tls_verify="host")) == ("required", "host", False, "dane")
    assert ruled(of(LAME, sts())) == ("required", "host", False, "mta-sts")


def test_an_enforced_policy_demands_a_certificate_for_the_host_alone() -> None:
    found = of(None, sts(), tls="ifavailable", tls_verify="optional", tls_ca=None)
    assert ruled(found) == ("required", "host", False, "mta-sts")
    assert isinstance(found, Demand)
    assert (found.names, found.tls.tls_ca, found.until) == (("mx.bank.test",), "system", 30.0)
    own = of(None, sts(), tls_ca="/etc/bank.pem")
    assert isinstance(own, Demand)
    assert own.tls.tls_ca == "/etc/bank.pem"


@pytest.mark.parametrize("tlsa", [None, GOOD, LAME])
def test_a_host_that_an_enforced_policy_does_not_name_gets_nothing(tlsa: TlsaFound | None) -> None:
    found = of(tlsa, sts(mx="mx.elsewhere.test"))
    assert isinstance(found, Refused)
    assert found.cause == "sts_mx_mismatch"
    assert "bank.test has mx.elsewhere.test" in found.reply.text


def test_records_that_cannot_be_looked_up_bar_a_host() -> None:
    for policy in (None, sts()):
        found = of(FAILED, policy)
        assert isinstance(found, Refused)
        assert found.cause == "tlsa_lookup_failed"


@pytest.mark.parametrize("tlsa", [None, LAME])
def test_where_dane_is_mandatory_a_host_without_usable_records_gets_nothing(tlsa: TlsaFound | None) -> None:
    found = demand(PLAIN, NAMES, HOST, "bank.test", Published(tlsa, mandatory=True), 0.0)
    assert isinstance(found, Refused)
    assert found.cause == "tlsa_missing"
    good = demand(PLAIN, NAMES, HOST, "bank.test", Published(GOOD, mandatory=True), 0.0)
    assert ruled(good) == ("required", "no", True, "dane")


def test_the_reasons_name_winner_and_losers() -> None:
    found = of(GOOD, sts(), tls="ifavailable")
    assert isinstance(found, Demand)
    assert [reason.split(":")[0] for reason in found.reasons] == ["DANE", "MTA-STS", "configuration"]
    assert "3 1 1 7878" in found.reasons[0]
    plain = demand(PLAIN, NAMES, HOST, "bank.test", NOTHING, 0.0)
    assert isinstance(plain, Demand)
    assert plain.until == LOOK_AGAIN, "what is not published today may be tomorrow"


def test_requiretls_wants_somebody_to_vouch_for_the_host() -> None:
    def asked(host: Host = HOST, **published: Any) -> Demand | Refused:
        return demand(PLAIN, NAMES, host, "bank.test", Published(requires_tls=True, **published), 0.0)

    secure = dataclasses.replace(HOST, named_securely=True)
    for found in (asked(secure), asked(local=True), asked(sts=sts("testing")), asked(tlsa=GOOD)):
        assert isinstance(found, Demand)
        assert (found.requires_tls, found.tls.tls) == (True, "required")
        assert found.tlsa or found.tls.tls_verify == "host"
    bare, unknown = asked(), asked(uncertain=True)
    assert isinstance(bare, Refused)
    assert isinstance(unknown, Refused)
    assert (bare.reply.permanent, unknown.reply.transient) == (True, True), "one lost answer bounces nothing"
    assert isinstance(bare.outcome("192.0.2.1"), PermanentFailure)
