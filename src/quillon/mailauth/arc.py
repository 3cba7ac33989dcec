"""Authenticated Received Chain (RFC 8617): a chain validated, and one more link sealed."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from quillon.mail import header
from quillon.mail.address import is_name
from quillon.mailauth import dkim
from quillon.mailauth.dkim import DkimError, DkimSigner
from quillon.mailauth.lookup import Lookup

MAX_INSTANCE = 50  # RFC 8617 4.2.1
_PARTS = ("arc-authentication-results", "arc-message-signature", "arc-seal")


@dataclass(frozen=True, slots=True)
class Chain:
    """`status` is none, pass or fail (cv of RFC 8617 4.4); `sealer` the domain of the last seal."""

    status: str
    reason: str = ""
    instance: int = 0
    sealer: str = ""

    def text(self) -> str:
        """As in Authentication-Results."""
        words = f"arc={self.status}"
        if self.reason:
            words += f" ({re.sub(r'[^ -~]|[()]', '?', self.reason)})"
        return f"{words} header.d={header.pvalue(self.sealer)}" if self.sealer else words


Sets = dict[int, dict[str, bytes]]


def sets_of(fields: Sequence[tuple[str, bytes]]) -> Sets:
    """The ARC sets by instance. Raises DkimError for a chain that is not whole."""
    found: Sets = {}
    for name, field in fields:
        part = name.lower()
        if part not in _PARTS:
            continue
        value = field.partition(b":")[2].decode("latin-1")
        match = re.match(r"\s*i\s*=\s*([0-9]{1,3})\s*;", value) or re.search(
            r";\s*i\s*=\s*([0-9]{1,3})\s*(?:;|$)", value
        )
        if match is None or not 1 <= int(match[1]) <= MAX_INSTANCE:
            raise DkimError("an ARC field has no instance")
        parts = found.setdefault(int(match[1]), {})
        if part in parts:
            raise DkimError(f"instance {match[1]} has two of a kind")
        parts[part] = field
    if sorted(found) != list(range(1, len(found) + 1)):
        raise DkimError("an instance is missing")
    for instance, parts in found.items():
        if len(parts) != len(_PARTS):
            raise DkimError(f"instance {instance} is not whole")
    return found


def _relaxed(sets: Sets) -> list[bytes]:
    """The fields of each set in relaxed form, the sets in order (RFC 8617 5.1.1)."""
    return [b"".join(dkim.relaxed_header(sets[n][part]) for part in _PARTS) for n in range(1, len(sets) + 1)]


def _seal_octets(sets: Sets, relaxed: Sequence[bytes], upto: int) -> bytes:
    """What the seal of an instance is over (RFC 8617 5.1.1): all sets before it, and its own with an empty b=."""
    own = sets[upto]
    fields = [dkim.relaxed_header(own[part]) for part in _PARTS[:-1]]
    bare = dkim.relaxed_header(dkim.without_b(own["arc-seal"]) + b"\r\n").removesuffix(b"\r\n")
    return b"".join((*relaxed[: upto - 1], *fields, bare))


async def validate(head: bytes, body: bytes, lookup: Lookup, now: float) -> Chain:
    """The state of a message's chain (RFC 8617 5.2)."""
    fields = list(header.fields(head))
    try:
        sets = sets_of(fields)
    except DkimError as error:
        return Chain("fail", str(error))
    if not sets:
        return Chain("none")
    last = max(sets)
    sealer = ""
    try:
        seals = {instance: dkim.parse_tags(_value(parts["arc-seal"])) for instance, parts in sets.items()}
        sealer = seals[last].get("d", "").lower()
        for instance, tags in seals.items():
            expected = "none" if instance == 1 else "pass"
            if tags.get("cv", "").lower() != expected:
                raise DkimError(f"the seal of instance {instance} says cv={tags.get('cv')}")
        await _check_message(sets[last]["arc-message-signature"], fields, dkim.Body(body), lookup, now)
        relaxed = _relaxed(sets)
        for instance in range(last, 0, -1):
            octets = _seal_octets(sets, relaxed, instance)
            await _check_seal(instance, seals[instance], octets, lookup)
    except ValueError as error:
        return Chain("fail", str(error), last, sealer if is_name(sealer) else "")
    return Chain("pass", "", last, sealer)


