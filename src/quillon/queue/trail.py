"""Where an attempt to deliver has been without success: the way from host to host that RFC 5321 5.1 wants. Pure.

An attempt ends when a host has taken the message or refused it for good, or when no host is left. Until then the trail
says which addresses are done with, and what is told if there is no other: of several failures the first that has the
cause of a TLS failure, else the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from quillon.mail.event import TlsFacts
from quillon.mail.outcome import PermanentFailure, TransientFailure


class Failed(NamedTuple):
    """One host did not take a message for now; `host` is its name, `local_ip` the source address."""

    outcome: TransientFailure | PermanentFailure
    facts: TlsFacts | None = None
    host: str = ""
    local_ip: str = ""


@dataclass(frozen=True, slots=True)
class Trail:
    """`tried` are addresses with ports (`Host.peer`), `sessions` counts hosts that could be talked to."""

    tried: frozenset[str] = frozenset()
    sessions: int = 0
    failed: Failed | None = None

    def after(self, peer: str, failed: Failed, *, session: bool) -> Trail:
        """The trail once one more address is done with."""
        known = self.failed
        cause = known.outcome.cause if known is not None else ""
        keep = known is not None and (_told(known) > _told(failed) or (cause and cause != failed.outcome.cause))
        if known is not None and _is_final(known) != _is_final(failed):
            keep = not _is_final(known)  # as long as one host may take it later, nothing is over
        told = known if keep else failed
        return replace(self, tried=self.tried | {peer}, sessions=self.sessions + session, failed=told)


def _is_final(failed: Failed) -> bool:
    return isinstance(failed.outcome, PermanentFailure)


def _told(failed: Failed) -> int:
    """How much a failure tells: a TLS cause most, then what a host has said, then what this side made of it."""
    if failed.outcome.cause:
        return 2
    return 0 if "[internal]" in failed.outcome.reply.text else 1
