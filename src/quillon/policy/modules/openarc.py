"""`openarc`: the Authenticated Received Chain of a message, validated after the data (manual, openarc; RFC 8617).

Sets arc_cv in the message context: none, pass or fail. Scripts seal with msys.validate.openarc.sign.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from quillon.mailauth import arc
from quillon.mailauth.arc import Chain
from quillon.policy.hook import Call, Callout, Hook, Phase, Verdict
from quillon.policy.modules.opendkim import texts_of
from quillon.policy.world import World


async def chain_of(call: Call, world: World) -> Chain:
    """The state of a message's chain, validated once, and noted in arc_cv."""
    known = call.context.facts.get("arc")
    if isinstance(known, Chain):
        return known
    content = call.view.content
    found = await arc.validate(content.head, content.body, texts_of(world), world.now())
    call.context.facts["arc"] = found
    call.context.message["arc_cv"] = found.status
    return found


class OpenArc:
    """Named as its stanza."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self._world = world

    def callout(self, phase: Phase) -> Callout | None:
        return self._check if phase is Phase.DATA else None

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        return None

    def close(self) -> None:
        """Nothing is held."""

    def _check(self, call: Call) -> Awaitable[Verdict]:
        return self._checked(call)

    async def _checked(self, call: Call) -> Verdict:
        found = await chain_of(call, self._world)
        call.context.results.append(found.text())
        return Verdict.CONT
