"""The console's questions about the configuration that a worker uses. Shell."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quillon.config import place, provenance, written

if TYPE_CHECKING:
    from quillon.app.worker import Worker

Rows = list[Any]


class Configuration:
    """The answers of one worker: `functions` are those of commands, and raise ValueError."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.functions: dict[str, Callable[[list[str]], Rows]] = {
            "config explain": self._explain,
            "config get": self._get,
            "config eval": self._eval,
            "config show": lambda words: self._show(words, deep=False),
            "config showrecurse": lambda words: self._show(words, deep=True),
            "config changes": self._changes,
        }

    def _explain(self, words: list[str]) -> Rows:
        """`DOMAIN [OPTION]`: what is written for it, or all options of a name, with what they beat."""
        if len(words) not in (1, 2):
            raise ValueError("config explain DOMAIN [OPTION]")
        outbound, domain = self._worker.config.outbound, words[0].lower()
        found = sorted(outbound.explain("default", "default", domain), key=lambda one: one.option.name)
        wanted = words[1].lower() if len(words) == 2 else ""
        rows = [one for one in found if (wanted in one.option.name if wanted else one.entry is not None)]
        if not rows:
            raise ValueError(f"no option matches {wanted!r}" if wanted else "nothing is written for it: defaults hold")
        gateway = outbound.routing("default", "default", domain).domain
        head = [{"domain": domain, "goes_to": gateway}] if gateway != domain else []
        return [*head, *map(provenance.row, rows)]

    def _place(self, words: list[str]) -> place.ScopePlace:
        return place.read(words, self._worker.config.root, self._worker.config.table)

    def _get(self, words: list[str]) -> Rows:
        config, found = self._worker.config, self._place(words)
        option = place.option(found, *_one(found.rest), config.table)
        node = found.find(config.root)
        entry = node.settings.get(option.name) if node is not None else None
        if node is None or entry is None:
            raise ValueError(f"Option '{option.name}' is not set in scope '{found.words}'.")
        shown = written.HIDDEN if option.secret else written.value(entry)
        row = {"option": option.name, "written": shown, "set_at": str(entry.position), "scope": node.path}
        return [(self._worker.number, row)]

    def _eval(self, words: list[str]) -> Rows:
        config, found = self._worker.config, self._place(words)
        option = place.option(found, *_one(found.rest), config.table)
        return [(self._worker.number, provenance.row(place.effective(config, found, option)))]

    def _show(self, words: list[str], *, deep: bool) -> Rows:
        config, found = self._worker.config, self._place(words)
        node = found.find(config.root)
        if found.rest:
            return [(number, f"{row['option']} = {row['written']}") for number, row in self._get(words)]
        if node is None:
            raise ValueError(f"there is no {found.words}")
        return [(self._worker.number, line) for line in written.lines(node, config.table, deep=deep)]

    def _changes(self, _words: list[str]) -> Rows:
        rows = [
            {"do": change.do, "words": shlex.join(change.words), "origin": change.origin}
            for change in self._worker.config.changes
        ]
        return [(self._worker.number, row) for row in [*rows, None]]


def _one(rest: tuple[str, ...]) -> tuple[str]:
    """Raises ValueError unless it is one name."""
    if len(rest) != 1:
        raise ValueError("write it so: [SCOPE [NAME]]... OPTION")
    return (rest[0],)
