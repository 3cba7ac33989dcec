"""`openarc`: the Authenticated Received Chain of a message, validated after the data (manual, openarc; RFC 8617).

Sets arc_cv in the message context: none, pass or fail. Scripts seal with msys.validate.openarc.sign.
"""

from __future__ import annotations

from quillon.mailauth import arc
from quillon.mailauth.arc import Chain
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Phase
from quillon.policy.modules.check import Check


async def chain_of(call: Call, environment: Environment) -> Chain:
    """The state of a message's chain, validated once, and noted in arc_cv."""
    known = call.context.facts.get("arc")
    if isinstance(known, Chain):
        return known
    content = call.view.content
    found = await arc.validate(content.head, content.body, environment.records, environment.now())
    call.context.facts["arc"] = found
    call.context.message["arc_cv"] = found.status
    return found


class OpenArc(Check):
    facility = "openarc"
    phase = Phase.DATA

    async def check(self, call: Call) -> None:
        found = await chain_of(call, self._environment)
        call.context.results.append(found.text())
