"""`quillon acme`: certificates by ACME: list them, have them now, or make something to begin with."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from quillon.app import compose
from quillon.certificates import files
from quillon.certificates.acme import AcmeError
from quillon.certificates.files import CertificateFileError
from quillon.certificates.renewal import Renewals, prepare
from quillon.cli.configuration import DEFAULT, FAULTY, say_which
from quillon.config.load import load
from quillon.config.model import Config
from quillon.config.settings import AcmeSettings
from quillon.modules.load import LoadError
from quillon.net.clock import SystemClock


def add(commands: Any) -> None:
    parser = commands.add_parser("acme")
    words = "list them; have those that are due renewed now; make a certificate to begin with where there is none"
    parser.add_argument("what", choices=("list", "renew", "prepare"), help=words)
    parser.add_argument("name", nargs="*", help="of acme stanzas; all by default")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument("--force", action="store_true", help="renew: those that are not due as well")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 0; 1 where one could not be had, 2 for a faulty configuration."""
    config = _read(given.config)
    if config is None:
        return FAULTY
    settings = [one for one in config.stanzas.acme() if not given.name or one.name in given.name]
    if not settings:
        print(f"quillon acme: {given.config} has no such acme stanza", file=sys.stderr)
        return 1
    try:
        return asyncio.run(_run(config, settings, given))
    except (LoadError, CertificateFileError, OSError) as error:
        print(f"quillon acme: {error}", file=sys.stderr)
        return 1


def _read(path: str) -> Config | None:
    """The configuration, whose certificates need not be there yet; None with its faults on stderr."""
    say_which(path)
    loaded = load(path)
    try:
        own = [file for one in loaded.tree.stanzas.acme() for file in (one.certificate, one.key)]
    except ValueError:
        own = []
    faults = [
        fault for fault in loaded.errors if not any(fault.message.startswith(f"cannot read {file}:") for file in own)
    ]
    for fault in faults:
        print(fault, file=sys.stderr)
    return None if faults else loaded.tree


async def _run(config: Config, settings: list[AcmeSettings], given: argparse.Namespace) -> int:
    """Raises LoadError, CertificateFileError, OSError."""
    clock, node = SystemClock(), config.node()
    if given.what == "prepare":
        for one in settings:
            done = prepare(one, clock.now())
            print(f"{one.name}: {one.certificate} {'stands in until there is another' if done else 'is there'}")
        return 0
    folder, resolver = Path(node.spoolbase, "acme"), compose.resolver(node, clock)
    renewals = Renewals(settings, folder, resolver, clock, _complain, print)
    failed = 0
    for one in settings:
        try:
            why = await renewals.due(one)
            if given.what == "list":
                _list(one, why)
            elif why or given.force:
                await renewals.renew(one, why or "by order")
            else:
                print(f"{one.name}: {one.certificate} need not be renewed")
        except (AcmeError, CertificateFileError) as error:
            failed = 1
            _complain(f'acme "{one.name}": {error}')
    return failed


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _list(one: AcmeSettings, why: str) -> None:
    certificate = files.load_certificate(one.certificate)
    ends = f"ends {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC" if certificate is not None else "not there"
    print(f"{one.name}: {one.certificate}, {ends}{f'; to be renewed: {why}' if why else ''}")
    print(f"    {', '.join(one.names)} by {one.challenge} from {one.directory}")
