"""Whether a certificate names a host (RFC 9525; contradictions of the manual resolved as its pages and RFC 6125 allow).

The names of a certificate are those of its subjectAltName; only where it has none, of whichever kind, its common name
(RFC 6125 6.4.4). A wildcard is the whole left-most label and stands for exactly one label, never right below a
top-level name. Comparison ignores the case of ASCII letters; internationalized names are compared as A-labels.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from cryptography import x509

from quillon.config.settings import InboundTls
from quillon.tls.certificate import Certificate
from quillon.tls.engine import ContextError


def names(certificate: Certificate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """DNS names and IP addresses that the certificate claims, as text. A malformed extension claims nothing."""
    if certificate.parsed is None:
        return (), ()
    try:
        extension = certificate.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        common = certificate.subject_cn
        return ((common,) if common else ()), ()
    except Exception:
        return (), ()  # a peer's octets: the library has an exception for each way to be wrong
    dns = tuple(extension.value.get_values_for_type(x509.DNSName))
    addresses = tuple(str(ip) for ip in extension.value.get_values_for_type(x509.IPAddress))
    return dns, addresses


def matches(certificate: Certificate, candidates: Iterable[str]) -> bool:
    """Whether the certificate names one of the candidates: host names, or IP addresses as text."""
    return matching(certificate, candidates) is not None


def matching(certificate: Certificate, candidates: Iterable[str]) -> str | None:
    """The first of the candidates that the certificate names."""
    dns, addresses = names(certificate)
    return next((name for name in candidates if name and _matches_one(dns, addresses, name)), None)


def _matches_one(dns: tuple[str, ...], addresses: tuple[str, ...], candidate: str) -> bool:
    try:
        return str(ipaddress.ip_address(candidate.strip("[]"))) in addresses
    except ValueError:
        pass
    host = _ascii(candidate)
    return host is not None and any(name_matches(name, host) for name in dns)


def name_matches(presented: str, host: str) -> bool:
    """One presented name against one host name in A-labels and lower case."""
    name = presented.lower().removesuffix(".")
    if not name.isascii() or "\0" in name:
        return False
    if "*" not in name:
        return name == host
    left, _, rest = name.partition(".")
    host_left, _, host_rest = host.partition(".")
    return left == "*" and "*" not in rest and "." in rest and rest == host_rest and bool(host_left)


_SERVER_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\Z")


@lru_cache(maxsize=1024)
def server_name(host: str) -> str:
    """What a client says in SNI: a host name in A-labels without the dot at its end; empty for an IP address, which
    must not be sent (RFC 6066 3), and for what is no host name."""
    bare = host.strip("[]")
    bare = bare[5:] if bare[:5].lower() == "ipv6:" else bare
    try:
        ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        name = _ascii(host) or ""
        return name if _SERVER_NAME.match(name) else ""
    return ""


def default_pairs(settings: InboundTls) -> tuple[tuple[str, str], ...]:
    """The certificates for a client that asks for no name of ours. Raises ContextError if there is none at all."""
    if settings.tls_certificate:
        return ((settings.tls_certificate, settings.tls_key or ""),)
    if not settings.tls_identities:
        raise ContextError("TLS_Certificate is not set")
    anybody = [identity for identity in settings.tls_identities if identity.name == "*"]
    return (anybody or settings.tls_identities)[0].pairs


def match_identity(names: list[str], asked: str) -> int | None:
    """The index of the identity for a server name: the name itself, else a wildcard, else `*`."""
    if asked and asked in names:
        return names.index(asked)
    for n, name in enumerate(names):
        if name.startswith("*.") and name_matches(name, asked):
            return n
    return names.index("*") if "*" in names else None


def _ascii(host: str) -> str | None:
    host = host.removesuffix(".").lower()
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return None
