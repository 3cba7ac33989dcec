"""Watches what is logged for what an operator has to be told: partners whose TLS fails, or is gone where it was. Pure.

A partner is watched whose TLS is demanded, or has worked before: what never had TLS is no news.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from quillon.config.contracts import KIND as CONTRACT
from quillon.mail.alert import Alert
from quillon.mail.event import Attempted, Event, Received, Rejected, TlsFacts, TlsReported
from quillon.mail.outcome import Delivered
from quillon.tls.causes import ALERT, CAUSES

MOST = 10_000  # partners that are remembered
SOON = 14 * 86400.0  # seconds before the end of a partner's certificate in which that is told
AGAIN = 3600.0  # seconds until it is told again


class TlsWatch:
    """By the recipients' domains, the least recently seen of which are forgotten. `contract_of` gives the label of the
    contract that rules mail from a domain, or nothing."""

    def __init__(self, contract_of: Callable[[str], str] = lambda _: "") -> None:
        self._contract_of = contract_of
        self._known: OrderedDict[str, str] = OrderedDict()  # the version that worked, by domain
        self._wrong: dict[str, set[str]] = {}  # causes that were told of, by domain
        self._breaches: dict[str, set[str]] = {}  # of contracts, by their labels

        self._ends: OrderedDict[tuple[str, str], float] = OrderedDict()  # when it was told, by domain and host
        self._reports: OrderedDict[tuple[str, str], None] = OrderedDict()  # of failures, by domain and who sent them

    def see(self, event: Event) -> Iterator[Alert]:
        """What an event changes."""
        if isinstance(event, Rejected):
            yield from self._broken(event)
            return
        if isinstance(event, Received):
            yield from self._kept(event.message.batch.sender.domain)
            return
        if isinstance(event, TlsReported):
            yield from self._reported(event)
            return
        if not isinstance(event, Attempted):
            return
        domain, outcome = event.message.recipient.domain, event.outcome
        facts = event.tls
        cause = "" if isinstance(outcome, Delivered) else outcome.cause
        cause = cause or (facts.cause if facts is not None else "")
        before = self._known.get(domain, "")
        if cause:
            if before or event.demand.tls == "required":
                yield self._failing(domain, cause, facts, delivered=isinstance(outcome, Delivered))
        elif isinstance(outcome, Delivered):
            if facts is not None and facts.protocol:
                self._remember(domain, facts.protocol)
                yield from self._well(domain)
                yield from self._ending(domain, event.host, facts, event.time)
            elif before:
                self._wrong.setdefault(domain, set()).add("lost")
                text = (
                    f"mail to {domain} goes in clear, and went over {before} before: STARTTLS is not offered any more"
                )
                yield Alert(f"tls {domain} lost", True, text, _advice(domain, "no_starttls"))

    def _broken(self, event: Rejected) -> Iterator[Alert]:
        """Mail from the domain of a contract was refused for it."""
        if event.module != CONTRACT:
            return
        # by the stanza: whoever writes names behind MAIL FROM does not write alerts
        self._breaches.setdefault(event.contract, set()).add(event.cause)
        domain = event.message_context.get("mailfrom_domain", "")
        text = f"mail from {domain}, by {event.remote}, is refused for its TLS contract: {event.cause}"
        remedy = CAUSES[event.cause].remedy if event.cause in CAUSES else ALERT
        yield Alert(f"tls {event.contract} contract {event.cause}", True, text, remedy)

    def _reported(self, event: TlsReported) -> Iterator[Alert]:
        """Somebody has told what he saw of a domain of ours; each of them is heard for himself."""
        key, who = f"tls {event.domain} report {event.submitter}", (event.domain, event.submitter)
        if event.bad:
            self._reports[who] = None
            while len(self._reports) > MOST:
                self._reports.popitem(last=False)
            ways = Counter[str]()
            for result, _, sessions in event.failures:
                ways[result] += sessions
            told = ", ".join(f"{name} {count}" for name, count in ways.most_common(5)) or "without a reason"
            text = (
                f"{event.submitter} reports {event.bad} failed TLS sessions with {event.domain} on {event.day}: {told}"
            )
            shows = (
                f"`quillon posture {event.domain}` has the hosts, `quillon tls-setup {event.domain}` what is published"
            )
            yield Alert(key, True, text, f"{shows}.")
        elif who in self._reports:
            del self._reports[who]
            yield Alert(key, False, f"{event.submitter} reports no failed TLS session with {event.domain} any more")

    def _kept(self, domain: str) -> Iterator[Alert]:
        """Mail has come from a domain again, whose contract lets it."""
        label = self._contract_of(domain) if self._breaches else ""
        for cause in sorted(self._breaches.pop(label, ())) if label else ():
            yield Alert(f"tls {label} contract {cause}", False, f"mail from {domain} keeps its TLS contract again")

    def _failing(self, domain: str, cause: str, facts: TlsFacts | None, *, delivered: bool) -> Alert:
        self._wrong.setdefault(domain, set()).add(cause)
        detail = f" ({facts.detail})" if facts is not None and facts.detail else ""
        effect = "mail went in clear" if delivered else "its mail waits"
        text = f"TLS to {domain} fails with {cause}{detail}; {effect}"
        return Alert(f"tls {domain} {cause}", True, text, _advice(domain, cause))

    def _well(self, domain: str) -> Iterator[Alert]:
        for cause in sorted(self._wrong.pop(domain, ())):
            yield Alert(f"tls {domain} {cause}", False, f"TLS to {domain} works again")

    def _ending(self, domain: str, host: str, facts: TlsFacts, now: float) -> Iterator[Alert]:
        """A partner's certificate is about to end, or there is another one."""
        key = (domain, host)
        if not facts.ends or facts.ends - now >= SOON:
            if self._ends.pop(key, None) is not None:
                yield Alert(f"tls {domain} certificate {host}", False, f"{host} has another certificate")
            return
        if now - self._ends.get(key, 0.0) < AGAIN:
            return
        self._ends[key] = now
        while len(self._ends) > MOST:
            self._ends.popitem(last=False)
        left = max(facts.ends - now, 0) / 86400
        text = f"the certificate of {host}, which takes mail for {domain}, ends in {left:.0f} days"
        yield Alert(f"tls {domain} certificate {host}", True, text, "Tell its operator: after that it does not verify.")

    def _remember(self, domain: str, protocol: str) -> None:
        self._known[domain] = protocol
        self._known.move_to_end(domain)
        while len(self._known) > MOST:
            forgotten, _ = self._known.popitem(last=False)
            self._wrong.pop(forgotten, None)


def _advice(domain: str, cause: str) -> str:
    remedy = CAUSES[cause].remedy if cause in CAUSES else ALERT
    return (
        f"{remedy} `quillon tls-probe --domain {domain}` shows it, `quillon console find --domain {domain}` the mail."
    )
