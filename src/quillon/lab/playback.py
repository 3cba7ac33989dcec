"""Dialogs and recorded sessions played on a stage, and what came of them."""

from __future__ import annotations

import ipaddress
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.config.model import Config
from quillon.lab.pki import Authority
from quillon.lab.stage import Play, PolicyStage
from quillon.listener import recorder
from quillon.policy.environment import Lookup
from quillon.policy.hook import Traced
from quillon.tls.causes import CAUSES
from quillon.tls.certificate import Certificate
from quillon.tls.verdict import TlsVerdict

VERSIONS = ("TLSv1.3", "TLSv1.2", "TLSv1.1", "TLSv1.0")
Ask = Callable[[str, str, str], Awaitable[Lookup]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What `policy run` plays."""

    lines: Sequence[str]
    listen: str
    peer: str
    verdict: TlsVerdict | None


@dataclass(slots=True)
class Step:
    """What the client did, what policy made of it, and what the server said."""

    did: str
    replies: list[str] = field(default_factory=list)
    callouts: list[Traced] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        out = [f"C: {self.did}"]
        for callout in self.callouts:
            text = f"   {callout.module}.{callout.phase}: {callout.verdict}"
            if callout.reply is not None:
                text += f", {callout.reply}"
            if callout.place:
                text += f"  [{callout.place}]"
            out.append(text)
            for kind, key, value in callout.changes:
                out.append(f"      {kind} {key} = {value}" if value is not None else f"      {kind} {key} is gone")
        return out + [f"S: {reply}" for reply in self.replies]

    def row(self) -> dict[str, Any]:
        """For programs."""
        return {
            "command": self.did,
            "replies": self.replies,
            "callouts": [
                {
                    "module": callout.module,
                    "phase": callout.phase,
                    "verdict": callout.verdict,
                    "reply": str(callout.reply) if callout.reply else None,
                    "place": callout.place,
                    "changes": [list(change) for change in callout.changes],
                }
                for callout in self.callouts
            ],
        }


def verdict(verified: str | None, certificate: str | None, cause: str, version: str) -> TlsVerdict | None:
    """A TLS verdict by the words of the command line; None for a session in clear. Raises OSError, ValueError."""
    if verified is None and certificate is None:
        return None
    shown = None
    if verified != "none":
        shown = Certificate(_certificate(certificate))
    if cause not in CAUSES:
        raise ValueError(f"--tls-cause: {cause!r} is none of {', '.join(CAUSES)}")
    if version not in VERSIONS:
        raise ValueError(f"--tls-version: {version!r} is none of {', '.join(VERSIONS)}")
    errors = ((cause, 0, "as the command line has it"),) if shown is not None and verified != "yes" else ()
    return TlsVerdict(version, "TLS_AES_256_GCM_SHA384", 256, 256, "X25519", shown, shown is not None, errors)


def _certificate(path: str | None) -> bytes:
    if path is not None:
        return x509.load_pem_x509_certificate(Path(path).read_bytes()).public_bytes(Encoding.DER)
    with tempfile.TemporaryDirectory() as folder:
        issued = Authority(Path(folder), "Test CA").issue("client", ["client.test"])
        return x509.load_pem_x509_certificate(Path(issued.certificate).read_bytes()).public_bytes(Encoding.DER)


def answering(answers: Mapping[str, Sequence[Any]]) -> Ask:
    """DNS out of a table by `name TYPE`; MX records as [preference, name]."""

    async def lookup(name: str, kind: str, server: str) -> Lookup:
        found = answers.get(f"{name} {kind}")
        if not found:
            return Lookup((), "nxdomain", "nxdomain")
        return Lookup(tuple((int(r[0]), str(r[1])) if isinstance(r, list) else (0, str(r)) for r in found))

    return lookup


def _endpoint(text: str) -> tuple[str, int]:
    """`ip:port` or `[ip]:port`. Raises ValueError."""
    host, _, port = text.rpartition(":")
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)


def _listen(config: Config, name: str) -> tuple[str, tuple[str, int]]:
    """The Listen to come in by, and its address. Raises ValueError."""
    listens = config.inbound.listens()
    found = [listen for listen in listens if listen.name == name] if name else listens[:1]
    if not found:
        names = ", ".join(listen.name for listen in listens) or "none"
        raise ValueError(f"there is no Listen {name!r}; there are: {names}")
    return found[0].name, (found[0].host or "127.0.0.1", found[0].port or 25)


async def run_scene(config: Config, scene: Scene, lookup: Ask, now: float, report: Callable[[str], None]) -> list[Step]:
    """Play a script. Raises ValueError, LoadError, PolicyError."""
    address = ipaddress.ip_address(scene.peer)
    listen, local = _listen(config, scene.listen)
    if scene.verdict is not None and scene.verdict.certificate is not None:
        _, tls = config.inbound.reception(listen, address)
        if not tls.tls_client_ca:
            report(f"{listen} has no TLS_Client_CA: in a real session no certificate would be asked for, nor verified")
    steps = [Step("(connects)")]
    stage = await PolicyStage.of(config, lookup, now, report, lambda traced: _note(steps, traced))
    play = stage.play(listen, (scene.peer, 40000), local)
    if scene.verdict is not None:
        play.over_tls(scene.verdict)
    steps[0].replies += await play.connect()
    waiting = iter(scene.lines)
    for line in waiting:
        if play.closed:
            break
        if not line.strip() or line.startswith("#"):
            continue
        if line.strip().upper() == "STARTTLS" and scene.verdict is None:
            steps.append(Step("(no STARTTLS: --tls-verified says what a handshake finds)"))
            continue
        steps.append(Step(line))
        steps[-1].replies += await play.command(line)
        if line.strip().upper() == "STARTTLS" and _went_ahead(steps[-1], "220"):
            steps.append(Step("(handshake)"))
            steps[-1].replies += await play.handshake()
        elif line.strip().upper() == "DATA":
            message = _message(waiting)
            if not _went_ahead(steps[-1], "354"):
                continue  # a client keeps to itself what is not wanted
            steps.append(Step(f"(message of {len(message)} octets)"))
            steps[-1].replies += await play.data(message)
    play.end()
    await stage.close()
    return steps


def _note(steps: list[Step], traced: Traced) -> None:
    steps[-1].callouts.append(traced)


def _went_ahead(step: Step, code: str) -> bool:
    return bool(step.replies) and step.replies[-1].startswith(code)


def _message(lines: Iterable[str]) -> bytes:
    """The lines up to a dot."""
    out = []
    for line in lines:
        if line == ".":
            break
        out.append(line.removeprefix(".").encode())
    return b"\r\n".join(out) + b"\r\n"


# replay --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A session that ends otherwise: what differs first."""

    at: float
    remote: str
    did: str
    before: list[str]
    after: list[str]

    def lines(self) -> list[str]:
        """For people."""
        out = [f"{self.remote} at {int(self.at)}: {self.did}"]
        return out + [f"   was: {reply}" for reply in self.before] + [f"   now: {reply}" for reply in self.after]

    def row(self) -> dict[str, Any]:
        """For programs."""
        return {"at": self.at, "remote": self.remote, "command": self.did, "before": self.before, "after": self.after}


@dataclass(slots=True)
class Replayed:
    sessions: int = 0
    changes: list[Change] = field(default_factory=list)


async def replay(config: Config, lines: Iterable[str], report: Callable[[str], None]) -> Replayed:
    """Play every recorded session. Raises ValueError and KeyError for what is no record, LoadError."""
    sessions: list[dict[str, Any]] = []
    answers: dict[tuple[str, str, str], Lookup] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"line {number} is no JSON") from None
        if row.get("quillon") != recorder.VERSION:
            raise ValueError(f"line {number} is not of this version's recorder")
        if "dns" in row:
            answer = row["answer"]
            records = tuple((int(preference), str(text)) for preference, text in answer["records"])
            answers[tuple(row["dns"])] = Lookup(records, answer["error"], answer["status"])
        else:
            sessions.append(row)
    found = Replayed(len(sessions))

    async def lookup(name: str, kind: str, server: str) -> Lookup:
        return answers.get((name, kind, server), Lookup((), "not recorded", "failed"))

    stage = await PolicyStage.of(config, lookup, sessions[0]["at"] if sessions else 0.0, report)
    for row in sorted(sessions, key=lambda item: float(item["at"])):
        change = await _replayed(stage, config, row)
        if change is not None:
            found.changes.append(change)
    await stage.close()
    return found


