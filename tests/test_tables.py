"""Tables that must agree with what reads them: nothing stands in one that nobody heeds, and nothing is missing."""

import ast
import re
from pathlib import Path

import pytest

import quillon
from quillon.config.options import Option, convert, table
from quillon.config.syntax import ListValue, Position, Word
from quillon.config.values import _EXTENSIONS, TRUSTED_EXTENSIONS
from quillon.smtp.server import ServerSession
from quillon.smtp.tables import KEYWORDS, VERBS
from quillon.tls.causes import CAUSES

SOURCE = Path(quillon.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
HERE = Position("test", 1, 1)


@pytest.fixture(scope="module")
def words() -> set[str]:
    """Every word of the code."""
    return {word for file in FILES for word in re.findall(r"[a-z0-9_]+", file.read_text().lower())}


def test_every_honoured_option_is_read_by_somebody(words: set[str]) -> None:
    rows: list[Option] = list(table().options.values())
    rows += [option for module in table().modules.values() for option in module.options.values()]
    unread = sorted(row.name for row in rows if row.status == "honoured" and not _read(row.name, words))
    assert unread == []


def _read(name: str, words: set[str]) -> bool:
    """Loggers and custom loggers take the stage and the ending of a name from tables of their own."""
    stage = re.fullmatch(r"(?:log_)?([a-z_]+?)(?:_(?:format|logfile|log_mode|mode))?", name)
    return name in words or (stage is not None and {stage[1], stage[1].removesuffix("s")} & words != set())


def test_smtp_extensions_and_the_ehlo_reply_know_the_same_keywords() -> None:
    option = table().options["smtp_extensions"]
    for keyword in KEYWORDS:
        assert convert(option, ListValue((Word(keyword.name, HERE),), HERE), "/") == (keyword.name,)
    assert {*_EXTENSIONS.values(), *TRUSTED_EXTENSIONS} == {keyword.name for keyword in KEYWORDS}


def test_every_verb_has_a_handler() -> None:
    from quillon.smtp import server

    assert set(server._HANDLERS) == set(VERBS)
    assert all(callable(handler) for handler in server._HANDLERS.values())
    assert ServerSession is not None


CALLS = {"HandshakeFailure", "Judgement", "TransientFailure", "_tls_failed", "_refused", "Foreseen"}


def _causes(file: Path) -> set[str]:
    """Texts that are given for a cause in one file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            named = [keyword.value for keyword in node.keywords if keyword.arg == "cause"]
            values = [*named, *(node.args if name in CALLS else ())]
            found |= {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return {text for text in found if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", text)}


def test_every_cause_that_code_gives_is_explained() -> None:
    found = {text for file in FILES for text in _causes(file)}
    assert len(found) > 10
    assert {text for text in found if text not in CAUSES and not text.startswith("alert_")} == set()
