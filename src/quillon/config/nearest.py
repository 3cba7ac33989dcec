"""What somebody has meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], alike: float = 0.6) -> str:
    """`; did you mean NAME?` with the known name that is most like this one; empty where none is. `alike` is how much
    of two names has to be the same, 0 to 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return f"; did you mean {close[0]}?" if close else ""
