"""The supervisor's side of the control process: it starts it, gives it its sockets, and passes words on.

The supervisor never waits for it. What it does not read for now is kept, up to a bound beyond which it is replaced.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from quillon.app.child import forked
from quillon.control import process
from quillon.control.messages import HttpSettings, Rights, ToControl
from quillon.net.channel import Channel

MOST = 4096  # messages that are kept for it
CUT = 8000  # characters of a text that is too long to be sent, each of which may take six octets
_SOON = 1.0  # seconds until it is started again


class Control:
    """`alone` lets a new process go of what belongs to the supervisor; `heard` takes what it says, and `panic` a
    line."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        alone: Callable[[Channel], None],
        heard: Callable[[dict[str, Any]], None],
        panic: Callable[[str], None],
    ) -> None:
        self.pid = 0
        self.starts_at = 0.0  # monotonic time of the next start; 0 for none
        self._selector = selector
        self._alone = alone
        self._heard = heard
        self._panic = panic
        self._listening: dict[str, socket.socket] = {}
        self._rights: Rights = {}
        self._http: dict[str, HttpSettings] = {}
        self._base = Path()
        self._channel: Channel | None = None
        self._waiting: deque[ToControl] = deque()

    @property
    def names(self) -> set[str]:
        """The sockets that it listens on."""
        return set(self._listening)

    def listen(
        self,
        new: Mapping[str, socket.socket],
        wanted: Set[str],
        rights: Rights,
        http: dict[str, HttpSettings],
        base: Path,
    ) -> None:
        """Newly bound sockets by name, and what rules all; those whose name is not wanted any more are removed."""
        self._rights, self._http, self._base = rights, http, base
        for name in self._listening.keys() - wanted:
            self._listening.pop(name).close()
            if name.startswith("/"):
                with contextlib.suppress(OSError):
                    os.unlink(name)
        self._listening.update(new)
        if self._channel is not None:
            descriptors = [sock.fileno() for sock in new.values()]
            message = {"do": "listen", "new": list(new), "wanted": list(wanted), "rights": rights}
            message["http"] = http
            if not self._channel.send(message, descriptors, wait=False):
                self._replace("it does not take new sockets")

    def start(self) -> None:
        """Fork it, if there is anything to listen on."""
        self.starts_at = 0.0
        if not self._listening:
            return
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            self._later(error)
            return
        supervisor = os.getpid()

        def work() -> int:
            self._alone(ours)
            listening = process.Listening(self._listening, self._rights, self._http, self._base)
            return process.main(theirs, listening, supervisor)

        try:
            self.pid = forked("quillon:control", work)
        except OSError as error:
            ours.close()
            self._later(error)
            return
        finally:
            theirs.close()
        self._channel = ours
        self._selector.register(ours, selectors.EVENT_READ, self._receive)

    def start_if_due(self) -> None:
        """Called in each turn: start it where it is wanted and not there."""
        due = self.starts_at and time.monotonic() >= self.starts_at
        if due or (self._listening and not self.pid and not self.starts_at):
            self.start()

    def tell(self, message: ToControl) -> None:
        """Pass on to it what answers a question; nobody asks while it is not there."""
        if self._channel is None:
            return
        if not Channel.fits(message):
            message = _too_long(message)
        self._waiting.append(message)
        self._flush()
        if len(self._waiting) > MOST:
            self._replace("it does not read its answers")

    def ended(self, how: str) -> None:
        """It has ended, and is started again soon."""
        self._panic(f"control process (pid {self.pid}) ended with {how}; it is started again")
        self._forget()
        self.starts_at = time.monotonic() + _SOON

    def stop(self) -> None:
        """Stop listening, and end it."""
        self.listen({}, set(), {}, {}, self._base)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._forget()
        self.starts_at = 0.0

    def close_inherited(self, *, sockets: bool) -> None:
        """In another process: let go of its descriptors, with those that it listens on or without."""
        if self._channel is not None:
            self._channel.close()
        for sock in self._listening.values() if sockets else ():
            sock.close()

    def _later(self, error: OSError) -> None:
        self._panic(f"the control process cannot be started: {error.strerror}; it is tried again")
        self.starts_at = time.monotonic() + _SOON

    def _replace(self, why: str) -> None:
        self._panic(f"control process (pid {self.pid}): {why}; it is replaced")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _forget(self) -> None:
        if self._channel is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._channel)
            self._channel.close()
        self._channel = None
        self._waiting.clear()
        self.pid = 0

    def _receive(self, channel: Channel) -> None:
        self._flush()
        got = channel.receive(wait=False)
        if got is not None:
            self._heard(got[0])

    def _flush(self) -> None:
        """Send what waits, as far as it is read; go on when there is room."""
        channel = self._channel
        if channel is None:
            return
        while self._waiting and channel.send(dict(self._waiting[0]), wait=False):
            self._waiting.popleft()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.modify(channel, events, self._receive)


def _too_long(message: ToControl) -> ToControl:
    """What is told instead of what does not fit; what is asked for stays answered."""
    if message["do"] == "said":
        return {**message, "text": f"{message['text'][:CUT]} ..."}
    if message["do"] == "part":
        return {**message, "rows": [{"error": "a part of the answer is too long"}]}
    return message
