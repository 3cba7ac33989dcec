"""Who may give which command."""

from __future__ import annotations

from pathlib import Path

import pytest

from quillon.control.authority import AccessRules, GroupsError, parse_groups
from quillon.control.commands import COMMANDS, Role, find


@pytest.fixture
def groups(tmp_path: Path) -> str:
    path = tmp_path / "groups"
    path.write_text("# who\n\nview:ann, bob\noperate:x:carol\nadmin:dave\nflusher:ann\nempty:\n")
    return str(path)


def may(authority: AccessRules, user: str, line: str) -> bool:
    return authority.allows(user, find(line.split())[0], line) is not None


def test_the_three_roles_need_no_stanza(groups: str) -> None:
    authority = AccessRules(groups, {})
    for command in COMMANDS:
        line = f"{command.name} x" if command.words else command.name
        assert may(authority, "ann", line) is (command.role is Role.VIEW)
        assert may(authority, "carol", line) is (command.role <= Role.OPERATE)
        assert may(authority, "dave", line)
        assert not may(authority, "eve", line)
    assert not may(authority, "carol", "a script's own command")
    assert may(authority, "dave", "a script's own command")


def test_a_user_who_is_called_admin_is_none(groups: str) -> None:
    for user in ("admin", "operate", "view", "ADMIN"):
        assert not may(AccessRules(groups, {}), user, "version")


def test_a_stanza_allows_what_one_of_its_patterns_is_found_in(groups: str) -> None:
    authority = AccessRules(
        groups, {"flusher": ["^flush domain ", "^message retry"], "eve": ["^pid$"], "view": ["^mailq"]}
    )
    assert may(authority, "ann", "flush domain x.test")
    assert not may(authority, "ann", "flush --all --yes")
    assert may(authority, "eve", "pid")
    assert not may(authority, "eve", "mailq")
    assert may(authority, "bob", "mailq 5")
    assert not may(authority, "bob", "summary"), "a stanza says it all, even of a role that needs none"


def test_without_a_file_roles_are_the_users_names() -> None:
    authority = AccessRules(None, {"root": [".*"]})
    assert may(authority, "root", "config reload")
    assert not may(authority, "ann", "version")


@pytest.mark.parametrize("text", ["view", "a:b:c:d", ":ann", "view:ann\nbroken"])
def test_a_file_that_cannot_be_read_gives_nobody_anything(tmp_path: Path, text: str) -> None:
    path = tmp_path / "groups"
    path.write_text(text)
    with pytest.raises(GroupsError, match="line "):
        parse_groups(text)
    for broken in (str(path), f"{path}-gone"):
        with pytest.raises(GroupsError):
            may(AccessRules(broken, {}), "ann", "version")
    path.write_bytes(b"view:\xff")
    with pytest.raises(GroupsError):
        may(AccessRules(str(path), {}), "ann", "version")
