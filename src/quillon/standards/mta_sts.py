"""MTA-STS: the TXT record and the policy of a domain, read and applied (RFC 8461). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quillon.mail.shown import NAME, line
from quillon.tls.identity import name_matches

MOST_OCTETS = 65536  # of a policy (RFC 8461 3.3)
LONGEST_RECORD = 1024  # characters of a TXT record
LONGEST = 31557600  # seconds that a policy may be kept, whatever it says (RFC 8461 3.2)
_FIELD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}=[\x21-\x3A\x3C\x3E-\x7E]+")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_NAME = re.compile(r"(?:\*\.)?(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.?")
_MODES = ("enforce", "testing", "none")


class StsPolicyError(ValueError):
    """What a domain has published is no policy; the message says why."""


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A policy. `id` is that of the TXT record it was fetched under, `mx` are patterns in lower case, `fetched` is the
    time of that in seconds since the epoch, `max_age` in seconds."""

    domain: str
    id: str
    mode: str
    mx: tuple[str, ...]
    max_age: int
    fetched: float

    def lines(self) -> tuple[str, ...]:
        """The policy as its domain has written it (policy-string of RFC 8460 4.4)."""
        mx = tuple(f"mx: {pattern}" for pattern in self.mx)
        return ("version: STSv1", f"mode: {self.mode}", *mx, f"max_age: {self.max_age}")

    @property
    def expires(self) -> float:
        return self.fetched + self.max_age

    def permits(self, host: str) -> bool:
        """Whether a host that MX names is one of the policy's (RFC 8461 4.1); `*` stands for one label."""
        name = host.lower().removesuffix(".")
        return any(_covers(pattern, name) for pattern in self.mx)


def _covers(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        first, _, rest = name.partition(".")
        return bool(first) and rest == pattern[2:]  # below a top-level name too, which no certificate may do
    return name_matches(pattern, name)


def record_id(texts: Iterable[str]) -> str:
    """The id that the TXT records of `_mta-sts` tell, "" where the domain has no policy: none of the records is of this
    version. Raises StsPolicyError for several, and for one that is malformed (RFC 8461 3.1)."""
    found = [text for text in texts if re.match(r"v=STSv1[ \t]{0,16};", text)]
    if not found:
        return ""
    if len(found) > 1:
        raise StsPolicyError(f"{len(found)} TXT records begin with v=STSv1")
    if len(found[0]) > LONGEST_RECORD:
        raise StsPolicyError(f"the TXT record has more than {LONGEST_RECORD} characters")
    fields = [field for part in found[0].split(";")[1:] if (field := part.strip(" \t"))]
    ids = [field[3:] for field in fields if field.startswith("id=")]
    if not ids or not _ID.fullmatch(ids[0]) or not all(_FIELD.fullmatch(field) for field in fields):
        raise StsPolicyError(f"the TXT record is malformed: {line(found[0], NAME)}")
    return ids[0]


def parse_policy(body: bytes, domain: str, policy_id: str, fetched: float) -> StsPolicy:
    """A policy out of what was fetched. Raises StsPolicyError (RFC 8461 3.2)."""
    if len(body) > MOST_OCTETS:
        raise StsPolicyError(f"the policy has more than {MOST_OCTETS} octets")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise StsPolicyError("the policy is no UTF-8") from None
    fields: dict[str, str] = {}
    mx: list[str] = []
    for number, written in enumerate(text.split("\n"), 1):
        row = written.removesuffix("\r").strip(" \t")
        if not row:
            continue
        key, colon, value = row.partition(":")
        value = value.strip(" \t")
        if not colon or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", key.rstrip(" \t")):
            raise StsPolicyError(f"line {number} of the policy is none: {line(row, NAME)}")
        key = key.rstrip(" \t")
        if key == "mx":
            mx.append(value)
        else:
            fields.setdefault(key, value)  # the first of several counts
    return _policy(fields, mx, domain, policy_id, fetched)


def _policy(fields: dict[str, str], mx: list[str], domain: str, policy_id: str, fetched: float) -> StsPolicy:
    if fields.get("version") != "STSv1":
        raise StsPolicyError("the policy has no line `version: STSv1`")
    mode, age = fields.get("mode", ""), fields.get("max_age", "")
    if mode not in _MODES:
        raise StsPolicyError(f"the policy's mode is {line(mode, NAME) or 'missing'}: it is enforce, testing or none")
    if not re.fullmatch(r"[0-9]{1,10}", age):
        raise StsPolicyError(f"the policy's max_age is {line(age, NAME) or 'missing'}: it is a number of seconds")
    wrong = next((pattern for pattern in mx if not _NAME.fullmatch(pattern)), None)
    if wrong is not None:
        raise StsPolicyError(f"the policy's mx is {line(wrong, NAME) or 'empty'}: it is a name, or one behind `*.`")
    if not mx and mode != "none":
        raise StsPolicyError("the policy names no mx")
    patterns = tuple(pattern.lower().removesuffix(".") for pattern in mx)
    return StsPolicy(domain, policy_id, mode, patterns, min(int(age), LONGEST), fetched)
