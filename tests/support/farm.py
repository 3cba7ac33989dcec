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

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self.farm.stop)
        self._loop.call_soon_threadsafe(self._loop.call_later, 0.05, self._loop.stop)
        self._thread.join(10)
        self._loop.close()
