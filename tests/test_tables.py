"""Tables that must agree with what reads them: nothing stands in one that nobody heeds, and nothing is missing."""

import ast
import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pytest

import quillon
from quillon.config.options import Option, convert, table
from quillon.config.settings import (
    DeliverySettings,
    InboundTls,
    NodeSettings,
    OutboundTls,
    ReceptionSettings,
    SecuritySettings,
)
from quillon.config.syntax import ListValue, Position, Word
from quillon.config.values import _EXTENSIONS, CONTAINERS, TRUSTED_EXTENSIONS, Throttle
from quillon.lab.sink import reception_defaults
from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.smtp import events as smtp
from quillon.smtp.server import ServerSession
from quillon.smtp.tables import KEYWORDS, VERBS, State, Verb
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


STATES = {
    State.AWAITING_HELLO: [],
    State.AWAITING_MAIL: [b"EHLO c"],
    State.AWAITING_RCPT: [b"EHLO c", b"MAIL FROM:<a@x.test>"],
}


def test_a_verb_that_is_not_known_here_is_not_recognized() -> None:
    session = ServerSession(reception_defaults(), "mx.test", "192.0.2.1", can_starttls=False)
    session.greet(Reply(220, "", "mx"))
    session.data_to_send()
    session.receive(b"AUTH PLAIN\r\n")
    session.next_event()
    assert session.data_to_send() == replies.UNRECOGNIZED.encode()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_the_machine_is_what_its_table_says(verb: Verb, state: State) -> None:
    settings = reception_defaults(smtp_extensions=("STARTTLS",), require_ehlo=True, auth_in_clear=("PLAIN",))
    session = ServerSession(settings, "mx.test", "192.0.2.1", can_starttls=True, mechanisms=["PLAIN"])
    session.trusted = True
    session.greet(Reply(220, "", "mx"))

    def say(line: bytes) -> tuple[object, bytes]:
        session.receive(line + b"\r\n")
        event = session.next_event()
        return event, session.data_to_send()

    for line in STATES[state]:
        say(line)
        session.respond(None)
    session.data_to_send()
    assert session.state is state
    argument = {"EHLO": b" c", "HELO": b" c", "MAIL": b" FROM:<a@x.test>", "RCPT": b" TO:<b@y.test>", "AUTH": b" PLAIN"}
    event, said = say(verb.name.encode() + argument.get(verb.name, b""))
    refused = verb.refused.get(state)
    if refused is not None:
        assert said == refused.encode()
        assert event is smtp.NEED_DATA
    elif verb.name in ("DATA", "XCLIENT", "XREMOTEIP", "XSETCONTEXT", "XDUMPCONTEXT"):
        assert said.startswith(b"5")  # no recipient yet; not listed in SMTP_Extensions
    else:
        assert not said.startswith(b"5") or verb.name == "VRFY"
        assert (event is not smtp.NEED_DATA) == bool(verb.asks)
        if verb.asks and verb.name not in ("STARTTLS", "AUTH"):
            session.respond(None)
            assert session.state is (verb.leads_to or state)
    assert hasattr(ServerSession, verb.handler)


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


# what a value of each type of option is, as `convert` makes it; types with values of several kinds are left out
MADE = {
    "boolean": bool, "integer": int, "seconds": int, "mode": int, "limit": int, "port": int, "bits": int,
    "string": str, "enum": str, "path": str, "domain": str, "word": str,
    "list": tuple, "paths": tuple, "cidr_list": tuple, "domain_list": tuple, "routes": tuple, "extensions": tuple,
    "protocols": frozenset, "throttle": Throttle,
}  # fmt: skip
SETTINGS = [
    DeliverySettings, InboundTls, NodeSettings, OutboundTls, ReceptionSettings, SecuritySettings,
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_fields_of_settings_have_the_types_of_their_options(settings: type) -> None:
    options = table().options
    hints = get_type_hints(settings)
    for field in fields(settings):
        option = options.get(field.name)
        if option is None or field.default is not MISSING:
            continue
        kinds = set(get_args(hints[field.name])) if isinstance(hints[field.name], UnionType) else {hints[field.name]}
        may_be_none = type(None) in kinds
        bare = {get_origin(kind) or kind for kind in kinds - {type(None)}}
        if option.type in MADE:
            assert bare == {MADE[option.type]}, (field.name, option.type)
        if option.default is None and option.type not in CONTAINERS:
            assert may_be_none, f"{field.name} has no default"
        assert may_be_none or not option.none, f"{field.name} may be none"


def test_a_class_name_has_one_meaning() -> None:
    """But for those that policies in Python know by the names of what they stand for."""
    found: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(file.relative_to(SOURCE)))
    again = {name: files for name, files in found.items() if len(set(files) - {"policy/python.py"}) > 1}
    assert not again


def _compiled_files() -> list[Path]:
    build = ast.parse((Path(__file__).parents[1] / "hatch_build.py").read_text())
    tables = (
        node.value for node in build.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES"
    )
    modules: dict[str, str] = ast.literal_eval(next(tables))
    return [SOURCE / folder / f"{name}.py" for folder, names in modules.items() for name in names.split()]


def test_nothing_that_is_compiled_keeps_what_a_property_found() -> None:
    """mypyc takes a cached_property for a property: it would be found out anew each time."""
    files = _compiled_files()
    assert len(files) > 50
    assert [file.name for file in files if "cached_property" in file.read_text()] == []


def test_no_class_that_is_interpreted_inherits_from_a_compiled_one() -> None:
    """mypyc refuses that, when the one that inherits is made."""
    compiled = set(_compiled_files())
    bases = {name for file in compiled for name in re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE)}
    found = []
    for file in FILES:
        if file not in compiled:
            classes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]
            found += [node.name for node in classes if bases & {ast.unparse(base) for base in node.bases}]
    assert found == []
