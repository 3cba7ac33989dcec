"""Listening sockets: bound once by the supervisor, one per worker and Listen, shared out by the kernel."""

from __future__ import annotations

import os
import socket
import stat

from quillon.config.settings import ListenSettings


class BindError(Exception):
    """A Listen cannot be bound; the message says which and why."""


def bind(listen: ListenSettings) -> socket.socket:
    """A listening socket. With SO_REUSEPORT several may be bound to one address. Raises BindError."""
    try:
        if listen.path:
            return _bind_path(listen)
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listen.host, listen.port))
    except OSError as error:
        raise BindError(f'Listen "{listen.name}": {error.strerror or error}') from None
    sock.listen(listen.backlog)
    sock.setblocking(False)
    return sock


def is_free(listen: ListenSettings) -> None:
    """Raise BindError if another server has the address: SO_REUSEPORT alone would let two share it unnoticed."""
    if listen.path:
        return
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            raise BindError(f'Listen "{listen.name}": {error.strerror or error}') from None


def _bind_path(listen: ListenSettings) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.lexists(listen.path) and stat.S_ISSOCK(os.lstat(listen.path).st_mode):
        os.unlink(listen.path)
    sock.bind(listen.path)
    os.chmod(listen.path, listen.file_mode)
    sock.listen(listen.backlog)
    sock.setblocking(False)
    return sock
