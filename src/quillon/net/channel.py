"""Messages between processes of Quillon: one JSON object a datagram, with file descriptors beside it."""

from __future__ import annotations

import array
import json
import os
import select
import socket
from collections.abc import Mapping, Sequence
from typing import Any

LIMIT = 65536
PATIENCE = 10.0  # seconds for which the other end is waited for
_MAX_DESCRIPTORS = 250  # SCM_MAX_FD is 253
_ROOM = socket.CMSG_LEN(_MAX_DESCRIPTORS * array.array("i").itemsize)


class Channel:
    """One end of a socket pair that keeps message borders."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @staticmethod
    def fits(message: Mapping[str, Any]) -> bool:
        """Whether a message is not too large to be sent."""
        return len(json.dumps(message)) <= LIMIT

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = (), *, wait: bool = True) -> bool:
        """False if it cannot be sent: the other end is gone, or it is too large; without `wait` also where the other
        end does not read what stands already."""
        octets = json.dumps(message).encode()
        if len(octets) > LIMIT or len(descriptors) > _MAX_DESCRIPTORS:
            return False
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            rights = array.array("i", list(descriptors))
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            # not socket.send_fds, which leaves its flags unused
            while True:
                try:
                    self.sock.sendmsg([octets], beside, flags)
                    return True
                except BlockingIOError:
                    # an event loop that reads from it has made the socket one that does not wait
                    if not wait or not select.select([], [self.sock], [], PATIENCE)[1]:
                        return False
        except OSError:
            return False

    def receive(self, *, wait: bool = True) -> tuple[dict[str, Any], list[int]] | None:
        """The next message; None if the other end is gone, and without `wait` if nothing stands."""
        try:
            flags = 0 if wait else socket.MSG_DONTWAIT
            # not socket.recv_fds, which leaves its flags unused
            data, beside, _, _ = self.sock.recvmsg(LIMIT, _ROOM, flags | socket.MSG_CMSG_CLOEXEC)
        except (ConnectionError, BlockingIOError):
            return None
        descriptors = array.array("i")
        for level, kind, octets in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(octets[: len(octets) - len(octets) % descriptors.itemsize])
        if not data:
            return None
        try:
            return json.loads(data), list(descriptors)  # fewer than were sent where no descriptor was left
        except ValueError:
            for descriptor in descriptors:
                os.close(descriptor)
            return {"event": "unreadable", "do": "nothing"}, []

    def close(self) -> None:
        self.sock.close()
