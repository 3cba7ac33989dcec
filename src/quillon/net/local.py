"""Which addresses are this machine's."""

from __future__ import annotations

import ipaddress
import socket


def is_local(ip: str) -> bool:
    """Whether an address is one of this machine, as of now. A socket can be bound to those only (unless the system's
    ip_nonlocal_bind is set, which makes every address look like one: then nothing counts as local but loopback)."""
    address = ipaddress.ip_address(ip)
    if address.is_loopback:
        return True
    return _binds(ip) and not _binds("192.0.2.1" if address.version == 4 else "2001:db8::1")


def _binds(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((ip, 0))
    except OSError:
        return False
    return True
