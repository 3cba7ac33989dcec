"""How the checks of this package ask DNS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple


class Records(NamedTuple):
    """`status` is ok, nodata, nxdomain or failed."""

    status: str
    records: Sequence[str] = ()


Lookup = Callable[[str, str], Awaitable[Records]]
"""Name and type (TXT, A, AAAA, MX, PTR) to records, MX in their order."""
