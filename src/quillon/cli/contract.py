"""`quillon contract`: what has been agreed on with partners, and whether it was kept, for them and for auditors."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from quillon.app import compose
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.contracts import Contract
from quillon.config.model import Config
from quillon.config.outbound import lookup_name
from quillon.config.settings import EvidenceSettings
from quillon.evidence import keys, proof
from quillon.evidence.contract import ContractReport, reports
from quillon.evidence.files import DamagedError, LogFiles
from quillon.evidence.keys import KeyFileError
from quillon.tls.certificate import Certificate

BROKEN = 3  # exit status of a report on a contract that was not kept, or on logs that are not whole
_KINDS = (b'"kind":"reception"', b'"kind":"attempt"', b'"kind":"host"', b'"kind":"refusal"')


def add(commands: Any) -> None:
    parser = commands.add_parser("contract")
    parser.add_argument("what", choices=("list", "report"), help="list them; tell whether they were kept")
    parser.add_argument("domain", nargs="?", default="", help="of a partner; all by default")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument(
        "--month", default="", metavar="MONTH", help="report: as 2026-11; the last whole one by default"
    )
    parser.add_argument("--html", metavar="FILE", help="report: write a page to print")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 0; of a report 3 where one was not kept."""
    config = read(given.config)
    if config is None:
        return FAULTY
    contracts = config.contracts.all()
    if given.domain:
        name = lookup_name(given.domain)
        both = (config.contracts.inbound_of(name), config.contracts.outbound_of(name))
        contracts = list(dict.fromkeys(one for one in both if one is not None))
    if not contracts:
        return _fail(f"{given.config} has no TLS_Contract{f' for {given.domain}' if given.domain else ''}")
    if given.what == "list":
        _list(contracts, as_json=given.json)
        return 0
    try:
        return _report(config, contracts, given)
    except (DamagedError, KeyFileError, OSError, ValueError) as error:
        return _fail(str(error))


def _fail(text: str) -> int:
    print(f"quillon contract: {text}", file=sys.stderr)
    return 1


def _row(contract: Contract) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in contract._asdict().items()}


def _list(contracts: list[Contract], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_row(contract) for contract in contracts], indent=2))
        return
    for contract in contracts:
        print(f"{contract.domain}    {contract.place}")
        for line in terms(contract):
            print(f"    {line}")


def terms(contract: Contract) -> list[str]:
    """What has been agreed on, in words."""
    oldest, wanted = contract.min_version.replace("v", " "), contract.terms()
    out = f"TLS required, {oldest} or later, to hosts that prove who they are" if contract.outbound else "as configured"
    into = f"TLS required, {oldest} or later" if contract.inbound else "as it comes"
    if contract.inbound and contract.client_certificate:
        into += ", with a client certificate"
    return [f"mail to it: {out}", f"mail from it: {into}", *([f"certificates: {wanted}"] if wanted else [])]


def month(text: str, now: datetime) -> tuple[str, str]:
    """First day of a month, and of the one behind it, as dates; of the last whole one for an empty text. Raises
    ValueError."""
    if not text:
        year, number = (now.year, now.month - 1) if now.month > 1 else (now.year - 1, 12)
    elif (found := re.fullmatch(r"(\d{4})-(0[1-9]|1[0-2])", text)) is not None:
        year, number = int(found[1]), int(found[2])
    else:
        raise ValueError(f"--month {text}: it is a year and a month, as 2026-11")
    after = (year, number + 1) if number < 12 else (year + 1, 1)
    return f"{year:04}-{number:02}-01", f"{after[0]:04}-{after[1]:02}-01"


