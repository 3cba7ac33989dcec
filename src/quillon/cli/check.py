"""`quillon check -c FILE`: every fault of a configuration at once, as file:line:column: message.

As root it is read once more as the user whom Security names, who is the one that the server reads it as.
"""

from __future__ import annotations

import argparse
import os
import select
from collections.abc import Iterable
from typing import Any

from quillon.app import compose
from quillon.app.config_trial import PATIENCE, ConfigTrial
from quillon.app.privileges import PrivilegeError, become, identity
from quillon.app.waiting_mail import changed_demands
from quillon.cli.configuration import DEFAULT, FAULTY, say_which
from quillon.config.load import load
from quillon.config.model import Config
from quillon.net.clock import SystemClock


def add(commands: Any) -> None:
    parser = commands.add_parser("check")
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
        said += [f"warning: {line}" for line in changed_demands(loaded.config)]
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
    trial = ConfigTrial(path, SystemClock(), lambda _: become(who))
    ready, _, _ = select.select([trial], [], [], PATIENCE)
    problems = trial.problems() if ready else trial.late()
    os.waitpid(trial.pid, 0)
    suffix = f" (as user {config.security().user}, whom Security names)"
    return [line + suffix for line in problems if line not in known]
