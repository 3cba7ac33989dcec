"""What a handshake has proven of the other side, and whether that is enough. Pure."""

from __future__ import annotations

LEVELS = {"none": 0, "ca": 1, "host": 2, "key": 2, "policy": 2, "dane": 2}  # `level` of TlsFacts
_WANTED = {"no": 0, "optional": 0, "ca": 1, "host": 2}


def enough(level: str, verify: str) -> bool:
    """Whether a level is what a value of TLS_Verify wants."""
    return LEVELS.get(level, 0) >= _WANTED[verify]
