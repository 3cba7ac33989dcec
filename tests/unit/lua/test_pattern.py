"""Searches with Lua's patterns: what is made of a pattern finds what Lua's own functions find."""

from __future__ import annotations

import importlib.resources
import re
from typing import Any

import lupa.luajit21 as lupa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ITEMS = (
    *("a", "b", "1", " ", "\xff", "\0", "(", ")", "()", ".", "*", "+", "-", "?", "$", "^", "[", "]", "%", "%%", "%."),
    *("%a", "%c", "%d", "%g", "%l", "%p", "%s", "%u", "%w", "%x", "%z", "%S", "%W", "%Z", "%G", "%1", "%2"),
    *("[ab]", "[^a]", "[%w-]", "[a-c]", "[]a]", "[^]a]", "[a-]", "[%]]", "[\x80-\xff]", "(a*)", "(.-)", "(%w+)"),
    *("%b()", "%bab", "%baa", "%f[%w]", "%f[^%w]", "%f[%z]", "%f[a]"),
)
PATTERNS = st.tuples(st.sampled_from(["", "", "^"]), st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6)).map(
    lambda parts: parts[0] + "".join(parts[1])
)
SUBJECTS = st.text(alphabet="aab1()( .-%\0\xff\x80A\n", max_size=12)
PLACES = st.sampled_from([None, None, 1, 2, -1, -3, 0, 50, 3.7, -2.5])

# what a function gives, as text, or "error"
SHOWN = """
local function shown(ok, ...)
  if not ok then return "error" end
  local out = {}
  for i = 1, select("#", ...) do out[i] = type((select(i, ...))) .. " " .. tostring((select(i, ...))) end
  return table.concat(out, "|")
end
local function all(gmatch, subject, pattern)
  local out = {}
  for a, b, c in gmatch(subject, pattern) do out[#out + 1] = tostring(a) .. "," .. tostring(b) .. "," .. tostring(c) end
  return table.concat(out, ";")
end
return function(f, subject, pattern, init, template, most)
  local function called(a, b) return b or (#tostring(a) > 1 and "<" .. a .. ">") end
  return table.concat({
    shown(pcall(f.find, subject, pattern, init)), shown(pcall(f.find, subject, pattern, init, true)),
    shown(pcall(f.match, subject, pattern, init)), shown(pcall(all, f.gmatch, subject, pattern)),
    shown(pcall(f.gsub, subject, pattern, template, most)), shown(pcall(f.gsub, subject, pattern, called, most)),
    shown(pcall(f.gsub, subject, pattern, {a = "Q", ["1"] = 5, b = false}, most)),
    shown(pcall(f.gsub, subject, pattern, false, most)),
  }, "\\31")
end"""
END = "\x1f"  # of what one function gives


class _Both:
    """Lua's own functions, and those that make a function of every pattern."""

    def __init__(self) -> None:
        self._lua = lupa.LuaRuntime(encoding="latin-1", unpack_returned_tuples=True)
        functions = "{find = string.find, match = string.match, gmatch = string.gmatch, gsub = string.gsub}"
        self._own = self._lua.eval(functions)
        runtime = self._lua.execute(
            """return {raise = function(text) error(text, 0) end, stop = function() error("stopped", 0) end,
            checked = function(...) return ... end, seconds_left = function() return 1 end, levels = {}, DEEPEST = 100}"""
        )
        text = importlib.resources.files("quillon.lua.msys").joinpath("pattern.lua").read_text(encoding="utf-8")
        self._lua.eval("loadstring")(text)(runtime, 0, 0)
        self._ours = self._lua.eval(functions)
        self._shown = self._lua.execute(SHOWN)

    def __call__(self, *arguments: Any) -> tuple[str, str]:
        return self._shown(self._own, *arguments), self._shown(self._ours, *arguments)


BOTH = _Both()


def _agree(own: str, ours: str) -> bool:
    """What is wrong with a pattern Lua itself says only where a search comes that far."""
    pairs = zip(own.split(END), ours.split(END), strict=True)
    return all(b in (a, "error") for a, b in pairs)


@settings(max_examples=2000)
@given(
    SUBJECTS, PATTERNS, PLACES, st.sampled_from(["x", "<%0>", "%1", "%%", "%2", "%x", 7]), st.sampled_from([None, 0, 1])
)
def test_both_ways_find_the_same(
    subject: str, pattern: str, init: float | None, template: str, most: int | None
) -> None:
    own, ours = BOTH(subject, pattern, init, template, most)
    assert own == ours if "error" not in ours else _agree(own, ours)


@given(SUBJECTS, st.lists(st.sampled_from(ITEMS[:20]), min_size=1, max_size=4).map("".join))
def test_what_is_well_formed_is_no_error(subject: str, text: str) -> None:
    pattern = re.sub(r"\W", lambda found: "%" + found[0] if found[0].isascii() and found[0] != "\0" else "x", text)
    own, ours = BOTH(subject, pattern + "-(.*)%s?", None, "x", None)
    assert own == ours
    assert ours.count("error") == 1  # that of a template that is none


@pytest.mark.parametrize("letter", [chr(n) for n in range(1, 256) if chr(n) not in "bf123456789"])
def test_a_class_has_the_same_members(letter: str) -> None:
    octets = "".join(map(chr, range(256)))
    own, ours = BOTH(octets, "%" + letter, None, "x", None)
    assert own == ours


@pytest.mark.parametrize(
    "pattern",
    ["%", "[a", "[]", "[^]", "[%]", "(a", "a)", "%1", "(a%1)", "%b", "%bx", "%f", "%fa", "()" * 33, "(.-)%", "%0"],
)
def test_a_malformed_pattern_is_an_error_at_once(pattern: str) -> None:
    own, ours = BOTH("a" * 10, "b." + pattern, None, "x", None)
    assert [line for line in ours.split(END) if line == "error"] == ["error"] * 7, (own, ours)


def test_a_pattern_without_an_end_is_refused() -> None:
    _, ours = BOTH("a" * 10, "a*" * 2000, None, "x", None)
    assert ours.split(END)[0] == "error"


def test_a_pattern_with_very_many_items_is_refused() -> None:
    _, ours = BOTH("a" * 10, "a*" * 200, None, "x", None)
    assert ours.split(END)[0] == "error"
