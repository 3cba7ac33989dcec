"""Trying a configuration out in a process of its own.

Its scripts may wait, loop, or crash while they load; the supervisor serves its workers and the console meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from quillon.app import compose
from quillon.app.child import forked
from quillon.config.changes import ConfigChange
from quillon.config.load import Loaded, load
from quillon.config.syntax import Fault, Position
from quillon.net.channel import LIMIT, Channel
from quillon.net.clock import Clock

PATIENCE = 120.0  # seconds; policies have 30 for what they wait for, and certificates are read besides
_ROOM = LIMIT // 8  # characters of what is wrong, for a character may take six octets


class ConfigTrial:
    """A trial that is under way: of reading the file at `path` and making what it describes, with what the console has
    changed. A `digest` is that of the files to which it was changed: others are not taken for them.

    `alone` is called in the new process, with this end of the channel, to let go of what belongs to its parent.
    """

    def __init__(
        self,
        path: str,
        clock: Clock,
        alone: Callable[[Channel], None],
        changed: tuple[ConfigChange, ...] = (),
        digest: str = "",
    ) -> None:
        self._path, self._changed, self._digest = path, changed, digest
        self.channel, theirs = Channel.pair()
        self.ends_at = time.monotonic() + PATIENCE

        def work() -> int:
            alone(self.channel)
            problems = self._tried(clock)
            theirs.send({"problems": problems if sum(map(len, problems)) < _ROOM else _shortened(problems)})
            return 0

        try:
            self.pid = forked("quillon:trial", work)
        except OSError:
            self.channel.close()
            raise
        finally:
            theirs.close()

    def fileno(self) -> int:
        return self.channel.fileno()

    def problems(self) -> list[str]:
        """What is wrong with the configuration, once the channel can be read."""
        got = self.channel.receive(wait=False)
        self.channel.close()
        if got is None:
            return ["the process that tried the configuration out has ended; does a policy crash while it loads?"]
        found: list[str] = got[0]["problems"]
        return found

    def read(self) -> Loaded:
        """The configuration as it is now."""
        loaded = load(self._path, changed=self._changed)
        if self._digest and loaded.tree.files_digest != self._digest:
            at = Position(self._path, 0, 0)
            text = "its files have changed since they were read: reload first, and then change what they say now"
            return Loaded(None, [Fault(at, text)], loaded.tree)
        return loaded

    def _tried(self, clock: Clock) -> list[str]:
        """What is wrong with it, whatever it does to those who read it."""
        try:
            loaded = self.read()
            if loaded.config is None:
                return [str(fault) for fault in loaded.errors]
            return compose.try_out(loaded.config, clock)
        except Exception as error:
            return [f"{self._path}: unexpected {error!r} while it was tried out; please report it"]

    def late(self) -> list[str]:
        """It has taken too long."""
        self.end()
        return [f"to try the configuration out took more than {PATIENCE:.0f} s; does a policy hang while it loads?"]

    def end(self) -> None:
        """The outcome does not matter any more."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.channel.close()


def _shortened(problems: list[str]) -> list[str]:
    words = "; ".join(problems)
    return [f"{words[:_ROOM]} ... ({len(problems)} faults in all; `quillon check` prints each)"]
