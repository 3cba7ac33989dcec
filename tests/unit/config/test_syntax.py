"""Every form of the configuration language, and where its faults are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.config.syntax import DictValue, Include, ListValue, Scope, Setting, Word, parse


def _one(text: str) -> object:
    items, faults = parse(text, "f")
    assert not faults, faults
    assert len(items) == 1
    return items[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a = b", "b"),
        ("a = 10.10.10.50", "10.10.10.50"),
        ("a = *.example.com", "*.example.com"),
        ("a = 127.0.0.1:8163 # why", "127.0.0.1:8163"),
        ("a = digest:///opt/x", "digest:///opt/x"),
        ("a = /var/spool/x", "/var/spool/x"),
        ("a =\n  b", "b"),
        ('a = "x # y"', "x # y"),
        ('a = "two\nlines"', "two\nlines"),
        (r'a = "^b-\d+\.x"', r"^b-\d+\.x"),
        (r'a = "220-Hi\r\n"', "220-Hi\r\n"),
        (r'a = "q\"q\\"', 'q"q\\'),
        ("/* a = c */ a = b /* x\n y */", "b"),
        ("a = b//c", "b//c"),
    ],
)
def test_words(text: str, value: str) -> None:
    item = _one(text)
    assert isinstance(item, Setting)
    assert isinstance(item.value, Word)
    assert item.value.text == value


@pytest.mark.parametrize("text", ['a = ( "A" "B" )', 'a = ("A", "B")', "a = (A B)", "a = (\n A\n B\n)"])
def test_lists(text: str) -> None:
    item = _one(text)
    assert isinstance(item, Setting)
    assert isinstance(item.value, ListValue)
    assert [word.text for word in item.value.items] == ["A", "B"]


@pytest.mark.parametrize("text", ['a = [ x = "1" y.z = 2 ]', 'a [x=1 "y.z"=2]', "a = [ x = 1, y.z = 2 ]"])
def test_dictionaries(text: str) -> None:
    item = _one(text)
    assert isinstance(item, Setting)
    assert isinstance(item.value, DictValue)
    assert [(key.text, word.text) for key, word in item.value.items] == [("x", "1"), ("y.z", "2")]


@pytest.mark.parametrize(
    ("text", "label"),
    [('Listen ":25" {}', ":25"), ("Security { }", None), ("ESMTP_Listener = { }", None), ('ec_logger "x"\n{\n}', "x")],
)
def test_scopes(text: str, label: str | None) -> None:
    item = _one(text)
    assert isinstance(item, Scope)
    assert (item.label.text if item.label else None) == label


def test_includes() -> None:
    item = _one("ReadOnly_Include conf.d")
    assert isinstance(item, Include)
    assert item.readonly


def test_typographic_quotes_are_quotes_with_a_warning() -> None:
    items, faults = parse("domain “gold.example.com” { }", "f")
    assert isinstance(items[0], Scope)
    assert items[0].label is not None
    assert items[0].label.text == "gold.example.com"
    assert [fault.warning for fault in faults] == [True]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a = {", "1:6", "not closed"),
        ("x {\n  a = b\n", "3:1", "x of line 1 is not closed"),
        ("}", "1:1", "without a scope"),
        ('a = "b', "1:5", "does not end"),
        ("a = b /* c", "1:7", "does not end"),
        ("a = 'b'", "1:5", "unexpected character"),
        ("a b", "1:1", "neither an option"),
        ("a = ( b", "1:8", "not closed"),
        ("a = [ b c ]", "1:9", "= is expected"),
        ("  a = = b", "1:7", "a value is expected"),
    ],
)
def test_faults_have_a_place(text: str, where: str, words: str) -> None:
    _, faults = parse(text, "f")
    assert any(str(fault.position) == f"f:{where}" and words in fault.message for fault in faults), faults


def test_all_faults_at_once_and_what_is_good_is_kept() -> None:
    items, faults = parse("a b\nc = d\ne = = f\ng = h\n", "f")
    assert [fault.position.line for fault in faults] == [1, 3]
    assert [item.name.text for item in items if isinstance(item, Setting)] == ["c", "g"]


def test_a_missing_quote_is_blamed_on_the_line_where_it_is_missing() -> None:
    _, faults = parse('a = "b\nc = "d"\ne = "f"\n', "f")
    assert [str(fault.position) for fault in faults] == ["f:1:5"]
    assert "closing quote missing" in faults[0].message


def test_nesting_has_a_limit() -> None:
    _, faults = parse("a {" * 1000 + "}" * 1000, "f")
    assert any("nested" in fault.message for fault in faults)


@given(st.text(alphabet="ab{}()[]=\"# \n\t/*\\,“”'", max_size=60))
def test_no_text_raises(text: str) -> None:
    parse(text, "f")
