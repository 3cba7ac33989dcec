"""Messages between the supervisor and a worker: one JSON object a datagram, with file descriptors beside it."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Sequence
from typing import Any

_LIMIT = 65536
_MAX_DESCRIPTORS = 250  # SCM_MAX_FD is 253


class Channel:
    """One end of a socket pair that keeps message borders."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = (), *, wait: bool = True) -> bool:
        """False if the other end is gone; without `wait` also if it does not read what stands already."""
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            rights = array.array("i", list(descriptors)[:_MAX_DESCRIPTORS])
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            # not socket.send_fds, which leaves its flags unused
            self.sock.sendmsg([json.dumps(message).encode()], beside, flags)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message; None if the other end is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.sock, _LIMIT, _MAX_DESCRIPTORS)
        except ConnectionError:
            return None
        if not data:
            return None
        try:
            return json.loads(data), list(descriptors)
        except ValueError:
            return {"event": "unreadable", "do": "nothing"}, list(descriptors)

    def close(self) -> None:
        self.sock.close()
