"""Becoming Security { User, Group } once the sockets are bound (manual, user and group options)."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from quillon.config.settings import SecuritySettings


class PrivilegeError(Exception):
    """The user or group does not exist, or may not be changed to."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Numeric ids to become; None where nothing is to change."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...]

    def own(self, path: Path) -> None:
        """Make a folder that we have just created belong to that identity."""
        if self.uid is not None or self.gid is not None:
            os.chown(path, -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid)


def identity(settings: SecuritySettings) -> Identity:
    """Look the names up. Raises PrivilegeError; also where the names ask for a change that we may not make."""
    if os.geteuid() != 0:
        return Identity(None, None, ())
    try:
        user = pwd.getpwnam(settings.user) if settings.user else None
        group = grp.getgrnam(settings.group).gr_gid if settings.group else None
        extra = tuple(grp.getgrnam(name).gr_gid for name in settings.supplemental_groups)
    except KeyError as error:
        raise PrivilegeError(f"Security: {error.args[0]}") from None
    if user is not None and group is None:
        group = user.pw_gid
    return Identity(user.pw_uid if user else None, group, extra)


def become(who: Identity) -> None:
    """Give up root for good. Raises PrivilegeError."""
    if who.uid is None and who.gid is None:
        return
    try:
        if who.gid is not None:
            os.setgroups([who.gid, *who.groups])
            os.setresgid(who.gid, who.gid, who.gid)
        if who.uid is not None:
            os.setresuid(who.uid, who.uid, who.uid)
    except OSError as error:
        raise PrivilegeError(f"Security: cannot change user or group: {error.strerror}") from None


def make_folder(path: Path, who: Identity, mode: int = 0o750) -> None:
    """Create a folder, with its parents, for that identity; one that exists stays as it is. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent, Identity(None, None, ()), 0o755)
    path.mkdir(mode=mode, exist_ok=True)
    who.own(path)
