"""Which logs a node has: a signed list, so that one which is taken away as a whole is missed. Shell.

FOLDER/logs    a signed note: the name of the node, and that of each log, a line each
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from quillon.evidence import note
from quillon.evidence.note import NoteError, NoteSigner


def enlist(folder: Path, node: str, log: str, key: Ed25519PrivateKey) -> None:
    """Put a log on the list of its node, durably. A list that nobody of ours has signed is begun anew, which the audit
    cannot tell from the first one: what it tells is what has been there since. Raises OSError."""
    lock = os.open(folder / "logs.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of the node
        try:
            known = listed(folder, node, key.public_key())
        except NoteError:
            known = []
        if log in known:
            return
        signed = NoteSigner(_origin(node), key).sign("\n".join([_origin(node), *sorted([*known, log])]) + "\n")
        descriptor, new = tempfile.mkstemp(".new", "logs.", folder)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o644)
            file.write(signed)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, folder / "logs")
    finally:
        os.close(lock)


def listed(folder: Path, node: str, key: Ed25519PublicKey) -> list[str]:
    """The logs that a node has said it has; none where there is no list. Raises NoteError, OSError."""
    try:
        text = (folder / "logs").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise NoteError("the list of logs cannot be read") from None
    origin, *logs = note.signed_lines(text, key)
    if origin != _origin(node):
        raise NoteError(f"the list of logs is of {origin.removesuffix('/logs')}, and not of {node}")
    return logs


def missing(folder: Path, node: str, key: Ed25519PublicKey) -> list[str]:
    """What the list of logs says against what is there. Raises OSError."""
    here = {path.parent.name for path in folder.glob("worker-*/entries")}
    try:
        known = listed(folder, node, key)
    except NoteError as error:
        return [str(error)]
    gone = [f"{log} is gone, which this node has had" for log in known if log not in here]
    if here and not known:
        gone.append("there is no list of this node's logs, so any of them may have been taken away")
    return gone


def _origin(node: str) -> str:
    return f"{node}/logs"
