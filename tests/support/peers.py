"""Programs of other projects that tests talk to. Missing ones skip a test, or fail it under QUILLON_REQUIRE_PEERS=1."""

from __future__ import annotations

import glob
import os
import shutil

import pytest

_FOLDERS = os.pathsep.join(
    (os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin", *glob.glob("/usr/lib/postgresql/*/bin"))
)


def require(program: str) -> str:
    """The path of a program."""
    path = shutil.which(program, path=_FOLDERS)
    if path is None:
        missing(f"{program} is not installed")
    assert path is not None
    return path


def require_root() -> None:
    """Postfix and changes of user need root."""
    if os.geteuid() != 0:
        missing("this needs root")


def missing(text: str) -> None:
    """What a test needs is not there."""
    if os.environ.get("QUILLON_REQUIRE_PEERS") == "1":
        pytest.fail(f"{text}, and QUILLON_REQUIRE_PEERS=1 demands it")
    pytest.skip(text)
