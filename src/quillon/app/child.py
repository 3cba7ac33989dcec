"""A process of one's own for some work. Shell."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(name: str, work: Callable[[], int]) -> int:
    """The id of a new process that does `work` and ends with the status that it gives, or 1 and a traceback. `name` is
    what ps and top call it, fifteen characters at most."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with contextlib.suppress(OSError):
                Path("/proc/self/comm").write_text(name)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid
