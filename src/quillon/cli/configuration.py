"""Reading the configuration for a command that only looks at it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quillon.config.model import Config

FAULTY = 2  # exit status
DEFAULT = "ecelerity.conf"  # in the current folder


def say_which(path: str) -> None:
    """Tell on stderr which file is read where none was named: the one in this folder need not be the server's."""
    if path == DEFAULT:
        print(f"reading {Path(path).absolute()}", file=sys.stderr)


def read(path: str) -> Config | None:
    """The configuration, or None with its faults on stderr."""
    from quillon.config.load import load  # noqa: PLC0415 - for those who only want the name of the file

    say_which(path)
    loaded = load(path)
    if loaded.config is None:
        for fault in loaded.errors:
            print(fault, file=sys.stderr)
    return loaded.config