def _report(config: Config, contracts: list[Contract], given: argparse.Namespace) -> int:
    node = config.node()
    settings = config.stanzas.evidence(node.spoolbase, compose.hostname(node))
    if settings is None:
        return _fail(f"{given.config} has no stanza evidence: nothing was recorded that could be told of")
    begin, end = month(given.month, datetime.now(UTC))
    kept = lru_cache(maxsize=1000)(lambda name: _certificate(settings, name))
    found = reports(_rows(settings, begin, end), contracts, config.contracts, kept)
    logs = _logs(settings)
    whole = not any(log["problems"] for log in logs)
    if given.html:
        Path(given.html).write_text(page(found, logs, settings, begin, end), encoding="utf-8")
        print(f"{given.html}: {len(found)} contracts, {begin} to {end}")
    elif given.json:
        shown = [{**_row(one.contract), **_found(one)} for one in found]
        print(json.dumps({"from": begin, "to": end, "contracts": shown, "logs": logs}, indent=2))
    else:
        for one in found:
            _print(one, begin, end)
        for log in logs:
            print("".join(f"{log['log']}: BROKEN: {problem}\n" for problem in log["problems"]), end="")
    return 0 if whole and all(one.kept for one in found) else BROKEN


def _certificate(settings: EvidenceSettings, name: str) -> Certificate | None:
    """A certificate that was shown, by its SHA-256."""
    try:
        return Certificate((Path(settings.folder) / "certificates" / f"{name}.der").read_bytes())
    except OSError:
        return None


def _found(one: ContractReport) -> dict[str, Any]:
    return {"kept": one.kept, "mail_from_it": one.inbound.shown(), "mail_to_it": one.outbound.shown()}


def _rows(settings: EvidenceSettings, begin: str, end: str) -> Iterator[dict[str, Any]]:
    """Records of a time. Raises DamagedError, OSError, ValueError."""
    for log in proof.logs(Path(settings.folder)):
        files = LogFiles(log)
        try:
            for _, octets in files.records():
                if any(kind in octets for kind in _KINDS):
                    row = json.loads(octets)
                    if begin <= row["at"] < end:
                        yield row
        finally:
            files.close()


def _logs(settings: EvidenceSettings) -> list[dict[str, Any]]:
    """The logs that a report rests on: their size, what is signed of it, and what an audit finds. Raises KeyFileError,
    OSError."""
    key = keys.load_public(Path(settings.folder, "public.pem"))
    rows = []
    for log in proof.logs(Path(settings.folder)):
        audited = proof.audit(log, key, settings.node)
        file = log / "checkpoint"
        rows.append(
            {
                "log": f"{settings.node}/{log.name}",
                "records": audited.size,
                "signed": audited.signed,
                "problems": list(audited.problems),
                "checkpoint": file.read_text(encoding="utf-8") if file.exists() else "",
            }
        )
    return rows


def _print(one: ContractReport, begin: str, end: str) -> None:
    contract = one.contract
    print(f"{contract.domain}, {begin} to {end}: {'kept' if one.kept else 'NOT KEPT'}    {contract.place}")
    for line in terms(contract):
        print(f"    {line}")
    for title, way in (("from it", one.inbound), ("to it", one.outbound)):
        print(f"    {title}: {way.messages} messages{f'; {counts(way.protocols)}' if way.protocols else ''}")
        told = {"NOT AS AGREED": way.breaches, "held back": way.held, "hosts tried in vain": way.passed_over}
        for words, counted in told.items():
            if counted:
                print(f"        {words}: {counts(counted)}")


def counts(counted: dict[str, int]) -> str:
    """`TLSv1.3 12, TLSv1.2 1`, the most first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items(), key=lambda one: (-one[1], one[0])))


def page(
    found: list[ContractReport], logs: list[dict[str, Any]], settings: EvidenceSettings, begin: str, end: str
) -> str:
    """The report as a page of HTML, which stands by itself."""
    loader = jinja2.PackageLoader("quillon.cli", ".")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    shown = {"reports": found, "logs": logs, "node": settings.node, "begin": begin, "end": end, "made": made}
    return templates.get_template("contract.html").render(**shown, terms=terms, counts=counts)
