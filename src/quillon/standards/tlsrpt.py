"""SMTP TLS reporting (RFC 8460): what is counted of handshakes, and the report of a day. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

Row = dict[str, Any]

# result types of RFC 8460 4.3 for our causes; whatever else goes wrong in a handshake is validation-failure
_RESULTS = {
    "no_starttls": "starttls-not-supported",
    "starttls_refused": "starttls-not-supported",
    "name_mismatch": "certificate-host-mismatch",
    "expired": "certificate-expired",
    "not_yet_valid": "certificate-expired",
    "unknown_issuer": "certificate-not-trusted",
    "self_signed": "certificate-not-trusted",
    "tlsa_lookup_failed": "dnssec-invalid",
    "resolver_not_validating": "dnssec-invalid",
    "tlsa_missing": "dane-required",
}
RESULTS = frozenset(_RESULTS.values()) | {
    "validation-failure",
    "tlsa-invalid",
    "sts-policy-fetch-error",
    "sts-policy-invalid",
    "sts-webpki-invalid",
}
MOST_POLICIES = 24  # different ones of a domain on one day
MOST = 10_000  # different failures of a day that are kept of one domain


class PolicyFound(NamedTuple):
    """The policy that ruled: `type` is tlsa, sts or no-policy-found."""

    type: str
    domain: str
    text: tuple[str, ...] = ()
    mx: tuple[str, ...] = ()


NO_POLICY_FOUND = PolicyFound("no-policy-found", "")


class DataPoint(NamedTuple):
    """One handshake, or a policy that could not be had. `domain` is the recipients'; `result` is empty for a success,
    `reason` our cause."""

    time: float
    domain: str
    policy: PolicyFound
    result: str = ""
    reason: str = ""
    local_ip: str = ""
    mx: str = ""
    ip: str = ""

    def as_json(self) -> Row:
        """As the hook core_smtp_tls_reporting has it (manual, page of that hook)."""
        policy: Row = {"policy-type": self.policy.type, "policy-domain": self.policy.domain}
        if self.policy.text:
            policy["policy-string"] = list(self.policy.text)
        if self.policy.mx:
            policy["mx-host"] = list(self.policy.mx)
        row: Row = {"epoch": int(self.time), "type": 0 if self.result else 1, "policy": policy}
        if self.result:
            row |= {"result-type": self.result, "failure-reason-code": self.reason or self.result}
        known = {"sending-mta-ip": self.local_ip, "receiving-mx-hostname": self.mx, "receiving-ip": self.ip}
        return row | {key: value for key, value in known.items() if value}


def result_of(cause: str) -> str:
    """The result type for a cause code."""
    return _RESULTS.get(cause, "validation-failure")


class HandshakeCounts:
    """What was counted on one day (UTC), by recipients' domain and policy."""

    def __init__(self) -> None:
        self._good: Counter[tuple[str, PolicyFound]] = Counter()
        self._bad: Counter[tuple[str, PolicyFound, str, str, str, str, str]] = Counter()
        self._lines: Counter[str] = Counter()
        self._policies: dict[str, set[PolicyFound]] = {}

    def __bool__(self) -> bool:
        return bool(self._good or self._bad)

    def add(self, point: DataPoint, count: int = 1) -> None:
        """One more handshake."""
        point = self._bounded(point)
        if not point.result:
            self._good[point.domain, point.policy] += count
            return
        key = (point.domain, point.policy, point.result, point.reason, point.local_ip, point.mx, point.ip)
        if key not in self._bad:
            self._lines[point.domain] += 1
            if self._lines[point.domain] > MOST:
                key = (point.domain, point.policy, point.result, "", "", "", "")
        self._bad[key] += count

    def _bounded(self, point: DataPoint) -> DataPoint:
        """The same without the policy's text where a domain has shown very many."""
        known = self._policies.setdefault(point.domain, set())
        if point.policy not in known:
            if len(known) >= MOST_POLICIES:
                return point._replace(policy=PolicyFound(point.policy.type, point.domain))
            known.add(point.policy)
        return point

    def domains(self) -> list[str]:
        """Those of which something was counted."""
        return sorted({key[0] for key in self._good} | {key[0] for key in self._bad})

    def rows(self) -> list[Row]:
        """For a file; `read` takes them back."""
        good = [[domain, *policy, count] for (domain, policy), count in self._good.items()]
        bad = [[key[0], *key[1], *key[2:], count] for key, count in self._bad.items()]
        return [{"good": good, "bad": bad}]

    def read(self, rows: Iterable[Row]) -> None:
        """Add what stands in a file. Raises ValueError, TypeError, KeyError for what is none."""
        for row in rows:
            for domain, kind, name, text, mx, count in row["good"]:
                policy = PolicyFound(kind, name, tuple(text), tuple(mx))
                self.add(DataPoint(0.0, str(domain), policy), int(count))
            for domain, kind, name, text, mx, *failure, count in row["bad"]:
                result, reason, local_ip, host, ip = map(str, failure)
                policy = PolicyFound(kind, name, tuple(text), tuple(mx))
                self.add(DataPoint(0.0, str(domain), policy, result, reason, local_ip, host, ip), int(count))

    def report(self, domain: str, day: str, organization: str, contact: str, report_id: str) -> Row:
        """The report of a domain (RFC 8460 4.4); `day` is as 2026-11-29."""
        policies: dict[PolicyFound, Row] = {}
        known_policies = {key[1] for key in self._good if key[0] == domain}
        known_policies |= {key[1] for key in self._bad if key[0] == domain}
        for policy in known_policies:
            found: Row = {"policy-type": policy.type, "policy-domain": policy.domain}
            if policy.text:
                found["policy-string"] = list(policy.text)
            if policy.mx:
                found["mx-host"] = list(policy.mx)
            good = self._good[domain, policy]
            policies[policy] = {
                "policy": found,
                "summary": {"total-successful-session-count": good, "total-failure-session-count": 0},
                "failure-details": [],
            }
        for (whose, policy, result, reason, local_ip, mx, ip), count in self._bad.items():
            if whose == domain:
                row = policies[policy]
                row["summary"]["total-failure-session-count"] += count
                known = {
                    "result-type": result,
                    "sending-mta-ip": local_ip,
                    "receiving-mx-hostname": mx,
                    "receiving-ip": ip,
                    "failed-session-count": count,
                    "failure-reason-code": reason,
                }
                row["failure-details"].append({key: value for key, value in known.items() if value})
        return {
            "organization-name": organization,
            "date-range": {"start-datetime": f"{day}T00:00:00Z", "end-datetime": f"{day}T23:59:59Z"},
            "contact-info": contact,
            "report-id": report_id,
            "policies": sorted(policies.values(), key=lambda row: (row["policy"]["policy-type"], str(row["policy"]))),
        }


def destinations(texts: Iterable[str]) -> list[str]:
    """The URIs that a domain wants its reports at, by the TXT records of `_smtp._tls` (RFC 8460 3): mailto or https;
    none for several records, or for one that is malformed."""
    found = [text for text in texts if re.match(r"v=TLSRPTv1[ \t]*;", text)]
    if len(found) != 1:
        return []
    fields = [field.strip(" \t") for field in found[0].split(";")[1:]]
    rua = next((field[4:] for field in fields if field.startswith("rua=")), "")
    uris = [uri.strip(" \t") for uri in rua.split(",")]
    return [uri for uri in uris if re.match(r"(?:mailto:[^@\s]+@[^@\s]+|https://\S+)\Z", uri, re.IGNORECASE)]


def day_of(time: float) -> str:
    """The day of a time (UTC), as 2026-11-29."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")
