"""DKIM signatures (RFC 6376; RFC 8301 on algorithms, RFC 8463 on Ed25519): made and verified.

Why not a library: the well-kept one of Python signs in 7 ms with its own RSA arithmetic; OpenSSL's takes under one.
A signature covers octets; nothing here parses more of a message than its header fields.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from quillon.mail import header
from quillon.mail.address import is_name
from quillon.mailauth.lookup import Lookup

MAX_SIGNATURES = 8  # of one message that are looked at
MAX_RECORDS = 8  # TXT records of one selector that are tried
MIN_RSA_BITS = 1024  # RFC 8301 3.2
DEFAULT_HEADERS = (
    "From", "Sender", "Reply-To", "Subject", "Date", "Message-ID", "To", "Cc", "MIME-Version", "Content-Type",
    "Content-Transfer-Encoding", "Content-ID", "Content-Description", "Resent-Date", "Resent-From", "Resent-Sender",
    "Resent-To", "Resent-Cc", "Resent-Message-ID", "In-Reply-To", "References", "List-Id", "List-Help",
    "List-Unsubscribe", "List-Subscribe", "List-Post", "List-Owner", "List-Archive",
)  # fmt: skip
ALGORITHMS = ("rsa-sha256", "ed25519-sha256")

PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class DkimError(ValueError):
    """A key or a signature cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class DkimResult:
    """`status` is one of RFC 8601 2.7.1: pass, fail, neutral, policy, temperror, permerror."""

    status: str
    reason: str
    domain: str = ""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    canonicalization: str = ""
    headers: str = ""
    key_bits: int = 0
    signature: str = ""

    def text(self) -> str:
        """As in Authentication-Results."""
        words = f"dkim={self.status}"
        if self.reason and self.status != "pass":
            words += f" ({re.sub(r'[^ -~]|[()]', '?', self.reason)})"
        if self.domain:
            words += f" header.d={header.pvalue(self.domain)}"
        if self.selector:
            words += f" header.s={header.pvalue(self.selector)}"
        if self.signature:
            words += f' header.b="{self.signature[:8]}"'
        return words


# octets --------------------------------------------------------------------------------------------------------------


def parse_tags(text: str) -> dict[str, str]:
    """A tag list (RFC 6376 3.2), white space of values kept. Raises DkimError."""
    found: dict[str, str] = {}
    for part in text.strip().rstrip(";").split(";"):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in found:
            raise DkimError(f"malformed tag list near {part.strip()[:40]!r}")
        found[name] = value.strip()
    return found


def relaxed_header(field: bytes) -> bytes:
    """One field with its line end, in relaxed form (RFC 6376 3.4.2)."""
    name, _, value = field.partition(b":")
    value = re.sub(rb"[ \t]+", b" ", value.replace(b"\r\n", b""))
    return name.strip().lower() + b":" + value.strip(b" ") + b"\r\n"


def _ended(body: bytes) -> bytes:
    return body if body.endswith(b"\r\n") else body + b"\r\n"


def relaxed_body(body: bytes) -> bytes:
    """RFC 6376 3.4.4. Runs of blanks shrink by a few passes over the whole, for a pattern takes 50 times as long where
    each of millions is short."""
    body = body.replace(b"\t", b" ")
    for length in (256, 16, 4, 2):
        run = b" " * length
        while run in body:
            body = body.replace(run, b" ")
    body = without_empty_end(body.replace(b" \r\n", b"\r\n").removesuffix(b" "))
    return body + b"\r\n" if body else b""


def without_empty_end(body: bytes) -> bytes:
    """Without the line ends at the end, in time that grows as the body does: a body may be nothing else."""
    end = len(body)
    for lines in (4096, 64, 1):
        run = b"\r\n" * lines
        while body.endswith(run, 0, end):
            end -= len(run)
    return body[:end]


def canonical_body(body: bytes, how: str) -> bytes:
    """`how` is simple or relaxed."""
    if how == "relaxed":
        return relaxed_body(body)
    stripped = without_empty_end(body)
    return stripped + b"\r\n"


def canonical_field(field: bytes, how: str) -> bytes:
    return relaxed_header(field) if how == "relaxed" else field


def without_b(field: bytes) -> bytes:
    """A signature field with an empty b=, and without its line end (RFC 6376 3.7)."""
    name, _, value = field.partition(b":")
    value = re.sub(rb"((?:^|;)[ \t\r\n]*b[ \t\r\n]*=)[^;]*", rb"\1", value, count=1)
    return (name + b":" + value).removesuffix(b"\r\n")


