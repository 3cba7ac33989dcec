"""Idle connections, by the host that they stand to: one domain's mail may take another's rather than open its own
(manual, migrate_connections_between_sibling_domains). Pure.

What the connection was opened with has to be the same to the last option, TLS and AUTH included, and the certificate
that the host has shown has to serve the other domain as well: what a fresh connection would not have been good enough
for is not sent over an old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from quillon.config.outbound import lookup_name
from quillon.delivery.connection import Connection
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import certificate_names
from quillon.queue.destination import DestinationQueue

Queue = DestinationQueue[Connection]


class Siblings:
    """The idle connections of a worker, each with the destination where it rests."""

    def __init__(self) -> None:
        self._idle: dict[str, dict[Connection, Queue]] = {}

    def rest(self, connection: Connection, queue: Queue) -> None:
        """A connection has nothing to do."""
        self._idle.setdefault(connection.peer, {})[connection] = queue

    def wake(self, connection: Connection) -> None:
        """It takes messages, or is gone."""
        others = self._idle.get(connection.peer)
        if others is not None and others.pop(connection, None) is not None and not others:
            del self._idle[connection.peer]

    def idle(self) -> Iterator[tuple[Connection, Queue]]:
        """Every one, with where it rests."""
        return ((connection, queue) for others in self._idle.values() for connection, queue in others.items())

    def find(self, queue: Queue, hosts: Iterable[Host], ehlo_name: str) -> Connection | None:
        """A connection to one of the hosts that may take mail of a destination."""
        for host in hosts:
            for connection, other in self._idle.get(host.peer, {}).items():
                if connection.host_name == host.name and _serves(connection, other, queue, ehlo_name):
                    return connection
        return None


def _serves(connection: Connection, its: Queue, queue: Queue, ehlo_name: str) -> bool:
    """Whether a connection of one destination may take mail of another, which its facts tell of from here on."""
    rules, key = queue.rules, queue.key
    same = (
        its.key.binding_group == key.binding_group
        and its.key.binding == key.binding
        and its.key.override == key.override
        and its.epoch == queue.epoch
        and connection.settings == rules.settings
        and connection.tls == rules.tls
        and connection.ehlo_name == ehlo_name
    )
    if not same or not connection.usable or connection.exhausted:
        return False
    names = certificate_names(rules.tls, connection.host_name, key.domain, key.via)
    return connection.turn_to(names, lookup_name(key.domain))
