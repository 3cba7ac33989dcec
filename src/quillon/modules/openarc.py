"""`openarc`: the Authenticated Received Chain of a message, validated after the data (manual, openarc; RFC 8617).

Sets arc_cv in the message context: none, pass or fail. Scripts seal with msys.validate.openarc.sign.
"""

from __future__ import annotations

from quillon.modules.check import Check
from quillon.policy.chain import chain_of
from quillon.policy.hook import Call, Phase


class OpenArc(Check):
    facility = "openarc"
    phase = Phase.DATA

    async def check(self, call: Call) -> None:
        found = await chain_of(call, self._environment)
        call.context.results.append(found.text())
