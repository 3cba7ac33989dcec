"""`quillon check -c FILE`: every fault of a configuration at once, as file:line:column: message.

As root it is read once more as the user whom Security names, who is the one that the server reads it as.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from typing import Any

from quillon.app import compose
from quillon.app.child import forked
from quillon.app.held import would_be_held
from quillon.app.privileges import PrivilegeError, become, identity
from quillon.cli.configuration import DEFAULT, FAULTY, say_which
from quillon.config.load import load
from quillon.config.model import Config
from quillon.net.clock import SystemClock


def add(commands: Any) -> None:
    parser = commands.add_parser("check", help="check a configuration and the files it names")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    say_which(given.config)
    loaded = load(given.config)
    said = [str(fault) for fault in loaded.faults]
    problems: list[str] = []
    if loaded.config is not None:
        problems = [*compose.try_out(loaded.config, SystemClock()), *compose.try_to_bind(loaded.config)]
        problems += _as_the_servers_user(given.config, loaded.config, [*said, *problems])
        said += [f"warning: {line}" for line in would_be_held(loaded.config)]
    for line in (*said, *problems):
        print(line)
    if loaded.config is None or problems:
        return FAULTY
    print("Configuration valid")
    return 0


def _as_the_servers_user(path: str, config: Config, known: Iterable[str]) -> list[str]:
    """What else is wrong for the user whom Security names."""
    try:
        who = identity(config.security())
    except PrivilegeError:
        return []  # it has been said that there is no such user
    if who.uid is None:
        return []
    reading, writing = os.pipe()

    def work() -> int:
        become(who)
        found = load(path)
        problems = [str(fault) for fault in found.errors]
        problems += compose.try_out(found.config, SystemClock()) if found.config is not None else []
        with os.fdopen(writing, "w") as out:
            json.dump(problems, out)
        return 0

    pid = forked(work)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    suffix = f" (as user {config.security().user}, whom Security names)"
    return [line + suffix for line in json.loads(text or "[]") if line not in known]
