"""DMARC (RFC 7489): the policy of the From domain, and whether SPF or DKIM speak for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from publicsuffixlist import PublicSuffixList

from quillon.mail import header
from quillon.mailauth import dkim
from quillon.mailauth.dkim import DkimError, LookupTexts


@dataclass(frozen=True, slots=True)
class Verdict:
    """`status` is pass, fail, none, temperror or permerror; `policy` what the domain asks for: none, quarantine or
    reject."""

    status: str
    domain: str = ""
    policy: str = ""
    reason: str = ""

    def text(self) -> str:
        """As in Authentication-Results."""
        words = f"dmarc={self.status}"
        if self.policy:
            words += f" (p={self.policy})"
        elif self.reason:
            words += f" ({self.reason})"
        return f"{words} header.from={header.pvalue(self.domain)}" if self.domain else words


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


@lru_cache(maxsize=4096)
def organizational_domain(domain: str) -> str:
    """The domain that somebody has registered (RFC 7489 3.2): one label more than a public suffix."""
    found = _suffixes().privatesuffix(domain)
    return found if found is not None else domain


def parse_record(text: str) -> dict[str, str] | None:
    """A DMARC record's tags; None for a record that is none (RFC 7489 6.3)."""
    if not re.match(r"v\s*=\s*DMARC1\s*(;|\Z)", text):
        return None
    try:
        return dkim.parse_tags(text)
    except DkimError:
        return None


async def evaluate(
    from_domains: Sequence[str], spf: tuple[str, str], signatures: Sequence[dkim.Result], lookup: LookupTexts
) -> Verdict:
    """`from_domains` are those of the From field, `spf` its status and the domain that it was asked for."""
    domains = list(dict.fromkeys(domain.lower().rstrip(".") for domain in from_domains if domain))
    if len(domains) != 1:
        return Verdict("permerror", reason="no single domain in From")
    domain = domains[0]
    own = organizational_domain(domain)
    record, used = None, domain
    for name in dict.fromkeys((domain, own)):
        found = await lookup(f"_dmarc.{name}")
        if found.status == "failed":
            return Verdict("temperror", domain, reason="the policy cannot be looked up")
        records = [tags for text in found.records if (tags := parse_record(text)) is not None]
        if len(records) == 1:
            record, used = records[0], name
            break
    if record is None:
        return Verdict("none", domain)
    policy = record.get("sp", record.get("p", "none")) if used != domain else record.get("p", "none")
    policy = policy.lower() if policy.lower() in ("none", "quarantine", "reject") else "none"
    by_spf = spf[0] == "pass" and _aligned(spf[1], domain, record.get("aspf", "r"))
    by_dkim = any(r.status == "pass" and _aligned(r.domain, domain, record.get("adkim", "r")) for r in signatures)
    return Verdict("pass" if by_spf or by_dkim else "fail", domain, policy)


def _aligned(one: str, domain: str, mode: str) -> bool:
    one = one.lower().rstrip(".")
    if mode.strip().lower() == "s":
        return one == domain
    return organizational_domain(one) == organizational_domain(domain)
