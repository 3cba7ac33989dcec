"""Listening sockets: bound once by the supervisor, one per worker and Listen, shared out by the kernel."""

from __future__ import annotations

import errno
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
        sock = _bound(listen, shared=True)
    except OSError as error:
        raise _refusal(listen, error) from None
    sock.listen(listen.backlog)
    sock.setblocking(False)
    return sock


def is_free(listen: ListenSettings) -> None:
    """Raise BindError if another server has the address: SO_REUSEPORT alone would let two share it unnoticed, and a
    socket's file would be taken away from the one that serves it."""
    if listen.path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            if sock.connect_ex(listen.path) in (0, errno.EAGAIN):
                raise BindError(f'Listen "{listen.name}": another server listens there')
        return
    try:
        _bound(listen, shared=False).close()
    except OSError as error:
        raise _refusal(listen, error) from None


def is_possible(listen: ListenSettings) -> None:
    """Raise BindError for an address that this machine does not have, or that may not be bound. One that is in use may
    be in use by the server itself."""
    if listen.path:
        if not os.path.isdir(os.path.dirname(listen.path)):
            raise BindError(f'Listen "{listen.name}": there is no folder for it')
        return
    try:
        _bound(listen, shared=True).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise _refusal(listen, error) from None


def _bound(listen: ListenSettings, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listen.host, listen.port))
    except OSError:
        sock.close()
        raise
    return sock


def _refusal(listen: ListenSettings, error: OSError) -> BindError:
    return BindError(f'Listen "{listen.name}": {error.strerror or error}')


def _bind_path(listen: ListenSettings) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.lexists(listen.path) and stat.S_ISSOCK(os.lstat(listen.path).st_mode):
        os.unlink(listen.path)
    sock.bind(listen.path)
    os.chmod(listen.path, listen.file_mode)
    sock.listen(listen.backlog)
    sock.setblocking(False)
    return sock
