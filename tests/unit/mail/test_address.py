"""Mailboxes by RFC 5321 4.1.2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.mail.address import AddressError, Mailbox, literal_address, parse_domain, parse_mailbox


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("bob@bank.fi", "bob", "bank.fi"),
        ("Bob.Ross+tag@BANK.Fi", "Bob.Ross+tag", "bank.fi"),
        ('"a b\\"@c"@bank.fi', '"a b\\"@c"', "bank.fi"),
        ("@a.test,@b.test:bob@bank.fi", "bob", "bank.fi"),
        ("bob@[192.0.2.1]", "bob", "[192.0.2.1]"),
        ("bob@[IPv6:2001:DB8::1]", "bob", "[IPv6:2001:db8::1]"),
        ("postmaster", "postmaster", ""),
        ("a@under_score.test", "a", "under_score.test"),
    ],
)
def test_good(text: str, local: str, domain: str) -> None:
    assert parse_mailbox(text) == Mailbox(local, domain)


@pytest.mark.parametrize(
    "text",
    ["", "@bank.fi", "a..b@x.test", ".a@x.test", "a@", "a@-x.test", "a@x..test", "a b@x.test", "a@[300.1.1.1]",
     "a@[192.0.2.1", f"{'a' * 1024}@x.test", f"a@{'x' * 64}.test", "a@x.test>", "a\r\nb@x.test", "ä@x.test"],
)  # fmt: skip
def test_bad(text: str) -> None:
    with pytest.raises(AddressError):
        parse_mailbox(text)


def test_loose_rules_take_stray_dots() -> None:
    assert parse_mailbox("a..b.@x.test", pedantic=False).local == "a..b."


def test_literals() -> None:
    assert literal_address(parse_domain("[IPv6:::1]")) == "::1"
    assert literal_address("[192.0.2.1]") == "192.0.2.1"
    assert literal_address("bank.fi") is None


@given(st.text())
def test_any_text_parses_or_is_an_address_error(text: str) -> None:
    try:
        box = parse_mailbox(text)
    except AddressError:
        return
    assert parse_mailbox(str(box)) == box
    assert not set(str(box)) & set("\r\n<>") or box.local.startswith('"')
