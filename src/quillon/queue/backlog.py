"""The active and the delayed queue of one binding and domain, and the connections that serve it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from quillon.mail.message import Message


class Key(NamedTuple):
    """What a queue belongs to. `via` is set where the recipient's own stanza rules TLS behind a gateway, `ruling` where
    its messages have TLS or AUTH of their own."""

    binding_group: str
    binding: str
    domain: str
    via: str = ""
    ruling: Hashable = None


def key_of(message: Message) -> Key:
    return Key(message.binding_group, message.binding, message.destination, message.via, message.ruling)


@dataclass
class Backlog:
    """`delayed` counts messages that wait for their time. `connecting` connections have not taken a message yet.

    `ceiling` limits connections below the configured number until `ceiling_until`: the host would not take more.
    """

    key: Key
    active: deque[Message] = field(default_factory=deque)
    delayed: int = 0
    connections: int = 0
    connecting: int = 0
    ceiling: int = 0
    ceiling_until: float = 0.0
    paused_until: float = 0.0

    def add(self, message: Message) -> None:
        """To the end of the queue, or to its head if the message has priority."""
        if message.priority:
            self.active.appendleft(message)
        else:
            self.active.append(message)

    def take(self, limit: int) -> list[Message]:
        """The message at the head, with those of the same batch that stand right behind it, `limit` at most."""
        if not self.active:
            return []
        first = self.active.popleft()
        taken = [first]
        while len(taken) < limit and self.active and self.active[0].batch is first.batch:
            taken.append(self.active.popleft())
        return taken

    def put_back(self, messages: list[Message]) -> None:
        """Return messages that were taken and not tried to the head."""
        self.active.extendleft(reversed(messages))

    def drain(self) -> Iterator[Message]:
        """All active messages, which leave the queue."""
        while self.active:
            yield self.active.popleft()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs: the backlog may be forgotten."""
        return not (self.active or self.delayed or self.connections or self.connecting)