async def _replayed(stage: PolicyStage, config: Config, row: dict[str, Any]) -> Change | None:
    names = {listen.name for listen in config.inbound.listens()}
    listen, _ = _listen(config, row["listen"] if row["listen"] in names else "")
    play = stage.play(listen, _endpoint(row["remote"]), _endpoint(row["local"]))
    steps = row["steps"]
    for step in steps:
        if "tls" in step:
            play.over_tls(recorder.verdict_of(step["tls"]))
            break
    stage.clock.time = float(row["at"])
    pending = await play.connect()
    try:
        for n, step in enumerate(steps):
            stage.clock.time = float(step["at"])
            following = steps[n + 1] if n + 1 < len(steps) else {}
            said = pending + await _step(play, step, following)
            pending = []
            before = step.get("replies")
            if before is None:
                pending = said
                continue
            if _codes(before) != _codes(said):
                return Change(float(row["at"]), row["remote"], _name(step), before, _whole(said))
            if play.closed:
                break
    finally:
        play.end()
    return None


async def _step(play: Play, step: dict[str, Any], following: dict[str, Any]) -> list[str]:
    if "tls" in step:
        play.over_tls(recorder.verdict_of(step["tls"]))
        return await play.handshake()
    if "data" in step:
        data = step["data"].encode("latin-1")
        missing = max(int(step["size"]) - len(data), 0)
        # what was not recorded is made up, of the size that it had
        return await play.data(data + _filling(missing))
    if "auth" in step:
        auth = step["auth"]
        return await play.authenticate(auth["mechanism"], auth["user"], auth["status"])
    if "command" in step and step["command"].upper().startswith("AUTH"):
        return []  # the exchange is played with its outcome
    return await play.command(step["command"]) if "command" in step else []


def _filling(size: int) -> bytes:
    """Lines of so many octets."""
    line = b"x" * 70 + b"\r\n"
    return (line * (size // len(line) + 1))[: max(size - 2, 0)] + b"\r\n" if size >= 2 else b""


def _codes(replies: Sequence[str]) -> list[str]:
    """Reply codes and enhanced ones, one for each reply, a challenge of AUTH left out."""
    out = []
    for reply in _whole(replies):
        words = reply.split()
        enhanced = words[1] if len(words) > 1 and words[1][:2] in ("2.", "4.", "5.") else ""
        if words and words[0] != "334":
            out.append(f"{words[0]} {enhanced}")
    return out


def _whole(replies: Sequence[str]) -> list[str]:
    """Last lines of replies; those of several lines have a hyphen in all others."""
    return [reply for reply in replies if reply[3:4] != "-"]


def _name(step: dict[str, Any]) -> str:
    if "command" in step:
        return str(step["command"])
    if "data" in step:
        return f"(message of {step['size']} octets)"
    return "(handshake)" if "tls" in step else "(authentication)" if "auth" in step else "(connects)"
