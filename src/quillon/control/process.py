"""The control process: an event loop between the supervisor's channel and the console's clients. Shell.

It is forked after privileges were dropped, and ends with the supervisor. Whatever happens here holds up no mail, and is
not the supervisor's end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import cast

from quillon.control.console import Console
from quillon.control.messages import Rights, ToControl
from quillon.net.channel import Channel


def main(channel: Channel, listening: dict[str, socket.socket], rights: Rights, supervisor: int) -> int:
    """Serve until the supervisor is gone; gives the exit status."""
    # the loop is not wound up: the process ends next, and with it whoever is connected
    asyncio.new_event_loop().run_until_complete(_run(channel, listening, rights, supervisor))
    return 0


async def _run(channel: Channel, listening: dict[str, socket.socket], rights: Rights, supervisor: int) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    console = Console(lambda message: channel.send(dict(message)), supervisor)
    tasks: set[asyncio.Task[None]] = set()

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
            task = loop.create_task(console.listen(new, set(message["wanted"]), message["rights"]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            console.told(message)

    loop.add_reader(channel.fileno(), told)
    await console.listen(listening, set(listening), rights)
    await over.wait()
