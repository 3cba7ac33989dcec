"""`dmarc` (own): whether SPF or DKIM speak for the domain in From, after the data (RFC 9989).

Sets dmarc_status and dmarc_policy in the message context; scripts decide what to make of them. SPF comes from a spf_v1
stanza; DKIM is verified here if no opendkim stanza has done so.
"""

from __future__ import annotations

from quillon.mailauth import dmarc
from quillon.mailauth.author import author_of
from quillon.modules.check import Check
from quillon.modules.opendkim import results_of
from quillon.policy.hook import Call, Phase


class Dmarc(Check):
    facility = "dmarc"
    phase = Phase.DATA

    async def check(self, call: Call) -> None:
        signatures = await results_of(call, self._environment)
        known = call.context.facts.get("spf", ("none", ""))
        author = author_of(call.view.content.head)
        found = await dmarc.evaluate(author, known, signatures, self._environment.records)  # type: ignore[arg-type]
        message = call.context.message
        message["dmarc_status"] = found.status
        if found.policy:
            message["dmarc_policy"] = found.policy
        call.context.results.append(found.text())
