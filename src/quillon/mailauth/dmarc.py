"""DMARC (RFC 9989): the policy of the From domain, and whether SPF or DKIM speak for it.

The Organizational Domain is found by walking up the DNS tree, with no list of public suffixes (4.10). Of a record whose
rest is faulty what can be read holds (4.8): a slip behind p=reject does not switch the policy off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quillon.mail import header
from quillon.mail.address import is_name
from quillon.mailauth import dkim
from quillon.mailauth.author import Author
from quillon.mailauth.lookup import Lookup

MAX_QUERIES = 8  # of one walk up the tree (RFC 9989 4.10)
POLICIES = ("none", "quarantine", "reject")
# RFC 9989 4.8: the record begins with this, in this spelling
_VERSION = re.compile(r"[vV][ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")
_TAG = re.compile(r"[ \t]*([A-Za-z]+)[ \t]*=[ \t]*([^;]*?)[ \t]*\Z")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-+\--~]+")


@dataclass(frozen=True, slots=True)
class DmarcVerdict:
    """`status` is pass, fail, none, temperror or permerror; `policy` what is to be done with mail that fails, by the
    domain's will: none, quarantine or reject, a step milder under t=y. `published` is what the record says."""

    status: str
    domain: str = ""
    policy: str = ""
    reason: str = ""
    published: str = ""

    def text(self) -> str:
        """As in Authentication-Results."""
        words = f"dmarc={self.status}"
        if self.policy and self.policy != (self.published or self.policy):
            words += f" (p={self.published} t=y)"
        elif self.policy:
            words += f" (p={self.policy})"
        elif self.reason:
            words += f" ({re.sub(r'[^ -~]|[()]', '?', self.reason)})"
        return f"{words} header.from={header.pvalue(self.domain)}" if self.domain else words


class _Unreachable(Exception):
    """DNS gave no answer on a policy."""


def parse_record(text: str) -> dict[str, str] | None:
    """A DMARC record's tags by lower-case name; None for a record that is none (RFC 9989 4.8).

    What is no tag is left out, and of a tag that stands twice the first one holds.
    """
    match = _VERSION.match(text)
    if match is None:
        return None
    found: dict[str, str] = {"v": "DMARC1"}
    for part in text[match.end() :].split(";"):
        tag = _TAG.match(part)
        if tag is not None:
            found.setdefault(tag[1].lower(), tag[2])
    return found


def policy_of(record: Mapping[str, str], *names: str) -> str:
    """The first policy among the tags `names`, with what RFC 9989 4.7 makes of invalid ones: a record that asks for
    reports stands for none, any other for no policy at all, which is the empty text."""
    given = {name: record[name].lower() for name in ("p", "sp", "np") if name in record}
    if "p" in given and all(value in POLICIES for value in given.values()):
        return next(given[name] for name in (*names, "p") if name in given)
    return "none" if _URI.match(record.get("rua", "")) else ""


@dataclass
class _Tree:
    """Walks up the DNS tree (RFC 9989 4.10), each name asked for once."""

    lookup: Lookup
    _records: dict[str, dict[str, str] | None] = field(default_factory=dict)
    _organizations: dict[str, str] = field(default_factory=dict)

    async def record(self, name: str) -> dict[str, str] | None:
        """The record at a name, if there is just one (4.10, step 2). Raises _Unreachable."""
        if name not in self._records:
            found = await self.lookup(f"_dmarc.{name}", "TXT")
            if found.status == "failed":
                raise _Unreachable
            valid = [tags for text in found.records if (tags := parse_record(text)) is not None]
            self._records[name] = valid[0] if len(valid) == 1 else None
        return self._records[name]

    async def walk(self, domain: str) -> list[tuple[str, dict[str, str]]]:
        """Names with a record, the longest first, as far as the walk goes."""
        found: list[tuple[str, dict[str, str]]] = []
        for name in _names(domain):
            try:
                record = await self.record(name)
            except _Unreachable:
                if "." in name or not found:
                    raise
                break  # a top-level domain that gives no answer takes nothing from what stands below it
            if record is None:
                continue
            found.append((name, record))
            if _psd(record) in ("n", "y"):
                break
        return found

    async def organization(self, domain: str) -> str:
        """The Organizational Domain (4.10.2). Raises _Unreachable."""
        if domain not in self._organizations:
            self._organizations[domain] = await self._find_organization(domain)
        return self._organizations[domain]

    async def _find_organization(self, domain: str) -> str:
        found = await self.walk(domain)
        for name, record in found:
            if _psd(record) == "n":
                return name
            if _psd(record) == "y" and name != domain:
                # one label below the public suffix
                return ".".join(domain.split(".")[-len(name.split(".")) - 1 :])
        return found[-1][0] if found else domain


