"""`dmarc` (own): whether SPF or DKIM speak for the domain in From, after the data (RFC 7489).

Sets dmarc_status and dmarc_policy in the message context; scripts decide what to make of them. SPF comes from a spf_v1
stanza; DKIM is verified here if no opendkim stanza has done so.
"""

from __future__ import annotations

from quillon.mailauth import dmarc
from quillon.policy.hook import Call, Phase
from quillon.policy.modules.check import Check
from quillon.policy.modules.opendkim import results_of, texts_of
from quillon.policy.msys.addresses import address_parts


class Dmarc(Check):
    facility = "dmarc"
    phase = Phase.DATA

    async def check(self, call: Call) -> None:
        signatures = await results_of(call, self._world)
        known = call.context.facts.get("spf", ("none", ""))
        domains = address_parts(call.view.header("From"), "domain")
        found = await dmarc.evaluate(domains, known, signatures, texts_of(self._world))  # type: ignore[arg-type]
        message = call.context.message
        message["dmarc_status"] = found.status
        if found.policy:
            message["dmarc_policy"] = found.policy
        call.context.results.append(found.text())
