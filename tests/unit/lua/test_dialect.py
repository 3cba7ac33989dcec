"""The manual's Lua to Lua 5.1: what is valid stays untouched, what is new means what it should."""

from __future__ import annotations

from collections.abc import Callable

import lupa.luajit21 as lupa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.lua.dialect import DialectError, translate

NAMES = st.sampled_from(
    [
        "a",
        "b",
        "c",
        "t.x",
        "t[1]",
        "f(a)",
        "(b)",
        "#s",
        "-a",
        "not b",
        "'x & y'",
        '"a != b"',
        "[[ | ]]",
        "0x1F",
        "1.5e3",
        "{a, b = c}",
        "function(...) return ... end",
    ]
)
OLD = st.sampled_from(["+", "-", "*", "/", "%", "^", "..", "==", "~=", "<", "<=", "and", "or"])


@st.composite
def old_expressions(draw: st.DrawFn) -> str:
    parts = [draw(NAMES)]
    for _ in range(draw(st.integers(0, 4))):
        parts += [draw(OLD), draw(NAMES)]
    return " ".join(parts)


@st.composite
def old_scripts(draw: st.DrawFn) -> str:
    shapes = [
        "local x = {0}",
        "if {0} then x = {1} elseif {1} then return end",
        "for i = 1, #t do x = {0} end -- a & b",
        "for k, v in pairs(t) do f({0}, {1}) end",
        "while {0} do break end --[[ c | d ]]",
        "repeat x = {0} until {1}",
        "function t.g(a, ...) return {0}, {1} end",
        "x, y = {0}, {1}",
        "do local function h() end end",
        "t:m '{{'",
        "goto done ::done::",
    ]
    lines = [
        draw(st.sampled_from(shapes)).format(draw(old_expressions()), draw(old_expressions()))
        for _ in range(draw(st.integers(1, 5)))
    ]
    return "\n".join(line for line in lines if "return end" not in line)


@given(old_scripts())
def test_what_is_valid_stays_untouched(text: str) -> None:
    assert translate(text) == text


@given(old_scripts(), old_scripts())
def test_what_stands_beside_new_operators_stays_untouched(before: str, after: str) -> None:
    """The parser, which runs only where there is a new operator, takes all of Lua 5.1, and lines stay where they are."""
    translated = translate(f"{before}\nzz = p & q\n{after}")
    assert translated == f"{before}\nzz = _BIT.band(p , q)\n{after}"


@given(st.text(max_size=60))
def test_no_text_brings_the_translation_down(text: str) -> None:
    for candidate in (text, f"x = {text} & 1", f"'{text}' != b"):
        try:
            translate(candidate)
        except DialectError:
            continue


MEANING: dict[str, Callable[[int, int], int]] = {
    "|": int.__or__,
    "^^": int.__xor__,
    "&": int.__and__,
    "<<": int.__lshift__,
    ">>": lambda value, by: (value & 0xFFFFFFFF) >> by,
    "+": int.__add__,
    "-": int.__sub__,
    "*": int.__mul__,
}
LEVELS = [("|", "^^", "&", "+", "-"), ("<<", ">>", "*")]


@st.composite
def new_expressions(draw: st.DrawFn, depth: int = 0) -> tuple[str, int]:
    """A text, and its value by precedence: made from the weakest operator down, so that no parenthesis is needed."""
    if depth >= len(LEVELS):
        value = draw(st.integers(0, 9))
        return (f"{value}", value) if draw(st.booleans()) else (f"~{value}", ~value)
    text, value = draw(new_expressions(depth + 1))
    for _ in range(draw(st.integers(0, 2))):
        operator = draw(st.sampled_from(LEVELS[depth]))
        other, right = draw(new_expressions(depth + 1))
        if operator in ("<<", ">>") and not 0 <= right <= 8:
            continue
        text = f"{text} {operator} {other}"
        value = MEANING[operator](value, right)
    return text, value


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


@pytest.fixture(scope="module")
def runtime() -> lupa.LuaRuntime:
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    lua.execute(
        "_BIT = {band = bit.band, bor = bit.bor, bxor = bit.bxor, shl = bit.lshift, shr = bit.rshift, bnot = bit.bnot}"
    )
    return lua


@given(new_expressions())
def test_precedence(runtime: lupa.LuaRuntime, pair: tuple[str, int]) -> None:
    text, value = pair
    assert _signed(int(runtime.execute(f"return {translate(f'x = {text}').removeprefix('x = ')}"))) == _signed(value), (
        text
    )


@pytest.mark.parametrize(
    ("text", "translated"),
    [
        ("if a != b then end", "if a ~= b then end"),
        ("x = 'a != b' -- c != d", "x = 'a != b' -- c != d"),
        ("x = a \\ 2", "x = _BIT.idiv(a , 2)"),
        ("x = a ` 2", "x = _BIT.idiv(a , 2)"),
        ("f(a | b, c)", "f(_BIT.bor(a , b), c)"),
        ("x = -a & b", "x = _BIT.band(-a , b)"),
        ("x = a & b == c", "x = _BIT.band(a , b) == c"),
        ("x = 'p' .. a & b", "x = 'p' .. _BIT.band(a , b)"),
        ("x = 'flags ' .. 1 | 2", "x = 'flags ' .. _BIT.bor(1 , 2)"),
        ("x = 1 | 2 & 4", "x = _BIT.band(_BIT.bor(1 , 2) , 4)"),
        ("x = 1 << 2 + 1", "x = _BIT.shl(1 , 2) + 1"),
        ("x = !a and!b", "x =  not a and not b"),
        ("if a != !b then end", "if a ~=  not b then end"),
        (r"x = '\.\/\d\z\*'", "x = './dz*'"),
        (r"x = '\u00e9\x41\n\\'", r"x = '\195\169\065\n\\'"),
        (r"x = '\u20ac'", r"x = '\226\130\172'"),
        ("x = 0644 + 0 + 0.5 + 0x10", "x = 420 + 0 + 0.5 + 0x10"),
        ("x = [[\\.]] -- \\.", "x = [[\\.]] -- \\."),
        ("x = f{a | b}['k']", "x = f{_BIT.bor(a , b)}['k']"),
        ("x = ~~a", "x = _BIT.bnot(_BIT.bnot(a))"),
        ("x = [==[ a & b ]==] .. 's'", "x = [==[ a & b ]==] .. 's'"),
    ],
)
def test_translations(text: str, translated: str) -> None:
    assert translate(text) == translated


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = a &", "p:1: unexpected symbol near '<eof>'"),
        ("x =\n\n1 | end", "p:3: unexpected symbol near 'end'"),
        ("if a | b", "p:1: 'then' expected"),
        ("x = " + "(" * 300 + "1 & 1" + ")" * 300, "nested too deeply"),
    ],
)
def test_faults_have_their_line(text: str, words: str) -> None:
    with pytest.raises(DialectError) as caught:
        translate(text, "p")
    assert words in str(caught.value)


def test_a_string_without_an_end_is_for_lua_to_say() -> None:
    """Reading on behind each bracket, or each \\z, took time that grows with the square of the text, and more."""
    for text in ("x = 1 & [" + "[" * 50_000, 'x = 1 & "' + "\\z " * 50_000, "x = 1 & [==[ ]] ]=]"):
        assert translate(text) == text
    assert translate("x = 1 != [==[ ]] ]=] ]==]") == "x = 1 ~= [==[ ]] ]=] ]==]"
