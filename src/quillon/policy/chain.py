"""The ARC chain of a message (RFC 8617), for whoever asks first: the module openarc, or a script."""

from __future__ import annotations

from quillon.mailauth import arc
from quillon.mailauth.arc import Chain
from quillon.policy.environment import Environment
from quillon.policy.hook import Call


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
