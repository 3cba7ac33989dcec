"""A peer's certificate, and what is read of it."""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from quillon.mail import shown

_SAN_KINDS: dict[type[x509.GeneralName], str] = {
    x509.DNSName: "DNS",
    x509.IPAddress: "IP",
    x509.RFC822Name: "EMAIL",
    x509.UniformResourceIdentifier: "URI",
    x509.DirectoryName: "DIRNAME",
    x509.RegisteredID: "RID",
    x509.OtherName: "OTHER",
}
_LARGE = 8192  # octets of a certificate; a larger one is not kept
MOST_NAMES = 1000  # subjectAltName entries that are shown; for the comparison with a host all count


def escaped(name: str) -> str:
    """A name as it stands in a list with commas: a comma and a backslash in it get a backslash in front."""
    return name.replace("\\", "\\\\").replace(",", "\\,")


def unescaped(text: str) -> list[str]:
    """The names of such a list."""
    found = re.findall(r"(?:[^,\\]|\\.)+", text)
    return [re.sub(r"\\(.)", r"\1", name) for name in found]


@dataclass(frozen=True)
class Certificate:
    """A peer's own certificate, parsed when asked."""

    der: bytes

    @cached_property
    def parsed(self) -> x509.Certificate | None:
        """The certificate, or None where it is too malformed to read."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a peer's certificate deserves is not said on our stderr
                return x509.load_der_x509_certificate(self.der)
        except Exception:
            return None  # a peer's octets: the library has an exception for each way to be wrong

    @cached_property
    def subject(self) -> str:
        """`/C=FI/O=Bank/CN=mx.bank.fi`, the one-line form of OpenSSL, in which a slash, a plus sign and a backslash of
        a value get a backslash in front (RFC 4514 2.4 does so with its own separators)."""
        return _name(self.parsed, issuer=False)

    @cached_property
    def issuer(self) -> str:
        return _name(self.parsed, issuer=True)

    @cached_property
    def subject_cn(self) -> str:
        return _common_name(self.parsed, issuer=False)

    @cached_property
    def issuer_cn(self) -> str:
        return _common_name(self.parsed, issuer=True)

    @cached_property
    def alternative_names(self) -> tuple[str, ...]:
        """subjectAltName entries as `DNS:`, `IP:`, `EMAIL:`, `URI:`, `DIRNAME:`, `RID:` or `OTHER:` and the value, at
        most MOST_NAMES of them; `escaped` makes one fit for a list."""
        if self.parsed is None:
            return ()
        try:
            names = self.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:
            return ()  # none, or none that can be read
        return tuple(f"{_SAN_KINDS.get(type(name), 'OTHER')}:{_san_value(name)}" for name in names[:MOST_NAMES])

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the certificate in lower-case hexadecimal digits."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def ends(self) -> float:
        """When it ends, in seconds since the epoch; 0 where it cannot be read."""
        try:
            return self.parsed.not_valid_after_utc.timestamp() if self.parsed is not None else 0.0
        except Exception:
            return 0.0  # a time that the library does not know

    @cached_property
    def spki_sha256(self) -> str:
        """SHA-256 of the public key (SubjectPublicKeyInfo), as DANE and key pinning use it."""
        if self.parsed is None:
            return ""
        try:
            key = self.parsed.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        except Exception:
            return ""
        return hashlib.sha256(key).hexdigest()


@lru_cache(maxsize=256)
def _known(der: bytes) -> Certificate:
    return Certificate(der)


def certificate(der: bytes) -> Certificate:
    """A certificate of a peer, which comes again and again, with what has been read of it."""
    return _known(der) if len(der) <= _LARGE else Certificate(der)


def _rdn_name(certificate: x509.Certificate | None, issuer: bool) -> x509.Name | None:
    if certificate is None:
        return None
    try:
        return certificate.issuer if issuer else certificate.subject
    except Exception:
        return None


def _san_value(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DirectoryName):
        return _one_line(name.value)
    if isinstance(name, x509.OtherName):
        return name.type_id.dotted_string
    value = name.value.dotted_string if isinstance(name, x509.RegisteredID) else name.value
    return printable(str(value))


def _name(certificate: x509.Certificate | None, issuer: bool) -> str:
    name = _rdn_name(certificate, issuer)
    return "" if name is None else _one_line(name)


def _one_line(name: x509.Name) -> str:
    return "".join(
        "/" + "+".join(f"{a.rfc4514_attribute_name}={re.sub(_SEPARATOR, _ESCAPE, printable(a.value))}" for a in rdn)
        for rdn in name.rdns
    )


_SEPARATOR, _ESCAPE = r"([/+\\])", r"\\\1"


def _common_name(certificate: x509.Certificate | None, issuer: bool) -> str:
    name = _rdn_name(certificate, issuer)
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME) if name is not None else []
    return printable(found[-1].value) if found else ""


def printable(value: str | bytes) -> str:
    return shown.printable(value.decode("latin-1") if isinstance(value, bytes) else value)
