"""The key that signs checkpoints: Ed25519, in PEM, in a file that only the server reads. Shell."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class KeyFileError(Exception):
    """The key cannot be used; the message names the file and what is wrong with it."""


def load(path: Path) -> Ed25519PrivateKey:
    """The key of a file. Raises KeyFileError."""
    try:
        octets = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    if mode & 0o077:
        raise KeyFileError(f"{path}: others than its owner can use it: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(octets, None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: it holds no Ed25519 key; openssl genpkey -algorithm ed25519 makes one")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """A public key of a file in PEM. Raises KeyFileError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise KeyFileError(f"{path}: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: it is no Ed25519 key")
    return key


def load_or_make(path: Path) -> Ed25519PrivateKey:
    """The key of a file, which is made if it is not there. Raises KeyFileError."""
    if not path.exists():
        if any(path.parent.glob("worker-*/checkpoint")):
            raise KeyFileError(
                f"{path}: it is gone, and there are logs that it has signed: put it back, or move them away"
            )
        with contextlib.suppress(FileExistsError):  # another worker was faster
            _make(path)
    return load(path)


def _make(path: Path) -> None:
    """Raises KeyFileError, and FileExistsError."""
    key = Ed25519PrivateKey.generate()
    octets = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, octets)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(new, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)
