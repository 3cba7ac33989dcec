"""Reading the configuration for a command that only looks at it."""

from __future__ import annotations

import sys

from quillon.config.load import load
from quillon.config.model import Config

FAULTY = 2  # exit status


def read(path: str) -> Config | None:
    """The configuration, or None with its faults on stderr."""
    loaded = load(path)
    if loaded.config is None:
        for fault in loaded.errors:
            print(fault, file=sys.stderr)
    return loaded.config
