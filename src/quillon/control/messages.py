"""What the processes of Quillon tell each other, by the key that names the kind: `event` for what goes up to the
supervisor, `do` for what it passes down. Between the control process and the workers it is the switch, and reads
nothing.

Control asks, the supervisor puts the question to every worker that is ready and says whom, each worker answers in
parts.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Rights = dict[str, tuple[str | None, dict[str, list[str]]]]
"""What rules the console's sockets, by their names; those without an entry let everybody do everything."""


class Ask(TypedDict):
    """Control: a command for all workers. `id` comes back in what is answered."""

    event: Literal["ask"]
    id: int
    command: str
    words: list[str]
    who: str


class Order(TypedDict):
    """Control: a command that the supervisor carries out."""

    event: Literal["order"]
    id: int
    command: str
    words: list[str]
    who: str


class Authorization(TypedDict):
    """Control: a command that rules had a say about, as `Authorized` has it."""

    event: Literal["authorized"]
    listen: str
    peer: str
    user: str
    result: int
    command: str
    role: str


class AskedWorkers(TypedDict):
    """To control: the process ids of the workers that were asked."""

    do: Literal["asked"]
    id: int
    pids: list[int]


class AnswerPart(TypedDict):
    """To control: a part of a worker's answer; `last` tells that there is no more."""

    do: Literal["part"]
    id: int
    pid: int
    rows: list[Any]
    last: bool


class Gone(TypedDict):
    """To control: a worker has ended, and owes no answer."""

    do: Literal["gone"]
    pid: int


class Said(TypedDict):
    """To control: what came of an order."""

    do: Literal["said"]
    id: int
    text: str


class HttpSettings(TypedDict):
    """What rules a Listen of HTTP_Listener, as `HttpListen` has it; `rights` are None where who has proven who he is
    may do everything, `policies` those of MTA-STS, by domain, where it serves what everybody may ask, and no more."""

    certificate: str | None
    key: str | None
    client_ca: str | None
    by_certificate: bool
    users: str | None
    oidc: dict[str, Any] | None
    policies: dict[str, str] | None
    rights: tuple[str | None, dict[str, list[str]]] | None


class Listen(TypedDict):
    """To control: sockets to listen on, whose descriptors are beside it, all names that are wanted, and what rules
    them: for consoles a file of groups and the patterns of each role, for HTTP its settings."""

    do: Literal["listen"]
    new: list[str]
    wanted: list[str]
    rights: Rights
    http: dict[str, HttpSettings]


FromControl = Ask | Order | Authorization
ToControl = AskedWorkers | AnswerPart | Gone | Said | Listen
