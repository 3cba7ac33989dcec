"""`msys.counter`: numbers under a path, of this worker; they outlive a reload."""

from __future__ import annotations

from typing import Any

from quillon.lua.msys.api import Api

MAX_COUNTERS = 100_000


def register(api: Api) -> None:
    counters: dict[str, int] = api.environment.shared.setdefault("counters", {})

    def path_of(path: Any) -> str:
        text = str(path)
        if not text.startswith("/"):
            raise ValueError(f"{text!r} is no path of a counter: it begins with a slash")
        if text not in counters and len(counters) >= MAX_COUNTERS:
            raise ValueError(f"there are {MAX_COUNTERS} counters already")
        counters.setdefault(text, 0)
        return text

    @api.function("msys.counter.open")
    def open_counter(path: str, semantics: int | None = None) -> str:
        """A counter by its path, made if it is not there."""
        return path_of(path)

    @api.function("msys.counter.inc")
    def inc(path: Any) -> int:
        """Add one."""
        return add(path, 1)

    @api.function("msys.counter.add")
    def add(path: Any, delta: int) -> int:
        """Add a number."""
        counters[path_of(path)] += int(delta)
        return counters[str(path)]

    @api.function("msys.counter.read")
    def read(path: Any) -> int:
        """Its value; 0 for one that is not there."""
        return counters.get(str(path), 0)

    @api.function("msys.counter.reset")
    def reset(path: Any) -> None:
        """Set to 0."""
        counters[path_of(path)] = 0

    @api.function("msys.counter.unlink")
    def unlink(path: Any) -> bool:
        """Forget it."""
        return counters.pop(str(path), None) is not None
