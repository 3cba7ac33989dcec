"""The record and the policy of MTA-STS (RFC 8461 3.1, 3.2, 4.1)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.standards.mta_sts import LONGEST, MOST_OCTETS, StsPolicy, StsPolicyError, parse_policy, record_id

GOOD = "version: STSv1\nmode: enforce\nmx: mx.bank.test\nmax_age: 86400\n"


def parsed(text: str | bytes) -> StsPolicy:
    return parse_policy(text.encode() if isinstance(text, str) else text, "bank.test", "1", 1000.0)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1; id=1"], "1"),
        (["v=STSv1 ; id=1 ; x=y"], "1"),
        (["v=STSv1; x=y; id=1; id=2"], "1"),
        (["v=spf1 -all", "v=STSv1; id=1;"], "1"),
        ([], ""),
        (["v=spf1 -all"], ""),
        (["V=STSv1; id=1"], ""),
        (["v=STSv10; id=1"], ""),
        (["v=STSv1"], ""),
    ],
)
def test_the_record(texts: list[str], found: str) -> None:
    assert record_id(texts) == found


@pytest.mark.parametrize(
    "texts",
    [
        ["v=STSv1; id=1;", "v=STSv1; id=1;"],
        ["v=STSv1;"],
        ["v=STSv1; id=;"],
        ["v=STSv1; ID=1;"],
        ["v=STSv1; id=1-2"],
        ["v=STSv1; id=" + "1" * 33],
        ["v=STSv1; id=1; what"],
        ["v=STSv1; id=1;" + " " * 60000 + ";"],
    ],
)
def test_a_record_that_is_none(texts: list[str]) -> None:
    with pytest.raises(StsPolicyError):
        record_id(texts)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.rstrip(),
        GOOD.replace(": ", ":"),
        GOOD.replace("\n", "\n\n"),
        GOOD + "mode: none\n",
        GOOD + "extension: of somebody\n",
        "mode: enforce\nmx: MX.bank.test.\nmax_age: 86400\nversion: STSv1\n",
    ],
)
def test_a_policy(text: str) -> None:
    assert parsed(text) == StsPolicy("bank.test", "1", "enforce", ("mx.bank.test",), 86400, 1000.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "version"),
        (GOOD.replace("STSv1", "STSv2"), "version"),
        (GOOD.replace("mode: enforce\n", ""), "mode"),
        (GOOD.replace("enforce", "Enforce"), "mode"),
        (GOOD.replace("version", "Version"), "version"),
        (GOOD.replace("mx: mx.bank.test\n", ""), "names no mx"),
        (GOOD.replace("mx.bank.test", "mx.*.test"), "mx is"),
        (GOOD.replace("mx.bank.test", "*"), "mx is"),
        (GOOD.replace("86400", ""), "max_age"),
        (GOOD.replace("86400", "1 day"), "max_age"),
        (GOOD.replace("86400", "-1"), "max_age"),
        (GOOD.replace("max_age: 86400\n", ""), "max_age"),
        ("<html>", "line 1"),
        (b"\xef\xbb\xbf" + GOOD.encode(), "line 1"),
        (b"\xff", "UTF-8"),
        (GOOD + "x: " + "y" * MOST_OCTETS, "octets"),
    ],
)
def test_what_is_no_policy_says_why(text: str | bytes, words: str) -> None:
    with pytest.raises(StsPolicyError, match=words):
        parsed(text)


def test_a_policy_is_kept_for_a_year_at_most_and_none_needs_no_mx() -> None:
    assert parsed(GOOD.replace("86400", "9999999999")).max_age == LONGEST
    assert parsed("version: STSv1\nmode: none\nmax_age: 60\n").mx == ()
    assert parsed(GOOD).expires == 87400.0
    assert "\n".join(parsed(GOOD).lines()) + "\n" == GOOD


@pytest.mark.parametrize(
    ("pattern", "host", "permitted"),
    [
        ("mx.bank.test", "mx.bank.test", True),
        ("mx.bank.test", "MX.Bank.Test.", True),
        ("mx.bank.test", "mx2.bank.test", False),
        ("*.bank.test", "mx.bank.test", True),
        ("*.bank.test", "a.mx.bank.test", False),
        ("*.bank.test", "bank.test", False),
        ("*.test", "bank.test", True),
        ("*.bank.test", "evilbank.test", False),
    ],
)
def test_which_hosts_a_policy_names(pattern: str, host: str, permitted: bool) -> None:
    assert parsed(GOOD.replace("mx.bank.test", pattern)).permits(host) is permitted


@given(st.binary(max_size=300))
def test_no_octets_make_anything_but_a_policy_or_the_word_that_it_is_none(body: bytes) -> None:
    with contextlib.suppress(StsPolicyError):
        assert parsed(body).mode in ("enforce", "testing", "none")


@given(st.text(max_size=100))
def test_no_text_makes_anything_but_an_id_or_the_word_that_it_is_none(text: str) -> None:
    with contextlib.suppress(StsPolicyError):
        assert record_id(["v=STSv1;" + text]).isalnum()
