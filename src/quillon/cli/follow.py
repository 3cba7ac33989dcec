"""`trace smtp follow`: a trace of sessions that is seen as it comes, until the interrupt key."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from quillon.control.tracing import text_line

FOLLOW = "trace smtp follow"
_PAUSE = 0.5  # seconds between two looks


class _AnswerError(Exception):
    """The server has no answer; the message says why."""


def follow(ask: Callable[[str], str], options: str, *, as_json: bool, name: str) -> int:
    """Add a trace, print its lines, and remove it; the exit status."""
    number = 0
    before = signal.signal(signal.SIGTERM, _interrupted)  # what runs in the background ignores the interrupt key
    try:
        added = _asked(ask, f"trace smtp add{options}")
        number = added["number"]
        print(f"tracing sessions that begin now (#{number}); the interrupt key ends it", file=sys.stderr)
        _show(ask, number, added["until"], as_json=as_json)
    except KeyboardInterrupt:
        pass
    except (_AnswerError, OSError) as error:
        print(f"quillon console: {name}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice, to the process and to its group
        if number:
            with contextlib.suppress(OSError):
                ask(f"trace smtp remove {number}")
        signal.signal(signal.SIGTERM, before)
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _show(ask: Callable[[str], str], number: int, until: float, *, as_json: bool) -> None:
    """Print lines as they come, until the trace ends. Raises _AnswerError, OSError."""
    known: dict[str, int] = {}
    while time.time() < until:
        after = ",".join(f"{worker}:{line}" for worker, line in known.items())
        found = _asked(ask, f"trace smtp show {number} {after}".rstrip())
        if found["lost"] and known:
            print(f"{found['lost']} lines went by too fast", file=sys.stderr)
        for row in found["lines"]:
            print(json.dumps(row) if as_json else text_line(row), end="\n" if as_json else "", flush=True)
        known |= {worker: line for worker, line in found["last"].items() if line}
        time.sleep(_PAUSE)


def _asked(ask: Callable[[str], str], line: str) -> dict[str, Any]:
    """Raises _AnswerError, OSError."""
    answer: Any = json.loads(ask(f"json {line}"))
    result: Any = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, dict) or answer.get("error"):
        told = answer.get("error") if isinstance(answer, dict) else None
        raise _AnswerError(str(told or "it gives no answer"))
    return result
