"""Which messages an operator means, and what he has suspended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.mail.address import Mailbox
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, MessageId, Origin
from quillon.queue.destination import Key
from quillon.queue.selection import Selection, nothing_else, only, read, seconds
from quillon.queue.suspension import FOREVER, Suspension, SuspensionError, Suspensions, parse

NOW = 1_800_000_000.0


def message(
    sender: str = "news@shop.test", recipient: str = "bob@bank.test", reply: str = "", age: float = 0
) -> Message:
    number = IdSource(7).next(NOW)
    where = Mailbox(*sender.rsplit("@", 1)) if sender else Mailbox("", "")
    batch = Batch(number, where, Origin("192.0.2.9", "esmtp", NULL_ID), NOW - age, 5, b"hello")
    found = Message(number, batch, Mailbox(*recipient.rsplit("@", 1)), routing_domain="gw.test")
    found.last_reply = reply
    return found


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--all", True),
        ("--domain bank.test", True),
        ("--domain GW.test.", True),
        ("--domain shop.test", False),
        ("--sender *@shop.test", True),
        ("--sender NEWS@*", True),
        ("--sender shop.test", False),
        ("--sender <>", False),
        ("--recipient b?b@bank.test", True),
        ("--recipient b?@bank.test", False),
        ("--cause hostname_mismatch", True),
        ("--cause EXPIRED", False),
        ("--older 1h", True),
        ("--older 2h", False),
        ("--domain bank.test --sender x@*", False),
        ("--domain bank.test --sender news@*", True),
    ],
)
def test_all_that_is_named_has_to_hold(words: str, meant: bool) -> None:
    one = message(reply="451 4.7.5 not delivered (hostname_mismatch)", age=3600)
    assert read(words.split()).selection.predicate(NOW)(one) is meant


def test_the_null_sender_is_named_by_its_brackets() -> None:
    null = message(sender="")
    assert read(["--sender", "<>"]).selection.predicate(NOW)(null)
    assert read(["--sender", "*"]).selection.predicate(NOW)(null)


def test_a_binding_is_named_by_itself_or_its_group() -> None:
    key = Key("outbound", "b1", "x.test")
    for name, meant in (("b1", True), ("outbound", True), ("b2", False)):
        assert read(["--binding", name]).selection.concerns(key) is meant


def test_options_and_other_words_are_told_apart() -> None:
    asked = read(["2h", "--all", "--to", "b1", "--yes"], values=("to",), flags=("yes",))
    assert (asked.selection, asked.options, asked.rest) == (Selection(), {"to": "b1", "yes": True}, ["2h"])
    assert only(asked.rest, "usage") == "2h"
    for wrong in ([], ["a", "b"]):
        with pytest.raises(ValueError, match="write it so: usage"):
            only(wrong, "usage")
    with pytest.raises(ValueError, match="a b: not understood"):
        nothing_else(["a", "b"])


def test_times_are_read() -> None:
    assert [seconds(text) for text in ("90", "30s", "15m", "2h", "3D")] == [90, 30, 900, 7200, 259200]
    for wrong in ("", "0", "-1", "1w", "1.5h", "h", "9" * 10):
        with pytest.raises(ValueError, match="is no time"):
            seconds(wrong)


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_an_id_is_read_as_it_is_shown(slot: int, pid: int, counter: int) -> None:
    number = MessageId(slot, pid, counter)
    assert MessageId.parse(str(number)) == number
    assert MessageId.parse(f" {str(number).lower()}\n") == number


def test_the_default_binding_is_not_every_binding_that_stands_alone() -> None:
    default, other = Key("default", "default", "x.test"), Key("default", "b1", "x.test")
    wanted = read(["--binding", "default"]).selection
    assert (wanted.concerns(default), wanted.concerns(other)) == (True, False)
    held = Suspensions([suspension("", "default")])
    assert held.of(default, NOW) is not None
    assert held.of(other, NOW) is None


KEY = Key("group", "b1", "x.test", "via.test")


def suspension(domain: str = "", binding: str = "", until: float = FOREVER) -> Suspension:
    return Suspension(domain, binding, "why", "root", NOW, until)


@pytest.mark.parametrize(
    ("domain", "binding", "held"),
    [
        ("", "", True),
        ("x.test", "", True),
        ("via.test", "", True),
        ("y.test", "", False),
        ("", "b1", True),
        ("", "group", True),
        ("x.test", "b1", True),
        ("x.test", "b2", False),
        ("y.test", "b1", False),
    ],
)
def test_what_a_suspension_holds(domain: str, binding: str, held: bool) -> None:
    assert (Suspensions([suspension(domain, binding)]).of(KEY, NOW) is not None) is held


def test_the_longest_suspension_holds_until_it_is_over_or_ended() -> None:
    found = Suspensions([suspension("x.test", until=NOW + 10), suspension("", "b1", until=NOW + 20)])
    one = found.of(KEY, NOW + 5)
    assert one is not None
    assert (one.binding, one.until) == ("b1", NOW + 20)
    assert found.of(KEY, NOW + 20) is None
    found.add(suspension("x.test"))
    assert found.names("x.test")
    assert [row.domain for row in found.current(NOW + 20)] == ["x.test"]
    found.remove("x.test", "")
    found.remove("x.test", "")
    assert not found
    assert found.of(KEY, NOW) is None


def test_suspensions_are_read_as_they_were_written() -> None:
    found = Suspensions([suspension("x.test"), suspension("", "b1", NOW + 9), suspension("old.test", until=NOW)])
    again = parse(found.dump(NOW))
    assert again.current(NOW) == found.current(NOW)
    assert len(again.current(NOW)) == 2
    whole = '[{"domain": %s, "binding": "", "why": "", "by": "", "since": %s, "until": 5}]'
    assert parse(whole % ('"x"', "1")).names("x")
    broken_rows = [whole % ("7", "1"), whole % ('"x"', '"now"'), whole % ('"x"', "Infinity"), whole % ('"x"', "-1")]
    for broken in ("", "{", "[1]", '[{"domain": "x"}]', "null", "[" * 100_000, *broken_rows):
        with pytest.raises(SuspensionError):
            parse(broken)
