"""The fault farm on a thread of its own, for tests that are not on an event loop."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from quillon.lab.farm import Farm


class FarmThread:
    """Listens from the start; `farm.ports` and `farm.records` go by the peer's name."""

    def __init__(self, folder: Path) -> None:
        self.farm = Farm(folder)
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        def run() -> None:
            self._loop.run_until_complete(self.farm.start())
            started.set()
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        """Cut off who is connected, and who is just being: a transport that is left open fails some other test."""
        quiet = 0
        while quiet < 3:
            self.farm.stop()
            await asyncio.sleep(0.01)
            quiet = 0 if self.farm.open else quiet + 1
