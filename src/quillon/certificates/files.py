"""Keys and certificates in files: made, looked at, put in place. Shell."""

from __future__ import annotations

import contextlib
import os
import tempfile
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
    put_all([(path, octets, mode)])


def put_all(wanted: Sequence[tuple[str, bytes, int]]) -> None:
    """Put files in place by path, octets and mode: all are written before the first takes its place, and where one
    cannot, those before it come back. They belong to whom the file before belonged, or the folder. Raises
    CertificateFileError."""
    written: list[tuple[str, str, str]] = []
    path = ""
    try:
        for path, octets, mode in wanted:
            written.append((path, _written(path, octets, mode), f"{path}.before"))
        for done, (path, new, before) in enumerate(written):
            _link(path, before)
            try:
                os.replace(new, path)
            except OSError:
                for other, _, kept in written[:done]:
                    os.replace(kept, other)
                raise
    except OSError as error:
        raise CertificateFileError(f"{path}: {error.strerror}") from None
    finally:
        for _, new, before in written:
            for name in (new, before):
                with contextlib.suppress(OSError):
                    os.unlink(name)


def restore(key: str, certificate: str) -> bool:
    """Where the process ended between a new key and its certificate, put the key before back; whether that was so.
    Raises CertificateFileError."""
    before = f"{key}.before"
    if not exists(before):
        return False
    found = load_certificate(certificate)
    fits = found is not None and public_octets(load_key(before)) == spki(found) != public_octets(load_key(key))
    try:
        (os.replace if fits else lambda old, _: os.unlink(old))(before, key)
    except OSError as error:
        raise CertificateFileError(f"{before}: {error.strerror}") from None
    return fits


def _link(path: str, before: str) -> None:
    """Keep what is there under another name as well."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(before)
    with contextlib.suppress(FileNotFoundError):
        os.link(path, before)


def _written(path: str, octets: bytes, mode: int) -> str:
    """A file beside the one that is meant, on disk. Raises OSError."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, new = tempfile.mkstemp(".new", f"{Path(path).name}.", folder)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            owner = os.stat(path if exists(path) else folder)
            if os.geteuid() == 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(octets)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        os.unlink(new)
        raise
    return new


def check_writable(path: str) -> None:
    """That a file can be put in place. Raises CertificateFileError."""
    try:
        os.unlink(_written(path, b"", 0o600))
    except OSError as error:
        raise CertificateFileError(f"{path}: {error.strerror}") from None


def spki(certificate: x509.Certificate) -> bytes:
    """The SubjectPublicKeyInfo of a certificate, in DER."""
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
