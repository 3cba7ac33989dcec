"""`spf_v1`: whether the client may send for the sender's domain, asked at MAIL FROM (manual, spf module; RFC 7208).

Nothing is refused; the result stands in the message context for scripts to act on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quillon.mail import header
from quillon.mailauth import spf
from quillon.modules.check import Check
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Phase


@dataclass(frozen=True, slots=True)
class SpfSettings:
    """A spf_v1 stanza."""

    name: str
    context_variable: str = "spf_status"
    add_headers: bool = True
    add_authentication_results: bool = True


class Spf(Check):
    facility = "spf_v1"
    phase = Phase.MAILFROM

    def __init__(self, settings: SpfSettings, environment: Environment) -> None:
        super().__init__(settings.name, environment)
        self._settings = settings

    async def check(self, call: Call) -> None:
        context = call.context
        message = context.message
        local, domain = message.get("mailfrom_localpart", ""), message.get("mailfrom_domain", "")
        sender = f"{local}@{domain}" if domain else ""
        helo = context.connection.get("ehlo_domain", "")
        ip = call.session.remote.rpartition(":")[0].strip("[]")
        found = await spf.check(ip, sender, helo, self._environment.hostname, self._environment.records)
        message[self._settings.context_variable] = found.status
        if found.explanation:
            message["spf_explanation"] = found.explanation
        context.facts["spf"] = (found.status, found.domain)
        if self._settings.add_authentication_results:
            context.results.append(found.text(sender, helo))
        if self._settings.add_headers:
            reason = re.sub(r"[^ -~]|[()\\]", "?", found.reason or "checked")
            words = f"{found.status} ({self._environment.hostname}: {reason}) client-ip={ip};"
            more = f"envelope-from={header.pvalue(sender)}; helo={header.pvalue(helo)};"
            context.fields.append(f"Received-SPF: {words} {more}")
