"""Checkpoints of a log, as signed notes (C2SP tlog-checkpoint, signed-note) with Ed25519. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_DASH = "\u2014"  # with which a line of a signature begins
_GAP = "\n\n"  # between what is signed and the signatures
_COSIGNATURE = b"\x04"  # type of a key


class NoteError(ValueError):
    """A note that is none, or whose signature is not that of the key."""


@dataclass(frozen=True)
class NoteSigner:
    """A key under a name, the origin of a log."""

    name: str
    key: Ed25519PrivateKey

    def sign(self, text: str) -> str:
        """The note of a text, which ends with a line feed."""
        signature = base64.b64encode(key_id(self.name, self.key.public_key()) + self.key.sign(text.encode())).decode()
        return f"{text}\n{_DASH} {self.name} {signature}\n"


class Checkpoint(NamedTuple):
    """That a log had so many records with this root; `time` is in seconds since the epoch, 0 where it is not said."""

    origin: str
    size: int
    root: bytes
    time: int = 0

    def text(self) -> str:
        """What is signed."""
        lines = f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"
        return f"{lines}time {self.time}\n" if self.time else lines


def raw(key: Ed25519PublicKey) -> bytes:
    """The 32 octets of a public key."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def key_id(name: str, key: Ed25519PublicKey) -> bytes:
    """Four octets that tell the keys of a name apart."""
    return hashlib.sha256(name.encode() + b"\n\x01" + raw(key)).digest()[:4]


def verifier_key(name: str, key: Ed25519PublicKey) -> str:
    """The public key as verifiers of notes take it."""
    octets = base64.b64encode(b"\x01" + raw(key)).decode()
    return f"{name}+{key_id(name, key).hex()}+{octets}"


def read(note: str, key: Ed25519PublicKey) -> Checkpoint:
    """What a signed checkpoint says. Raises NoteError."""
    body, gap, signatures = note.partition("\n\n")
    text = body + "\n"
    lines = text.split("\n")
    if not gap or len(lines) < 4 or not lines[1].isdigit():
        raise NoteError("this is no checkpoint")
    if not any(_is_of(line, lines[0], text, key) for line in signatures.splitlines()):
        raise NoteError(f"the checkpoint of {lines[0]} is not signed by this key")
    time = next((int(line[5:]) for line in lines[3:] if line.startswith("time ") and line[5:].isdigit()), 0)
    try:
        return Checkpoint(lines[0], int(lines[1]), base64.b64decode(lines[2], validate=True), time)
    except binascii.Error:
        raise NoteError("the root of the checkpoint is no base64") from None


def size_of(note: str) -> int:
    """How many records a checkpoint is of, whoever has signed it. Raises NoteError."""
    lines = note.split("\n")
    if len(lines) < 4 or not lines[1].isascii() or not lines[1].isdigit() or len(lines[1]) > 19:
        raise NoteError("this is no checkpoint")
    return int(lines[1])


class Cosigner(NamedTuple):
    """A witness: its name and its key (C2SP tlog-cosignature, Ed25519)."""

    name: str
    key: Ed25519PublicKey

    @classmethod
    def of(cls, name: str, octets: bytes) -> Cosigner:
        """The one with these 32 octets as its key."""
        return cls(name, Ed25519PublicKey.from_public_bytes(octets))

    @property
    def key_id(self) -> bytes:
        """Four octets that tell its keys apart."""
        return hashlib.sha256(self.name.encode() + b"\n" + _COSIGNATURE + raw(self.key)).digest()[:4]

    def line_in(self, note: str, lines: str) -> str | None:
        """The first of some lines with which the witness signs a note."""
        return next((line for line in lines.split("\n") if self._signed(note, line) is not None), None)

    def time_of(self, note: str) -> int | None:
        """When the witness has signed a note, in seconds since the epoch; None if it has not."""
        found = (self._signed(note, line) for line in note.partition("\n\n")[2].split("\n"))
        return next((time for time in found if time is not None), None)

    def _signed(self, note: str, line: str) -> int | None:
        words = line.split(" ")
        if len(words) != 3 or words[:2] != [_DASH, self.name]:
            return None
        try:
            octets = base64.b64decode(words[2], validate=True)
            if octets[:4] != self.key_id:
                return None
            time = int.from_bytes(octets[4:12])
            text = f"cosignature/v1\ntime {time}\n{note.partition(_GAP)[0]}\n"
            self.key.verify(octets[12:], text.encode())
        except (binascii.Error, InvalidSignature):
            return None
        return time


def signed_lines(note: str, key: Ed25519PublicKey) -> list[str]:
    """The lines of a note that its first one, as a name, has signed. Raises NoteError."""
    body, gap, signatures = note.partition("\n\n")
    lines = body.split("\n")
    if not gap or not any(_is_of(line, lines[0], body + "\n", key) for line in signatures.splitlines()):
        raise NoteError(f"the note of {lines[0][:100]} is not signed by this key")
    return lines


def _is_of(line: str, name: str, text: str, key: Ed25519PublicKey) -> bool:
    words = line.split(" ")
    if len(words) != 3 or words[:2] != [_DASH, name]:
        return False
    try:
        signature = base64.b64decode(words[2], validate=True)
        if signature[:4] != key_id(name, key):
            return False
        key.verify(signature[4:], text.encode())
    except (binascii.Error, InvalidSignature):
        return False
    return True