def signed_octets(fields: Sequence[tuple[str, bytes]], names: Sequence[str], own: bytes, how: str) -> bytes:
    """What the signature is over: the named fields, each name taking the lowest one left, then the field itself."""
    left: dict[str, list[bytes]] = {}
    for name, field in fields:
        left.setdefault(name.lower(), []).append(field)
    out = []
    for name in names:
        stack = left.get(name.lower())
        if stack:
            out.append(canonical_field(stack.pop(), how))
    last = canonical_field(without_b(own) + b"\r\n", how).removesuffix(b"\r\n")
    return b"".join(out) + last


# keys ----------------------------------------------------------------------------------------------------------------


def load_private_key(data: bytes) -> PrivateKey:
    """A PEM key, or the base64 of one without its lines. Raises DkimError."""
    if not data.lstrip().startswith(b"-----"):
        try:
            raw = base64.b64decode(b"".join(data.split()), validate=True)
            return _checked_private(serialization.load_der_private_key(raw, None))
        except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as error:
            raise DkimError(f"no private key: {error}") from None
    try:
        return _checked_private(serialization.load_pem_private_key(data, None))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DkimError(f"no private key: {error}") from None


def _checked_private(key: object) -> PrivateKey:
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise DkimError(f"an RSA key of {key.key_size} bits is too small (RFC 8301)")
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    raise DkimError("a DKIM key is RSA or Ed25519")


def public_key(record: str, algorithm: str, domain: str, identity: str, service: str = "email") -> PublicKey:
    """The key of a TXT record (RFC 6376 3.6.1), fit for a signature of mail, or of another `service`, for which keys of
    mail are good too (RFC 8460 3). Raises DkimError."""
    tags = parse_tags(record)
    if tags.get("v", "DKIM1") != "DKIM1":
        raise DkimError("the key record is of another version")
    kind, _, digest = algorithm.partition("-")
    if tags.get("k", "rsa") != kind:
        raise DkimError(f"the key is {tags.get('k', 'rsa')}, the signature {algorithm}")
    if "h" in tags and digest not in _listed(tags["h"]):
        raise DkimError(f"the key is not for {digest}")
    if not {"*", "email", service} & _listed(tags.get("s", "*")):
        raise DkimError("the key is not for mail")
    if "s" in _listed(tags.get("t", "")) and identity.rpartition("@")[2].lower() != domain:
        raise DkimError("the key is for its own domain only")
    data = "".join(tags.get("p", "").split())
    if not data:
        raise DkimError("the key is revoked")
    return _decoded_key(kind, data)


def usable_keys(
    records: Sequence[str], algorithm: str, domain: str, identity: str, service: str = "email"
) -> list[PublicKey]:
    """The keys of all TXT records of a selector that are fit for a signature, at least one.

    Beside a key may stand the record of another vendor, the key that comes next, or one of another algorithm
    (RFC 6376 3.6.2.2 leaves the choice to the verifier). Raises DkimError with what is wrong with the record that is
    most like a key.
    """
    keys: list[PublicKey] = []
    faults: list[tuple[bool, str]] = []
    for record in records[:MAX_RECORDS]:
        try:
            keys.append(public_key(record, algorithm, domain, identity, service))
        except DkimError as error:
            faults.append((not re.search(r"(?:\A|;)\s*p\s*=", record), str(error)))
    if not keys:
        raise DkimError(min(faults, key=lambda fault: fault[0])[1])
    return keys


def _listed(value: str) -> set[str]:
    """The words of a list with colons between them, and white space around each (RFC 6376 3.2)."""
    return {word.strip() for word in value.split(":")}


@lru_cache(maxsize=256)  # keys of those who write much; the library keeps with one what its arithmetic needs
def _decoded_key(kind: str, data: str) -> PublicKey:
    try:
        raw = base64.b64decode(data, validate=True)
        if kind == "ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(raw)
        key = serialization.load_der_public_key(raw)
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        raise DkimError("the key cannot be read") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise DkimError("the key is not RSA")
    if key.key_size < MIN_RSA_BITS:
        raise DkimError(f"an RSA key of {key.key_size} bits is too small")
    return key


def key_bits(key: PublicKey | PrivateKey) -> int:
    return key.key_size if isinstance(key, (rsa.RSAPublicKey, rsa.RSAPrivateKey)) else 256