def _names(domain: str) -> list[str]:
    """The names that a walk asks for: the domain, then its ancestors of at most seven labels, the top one included."""
    labels = domain.split(".")
    first = max(len(labels) - MAX_QUERIES + 1, 1)
    return [domain, *(".".join(labels[n:]) for n in range(first, len(labels)))]


def _psd(record: Mapping[str, str]) -> str:
    return record.get("psd", "u").lower()


async def evaluate(
    author: Author, spf: tuple[str, str], signatures: Sequence[dkim.DkimResult], lookup: Lookup
) -> DmarcVerdict:
    """`spf` is its status and the domain that it was asked for."""
    if author.fault or len(author.domains) != 1:
        return DmarcVerdict("permerror", reason=author.fault or "more than one domain in From")
    domain = author.domains[0]
    tree = _Tree(lookup)
    try:
        return await _judged(tree, domain, spf, signatures)
    except _Unreachable:
        return DmarcVerdict("temperror", domain, reason="the policy cannot be looked up")


async def _judged(
    tree: _Tree, domain: str, spf: tuple[str, str], signatures: Sequence[dkim.DkimResult]
) -> DmarcVerdict:
    record, policy = await _policy(tree, domain)
    if record is None or not policy:
        return DmarcVerdict("none", domain)
    effective = _milder(policy) if record.get("t", "n").lower() == "y" else policy
    claims = [(spf[0], spf[1], record.get("aspf", "r"))]
    claims += [(result.status, result.domain, record.get("adkim", "r")) for result in signatures]
    unsure = False
    for status, name, mode in claims:
        if status in ("pass", "temperror") and await _aligned(tree, name, domain, mode):
            if status == "pass":
                return DmarcVerdict("pass", domain, effective, published=policy)
            unsure = True
    if unsure:
        # what would have spoken for the domain could not be found out: nothing has failed
        return DmarcVerdict("temperror", domain, reason="SPF or DKIM could not be looked up")
    return DmarcVerdict("fail", domain, effective, published=policy)


async def _policy(tree: _Tree, domain: str) -> tuple[Mapping[str, str] | None, str]:
    """The record that rules a domain, and its policy for it (RFC 9989 4.10.1). Raises _Unreachable."""
    own = await tree.record(domain)
    if own is not None:
        return own, policy_of(own, "p")
    walked = await tree.walk(domain)
    if not walked:
        return None, ""
    organization = await tree.organization(domain)
    record = await tree.record(organization) or walked[-1][1]
    names = ("np", "sp") if "np" in record and not await _exists(tree.lookup, domain) else ("sp",)
    return record, policy_of(record, *names)


async def _exists(lookup: Lookup, domain: str) -> bool:
    """Whether there is such a name in DNS (RFC 9989 3.2.13, RFC 8020). Raises _Unreachable."""
    found = await lookup(domain, "A")
    if found.status == "failed":
        raise _Unreachable
    return found.status != "nxdomain"


def _milder(policy: str) -> str:
    return POLICIES[max(POLICIES.index(policy) - 1, 0)]


async def _aligned(tree: _Tree, name: str, domain: str, mode: str) -> bool:
    name = name.lower().rstrip(".")
    if name == domain:
        return True
    if mode.lower() == "s" or not is_name(name):
        return False
    return await tree.organization(name) == await tree.organization(domain)
