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
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.model import Config
from quillon.config.settings import EvidenceSettings
from quillon.evidence import posture as records
from quillon.evidence import proof
from quillon.evidence.files import DamagedError, LogFiles
from quillon.standards.report_store import ReportStore
from quillon.standards.tlsrpt_received import Report

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
    settings, domain = _evidence(config), given.domain.lower()
    store = ReportStore(Path(config.node().spoolbase, "tlsrpt/received"))
    try:
        begin = since(given.since)
        rows = list(_rows(settings, begin, domain)) if settings is not None else []
    except (DamagedError, OSError, ValueError) as error:
        return _fail(str(error))
    days, reports = records.posture(rows), list(store.of(domain, begin[:10]))
    if settings is None and not reports:
        return _fail(NO_EVIDENCE.format(given.config))
    if not days and not reports:
        return _fail(f"nothing was delivered to {given.domain}, or tried to be, or reported, since {given.since}")
    ends = _ends(settings, days) if settings is not None else {}
    if given.json:
        shown = [{**vars(day), "certificate_ends": ends.get(_own(day), "")} for day in days]
        print(json.dumps({"days": shown, "reports": [report.row() for report in reports]}, indent=2))
        return 0
    _print_days(days, ends)
    for report in reports:
        _print_report(report)
    return 0


def _print_days(days: list[records.Day], ends: dict[str, str]) -> None:
    for day in days:
        _print_day(day)
    for name, end in sorted({(day.host, ends[_own(day)]) for day in days[-50:] if _own(day) in ends}):
        left = (datetime.fromisoformat(end) - datetime.now(UTC)).days
        if left < SOON:
            print(f"{name}: its certificate ends in {left} days, {end[:10]}")


def _print_report(report: Report) -> None:
    """What somebody has told of sessions with a domain of ours."""
    for policy in report.policies:
        told = f"{policy.good} sessions, {policy.bad} failed"
        print(f"{report.day} {policy.domain}, reported by {report.submitter} under {policy.type}: {told}")
        for failure in policy.failures:
            at = failure.mx or failure.receiving_ip
            why = f", {failure.reason}" if failure.reason and failure.reason != failure.result else ""
            print(f"    FAILED: {failure.result} {failure.sessions}{f' at {at}' if at else ''}{why}")


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


def _own(day: records.Day) -> str:
    """The certificate that a host showed last."""
    return next(reversed(day.certificates), "")


def _ends(settings: EvidenceSettings, days: list[records.Day]) -> dict[str, str]:
    """When certificates end, by their SHA-256."""
    found: dict[str, str] = {}
    for name in {_own(day) for day in days} - {""}:
        try:
            octets = (Path(settings.folder) / "certificates" / f"{name}.der").read_bytes()
            found[name] = x509.load_der_x509_certificate(octets).not_valid_after_utc.isoformat()
        except (OSError, ValueError):
            continue
    return found


def _print_day(day: records.Day) -> None:
    parts = [_counts(day.protocols), _counts(day.groups), f"level {_counts(day.levels)}" if day.levels else ""]
    parts += [f"by {_counts(day.standards)}" if day.standards else "", f"{day.clear} in clear" if day.clear else ""]
    parts += [_counts(day.causes)] if day.causes else []
    parts += [f"would have waited: {_counts(day.would_wait)}"] if day.would_wait else []
    print(f"{day.day} {day.host}: {day.attempts} attempts; {'; '.join(part for part in parts if part)}")
    for change in day.changes:
        print(f"    CHANGED: {change}")


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
