"""What came of a reload or of a change from the console, and how that is told. Pure."""

from __future__ import annotations

from typing import NamedTuple

from quillon.control.rendering import ERROR


class ReloadOutcome(NamedTuple):
    """`problems` are what is wrong; with `used` the configuration is in force all the same, but not everywhere.
    `warnings` are about what is new, `gone` counts changes of the console that are dropped, `demands` say what is
    demanded otherwise of messages that wait."""

    problems: list[str]
    used: bool = False
    warnings: list[str] = []  # noqa: RUF012 - a default that nobody changes
    gone: int = 0
    demands: list[str] = []  # noqa: RUF012

    def to_reload(self) -> str:
        """The answer to whoever has asked for a reload."""
        return self._told("configuration reloaded", "reload refused")

    def to_change(self) -> str:
        """The answer to whoever has changed something."""
        return self._told("it holds until the next reload", "refused")

    def _told(self, done: str, refused: str) -> str:
        if self.problems and self.used:
            return f"{ERROR}it is in force, but not everywhere: {'; '.join(self.problems)}"
        if self.problems:
            return f"{ERROR}{refused}, the running configuration stays: {'; '.join(self.problems)}"
        gone = [f"{self.gone} changes of the console are gone"] if self.gone else []
        return "\n".join([done, *gone, *self.warnings, *self.demands])
