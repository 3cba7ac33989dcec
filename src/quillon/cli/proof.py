"""`quillon prove`, `quillon proof`: what the log of evidence holds of a message, whether it is whole, and its key."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from quillon.app import compose
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.settings import EvidenceSettings
from quillon.evidence import keys, note, proof, roster, stamp, tree, witness
from quillon.evidence.files import DamagedError, LogFiles
from quillon.evidence.keys import KeyFileError
from quillon.evidence.note import Cosigner, NoteError
from quillon.evidence.record import who
from quillon.evidence.stamp import StampError

BROKEN = 3  # exit status of an audit that has found something


def add(commands: Any) -> None:
    parser = commands.add_parser("prove")
    parser.add_argument("message", nargs="+", metavar="ID", help="id of a message or a batch, or a Message-ID")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument("-o", "--output", metavar="FILE", help="write a proof (zip) that others can verify")
    parser.add_argument("--recipient", default="", metavar="ADDRESS", help="only records of this one, and prove that")
    parser.add_argument("--key", metavar="FILE", help="the public key; by default public.pem beside the logs")
    parser.add_argument("--json", action="store_true", help="print the records")
    parser.set_defaults(run=prove)
    parser = commands.add_parser("proof")
    words = (
        "print the public key; verify the logs and add up; let nobody tell any more whom a message was for; show that a"
        " log still holds all that a checkpoint has signed"
    )
    parser.add_argument("what", choices=("key", "audit", "erase", "extends"), help=words)
    parser.add_argument("given", nargs="*", metavar="ID|FILE", help="for erase: a message; for extends: a checkpoint")
    parser.add_argument("-o", "--output", metavar="FILE", help="extends: write there what verify.py --extends reads")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument("--key", metavar="FILE", help="the public key; by default public.pem beside the logs")
    parser.add_argument("--tsa", metavar="FILE", help="audit: verifies time stamps; by default time_stamp_ca")
    parser.add_argument("--from", dest="begin", default="", metavar="TIME", help="audit: count from 2026-11-29T00 on")
    parser.add_argument("--to", dest="end", default="~", metavar="TIME", help="audit: count to before this time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def prove(given: argparse.Namespace) -> int:
    """Exit status 0 where there are records, and all could be proven if that was asked for."""
    settings = _settings(given)
    if isinstance(settings, int):
        return settings
    try:
        found = list(proof.find(Path(settings.folder), given.message))
        if given.recipient:
            found = [one for one in found if _is_of(one, given.recipient)]
        if not found:
            return _fail(f"there is no record of {' or '.join(given.message)} in {settings.folder}")
        if given.output:
            Path(given.output).write_bytes(proof.bundle(found, _key(settings, given), given.recipient))
    except (KeyFileError, DamagedError, NoteError, OSError) as error:
        return _fail(str(error))
    except ValueError as error:
        return _fail(f"{error}: a checkpoint is signed every {settings.checkpoint_interval} seconds; ask again then")
    if given.json:
        print(json.dumps([one.row for one in found], indent=2))
    else:
        for one in found:
            print(record_line(one.row))
        if given.output:
            print(f"{given.output}: {len(found)} records with their proofs")
    return 0


def run(given: argparse.Namespace) -> int:
    settings = _settings(given)
    if isinstance(settings, int):
        return settings
    try:
        if given.what == "key":
            return _print_key(settings, given)
        if given.what == "erase":
            return _erase(settings, given.given)
        if given.what == "extends":
            return _extends(settings, given)
        return _audit(settings, given)
    except (KeyFileError, DamagedError, NoteError, StampError, OSError, ValueError) as error:
        return _fail(str(error))


def _settings(given: argparse.Namespace) -> EvidenceSettings | int:
    config = read(given.config)
    if config is None:
        return FAULTY
    node = config.node()
    settings = config.stanzas.evidence(node.spoolbase, compose.hostname(node))
    return settings if settings is not None else _fail(f"{given.config} has no stanza evidence: none is kept")


def _fail(text: str) -> int:
    print(f"quillon: {text}", file=sys.stderr)
    return 1


def _key(settings: EvidenceSettings, given: argparse.Namespace) -> Ed25519PublicKey:
    """The key to verify by. Raises KeyFileError."""
    return keys.load_public(Path(given.key or Path(settings.folder, "public.pem")))


def _is_of(found: proof.FoundRecord, recipient: str) -> bool:
    salt = proof.salt_of(found)
    return bool(salt) and who(recipient, salt) == found.row.get("recipient")


def record_line(row: dict[str, Any]) -> str:
    """One record for people."""
    tls = row.get("tls") or {}
    shown = f"{tls['protocol']} {tls['cipher']} {tls['level']}" if tls.get("protocol") else "in clear"
    if row["kind"] in ("reception", "undone"):
        done = "taken from" if row["kind"] == "reception" else "not kept, as its client was told, of"
        return f"{row['at']} {row['id']} {done} {row['from']['ip']} for {row['to']}, {shown}"
    host = row["host"]
    where = f"{host['name']} [{host['ip']}]" if host["ip"] else "no host"
    wanted = f"TLS = {row['demand']['tls']}, TLS_Verify = {row['demand']['verify']}"
    cause = f", {row['cause']}" if row.get("cause") else ""
    way = shown if row["clear"] or tls.get("protocol") else "nothing sent"
    end = f"under {wanted}, {way}{cause}: {row['reply']}"
    return f"{row['at']} {row['id']} {row['outcome']} to {row['to']} by {where} {end}"


def _print_key(settings: EvidenceSettings, given: argparse.Namespace) -> int:
    key = _key(settings, given)
    print(
        key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode(), end=""
    )
    for log in proof.logs(Path(settings.folder)):
        print(note.verifier_key(f"{settings.node}/{log.name}", key))
    return 0


def _erase(settings: EvidenceSettings, messages: list[str]) -> int:
    if not messages:
        return _fail("proof erase wants the id of a message")
    done = [proof.erase(found) for found in proof.find(Path(settings.folder), messages)]
    if not done:
        return _fail(f"there is no record of {' or '.join(messages)}")
    print(f"{sum(done)} of {len(done)} records: nobody can tell any more whom they were for")
    return 0


def _extends(settings: EvidenceSettings, given: argparse.Namespace) -> int:
    """Exit status BROKEN where the log does not hold what the checkpoint says."""
    if len(given.given) != 1:
        return _fail("proof extends wants a file with a checkpoint")
    key = _key(settings, given)
    old = note.read(Path(given.given[0]).read_text(encoding="utf-8"), key)
    log = Path(settings.folder, old.origin.removeprefix(f"{settings.node}/"))
    if log not in proof.logs(Path(settings.folder)):
        return _fail(f"{given.given[0]} is of {old.origin}, which is no log of {settings.folder}")
    now, text = proof.checkpoint(log, key)
    words = f"{old.origin}: {now.size} records, "
    files = LogFiles(log)
    try:
        if old.size > now.size or tree.root(files, old.size) != old.root:
            print(f"{words}and not those that the checkpoint of {old.size} has signed")
            return BROKEN
    finally:
        files.close()
    if given.output:
        Path(given.output).write_text(witness.extension(log, old.size, text), encoding="utf-8")
    print(f"{words}none of those {old.size} changed")
    return 0


def _audit(settings: EvidenceSettings, given: argparse.Namespace) -> int:
    key, folder = _key(settings, given), Path(settings.folder)
    ca = given.tsa or (settings.stamps.ca if settings.stamps is not None else "")
    authority = stamp.trust(ca) if ca else []
    known = settings.witness
    cosigner = Cosigner.of(known.name, known.key) if known is not None else None
    found = [_audited(log, key, settings.node, authority, cosigner) for log in proof.logs(folder)]
    gone = roster.missing(folder, settings.node, key)
    counts: Counter[str] = Counter()
    clear = 0
    for log in proof.logs(folder):
        files = LogFiles(log)
        try:
            for _, octets in files.records():
                row = json.loads(octets)
                if given.begin <= row["at"] < given.end:
                    counts[_kind(row)] += 1
                    clear += row.get("clear", 0)
        except (DamagedError, ValueError, KeyError):
            pass  # told by the audit of that log
        finally:
            files.close()
    rows = [_row(one) for one in found]
    if given.json:
        print(json.dumps({"logs": rows, "counts": counts, "clear_octets": clear, "problems": gone}, indent=2))
    else:
        for row in rows:
            print(f"{row['log']}: {row['records']} records, {row['signed']} under a signed checkpoint")
            if row["stamped"]:
                print(f"    {row['stamped']} under a time stamp of {row['stamped_at']}")
            if row["witnessed"]:
                print(f"    {row['witnessed']} under the signature of a witness of {row['witnessed_at']}")
            print("".join(f"    BROKEN: {problem}\n" for problem in row["problems"]), end="")
        print("".join(f"BROKEN: {problem}\n" for problem in gone), end="")
        for name, count in sorted(counts.items()):
            print(f"{count:10} {name}")
        print(f"{clear:10} octets of messages sent in clear")
    return BROKEN if gone or any(one.problems for one in found) else 0


def _audited(
    log: Path, key: Ed25519PublicKey, node: str, authority: list[x509.Certificate], cosigner: Cosigner | None
) -> proof.Audit:
    try:
        return proof.audit(log, key, node, authority, cosigner)
    except OSError as error:
        return proof.Audit(log, 0, 0, (f"{error.filename}: {error.strerror}",))


def _row(one: proof.Audit) -> dict[str, Any]:
    row = {"log": str(one.log), "records": one.size, "signed": one.signed, "problems": list(one.problems)}
    stamped, witnessed = (at.isoformat() if at is not None else "" for at in (one.stamped_at, one.witnessed_at))
    row |= {"stamped": one.stamped, "stamped_at": stamped}
    return row | {"witnessed": one.witnessed, "witnessed_at": witnessed}


def _kind(row: dict[str, Any]) -> str:
    """Under which a record is counted."""
    tls = row.get("tls") or {}
    way = f"over TLS, level {tls['level']}" if tls.get("protocol") else "without TLS"
    if row["kind"] == "attempt":
        wanted = f"TLS = {row['demand']['tls']}, TLS_Verify = {row['demand']['verify']}"
        return f"attempt under {wanted}: {row['outcome']}, {way}"
    return f"{row['kind']}, {way}"