def sign_octets(key: PrivateKey, data: bytes) -> bytes:
    """RSA PKCS#1 1.5 with SHA-256, or Ed25519 over the SHA-256 digest (RFC 8463 3)."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(hashlib.sha256(data).digest())


def good_signature(key: PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, hashlib.sha256(data).digest())
    except InvalidSignature:
        return False
    return True


def algorithm_of(key: PrivateKey) -> str:
    return "rsa-sha256" if isinstance(key, rsa.RSAPrivateKey) else "ed25519-sha256"


# signing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DkimSigner:
    """How a domain signs. `headers` are signed where they are there, From in any case; canonicalizations are simple or
    relaxed; `lifetime` in seconds, 0 for ever."""

    domain: str
    selector: str
    key: PrivateKey
    header_canon: str = "relaxed"
    body_canon: str = "relaxed"
    headers: tuple[str, ...] = DEFAULT_HEADERS
    identity: str = ""
    lifetime: int = 0


def sign(head: bytes, body: bytes, signer: DkimSigner, now: float) -> bytes:
    """The DKIM-Signature field with its line end. Raises DkimError for a message without From."""
    fields = list(header.fields(head))
    there = [name.lower() for name, _ in fields]
    if "from" not in there:
        raise DkimError("a message without From cannot be signed (RFC 6376 5.4)")
    wanted = dict.fromkeys(name.lower() for name in ("From", *signer.headers))
    names = [name for name in wanted for _ in range(there.count(name))]
    names.append("from")  # once more than there are: nobody can add another From (RFC 6376 8.15)
    body_hash = base64.b64encode(hashlib.sha256(canonical_body(body, signer.body_canon)).digest()).decode("ascii")
    tags = {
        "v": "1",
        "a": algorithm_of(signer.key),
        "c": f"{signer.header_canon}/{signer.body_canon}",
        "d": signer.domain,
        "s": signer.selector,
        "t": str(int(now)),
    }
    if signer.lifetime:
        tags["x"] = str(int(now) + signer.lifetime)
    if signer.identity:
        tags["i"] = signer.identity
    tags |= {"h": ":".join(names), "bh": body_hash, "b": ""}
    field = f"DKIM-Signature: {folded(tags)}".encode()
    data = signed_octets(fields, names, field + b"\r\n", signer.header_canon)
    signature = base64.b64encode(sign_octets(signer.key, data)).decode("ascii")
    return field + wrapped(signature).encode("ascii") + b"\r\n"


def folded(tags: Mapping[str, str]) -> str:
    """Tags over several lines, none much longer than 72 characters."""
    lines: list[str] = []
    line = ""
    for name, value in tags.items():
        parts = value.split(":") if name == "h" else [value]
        for n, part in enumerate(parts):
            text = (f"{name}=" if n == 0 else "") + part + (":" if n < len(parts) - 1 else "")
            end = ";" if n == len(parts) - 1 and name != "b" else ""
            if line and len(line) + len(text) > (70 if lines else 50):  # the field's name stands in the first line
                lines.append(line)
                line = ""
            line += (" " if line and n == 0 else "") + text + end
    lines.append(line)
    return "\r\n\t".join(lines)


def wrapped(text: str) -> str:
    return "".join(f"\r\n\t{text[n : n + 70]}" for n in range(0, len(text), 70))


# verifying -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parsed:
    """A signature field, read and checked as far as that goes without its key."""

    domain: str
    selector: str
    identity: str
    algorithm: str
    header_canon: str
    body_canon: str
    names: tuple[str, ...]
    body_hash: bytes
    signature: bytes
    length: int | None


def parse_signature(field: bytes, now: float, *, arc: bool = False) -> Parsed:
    """Raises DkimError; `arc` for an ARC-Message-Signature, which has an instance in place of an identity."""
    value = field.partition(b":")[2].decode("latin-1")
    tags = parse_tags(value.replace("\r\n", ""))
    needed = ("a", "b", "bh", "d", "h", "s") if arc else ("v", "a", "b", "bh", "d", "h", "s")
    missing = [name for name in needed if not tags.get(name)]
    if missing:
        raise DkimError(f"the signature has no {missing[0]}=")
    if not arc and tags["v"] != "1":
        raise DkimError("the signature is of another version")
    algorithm = tags["a"].lower()
    if algorithm not in ALGORITHMS:
        raise DkimError(f"{algorithm} is not taken (RFC 8301)")
    head, _, body = tags.get("c", "simple/simple").lower().partition("/")
    body = body or "simple"
    if head not in ("simple", "relaxed") or body not in ("simple", "relaxed"):
        raise DkimError("unknown canonicalization")
    domain = tags["d"].lower().rstrip(".")
    names = tuple(name.strip() for name in tags["h"].split(":"))
    if "from" not in (name.lower() for name in names):
        raise DkimError("From is not signed")
    identity = f"@{domain}" if arc else tags.get("i", f"@{domain}")
    identity_domain = identity.rpartition("@")[2].lower()
    if identity_domain != domain and not identity_domain.endswith(f".{domain}"):
        raise DkimError("i= is not in the domain of d=")
    _check_times(tags, now)
    length = tags.get("l")
    if length is not None and not re.fullmatch(r"[0-9]{1,15}", length):
        raise DkimError("l= is no number")
    if not is_name(domain) or not is_name(tags["s"]):
        raise DkimError("d= or s= is no domain name")
    return Parsed(
        domain,
        tags["s"],
        identity,
        algorithm,
        head,
        body,
        names,
        decoded(tags["bh"]),
        decoded(tags["b"]),
        None if length is None else int(length),
    )


def _check_times(tags: Mapping[str, str], now: float) -> None:
    for name in ("t", "x"):
        if name in tags and not re.fullmatch(r"[0-9]{1,12}", tags[name]):
            raise DkimError(f"{name}= is no time")
    if "x" in tags:
        if "t" in tags and int(tags["x"]) <= int(tags["t"]):
            raise DkimError("x= is before t=")
        if now > int(tags["x"]):
            raise DkimError("the signature has expired")


def decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DkimError("malformed base64") from None


class Body:
    """A body in its canonical forms, each made once for all signatures."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._forms: dict[str, tuple[bytes, bytes]] = {}

    def _form(self, how: str) -> tuple[bytes, bytes]:
        found = self._forms.get(how)
        if found is None:
            octets = canonical_body(self._data, how)
            found = self._forms[how] = (octets, hashlib.sha256(octets).digest())
        return found

    def canonical(self, how: str) -> bytes:
        """`how` is simple or relaxed."""
        return self._form(how)[0]

    def digest(self, how: str, length: int | None = None) -> bytes:
        """SHA-256 of a form, or of its first octets (l= of RFC 6376 3.5)."""
        octets, digest = self._form(how)
        if length is None or length == len(octets):
            return digest
        return hashlib.sha256(memoryview(octets)[:length]).digest()


