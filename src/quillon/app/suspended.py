"""What is suspended, in a file that all workers of a node share, and that outlives them.

Each worker is told of a change and makes it in the file, under a lock: done once or several times, it is the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from quillon.queue.suspension import SuspensionError, Suspensions, parse

NAME = "suspended.json"


def read(base: Path, report: Callable[[str], None]) -> Suspensions:
    """What an earlier life has suspended below SpoolBase. A file that cannot be read is kept beside, and reported."""
    path = base / NAME
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Suspensions()
    except (OSError, UnicodeDecodeError, SuspensionError) as error:
        aside = path.with_suffix(".broken")
        with contextlib.suppress(OSError):
            path.rename(aside)
        report(f"suspend: {path}: {error}; nothing is suspended by it, it is kept as {aside}: say `suspend` again")
        return Suspensions()


def stamp(base: Path) -> tuple[int, int]:
    """What tells one state of the file from another; zeros while there is none."""
    try:
        state = os.stat(base / NAME)
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_ino


def change(base: Path, now: float, make: Callable[[Suspensions], None]) -> Suspensions:
    """Change what is suspended, on the disk first. Raises OSError; then nothing has changed."""
    path = base / NAME
    with open(base / f"{NAME}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read(base, lambda _: None)
        make(found)
        new = path.with_suffix(".new")
        with open(new, "w", encoding="utf-8") as file:
            file.write(found.dump(now))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return found
