"""The console: commands on the sockets of Control_Listener, answered by this process, the supervisor or all workers.

One command a connection: a line comes in, text goes out, the connection is closed. Who may connect is for the mode of
the socket to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quillon import __version__
from quillon.control.commands import ERROR, By, Command, find, help_text
from quillon.control.messages import FromControl, ToControl
from quillon.mail.shown import printable

MAX_LINE = 4096
MAX_CLIENTS = 32  # that are answered at a time
MAX_WAITING = 256
PATIENCE = 5.0  # seconds for a client to say its line and to read the answer, and for the workers to give it
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


class Console:
    """`send` takes what goes to the supervisor, whose process id is `supervisor`."""

    def __init__(self, send: Callable[[FromControl], object], supervisor: int) -> None:
        self._send = send
        self._supervisor = supervisor
        self._servers: dict[str, asyncio.AbstractServer] = {}
        self._questions: dict[int, _Question] = {}
        self._places = asyncio.Semaphore(MAX_CLIENTS)
        self._waiting = 0  # clients, with those that are being answered
        self._number = 0

    async def listen(self, new: dict[str, socket.socket], wanted: set[str]) -> None:
        """Take over newly bound sockets by name; close those whose name is not wanted any more."""
        for name in self._servers.keys() - wanted:
            self._servers.pop(name).close()
        for name, sock in new.items():
            self._servers[name] = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_LINE)

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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._waiting += 1
        try:
            if self._waiting <= MAX_WAITING:
                await asyncio.wait_for(self._places.acquire(), PATIENCE)
                try:
                    await self._answer_one(reader, writer)
                finally:
                    self._places.release()
        except (OSError, TimeoutError):
            pass
        finally:
            self._waiting -= 1
            writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = await self._heard(reader)
        shown = "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))
        writer.write(shown.encode())
        # a console reads what it has asked for; one that does not is cut off
        await asyncio.wait_for(writer.drain(), PATIENCE)
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), PATIENCE)

    async def _heard(self, reader: asyncio.StreamReader) -> str:
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
        command, words = find(line.decode("utf-8", "replace").split() or ["help"])
        try:
            return await self._answer(command, words)
        except Exception as defect:
            # what goes wrong in a command is an answer too, and not the end of the console
            return f"{ERROR}{command.name}: unexpected {defect!r}\n"

    async def _answer(self, command: Command, words: list[str]) -> str:
        if command.by is By.CONSOLE:
            texts = {"version": f"quillon {__version__}\n", "pid": f"{self._supervisor}\n"}
            return texts.get(command.name) or help_text()
        self._number += 1
        number = self._number
        question = self._questions[number] = _Question(asyncio.get_running_loop().create_future())
        try:
            if command.by is By.SUPERVISOR:
                self._send({"event": "order", "id": number, "command": command.name})
                await asyncio.wait_for(question.answered, LOCAL_PATIENCE)
                return f"{question.text}\n"
            self._send({"event": "ask", "id": number, "command": command.name, "words": words})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(question.answered, PATIENCE)
            return _text(command, question)
        except TimeoutError:
            return f"{ERROR}the supervisor did not answer\n"
        finally:
            del self._questions[number]


def _end(question: _Question) -> None:
    if not question.answered.done():
        question.answered.set_result(None)


def _text(command: Command, question: _Question) -> str:
    """The answer out of the rows of all workers."""
    if question.nobody:
        return f"{ERROR}no worker is running\n"
    assert command.render is not None
    late = f"{len(question.waiting)} workers did not answer\n" if question.waiting else ""
    errors = [row["error"] for row in question.rows if isinstance(row, dict) and row.keys() == {"error"}]
    if errors and len(errors) == len(question.rows):
        return "".join(f"{ERROR}{text}\n" for text in dict.fromkeys(errors)) + late
    return command.render(question.rows) + late
