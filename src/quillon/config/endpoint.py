"""What a Listen listens on. Pure."""

from __future__ import annotations

import ipaddress
import re

MAX_SOCKET_PATH = 107  # octets, by sun_path of unix(7)


def parse_endpoint(text: str) -> tuple[str, int, str]:
    """Host, port and path of a Listen: `:25`, `*:25`, `192.0.2.1:25`, `[::]:25`, `[*]:25`, or a socket path.

    The host is "0.0.0.0" for any IPv4 address. Raises ValueError.
    """
    if text.startswith("/"):
        if len(text.encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"{text!r} is too long for a Unix socket: {MAX_SOCKET_PATH} octets at most")
        return "", 0, text
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(
            f'{text!r} is no address to listen on: write ":25", "192.0.2.1:25", "[2001:db8::1]:25" or a path from /'
        )
    if host in ("", "*"):
        return "0.0.0.0", int(port), ""  # noqa: S104 - any address is what the operator wrote
    if host.startswith("[") and host.endswith("]"):
        inner = "::" if host == "[*]" else host[1:-1]
        return str(ipaddress.IPv6Address(inner)), int(port), ""
    try:
        return str(ipaddress.IPv4Address(host)), int(port), ""
    except ValueError:
        raise ValueError(f"{text!r}: the address of a Listen is numeric, IPv6 in brackets") from None
