"""Whether certificates of a chain were revoked, by lists in a file (RFC 5280 5) or by the answer of a responder that
the other side has stapled (RFC 6960, RFC 6066 8). The same for both engines, which look at neither themselves here:
none says of what is missing what the other says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from quillon.tls.anchors import LONGEST, issuer_of
from quillon.tls.engine import ContextError

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_SKEW = 300.0  # seconds that a responder's clock may be ahead
ChainError = tuple[str, int, str]


class Revocations:
    """The lists of a file: several in PEM, or one in DER. Raises ContextError."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            octets = Path(path).read_bytes()
            blocks = _BLOCK.findall(octets)
            self._lists = [x509.load_pem_x509_crl(block) for block in blocks] or [x509.load_der_x509_crl(octets)]
        except OSError as error:
            raise ContextError(f"TLS_CRL {path}: {error.strerror}") from None
        except ValueError as error:
            raise ContextError(f"TLS_CRL {path}: it holds no revocation list: {error}") from None

    def errors(
        self, chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: float, *, hard: bool
    ) -> list[ChainError]:
        """What the lists say of a chain that is in order otherwise, its own certificate first, up to one of `anchors`,
        of which no list is wanted. Without `hard` a list that is missing or outdated says nothing."""
        if not chain:
            return []
        found: list[ChainError] = []
        certificate, depth = chain[0], 0
        while certificate not in anchors and depth < LONGEST:
            issuer = issuer_of(certificate, [*chain[1:], *anchors])
            if issuer is None:
                # the library has found a way to a trusted one that is not seen here
                found += [("crl_missing", depth, f"the issuer is not at hand (depth {depth})")] if hard else []
                break
            cause, words = self._ask(certificate, issuer, now)
            if cause == "revoked" or (cause and hard):
                found.append((cause, depth, f"{words} (depth {depth})"))
            certificate, depth = issuer, depth + 1
        return found

    def _ask(self, certificate: x509.Certificate, issuer: x509.Certificate, now: float) -> tuple[str, str]:
        """The cause why a certificate is not known to be good, and words; empty if it is."""
        lists = [one for one in self._lists if one.issuer == issuer.subject and _signs(issuer, one)]
        if not lists:
            return "crl_missing", f"{self.path} has no list of {issuer.subject.rfc4514_string()}"
        newest = max(lists, key=lambda one: one.last_update_utc)
        if any(one.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None for one in lists):
            return "revoked", f"serial number {certificate.serial_number:x} is revoked"
        until = newest.next_update_utc
        if until is not None and until < datetime.fromtimestamp(now, UTC):
            name = issuer.subject.rfc4514_string()
            return "crl_outdated", f"the list of {name} was to be renewed by {until:%Y-%m-%d %H:%M} UTC"
        return "", ""


def stapled(
    octets: bytes, chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: float
) -> tuple[str, str]:
    """The cause why a stapled answer does not say that a host's certificate, the first of its chain, is good, and
    words; empty if it does. A certificate that is trusted as it stands needs none."""
    own = chain[0]
    if own in anchors:
        return "", ""
    issuer = issuer_of(own, [*chain[1:], *anchors])
    if not octets or issuer is None:
        return "ocsp_missing", "no answer of an OCSP responder was stapled"
    return said(octets, own, issuer, now, "the stapled answer")


def said(octets: bytes, own: x509.Certificate, issuer: x509.Certificate, now: float, answer: str) -> tuple[str, str]:
    """The cause why what a responder has answered does not say that a certificate is good, and words, in which it is
    called `answer`; empty if it does."""
    try:
        response = ocsp.load_der_ocsp_response(octets)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return "ocsp_missing", f"the responder says {response.response_status.name}"
        single = next((one for one in response.responses if _is_about(one, own, issuer)), None)
        if single is None:
            return "ocsp_invalid", f"{answer} is about another certificate"
        if not _is_of(response, issuer, now):
            return "ocsp_invalid", f"{answer} is not signed for the certificate's issuer"
        begin, end = single.this_update_utc.timestamp(), single.next_update_utc
        if single.certificate_status is ocsp.OCSPCertStatus.REVOKED:
            return "revoked", f"serial number {own.serial_number:x} is revoked, says {answer}"
        if begin - _SKEW > now or (end is not None and end.timestamp() < now):
            return "ocsp_outdated", f"{answer} is of {single.this_update_utc:%Y-%m-%d %H:%M} UTC"
        if single.certificate_status is not ocsp.OCSPCertStatus.GOOD:
            return "ocsp_missing", "the responder does not know the certificate"
    except Exception as error:  # somebody else's octets
        return "ocsp_invalid", f"{answer} cannot be read: {type(error).__name__}"
    return "", ""


def fresh(octets: bytes, certificate: x509.Certificate, now: float) -> bool:
    """Whether an answer that is to be stapled is about a certificate, and not too old."""
    try:
        single = next(iter(ocsp.load_der_ocsp_response(octets).responses))
        end = single.next_update_utc
    except Exception:
        return False
    return single.serial_number == certificate.serial_number and (end is None or end.timestamp() > now)


def staple_of(path: str, certificate: str) -> tuple[bytes, x509.Certificate]:
    """The answer in a file that is to be stapled, and the certificate that goes with it. Raises ContextError."""
    try:
        octets = Path(path).read_bytes()
        ocsp.load_der_ocsp_response(octets)
        return octets, x509.load_pem_x509_certificates(Path(certificate).read_bytes())[0]
    except OSError as error:
        raise ContextError(f"TLS_OCSP_Response {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise ContextError(f"TLS_OCSP_Response {path}: it holds no answer of an OCSP responder: {error}") from None


def _is_about(single: ocsp.OCSPSingleResponse, own: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether an answer is about a certificate of an issuer (RFC 6960 4.1.1)."""
    built = ocsp.OCSPRequestBuilder().add_certificate(own, issuer, single.hash_algorithm).build()
    wanted = (built.serial_number, built.issuer_key_hash, built.issuer_name_hash)
    return (single.serial_number, single.issuer_key_hash, single.issuer_name_hash) == wanted


def _is_of(response: ocsp.OCSPResponse, issuer: x509.Certificate, now: float) -> bool:
    """Whether an answer is signed by an issuer, or by a responder that it has given a certificate for that (RFC 6960
    4.2.2.2)."""
    at = datetime.fromtimestamp(now, UTC)
    signers = [issuer]
    for one in response.certificates:
        usage = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value if one != issuer else ()
        good = one.not_valid_before_utc <= at <= one.not_valid_after_utc and one.issuer == issuer.subject
        if good and ExtendedKeyUsageOID.OCSP_SIGNING in usage:
            one.verify_directly_issued_by(issuer)
            signers.append(one)
    return any(_signed(response, one) for one in signers)


def _signed(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    octets, signature = response.tbs_response_bytes, response.signature
    try:
        if isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
            key.verify(signature, octets, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
            key.verify(signature, octets, ec.ECDSA(algorithm))
        elif isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
            key.verify(signature, octets)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _signs(issuer: x509.Certificate, one: x509.CertificateRevocationList) -> bool:
    try:
        return one.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except Exception:
        return False  # a key of a kind that signs no lists
