"""A small certificate authority for tests and demonstrations. Its keys are written unencrypted: never trust it."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = datetime.timedelta(days=1)
_RSA_SHA256 = bytes.fromhex("06092a864886f70d01010b")
_RSA_SHA1 = bytes.fromhex("06092a864886f70d010105")
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Issued:
    """Paths of what was written: the certificate with its chain, and the key."""

    certificate: Path
    key: Path


def new_key(kind: str = "ec") -> Key:
    """An ECDSA P-256 key, or RSA with the number of bits in `kind`, as in `rsa2048`."""
    if kind == "ec":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("rsa")))


class Authority:
    """A CA whose files go to `folder`. `parent` makes it an intermediate."""

    def __init__(
        self,
        folder: Path,
        name: str = "Quillon lab CA",
        parent: Authority | None = None,
        *,
        kind: str = "ec",
        may_sign: bool = True,
        life: datetime.timedelta = 3650 * DAY,
    ) -> None:
        self.folder = folder
        self.key = new_key(kind)
        self._name = _name(name)
        self._parent = parent
        signer, issuer = (parent.key, parent._name) if parent else (self.key, self._name)
        builder = _builder(self._name, issuer, self.key, -DAY, life)
        builder = builder.add_extension(x509.BasicConstraints(ca=may_sign, path_length=None), critical=True)
        self.certificate = builder.sign(signer, hashes.SHA256())

    @property
    def chain(self) -> bytes:
        """The PEM of this CA and its parents, without the root."""
        return _pem(self.certificate) + self._parent.chain if self._parent else b""

    def write(self, file: str = "ca.pem") -> Path:
        """Write the CA certificate."""
        path = self.folder / file
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_pem(self.certificate))
        return path

    def issue(
        self,
        file: str,
        names: Sequence[str],
        *,
        common_name: str | None = None,
        start: datetime.timedelta = -DAY,
        life: datetime.timedelta = 365 * DAY,
        usage: Sequence[x509.ObjectIdentifier] = (SERVER, CLIENT),
        kind: str = "ec",
        self_signed: bool = False,
        with_chain: bool = True,
        sha1: bool = False,
        responder: str = "",
    ) -> Issued:
        """Write `file`.pem and `file`.key for these names and addresses; the validity begins `start` from now.

        `sha1` signs with RSA and SHA-1, which takes an Authority of kind rsa2048. `responder` is the URL of an OCSP
        responder that the certificate names.
        """
        key = new_key(kind)
        subject = _name(common_name if common_name is not None else (names[0] if names else "nobody"))
        issuer, signer = (subject, key) if self_signed else (self._name, self.key)
        builder = _builder(subject, issuer, key, start, life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usage)), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_san(n) for n in names]), critical=False)
        if responder:
            place = x509.UniformResourceIdentifier(responder)
            named = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, place)
            builder = builder.add_extension(x509.AuthorityInformationAccess([named]), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        if sha1:
            certificate = _with_sha1(certificate, signer)
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = Issued(self.folder / f"{file}.pem", self.folder / f"{file}.key")
        chain = self.chain if with_chain and not self_signed else b""
        paths.certificate.write_bytes(_pem(certificate) + chain)
        paths.key.touch(mode=0o600)
        paths.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


def _with_sha1(certificate: x509.Certificate, signer: Key) -> x509.Certificate:
    """The same certificate under sha1WithRSAEncryption, which the library itself does not sign with any more."""
    assert isinstance(signer, rsa.RSAPrivateKey)
    body = certificate.tbs_certificate_bytes.replace(_RSA_SHA256, _RSA_SHA1)
    signature = signer.sign(body, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - to be found out is its purpose
    algorithm = b"\x30\x0d" + _RSA_SHA1 + b"\x05\x00"
    bits = b"\x03" + _length(len(signature) + 1) + b"\x00" + signature
    content = body + algorithm + bits
    return x509.load_der_x509_certificate(b"\x30" + _length(len(content)) + content)


def _length(size: int) -> bytes:
    """DER length octets (X.690 8.1.3)."""
    if size < 128:
        return bytes([size])
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, start: datetime.timedelta, life: datetime.timedelta
) -> x509.CertificateBuilder:
    begin = datetime.datetime.now(datetime.UTC) + start
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
