"""`quillon serve` in a process forked from one that has imported Quillon already.

A start of the interpreter with all imports takes a second of CPU, and a run of the tests starts servers by the hundred. What is
forked is a process of its own, with the same command line behind it; that the installed command starts is for test_cli to show.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from quillon.cli.main import script

_context: ForkServerContext | None = None


def start(words: list[str], output: Path) -> BaseProcess:
    """`quillon WORDS`, what it says appended to a file."""
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["quillon.app.worker", "quillon.cli.serve", "quillon.control.http"])
    process = _context.Process(target=_run, args=(words, str(output), dict(os.environ)), daemon=True)
    process.start()
    return process


def _run(words: list[str], output: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.argv = ["quillon", *words]
    script()
