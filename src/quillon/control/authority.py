"""Who may give which command of the console. Pure, but for the file of groups.

Without Enable_Authorization whoever may connect to a socket may give every command: its mode says who that is. With it,
a user may give what the Authorization stanza allows to a role that bears his name, or that the file of groups gives
him. The groups `view`, `operate` and `admin` need no stanza: they stand for the commands of that kind (manual,
Control_Listener Authorization).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quillon.control.commands import Command, Role

_STANDING = {role.name.lower(): role for role in Role}  # by their exact names: no other spelling is one of them
NOT_ALLOWED = "Not Authorized for this command"


class GroupsError(ValueError):
    """A file of groups cannot be read."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What rules one socket: the file of groups, None for none, and the patterns of each role of the configuration.
    `everybody` is a role that each client has, `claimed` are groups that somebody who vouches for a user names."""

    groups: str | None
    allowed: Mapping[str, Sequence[str]]
    everybody: Role | None = None
    claimed: tuple[str, ...] = ()

    def allows(self, user: str, command: Command, line: str) -> str | None:
        """The role that lets a user give a command, None for none; `line` is the whole of it, which patterns are
        compared with. Raises GroupsError."""
        if self.everybody is not None and command.role <= self.everybody:
            return self.everybody.name.lower()
        groups = self.groups_of(user)
        found = next((role for role in [user, *groups] if self._matches(role, line)), None)
        if found is not None:
            return found
        for group in groups:
            # a user may be called admin: only the file makes him one
            role = _STANDING.get(group) if group not in self.allowed else None
            if role is not None and command.role <= role:
                return group
        return None

    def groups_of(self, user: str) -> list[str]:
        """The groups that the file counts a user to, and those that are claimed. Raises GroupsError."""
        if self.groups is None:
            return list(self.claimed)
        try:
            found = parse_groups(Path(self.groups).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GroupsError(f"{self.groups}: {error}") from None
        return [*self.claimed, *(group for group, members in found.items() if user in members)]

    def _matches(self, role: str, line: str) -> bool:
        return any(re.search(pattern, line) for pattern in self.allowed.get(role, ()))


def parse_groups(text: str) -> dict[str, list[str]]:
    """`group:user1,user2` or `group:password:user1,user2` a line. Raises GroupsError."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = [part.strip() for part in line.split(":")]
        if len(parts) not in (2, 3) or not parts[0]:
            raise GroupsError(f"line {number}: {line.strip()!r:.60} is not group:user1,user2")
        found.setdefault(parts[0], []).extend(name.strip() for name in parts[-1].split(",") if name.strip())
    return found
