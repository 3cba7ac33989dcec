"""The console: commands on the sockets of Control_Listener, answered by this process, the supervisor or all workers.

One command a connection: a line comes in, text goes out, the connection is closed. `json` before a command has the
answer come as an object of JSON: `result`, `error` for what is none, `incomplete` where a worker did not answer. Who
may connect is for the mode of the socket to say, and what he may do for `authority`; the kernel tells who he is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pwd
import shlex
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from quillon import __version__
from quillon.control.authority import NOT_ALLOWED, AccessRules, GroupsError
from quillon.control.commands import By, Command, Role, find, help_text, loggable
from quillon.control.messages import FromControl, Order, Rights, ToControl
from quillon.control.rendering import ERROR, printable_lines

MAX_LINE = 4096
PIECE = 65536  # octets of an answer, for each of which a client has PATIENCE
MAX_CLIENTS = 32  # that are answered at a time
MAX_WAITING = 256
PATIENCE = 5.0  # seconds for a client to say its line and to read the answer, and for the workers to give it
ORDER_PATIENCE = 120.0  # seconds for workers to do something about all that waits
FLUSH = 0.2  # seconds without a word after which a line that is too long counts as read
LOCAL_PATIENCE = 300.0  # seconds for what the supervisor does itself, which always answers


@dataclass
class _Question:
    """What has been asked, and what came of it so far."""

    answered: asyncio.Future[None]
    waiting: set[int] | None = None  # process ids of workers that owe an answer, once it is known whom
    nobody: bool = False  # no worker was there to be asked
    rows: list[Any] = field(default_factory=list)
    text: str = ""


MOST_TOLD = 1000  # characters of a command in the acctlog


class ConsoleError(Exception):
    """A command has no answer; the message says why."""


class DeniedError(ConsoleError):
    """A user may not give a command."""


class CommandAnswer(NamedTuple):
    """What all workers have said, put together, and a word on those that have not."""

    merged: Any
    late: str = ""

    @property
    def error(self) -> str:
        """What went wrong; empty if nothing did."""
        return str(self.merged.get("error", "")) if isinstance(self.merged, dict) else ""

    def told(self) -> dict[str, Any]:
        """As JSON has it: `result`, with `error` for what is none, and `incomplete` where a worker did not answer."""
        error = {"error": self.error} if self.error else {}
        late = {"incomplete": self.late.strip()} if self.late else {}
        return {**error, "result": self.merged, **late}

    def text(self, command: Command) -> str:
        """As people read it, where nothing went wrong."""
        return command.render(self.merged) + self.late


@dataclass(frozen=True)
class ConsoleClient:
    """Who asks, and what rules him, None for nothing; `listen` is where, `peer` his address and port, if any."""

    user: str
    authority: AccessRules | None
    listen: str = ""
    peer: str = ""

    def may(self, command: Command, line: str, told: Callable[[int, str], object] = lambda *_: None) -> None:
        """Raises ConsoleError for a command that he may not give; `told` hears what the rules said, and the role."""
        if self.authority is None:
            return
        try:
            role = self.authority.allows(self.user, command, line)
        except GroupsError as error:
            told(-1, "")
            raise DeniedError(f"{NOT_ALLOWED}: {error}") from None
        told(int(role is not None), role or "")
        if role is None:
            raise DeniedError(NOT_ALLOWED)

    def known_as(self) -> str:
        """What `whoami` answers."""
        if self.authority is None:
            return f"{self.user}, who may give every command here\n"
        return f"{self.user}, with the roles {', '.join([self.user, *self.authority.groups_of(self.user)])}\n"


class Console:
    """`send` takes what goes to the supervisor, whose process id is `supervisor`."""

    def __init__(self, send: Callable[[FromControl], object], supervisor: int) -> None:
        self._send = send
        self._supervisor = supervisor
        self._servers: dict[str, asyncio.AbstractServer] = {}
        self._authority: dict[str, AccessRules] = {}
        self._questions: dict[int, _Question] = {}
        self._places = asyncio.Semaphore(MAX_CLIENTS)
        self._waiting = 0  # clients, with those that are being answered
        self._number = 0

    async def listen(self, new: dict[str, socket.socket], wanted: set[str], rights: Rights) -> None:
        """Take over newly bound sockets by name, and what rules all; close those whose name is not wanted any more."""
        self._authority = {name: AccessRules(*given) for name, given in rights.items()}
        for name in self._servers.keys() - wanted:
            self._servers.pop(name).close()
        for name, sock in new.items():
            self._servers[name] = await asyncio.start_unix_server(partial(self._serve, name), sock=sock, limit=MAX_LINE)

    def told(self, message: ToControl) -> None:
        """What the supervisor passes on of answers."""
        if message["do"] == "gone":
            for question in list(self._questions.values()):
                self._discard(question, message["pid"])
            return
        if message["do"] == "listen" or (asked := self._questions.get(message["id"])) is None:
            return
        if message["do"] == "asked":
            asked.waiting = set(message["pids"])
            asked.nobody = not asked.waiting
            self._discard(asked, 0)
        elif message["do"] == "part":
            asked.rows += message["rows"]
            if message["last"]:
                self._discard(asked, message["pid"])
        else:
            asked.text = message["text"]
            _end(asked)

    def _discard(self, question: _Question, pid: int) -> None:
        """Nothing more comes from a worker."""
        if question.waiting is not None:
            question.waiting.discard(pid)
            if not question.waiting:
                _end(question)

    # clients --------------------------------------------------------------------------------------------------

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._waiting += 1
        try:
            if self._waiting <= MAX_WAITING:
                await asyncio.wait_for(self._places.acquire(), PATIENCE)
                try:
                    await self._answer_one(name, reader, writer)
                finally:
                    self._places.release()
        except (OSError, TimeoutError):
            pass
        finally:
            self._waiting -= 1
            writer.transport.abort()

    async def _answer_one(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = await self._heard(ConsoleClient(_user(writer), self._authority.get(name), name), reader)
        octets = printable_lines(text).encode()
        for at in range(0, len(octets), PIECE):
            writer.write(octets[at : at + PIECE])
            # a console reads what it has asked for; one that does not is cut off
            await asyncio.wait_for(writer.drain(), PATIENCE)
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), PATIENCE)

    async def _heard(self, client: ConsoleClient, reader: asyncio.StreamReader) -> str:
        """The answer to what a client says."""
        try:
            line = await asyncio.wait_for(reader.readline(), PATIENCE)
        except TimeoutError:
            return ""
        except ValueError:
            with contextlib.suppress(TimeoutError):  # what is left unread would keep it from reading the answer
                while await asyncio.wait_for(reader.read(MAX_LINE), FLUSH):
                    pass
            return f"{ERROR}the command is too long\n"
        text = line.decode("utf-8", "replace").strip()
        as_json = text.startswith("json ")
        try:
            command, answer = await self.ask(client, text.removeprefix("json "))
            if as_json:
                return f"{json.dumps(answer.told())}\n"
            return f"{ERROR}{answer.error}\n" if answer.error else answer.text(command)
        except ConsoleError as error:
            words = str(error)
        except Exception as defect:
            # what goes wrong in a command is an answer too, and not the end of the console
            words = f"unexpected {defect!r}"
        return f"{json.dumps({'error': words})}\n" if as_json else f"{ERROR}{words}\n"

    async def ask(self, client: ConsoleClient, text: str) -> tuple[Command, CommandAnswer]:
        """The answer to a command as it was written. Raises ConsoleError."""
        if len(text) > MAX_LINE:
            raise ConsoleError("the command is too long")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # which no answer could repeat
            raise ConsoleError("the command is no Unicode text")
        try:
            said = shlex.split(text) or ["help"]
        except ValueError as error:
            raise ConsoleError(f"{text}: {error}") from None
        command, words = find(said)
        client.may(command, " ".join(said), partial(self._account, client, loggable(said)))
        if command.by is By.CONSOLE:
            return command, CommandAnswer(self._own(client, command, words))
        self._number += 1
        number = self._number
        question = self._questions[number] = _Question(asyncio.get_running_loop().create_future())
        try:
            if command.by is By.SUPERVISOR:
                order: Order = {
                    "event": "order",
                    "id": number,
                    "command": command.name,
                    "words": words,
                    "who": client.user,
                }
                self._send(order)
                await asyncio.wait_for(question.answered, LOCAL_PATIENCE)
                if question.text.startswith(ERROR):
                    raise ConsoleError(question.text.removeprefix(ERROR))
                return command, CommandAnswer(f"{question.text}\n")
            self._send({"event": "ask", "id": number, "command": command.name, "words": words, "who": client.user})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(question.answered, PATIENCE if command.role is Role.VIEW else ORDER_PATIENCE)
            return command, _merged(command, question)
        except TimeoutError:
            raise ConsoleError("the supervisor did not answer") from None
        finally:
            del self._questions[number]

    def _account(self, client: ConsoleClient, line: str, result: int, role: str) -> None:
        """For the acctlog, and not for what a page asks again and again by itself."""
        if client.listen:
            self._send(
                {
                    "event": "authorized",
                    "listen": client.listen,
                    "peer": client.peer,
                    "user": client.user,
                    "result": result,
                    "command": line[:MOST_TOLD],
                    "role": role,
                }
            )

    def _own(self, client: ConsoleClient, command: Command, words: list[str]) -> str:
        """What the console answers by itself."""
        if command.name == "version":
            return f"quillon {__version__}\n"
        if command.name == "pid":
            return f"{self._supervisor}\n"
        if command.name == "trace smtp follow":
            raise ConsoleError("`quillon console trace smtp follow` does it; here: trace smtp add, show and remove")
        return client.known_as() if command.name == "whoami" else help_text(" ".join(words).lower())


def _end(question: _Question) -> None:
    if not question.answered.done():
        question.answered.set_result(None)


def _merged(command: Command, question: _Question) -> CommandAnswer:
    """The answer out of the rows of all workers. Raises ConsoleError where there is none."""
    if question.nobody:
        raise ConsoleError("no worker is running")
    if question.waiting is None:
        raise ConsoleError("the supervisor did not pass the command on")
    late = f"{len(question.waiting)} workers did not answer\n" if question.waiting else ""
    errors = [row["error"] for row in question.rows if isinstance(row, dict) and row.keys() == {"error"}]
    if errors and len(errors) == len(question.rows):
        raise ConsoleError("\n".join(dict.fromkeys(errors)))
    rows = [row for row in question.rows if not (isinstance(row, dict) and row.keys() == {"error"})]
    if not rows and late:
        raise ConsoleError(late.rstrip())
    merged = command.merge(rows)
    if errors and isinstance(merged, dict) and merged.keys() == {"error"}:
        raise ConsoleError("\n".join(dict.fromkeys(errors)))
    return CommandAnswer(merged, "".join(f"{text}\n" for text in dict.fromkeys(errors)) + late)


def _user(writer: asyncio.StreamWriter) -> str:
    """Who is at the other end of a Unix socket, as the kernel knows him: a name, or the number of one that has none."""
    sock = writer.get_extra_info("socket")
    uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1]
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
