"""What the modules that check a message have in common: one phase in which they look, and nothing that they refuse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Callout, Hook, Phase, Verdict


class Check(ABC):
    """Named as its stanza. What it finds stands in the message context, for scripts to act on."""

    facility: str
    phase: ClassVar[Phase]

    def __init__(self, name: str, environment: Environment) -> None:
        self.name = name
        self._environment = environment

    def callout(self, phase: Phase) -> Callout | None:
        return self._run if phase is self.phase else None

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Nothing is held."""

    async def _run(self, call: Call) -> Verdict:
        await self.check(call)
        return Verdict.CONT

    @abstractmethod
    async def check(self, call: Call) -> None:
        """Look, and note what is found in the call's context."""
