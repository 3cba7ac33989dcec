"""How many connections of one kind may stand at once: to a destination, to a host. Pure.

A limit of the node is split among its workers: each has its even share for certain, and what does not divide evenly is
had on lease. A limit of 1 with eight workers is a share of none and one lease; of 32 a share of 4 and no lease. So no
worker has to ask for most connections, and the node never has more than it may.
"""

from __future__ import annotations

from typing import Any, NamedTuple

UNLIMITED = 2**31


def split(limit: int, workers: int) -> tuple[int, int]:
    """A worker's share, and how many are left over for all; 0 and below stand for no limit."""
    return divmod(limit, workers) if limit > 0 else (UNLIMITED, 0)


class Cap(NamedTuple):
    """A limit over several destinations: its name, what a worker has of it, and what is had on lease."""

    name: str
    share: int
    spare: int


class Limit:
    """`used` connections stand or are being opened; `held` are destinations that wait for one, in their order."""

    __slots__ = ("asked", "held", "leases", "name", "share", "spare", "used", "wanted")

    def __init__(self, name: str) -> None:
        self.name = name
        self.used = 0
        self.share = UNLIMITED
        self.spare = 0
        self.leases = 0
        self.asked = False  # for a lease, which has not come yet
        self.wanted = False  # whether another worker waits for a lease
        self.held: dict[Any, None] = {}

    def rule(self, share: int, spare: int) -> None:
        """What the configuration allows, as `split` gives it."""
        self.share, self.spare = share, spare

    @property
    def most(self) -> int:
        """Connections that may stand now."""
        return self.share + min(self.leases, self.spare)

    @property
    def full(self) -> bool:
        """Whether no further connection may be opened."""
        return self.used >= self.most

    @property
    def wants(self) -> bool:
        """Whether a lease would help, and is not asked for yet."""
        return self.leases < self.spare and not self.asked and self.used >= self.most

    @property
    def idle_lease(self) -> bool:
        """Whether a lease is held that no connection needs."""
        return self.leases > 0 and self.used < self.most
