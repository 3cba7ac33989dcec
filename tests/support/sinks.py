"""A sink of the laboratory on a thread of its own, for tests that are not on an event loop."""

from __future__ import annotations

import asyncio
import threading

from quillon.config.settings import InboundTls
from quillon.lab.sink import Answer, Caught, Sink
from quillon.mail.reply import Reply


class SinkThread:
    """Listens from the start; `sink.caught` may be read from any thread."""

    def __init__(
        self,
        answer: Answer = lambda _: None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: InboundTls | None = None,
    ) -> None:
        self.sink = Sink(tls, answer=answer)
        self.port = 0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        def run() -> None:
            async def start() -> None:
                self.port = await self.sink.start(host, port)
                started.set()

            self._loop.run_until_complete(start())
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(10)

    def __enter__(self) -> SinkThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def messages(self) -> list[Caught]:
        """What has come so far."""
        return self.sink.caught

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        """Cut off who is connected, and who is just being: a transport that is left open fails some other test."""
        quiet = 0
        while quiet < 3:
            self.sink.stop()
            await asyncio.sleep(0.01)
            quiet = 0 if self.sink.open else quiet + 1


def replying(code: int, enhanced: str, text: str, kind: type) -> Answer:
    """An answer for every event of one kind."""
    return lambda event: Reply(code, enhanced, text) if isinstance(event, kind) else None