def _value(field: bytes) -> str:
    return field.partition(b":")[2].decode("latin-1").replace("\r\n", "")


async def _check_message(
    field: bytes, fields: Sequence[tuple[str, bytes]], body: dkim.Body, lookup: Lookup, now: float
) -> None:
    parsed = dkim.parse_signature(field, now, arc=True)
    if "arc-seal" in (name.lower() for name in parsed.names):
        raise DkimError("the message signature covers a seal")
    status, reason, _ = await dkim.check(parsed, field, fields, body, lookup)
    if status != "pass":
        raise DkimError(f"the message signature does not hold: {reason}")


async def _check_seal(instance: int, tags: dict[str, str], octets: bytes, lookup: Lookup) -> None:
    if "h" in tags or any(not tags.get(name) for name in ("a", "b", "d", "s")):
        raise DkimError(f"the seal of instance {instance} is malformed")
    algorithm, domain = tags["a"].lower(), tags["d"].lower()
    if not is_name(domain) or not is_name(tags["s"]):
        raise DkimError(f"the seal of instance {instance} names no domain")
    if algorithm not in dkim.ALGORITHMS:
        raise DkimError(f"{algorithm} is not taken")
    found = await lookup(f"{tags['s']}._domainkey.{domain}", "TXT")
    if not found.records:
        raise DkimError(f"the key of the seal of instance {instance} cannot be looked up")
    keys, signature = dkim.usable_keys(found.records, algorithm, domain, f"@{domain}"), dkim.decoded(tags["b"])
    if not any(dkim.good_signature(key, signature, octets) for key in keys):
        raise DkimError(f"the seal of instance {instance} does not hold")


def seal(
    head: bytes, body: bytes, signer: DkimSigner, chain: Chain, authserv_id: str, results: str, now: float
) -> bytes:
    """The three fields of one more instance, to be put in front. Raises DkimError where the chain may not go on.

    `results` is what stands in an Authentication-Results field behind the authserv-id.
    """
    fields = list(header.fields(head))
    instance = chain.instance + 1
    if chain.status == "fail":
        raise DkimError("a chain that has failed is not sealed again")
    if instance > MAX_INSTANCE:
        raise DkimError("the chain is too long")
    aar = f"ARC-Authentication-Results: i={instance}; {authserv_id}; {results or 'none'}\r\n".encode()
    message = _message_signature(fields, body, signer, instance, now)
    cv = "none" if instance == 1 else chain.status
    words = f"i={instance}; a={dkim.algorithm_of(signer.key)}; t={int(now)}; cv={cv}; d={signer.domain};"
    own = f"ARC-Seal: {words}\r\n\ts={signer.selector}; b=".encode()
    sets = sets_of(fields) if chain.instance else {}
    sets[instance] = {_PARTS[0]: aar, _PARTS[1]: message, _PARTS[2]: own + b"\r\n"}
    octets = _seal_octets(sets, _relaxed(sets), instance)
    signature = base64.b64encode(dkim.sign_octets(signer.key, octets)).decode("ascii")
    return own + dkim.wrapped(signature).encode("ascii") + b"\r\n" + message + aar


def _message_signature(
    fields: Sequence[tuple[str, bytes]], body: bytes, signer: DkimSigner, instance: int, now: float
) -> bytes:
    there = [name.lower() for name, _ in fields]
    if "from" not in there:
        raise DkimError("a message without From cannot be signed")
    wanted = dict.fromkeys(name.lower() for name in ("From", *signer.headers, "DKIM-Signature"))
    names = [name for name in wanted for _ in range(there.count(name)) if name not in _PARTS]
    digest = base64.b64encode(hashlib.sha256(dkim.canonical_body(body, "relaxed")).digest()).decode("ascii")
    tags = {
        "i": str(instance),
        "a": dkim.algorithm_of(signer.key),
        "c": "relaxed/relaxed",
        "d": signer.domain,
        "s": signer.selector,
        "t": str(int(now)),
        "h": ":".join(names),
        "bh": digest,
        "b": "",
    }
    field = f"ARC-Message-Signature: {dkim.folded(tags)}".encode()
    data = dkim.signed_octets(fields, names, field + b"\r\n", "relaxed")
    signature = base64.b64encode(dkim.sign_octets(signer.key, data)).decode("ascii")
    return field + dkim.wrapped(signature).encode("ascii") + b"\r\n"
