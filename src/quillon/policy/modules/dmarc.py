"""`dmarc` (own): whether SPF or DKIM speak for the domain in From, after the data (RFC 7489).

Sets dmarc_status and dmarc_policy in the message context; scripts decide what to make of them. SPF comes from a spf_v1
stanza; DKIM is verified here if no opendkim stanza has done so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from quillon.mailauth import dmarc
from quillon.policy.hook import Call, Callout, Hook, Phase, Verdict
from quillon.policy.modules.opendkim import results_of, texts_of
from quillon.policy.msys.addresses import address_parts
from quillon.policy.world import World


class Dmarc:
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
        signatures = await results_of(call, self._world)
        known = call.context.facts.get("spf", ("none", ""))
        domains = address_parts(call.view.header("From"), "domain")
        found = await dmarc.evaluate(domains, known, signatures, texts_of(self._world))  # type: ignore[arg-type]
        message = call.context.message
        message["dmarc_status"] = found.status
        if found.policy:
            message["dmarc_policy"] = found.policy
        call.context.results.append(found.text())
        return Verdict.CONT
