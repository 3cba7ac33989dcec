"""When a certificate of ours is renewed, with which key, and in which order that is told to the world. Shell.

A certificate is renewed when its server says so (RFC 9773), or else when a third of its life is left. The key stays, so
that TLSA records of it stay true; with reuse_key = false there is a next one:

    half of the life is left    KEY.next is made, and its TLSA record is to be published beside the other
    it is to be renewed         KEY.next is used, if each name has that record, or none at all, since two TTLs
    otherwise                   the key that is there is used once more, and that is told

FOLDER/NAME.json            what is known of a stanza's certificate
FOLDER/challenges/TOKEN     what the listener with Well_Known shows to an ACME server
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.certificates import acme, files
from quillon.certificates.acme import AcmeError, NameChallenge
from quillon.certificates.files import CertificateFileError, Key
from quillon.config.settings import AcmeSettings
from quillon.net.clock import Clock
from quillon.net.resolver import Resolver

T = TypeVar("T")
LOOK = 600.0  # seconds between two looks at a certificate
AGAIN = 3600.0  # seconds until a server is asked again that gave none
HOOK = 600.0  # seconds that a hook may take
PATIENCE = 1800.0  # seconds for all that one certificate takes
SHORTEST_TTL = 3600.0  # seconds that a TLSA record is held to live at least: a resolver tells what is left of it
SLACK = 86400.0  # seconds between two asks whether a server wants a renewal; none is renewed for that on its first day


@dataclass
class _Known:
    """What is known of a certificate: when its server wants it renewed, for which certificate that was said, when to
    ask again, when it was renewed; of the next key since when its record is there, the longest TTL of such records that
    was seen, and the names that the hook was told of; whether the hook has yet to hear of a renewal. Times in seconds
    since the epoch, 0 for none."""

    of: str = ""
    renew_at: float = 0.0
    ask_at: float = 0.0
    renewed_at: float = 0.0
    published_since: float = 0.0
    longest: float = SHORTEST_TTL
    hooked: list[str] = field(default_factory=list)
    owed: bool = False


@dataclass
class Renewals:
    """`folder` is that of accounts and challenges; `report` takes lines for the paniclog, `tell` what went well."""

    settings: Sequence[AcmeSettings]
    folder: Path
    resolver: Resolver
    clock: Clock
    report: Callable[[str], None]
    tell: Callable[[str], None]
    _look_at: float = 0.0
    _again_at: dict[str, float] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)  # the last trouble of each stanza
    _busy: bool = False

    async def look_after(self) -> None:
        """Renew what is due; called often."""
        now = self.clock.now()
        if self._busy or now < self._look_at:
            return
        self._busy, self._look_at = True, now + LOOK
        try:
            for one in self.settings:
                if now >= self._again_at.get(one.name, 0.0):
                    await self._look(one)
        finally:
            self._busy = False

    async def _look(self, one: AcmeSettings) -> None:
        try:
            why = await self.due(one)
            if why:
                await self.renew(one, why)
            self._told.pop(one.name, None)
        except Exception as error:  # whatever it is, the stanzas behind it have their turn
            self._again_at[one.name] = self.clock.now() + AGAIN
            words = acme.words(error)
            if self._told.get(one.name) != words:
                self._told[one.name] = words
                self.report(f'acme "{one.name}": {words}; it is tried again every hour')

    async def due(self, one: AcmeSettings) -> str:
        """Why a certificate has to be renewed, "" if it need not be. Raises AcmeError, CertificateFileError."""
        now = self.clock.now()
        if await asyncio.to_thread(files.restore, one.key, one.certificate):
            self.report(f'acme "{one.name}": {one.key} was put back, since its certificate had not come')
        certificate = files.load_certificate(one.certificate)
        if certificate is None:
            return "there is none yet"
        if not files.exists(one.key):
            words = f"it is gone, and {one.certificate} is there: put it back, or take the certificate away as well"
            raise CertificateFileError(f"{one.key}: {words}")
        if files.spki(certificate) != files.public_octets(files.load_key(one.key)):
            return f"it is not of the key in {one.key}"
        if certificate.issuer == certificate.subject:
            return "it is of our own making"
        missing = sorted(set(one.names) - _names(certificate))
        if missing:
            return f"it does not name {missing[0]}"
        whole, left = acme.lifetime_left(certificate, now)
        known = await self._asked(one, certificate, whole)
        if not one.reuse_key and left < whole / 2:
            await self._next_key(one, known)
        if known.owed:
            await self._tell_hook(one, known)
        if now - known.renewed_at < SLACK:
            return ""  # whatever is wrong with it, another one would not be better
        if known.renew_at and now >= known.renew_at:
            return "its server wants it to be"
        return f"{max(left, 0) / 86400:.0f} days of its {whole / 86400:.0f} are left" if left < whole / 3 else ""

    async def renew(self, one: AcmeSettings, why: str) -> None:
        """Have a certificate, and put it in place. Raises AcmeError, CertificateFileError."""
        for path in (one.certificate, one.key):
            await asyncio.to_thread(files.check_writable, path)
        key, used = await self._key(one)
        csr = files.request(key, one.names)
        made = await _bounded(acme.obtain, one, self.folder, csr, self._shower(one), self._hider(one))
        self._check(one, made, key)
        known = self._read(one)
        known.renewed_at, known.owed = self.clock.now(), bool(one.hook)
        if used == _next(one):
            known.published_since, known.longest, known.hooked = 0.0, SHORTEST_TTL, []
        await asyncio.to_thread(self._put_in_place, one, made, key, used)
        await asyncio.to_thread(self._write, one, known)
        if used == _next(one):
            self.tell(f'acme "{one.name}": the next key is in use; the TLSA records of the one before can go')
        self.tell(f'acme "{one.name}": {one.certificate} was renewed: {why}')
        if known.owed:
            await self._tell_hook(one, known)

    async def _tell_hook(self, one: AcmeSettings, known: _Known) -> None:
        """The hook hears of a renewal, until it is content. Raises AcmeError."""
        if one.hook:
            await asyncio.to_thread(_run_hook, one.hook, "renewed", one.name, one.certificate)
        known.owed = False
        await asyncio.to_thread(self._write, one, known)

    def _put_in_place(self, one: AcmeSettings, made: bytes, key: Key, used: str) -> None:
        """Raises CertificateFileError, OSError."""
        wanted = [(one.certificate, made, 0o644)]
        if used != one.key or not files.exists(one.key):
            wanted.insert(0, (one.key, files.key_octets(key), 0o600))
        files.put_all(wanted)
        if used != one.key:
            os.unlink(used)

    def _check(self, one: AcmeSettings, made: bytes, key: Key) -> None:
        """What a server has given is what was asked for, and good now. Raises AcmeError."""
        try:
            certificate = x509.load_pem_x509_certificates(made)[0]
        except ValueError:
            raise AcmeError("what the server gave is no certificate") from None
        if files.spki(certificate) != files.public_octets(key) or set(one.names) - _names(certificate):
            raise AcmeError("the server gave a certificate of another key, or other names")
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if not begin <= self.clock.now() < end or certificate.issuer == certificate.subject:
            raise AcmeError("the server gave a certificate that is not good now: is the clock of this machine right?")

    # the key --------------------------------------------------------------------------------------------------

    async def _key(self, one: AcmeSettings) -> tuple[Key, str]:
        """The key for the next certificate, and its file. Raises CertificateFileError."""
        if not files.exists(one.key):
            return files.make_key(one.key_type), one.key
        if not one.reuse_key and files.exists(_next(one)):
            if await self._published(one, self._read(one)):
                return files.load_key(_next(one)), _next(one)
            why = "the TLSA record of the next key is not published since two TTLs: the old key is used once more"
            self.report(f'acme "{one.name}": {why}')
        return files.load_key(one.key), one.key

    async def _next_key(self, one: AcmeSettings, known: _Known) -> None:
        """There is a next key, and people know of it. Raises CertificateFileError."""
        if not files.exists(_next(one)):
            key = files.make_key(one.key_type)
            await asyncio.to_thread(files.put, _next(one), files.key_octets(key), 0o600)
            digest = hashlib.sha256(files.public_octets(key)).hexdigest()
            self.report(
                f'acme "{one.name}": the next certificate has another key: publish TLSA 3 1 1 {digest} beside what is'
                f" there, for {', '.join(_hosts(one))}"
            )
        for name in _hosts(one) if one.hook else ():
            if name not in known.hooked:
                digest = hashlib.sha256(files.public_octets(files.load_key(_next(one)))).hexdigest()
                await asyncio.to_thread(_run_hook, one.hook or "", "tlsa", f"_25._tcp.{name}", f"3 1 1 {digest}")
                known.hooked.append(name)
                await asyncio.to_thread(self._write, one, known)
        await self._published(one, known)

    async def _published(self, one: AcmeSettings, known: _Known) -> bool:
        """Whether the record of the next key is there since two TTLs, for each name that has TLSA records."""
        digest = hashlib.sha256(files.public_octets(files.load_key(_next(one)))).hexdigest()
        longest, there = known.longest, True
        for name in _hosts(one):
            answer = await self.resolver.lookup(f"_25._tcp.{name}", "TLSA")
            longest = max(longest, float(answer.ttl))
            texts = [text.lower() for _, text in answer.records]
            if answer.status == "failed" or (texts and f"030101{digest}" not in texts):
                there = False
        now = self.clock.now()
        since = (known.published_since or now) if there else 0.0
        if (since, longest) != (known.published_since, known.longest):
            known.published_since, known.longest = since, longest
            await asyncio.to_thread(self._write, one, known)
        return there and now - since >= 2 * longest

    # what its server says -------------------------------------------------------------------------------------

    async def _asked(self, one: AcmeSettings, certificate: x509.Certificate, whole: float) -> _Known:
        """What is known of a certificate, with what its server has said of its renewal not long ago."""
        now, known = self.clock.now(), self._read(one)
        octets = certificate.public_bytes(Encoding.PEM)
        name = hashlib.sha256(octets).hexdigest()
        if known.of == name and now < known.ask_at:
            return known
        if known.of != name:
            known.of, known.renew_at = name, 0.0
        try:
            at, again = await _bounded(acme.renewal, one, self.folder, octets)
        except AcmeError:
            at, again = known.renew_at or None, now + AGAIN  # without it the rest of its life decides
        known.renew_at, known.ask_at = at or 0.0, min(max(again, now + 60.0), now + min(SLACK, whole / 10))
        await asyncio.to_thread(self._write, one, known)
        return known

    def _read(self, one: AcmeSettings) -> _Known:
        try:
            return _Known(**json.loads((self.folder / f"{one.name}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return _Known()

    def _write(self, one: AcmeSettings, known: _Known) -> None:
        files.put(str(self.folder / f"{one.name}.json"), json.dumps(vars(known)).encode(), 0o600)

    # challenges -----------------------------------------------------------------------------------------------

    def _shower(self, one: AcmeSettings) -> Callable[[NameChallenge], None]:
        def show(challenge: NameChallenge) -> None:
            if challenge.kind == "dns-01":
                _run_hook(one.hook or "", "publish", challenge.name, challenge.value)
            else:
                files.put(str(self.folder / "challenges" / challenge.token), challenge.value.encode(), 0o644)

        return show

    def _hider(self, one: AcmeSettings) -> Callable[[NameChallenge], None]:
        def hide(challenge: NameChallenge) -> None:
            if challenge.kind == "dns-01":
                with contextlib.suppress(AcmeError):
                    _run_hook(one.hook or "", "remove", challenge.name, challenge.value)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(self.folder / "challenges" / challenge.token)

        return hide


def prepare(one: AcmeSettings, now: float) -> bool:
    """Put a certificate of our own making where there is none, so that a server can begin; whether one was put there.
    Raises CertificateFileError."""
    files.restore(one.key, one.certificate)
    certificate = files.load_certificate(one.certificate)
    if certificate is not None:
        if files.spki(certificate) != files.public_octets(files.load_key(one.key)):
            raise CertificateFileError(f"{one.certificate} is not of the key in {one.key}: take one of them away")
        return False
    key = files.load_key(one.key) if files.exists(one.key) else files.make_key(one.key_type)
    files.put_all(
        [(one.key, files.key_octets(key), 0o600), (one.certificate, files.stand_in(key, one.names, now), 0o644)]
    )
    return True


async def _bounded(function: Callable[..., T], *arguments: Any) -> T:
    """The result of a function in a thread of its own, which nobody waits for beyond its time: a server may dribble for
    ever. Raises AcmeError, and what the function does."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if not found.done():
            found.set_exception(error) if error is not None else found.set_result(cast(T, result))

    def work() -> None:
        try:
            done: tuple[T | None, Exception | None] = (function(*arguments), None)
        except Exception as error:
            done = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, *done)

    threading.Thread(target=work, name="acme", daemon=True).start()
    try:
        async with asyncio.timeout(PATIENCE):
            return await found
    except TimeoutError:
        raise AcmeError(f"its server took more than {PATIENCE:.0f} seconds") from None


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in found.get_values_for_type(x509.DNSName)}


def _next(one: AcmeSettings) -> str:
    return f"{one.key}.next"


def _hosts(one: AcmeSettings) -> list[str]:
    """The names that are hosts."""
    return [name for name in one.names if not name.startswith("*.")]


def _run_hook(hook: str, *words: str) -> None:
    """Run the operator's program, which is done when it ends. Raises AcmeError."""
    try:
        done = subprocess.run([hook, *words], capture_output=True, timeout=HOOK, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AcmeError(f"{hook} {words[0]}: {error}") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())[-500:]
        raise AcmeError(f"{hook} {' '.join(words)}: status {done.returncode}: {said}")
