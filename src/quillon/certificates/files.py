"""Keys and certificates in files: made, looked at, put in place. Shell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
STANDS_IN = timedelta(days=30)  # life of a certificate of our own making


class CertificateFileError(Exception):
    """A file cannot be used; the message names it."""


def make_key(kind: str) -> Key:
    """A key: `ecdsa` is P-256, `rsa` has 2048 bits."""
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def exists(path: str) -> bool:
    """Whether there is such a file."""
    return os.path.exists(path)


def load_key(path: str) -> Key:
    """Raises CertificateFileError."""
    try:
        key = serialization.load_pem_private_key(Path(path).read_bytes(), None)
    except OSError as error:
        raise CertificateFileError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise CertificateFileError(f"{path}: {error}") from None
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise CertificateFileError(f"{path}: it holds no ECDSA and no RSA key")
    return key


def load_certificate(path: str) -> x509.Certificate | None:
    """The first certificate of a file; None where there is no file. Raises CertificateFileError."""
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CertificateFileError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CertificateFileError(f"{path}: {error}") from None


def key_octets(key: Key) -> bytes:
    """A key in PEM (PKCS 8)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_octets(key: Key) -> bytes:
    """The SubjectPublicKeyInfo of a key, in DER."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def request(key: Key, names: Sequence[str]) -> bytes:
    """A request for a certificate (PKCS 10), in PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(_names(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def stand_in(key: Key, names: Sequence[str], now: float) -> bytes:
    """A certificate that the key signs itself, in PEM, with which a server can begin."""
    begin = datetime.fromtimestamp(now, UTC) - timedelta(hours=1)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).add_extension(_names(names), critical=False)
    builder = builder.not_valid_before(begin).not_valid_after(begin + STANDS_IN)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def put(path: str, octets: bytes, mode: int) -> None:
    """Put a file in place, whole or not at all. Raises CertificateFileError."""
    new = f"{path}.new"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(octets)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    except OSError as error:
        raise CertificateFileError(f"{path}: {error.strerror}") from None


def _names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
