"""The control process: an event loop between the supervisor's channel and the console's clients. Shell.

It is forked after privileges were dropped, and ends with the supervisor. Whatever happens here holds up no mail, and is
not the supervisor's end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from quillon.control.console import Console
from quillon.control.messages import HttpSettings, Rights, ToControl
from quillon.net.channel import Channel
from quillon.net.clock import SystemClock

if TYPE_CHECKING:
    from quillon.control.http import HttpServers


REFRESH = 10.0  # seconds between two looks whether a certificate has changed


@dataclass(frozen=True)
class Listening:
    """What the process listens on when it begins: sockets by name, what rules consoles and HTTP, and the folder of the
    spool."""

    sockets: dict[str, socket.socket]
    rights: Rights
    http: dict[str, HttpSettings]
    base: Path


def main(channel: Channel, listening: Listening, supervisor: int) -> int:
    """Serve until the supervisor is gone; gives the exit status."""
    # the loop is not wound up: the process ends next, and with it whoever is connected
    asyncio.new_event_loop().run_until_complete(_run(channel, listening, supervisor))
    return 0


async def _run(channel: Channel, listening: Listening, supervisor: int) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    console = Console(lambda message: channel.send(dict(message)), supervisor)
    http: list[HttpServers] = []  # made when the first is wanted
    one_at_a_time = asyncio.Lock()
    tasks: set[asyncio.Task[None]] = set()

    async def listen(
        new: dict[str, socket.socket], wanted: set[str], rights: Rights, settings: dict[str, HttpSettings]
    ) -> None:
        async with one_at_a_time:
            consoles = {name: sock for name, sock in new.items() if name not in settings}
            await console.listen(consoles, wanted - settings.keys(), rights)
            if settings and not http:
                from quillon.control.http import HttpServers  # noqa: PLC0415 - what nobody has, nobody waits for

                http.append(HttpServers(console, SystemClock(), listening.base))
            for servers in http:
                fresh = {name: sock for name, sock in new.items() if name in settings}
                tell(await servers.listen(fresh, settings))

    def tell(problems: list[str]) -> None:
        for problem in problems:
            channel.send({"event": "trouble", "text": f"HTTP_Listener: {problem}"})

    async def look_after() -> None:
        while True:
            await asyncio.sleep(REFRESH)
            async with one_at_a_time:
                for servers in http:
                    tell(await servers.refresh())

    def told() -> None:
        got = channel.receive()
        if got is None:
            loop.remove_reader(channel.fileno())
            over.set()
            return
        message, descriptors = cast(ToControl, got[0]), got[1]
        if message["do"] == "listen":
            names = message["new"]
            if len(names) > len(descriptors):
                os._exit(1)  # no descriptor was left for them: a new process is given all of them
            new = {name: socket.socket(fileno=file) for name, file in zip(names, descriptors, strict=False)}
            task = loop.create_task(listen(new, set(message["wanted"]), message["rights"], message["http"]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            console.told(message)

    loop.add_reader(channel.fileno(), told)
    await listen(listening.sockets, set(listening.sockets), listening.rights, listening.http)
    tasks.add(loop.create_task(look_after()))
    await over.wait()
