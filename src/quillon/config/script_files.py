"""Where the files of Lua scripts lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def folders(main: str, files: Sequence[str]) -> list[Path]:
    """The folders in which scripts are looked for: that of the main file, `main`, and those of all that were read."""
    return list(dict.fromkeys([Path(main), *(Path(file).parent for file in files)]))


def candidates(name: str, places: Sequence[Path]) -> list[Path]:
    """The files that may hold a script, of which the first one that is there counts: in those folders, dots standing
    for slashes; or where an absolute path says."""
    if name.startswith("/"):
        return [Path(name), Path(f"{name}.lua")]
    return [place / f"{name.replace('.', '/')}.lua" for place in places]
