"""`quillon policy check`, `policy run` and `replay`: policies looked at before they are live."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from quillon.app import compose
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.model import Config
from quillon.lab import playback
from quillon.lab.playback import Scene
from quillon.listener import credentials
from quillon.modules import load as policies
from quillon.net.clock import SystemClock
from quillon.policy.hook import PolicyError


def add(commands: Any) -> None:
    parser = commands.add_parser("policy")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", help="load the policies, and list what each module is asked")
    _config(check)
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_check)
    play = actions.add_parser("run", help="play an SMTP dialog through the policies, without a network")
    _config(play)
    play.add_argument(
        "--script", required=True, metavar="FILE", help="the client's lines; after DATA the message up to a dot"
    )
    play.add_argument("--listen", metavar="NAME", help="the Listen to come in by; else the first")
    play.add_argument("--peer", default="192.0.2.1", metavar="IP", help="the client's address")
    play.add_argument(
        "--tls-verified",
        choices=("yes", "no", "none"),
        help="in TLS: with a client certificate that is verified, or is not, or without one",
    )
    play.add_argument(
        "--certificate",
        metavar="FILE",
        help="the client's certificate, PEM, not verified unless --tls-verified yes says so; else one is made",
    )
    play.add_argument("--tls-cause", default="unknown_issuer", metavar="CODE", help="why it does not verify, for no")
    play.add_argument("--tls-version", default="TLSv1.3", metavar="VERSION")
    play.add_argument(
        "--dns", metavar="FILE", help='answers of DNS, as JSON: {"name TYPE": ["record", ...]}; nobody is asked'
    )
    play.add_argument("--time", type=float, metavar="SECONDS", help="the time, in seconds since the epoch; else now")
    play.add_argument("--json", action="store_true", help="print JSON")
    play.set_defaults(run=run_script)
    again = commands.add_parser("replay")
    _config(again)
    again.add_argument("record", metavar="FILE", help="what `quillon record` has written")
    again.add_argument("--json", action="store_true", help="print JSON")
    again.set_defaults(run=run_replay)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")


def run_check(given: argparse.Namespace) -> int:
    """Exit status 2 if the configuration or a policy does not load."""
    config = read(given.config)
    if config is None:
        return FAULTY
    try:
        loaded = asyncio.run(compose.load_to_look(config, SystemClock(), _to_stderr))
    except policies.LoadError as error:
        print(error, file=sys.stderr)
        return FAULTY
    faults = credentials.faults(config, loaded.environment.auth)
    called = loaded.policy.called()
    loaded.policy.close()
    for fault in faults:
        print(fault, file=sys.stderr)
    if given.json:
        print(json.dumps([{"module": name, "callouts": names} for name, names in called], indent=2))
        return FAULTY if faults else 0
    if not called:
        print("no policy is configured")
    for name, names in called:
        print(f"{name}: {', '.join(names) or 'nothing'}")
    return FAULTY if faults else 0


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def run_script(given: argparse.Namespace) -> int:
    """Exit status 0 if every command was taken, 1 if one was refused, 2 for what cannot be played."""
    config = read(given.config)
    if config is None:
        return FAULTY
    try:
        scene = Scene(
            lines=Path(given.script).read_text(encoding="utf-8").splitlines(),
            listen=given.listen or "",
            peer=given.peer,
            verdict=playback.verdict(given.tls_verified, given.certificate, given.tls_cause, given.tls_version),
        )
        answers = _dns(given.dns) if given.dns else None
        lookup = playback.answering(answers) if answers is not None else _asking(config)
        steps = asyncio.run(playback.run_scene(config, scene, lookup, given.time or time.time(), _to_stderr))
    except (OSError, ValueError, policies.LoadError, PolicyError) as error:
        print(f"quillon policy run: {error}", file=sys.stderr)
        return FAULTY
    if given.json:
        print(json.dumps([step.row() for step in steps], indent=2))
    else:
        for step in steps:
            print("\n".join(step.lines()))
    refused = any(reply[:1] in "45" for step in steps for reply in step.replies)
    return 1 if refused else 0


def _dns(path: str) -> Any:
    """Raises OSError, ValueError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--dns {path}: {error}") from None


def _asking(config: Config) -> Any:
    """DNS as the server would ask it."""
    return partial(compose.look_up, compose.resolver(config.node(), SystemClock()))


def run_replay(given: argparse.Namespace) -> int:
    """Exit status 0 if every session ends as it did, 1 if one does not, 2 for what cannot be played."""
    config = read(given.config)
    if config is None:
        return FAULTY
    try:
        with Path(given.record).open(encoding="utf-8") as file:
            found = asyncio.run(playback.replay(config, file, _to_stderr))
    except (OSError, ValueError, KeyError, policies.LoadError, PolicyError) as error:
        print(f"quillon replay: {given.record}: {error}", file=sys.stderr)
        return FAULTY
    if given.json:
        print(json.dumps([change.row() for change in found.changes], indent=2))
    else:
        for change in found.changes:
            print("\n".join(change.lines()))
        print(f"{found.sessions} sessions, {len(found.changes)} end otherwise")
    return 1 if found.changes else 0
