"""The folder of large bodies: a file each, synced before the record that names it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NAME = re.compile(r"[0-9]{1,20}")


class Bodies:
    """`mode` is the file mode of what is created; `report` takes a line."""

    def __init__(self, folder: Path, mode: int, report: Callable[[str], object]) -> None:
        self.folder = folder
        self._mode = mode
        self._report = report

    def create(self) -> None:
        """Make the folder. Raises OSError."""
        make_folder(self.folder)

    def file(self, name: str) -> Path:
        """Where a body lies. Raises OSError where that is no name of one."""
        if not NAME.fullmatch(name):
            raise OSError(errno.EINVAL, "no name of a body file", name)
        return self.folder / name

    def new(self, number: int) -> tuple[str, int]:
        """Create the file of a batch: its name, and a descriptor that the caller writes to and closes."""
        text: Any = number  # not an int, for the same reason as in `log_octets`
        name = str(text)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return name, os.open(self.file(name), flags, self._mode)

    def drop(self, name: str) -> None:
        """Remove a body that nobody needs. One that stays is swept after the next start."""
        try:
            self.file(name).unlink(missing_ok=True)
        except OSError as error:
            self._report(f"spool: cannot remove {self.folder / name}: {error.strerror}")

    def sync(self, name: str) -> None:
        """Bring a body and its name onto the disk. Raises OSError."""
        sync(self.file(name))
        sync(self.folder)

    def names(self) -> list[str]:
        """All that lie there. Raises OSError."""
        return [file.name for file in self.folder.iterdir() if file.is_file()]

    def link_from(self, other: Bodies) -> None:
        """Have what lies in another folder here too. Raises OSError."""
        for name in other.names():
            target = self.folder / name
            if not target.exists():
                os.link(other.folder / name, target)
        sync(self.folder)

    def keep(self, names: Iterable[str]) -> None:
        """Remove all others. Raises OSError."""
        for name in set(self.names()).difference(names):
            (self.folder / name).unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they are there after a crash too. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o750, exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
