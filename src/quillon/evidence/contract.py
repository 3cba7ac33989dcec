"""Whether a TLS contract was kept, out of records of evidence. Shell: it reads the authorities of contracts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quillon.config.contracts import KIND, Contract, Contracts
from quillon.config.outbound import lookup_name
from quillon.tls import identity
from quillon.tls.anchors import Anchors
from quillon.tls.certificate import Certificate
from quillon.tls.proven import enough

Row = dict[str, Any]


@dataclass
class Direction:
    """What went one way. `messages` were taken or delivered; `breaches` of them went otherwise than agreed on, by how;
    `held` were refused, or waited, by cause: each message once, however often it was tried; `passed_over` are hosts
    that were tried in vain; `days` have what was held and broken by day."""

    messages: int = 0
    protocols: Counter[str] = field(default_factory=Counter)
    peers: Counter[str] = field(default_factory=Counter)
    certificates: Counter[str] = field(default_factory=Counter)
    breaches: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    days: Counter[str] = field(default_factory=Counter)
    _known: set[tuple[str, str]] = field(default_factory=set)

    def passed(self, row: Row, peer: str, broken: str) -> None:
        """A message went; `broken` says what was not as agreed on."""
        tls = row["tls"] or {}
        self.messages += 1
        self.protocols[tls.get("protocol") or "in clear"] += 1
        self.peers[peer] += 1
        if tls.get("certificates"):
            self.certificates[tls["certificates"][0]] += 1
        if broken:
            self.breaches[broken] += 1
            self.days[row["at"][:10]] += 1

    def shown(self) -> Row:
        """For JSON."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def hold(self, row: Row, cause: str) -> None:
        """A message was not taken, or not sent."""
        message = row.get("id")
        if message is not None:
            if (message, cause) in self._known:
                return
            self._known.add((message, cause))
        self.held[cause] += 1
        self.days[row["at"][:10]] += 1


@dataclass
class ContractReport:
    """One contract in a time. `certificate` gives one that was shown, by its SHA-256, where it is kept; `authority` are
    the certificates of those agreed on, None for whom the direction itself trusts."""

    contract: Contract
    certificate: Callable[[str], Certificate | None] = lambda _: None
    authority: Anchors | None = None
    inbound: Direction = field(default_factory=Direction)
    outbound: Direction = field(default_factory=Direction)

    @property
    def kept(self) -> bool:
        """Whether no message went otherwise than agreed on."""
        return not self.inbound.breaches and not self.outbound.breaches

    def note(self, row: Row) -> None:
        """One record of mail from or to the domain."""
        kind = row["kind"]
        if kind == "reception":
            self.inbound.passed(row, row["from"]["ip"], self._broken(row, client=True))
        elif kind == "refusal":
            self.inbound.hold(row, row["cause"])
        elif kind == "attempt" and row["outcome"] == "delivered":
            self.outbound.passed(row, row["host"]["name"] or row["host"]["ip"], self._broken(row, client=False))
        elif kind == "attempt" and row["cause"]:
            self.outbound.hold(row, row["cause"])
        elif kind == "host" and row["cause"]:
            self.outbound.passed_over[f"{row['host']['name'] or row['host']['ip']} {row['cause']}"] += 1

    def _broken(self, row: Row, *, client: bool) -> str:
        """What is not as agreed on about a message that passed; empty if nothing is."""
        contract, tls = self.contract, row["tls"] or {}
        if not (contract.inbound if client else contract.outbound):
            return ""
        if not tls.get("protocol"):
            return "without TLS"
        if tls["protocol"] not in contract.versions:
            return f"over {tls['protocol']}"
        names = tls["certificates"]
        if client and not contract.client_certificate:
            return ""
        if client and not names:
            return "without a certificate"
        if not client and not contract.by_key_alone and not enough(tls["level"], "host"):
            return f"to a host that had proven {tls['level']} only"
        return self._other(names)

    def _other(self, names: Sequence[str]) -> str:
        """What is not as agreed on about certificates themselves, the own one first: key, names, authority."""
        contract = self.contract
        if not contract.spki and not contract.names and self.authority is None:
            return ""
        chain = [one for name in names if (one := self.certificate(name)) is not None]
        if not chain or chain[0].sha256 != names[0]:
            return "with a certificate that is not kept"
        if contract.spki and chain[0].spki_sha256 not in contract.spki:
            return "with another key"
        if contract.names and not identity.matches(chain[0], contract.names):
            return "with other names"
        parsed = [one.parsed for one in chain if one.parsed is not None]
        return (
            "" if self.authority is None or self.authority.issued(parsed) else "with a certificate of another authority"
        )


def reports(
    rows: Iterable[Row],
    contracts: Iterable[Contract],
    of: Contracts,
    certificate: Callable[[str], Certificate | None],
) -> list[ContractReport]:
    """One for each contract; `of` has all of them. Rows are records of evidence of a time."""
    found = {
        contract: ContractReport(contract, certificate, Anchors(contract.ca) if contract.ca else None)
        for contract in contracts
    }
    for row in rows:
        inbound = row["kind"] in ("reception", "refusal")
        domain = lookup_name(row.get("sender_domain" if inbound else "to", ""))
        if row["kind"] == "refusal" and row["module"] != KIND:
            continue
        contract = of.inbound_of(domain) if inbound else of.outbound_of(domain)
        if contract is not None and contract in found:
            found[contract].note(row)
    return list(found.values())
