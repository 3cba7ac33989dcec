"""`quillon posture`, `quillon dry-run`: what partners did with TLS, and what stricter settings would have held back."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from quillon.app import compose
from quillon.app.posture import kept
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.model import Config
from quillon.config.settings import EvidenceSettings
from quillon.control import partners
from quillon.evidence import posture as records
from quillon.evidence import proof
from quillon.evidence.files import DamagedError, LogFiles
from quillon.log.posture import Day, of_row
from quillon.standards.report_store import ReportStore

_VALUES = {"tls": ("no", "ifavailable", "required"), "tls_verify": ("no", "optional", "ca", "host")}
NO_EVIDENCE = "{} has no stanza evidence: nothing was recorded"
SOON = 30  # days in which the end of a certificate is told


def add(commands: Any) -> None:
    parser = commands.add_parser("posture")
    parser.add_argument("domain", help="a recipients' domain, one of your own of which others report, or all")
    parser.set_defaults(run=posture)
    _common(parser)
    parser = commands.add_parser("dry-run")
    parser.add_argument("settings", nargs="+", metavar="OPTION=VALUE", help="TLS and TLS_Verify, as TLS=required")
    parser.add_argument("--domain", default="", metavar="DOMAIN", help="this one alone, with hosts and days")
    parser.set_defaults(run=dry_run)
    _common(parser)


def _common(parser: Any) -> None:
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument("--since", default="30d", metavar="TIME", help="days, as 30d, or a date; 30d by default")
    parser.add_argument("--json", action="store_true", help="print JSON")


def posture(given: argparse.Namespace) -> int:
    """Exit status 0 where the domain was talked to, or somebody has reported of it."""
    config = read(given.config)
    if config is None:
        return FAULTY
    try:
        found = _found(config, given.domain.lower(), since(given.since))
    except (DamagedError, OSError, ValueError) as error:
        return _fail(str(error))
    if found is None:
        return _fail(f"{given.config} has no stanza posture and none of evidence: nothing was recorded")
    if not any(found.values()):
        return _fail(f"nothing was delivered to {given.domain}, or tried to be, or reported, since {given.since}")
    print(json.dumps(found, indent=2) if given.json else partners.text_posture(found), end="")
    if not given.json:
        _print_ends(found["days"])
    return 0


def _found(config: Config, domain: str, begin: str) -> dict[str, Any] | None:
    """As the console's `posture` has it: out of what is counted, or else of the evidence. None where nothing is
    recorded. Raises DamagedError, OSError."""
    spool = Path(config.node().spoolbase)
    reports = [{"report": report.row()} for report in ReportStore(spool / "tlsrpt/received").of(domain, begin[:10])]
    settings = _evidence(config)
    if config.stanzas.posture() is not None:
        counted = list(kept(spool / "posture", begin[:10]))
        if domain == "all":
            days: dict[str, list[Day]] = {}
            for name, rows in ((name, rows) for one in counted for name, rows in one.items()):
                days.setdefault(name, []).extend(map(of_row, rows))
            return partners.merge_posture([partners.summed(name, days[name]) for name in days] + reports)
        return partners.merge_posture([row for one in counted for row in one.get(domain, [])] + reports)
    if settings is None:
        return partners.merge_posture(reports) if reports else None
    found = records.posture(_rows(settings, begin, domain))
    _add_ends(settings, found)
    return partners.merge_posture([day.row() for day in found] + reports)


def _print_ends(rows: list[dict[str, Any]]) -> None:
    last: dict[str, float] = {}
    for row in rows:
        own = next(reversed(row.get("certificates", {})), "")
        end = row.get("ends", {}).get(own)
        if end:
            last[row["host"]] = end
    for host, end in sorted(last.items()):
        at = datetime.fromtimestamp(end, UTC)
        left = (at - datetime.now(UTC)).days
        if left < SOON:
            print(f"{host}: its certificate ends in {left} days, {at:%Y-%m-%d}")


def dry_run(given: argparse.Namespace) -> int:
    """Exit status 0 if all that was delivered would have been, 1 for a fault, 3 if something would have waited."""
    settings = _settings(given)
    if isinstance(settings, int):
        return settings
    try:
        tls, verify = _wanted(given.settings)
        trials = records.dry_run(_rows(settings, since(given.since), given.domain.lower() or "all"), tls, verify)
    except (DamagedError, OSError, ValueError) as error:
        return _fail(str(error))
    if not trials:
        return _fail(f"nothing was delivered{f' to {given.domain}' if given.domain else ''} since {given.since}")
    if given.json:
        print(json.dumps([{**vars(trial), "bears": trial.bears} for trial in trials], indent=2))
    else:
        print(f"TLS = {tls}, TLS_Verify = {verify}, for what was delivered since {given.since}:")
        for trial in trials:
            _print_trial(trial, more=bool(given.domain))
    return 0 if all(trial.bears for trial in trials) else 3


def _settings(given: argparse.Namespace) -> EvidenceSettings | int:
    config = read(given.config)
    if config is None:
        return FAULTY
    settings = _evidence(config)
    return settings if settings is not None else _fail(NO_EVIDENCE.format(given.config))


def _evidence(config: Config) -> EvidenceSettings | None:
    node = config.node()
    return config.stanzas.evidence(node.spoolbase, compose.hostname(node))


def _fail(text: str) -> int:
    print(f"quillon: {text}", file=sys.stderr)
    return 1


def since(text: str) -> str:
    """The begin of what is looked at, as records write times. Raises ValueError."""
    days = re.fullmatch(r"(\d{1,5})d", text)
    if days is not None:
        return (datetime.now(UTC) - timedelta(days=int(days[1]))).strftime("%Y-%m-%dT%H:%M:%S")
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%dT%H:%M:%S")
    except ValueError:
        raise ValueError(f"--since {text}: it is a number of days, as 30d, or a date, as 2026-11-01") from None


def _wanted(words: list[str]) -> tuple[str, str]:
    """Values of TLS and TLS_Verify. Raises ValueError."""
    found = {"tls": "required", "tls_verify": "no"}
    for word in words:
        name, equals, value = word.partition("=")
        name, value = name.strip().lower(), value.strip().lower()
        if not equals or name not in _VALUES:
            raise ValueError(f"{word}: it is TLS=... or TLS_Verify=...")
        if value not in _VALUES[name]:
            raise ValueError(f"{word}: {name} is {', '.join(_VALUES[name])}")
        found[name] = value
    return found["tls"], found["tls_verify"]


def _rows(settings: EvidenceSettings, since: str, domain: str) -> Iterator[dict[str, Any]]:
    """Records of attempts at a domain, or at all. Raises DamagedError, OSError."""
    for log in proof.logs(Path(settings.folder)):
        files = LogFiles(log)
        try:
            for _, octets in files.records():
                if b'"kind":"attempt"' not in octets and b'"kind":"host"' not in octets:
                    continue
                row = json.loads(octets)
                if row["at"] >= since and domain in (row["to"].lower(), "all"):
                    yield row
        finally:
            files.close()


def _add_ends(settings: EvidenceSettings, days: list[Day]) -> None:
    """When the certificates that were shown end, as far as they are kept."""
    known: dict[str, float] = {}
    for name in {name for day in days for name in day.certificates}:
        try:
            octets = (Path(settings.folder) / "certificates" / f"{name}.der").read_bytes()
            known[name] = x509.load_der_x509_certificate(octets).not_valid_after_utc.timestamp()
        except (OSError, ValueError):
            continue
    for day in days:
        day.ends = {name: known[name] for name in day.certificates if name in known}


def _print_trial(trial: records.Trial, *, more: bool) -> None:
    words = "would all have gone" if trial.bears else f"{trial.waiting} would have waited"
    unknown = f", {trial.unknown} cannot be told: TLS_Verify = optional would have looked" if trial.unknown else ""
    causes = f" ({_counts(trial.causes)})" if trial.causes else ""
    print(f"{trial.domain}: {trial.delivered} messages, {words}{unknown}{causes}")
    if more:
        for title, counts in (("host", trial.hosts), ("day", trial.days)):
            for name, count in counts.most_common(20):
                print(f"    {title} {name}: {count}")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