async def verify(head: bytes, body: bytes, lookup: Lookup, now: float, service: str = "email") -> list[DkimResult]:
    """A result for each DKIM-Signature, at most MAX_SIGNATURES; empty where there is none. Keys that are for `service`
    alone count as well."""
    fields = list(header.fields(head))
    own = [field for name, field in fields if name.lower() == "dkim-signature"]
    known = Body(body)
    return [await _verified(field, fields, known, lookup, now, service) for field in own[:MAX_SIGNATURES]]


async def _verified(
    field: bytes, fields: Sequence[tuple[str, bytes]], body: Body, lookup: Lookup, now: float, service: str
) -> DkimResult:
    try:
        parsed = parse_signature(field, now)
    except ValueError as error:
        return DkimResult("permerror", str(error))
    status, reason, key = await check(parsed, field, fields, body, lookup, service)
    return DkimResult(
        status,
        reason,
        parsed.domain,
        parsed.selector,
        parsed.identity,
        parsed.algorithm,
        f"{parsed.header_canon}/{parsed.body_canon}",
        ":".join(parsed.names),
        key_bits(key) if key is not None else 0,
        base64.b64encode(parsed.signature).decode("ascii"),
    )


async def check(
    parsed: Parsed,
    field: bytes,
    fields: Sequence[tuple[str, bytes]],
    body: Body,
    lookup: Lookup,
    service: str = "email",
) -> tuple[str, str, PublicKey | None]:
    """Status, reason and key of a signature that could be read.

    Signature and hash are judged first; that l= leaves octets of the body unsigned is told of what holds otherwise.
    """
    found = await lookup(f"{parsed.selector}._domainkey.{parsed.domain}", "TXT")
    if found.status == "failed":
        return "temperror", "the key cannot be looked up", None
    if not found.records:
        return "permerror", "there is no key", None
    try:
        keys = usable_keys(found.records, parsed.algorithm, parsed.domain, parsed.identity, service)
    except DkimError as error:
        return "permerror", str(error), None
    size = len(body.canonical(parsed.body_canon))
    if parsed.length is not None and parsed.length > size:
        return "permerror", "l= is more than there is", keys[0]
    if body.digest(parsed.body_canon, parsed.length) != parsed.body_hash:
        return "fail", "the body has been changed", keys[0]
    others = [item for item in fields if item[1] is not field]
    data = signed_octets(others, parsed.names, field, parsed.header_canon)
    key = next((key for key in keys if good_signature(key, parsed.signature, data)), None)
    if key is None:
        return "fail", "the header has been changed", keys[0]
    if parsed.length is not None and parsed.length < size:
        return "policy", "l= leaves some of the body unsigned", key
    return "pass", "", key
