"""`message export ID [FILE]`: a message that waits, whole and as it is, into a file or to standard output."""

from __future__ import annotations

import json
import os
import shlex
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

EXPORT = "message export "


def export(ask: Callable[[str], str], said: str, *, name: str) -> int:
    """Ask for it and write it; the exit status."""
    try:
        number, *files = shlex.split(said)
        file = Path(files[0]) if files else None
        answer = json.loads(ask(f"json {EXPORT}{shlex.join([number, *files[1:]])}"))
        wrong = answer.get("error") or answer.get("incomplete")
        if wrong:
            print(f"quillon console: {wrong}", file=sys.stderr)
            return 1
        octets = b64decode(answer["result"]["octets"])
        if file is None:
            sys.stdout.buffer.write(octets)
            return 0
        # it may hold what is for nobody else, and nothing that is there is overwritten
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            try:
                out.write(octets)
                out.flush()
            except OSError:
                file.unlink()
                raise
    except OSError as error:
        print(f"quillon console: {error.filename or name}: {error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:  # what was said, or an answer that broke off
        print(f"quillon console: {error}", file=sys.stderr)
        return 1
    print(f"{len(octets)} octets written to {file}")
    return 0
