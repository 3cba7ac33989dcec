"""sd_notify(3): tell the service manager how things stand. Without NOTIFY_SOCKET nothing happens."""

from __future__ import annotations

import os
import socket
import sys
import time


def notify(*states: str) -> None:
    """Send states such as `READY=1`. A service manager that does not listen is told of on stderr, no more."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall("\n".join(states).encode())
    except OSError as error:
        print(f"quillon: cannot notify the service manager: {error.strerror}", file=sys.stderr)


def reloading() -> None:
    """RELOADING=1 with the time that Type=notify-reload asks for."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
