"""When a certificate is renewed and with which key, over a year of a clock that jumps."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from quillon.certificates import acme, files, renewal
from quillon.certificates.acme import AcmeError
from quillon.certificates.renewal import Renewals
from quillon.config.settings import AcmeSettings
from quillon.net.resolver import Answer

DAY = 86400.0
LIFE = 90  # days
TTL = 3600


class World:
    """A server whose certificates live for 90 days, a DNS with TLSA records, a clock, and what was told."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
        self.folder = folder
        self.tlsa: dict[str, list[str]] = {}
        self.status = "ok"
        self.renew_at: float | None = None
        self.refuses = ""
        self.obtained = 0
        self.told: list[str] = []
        names = changes.pop("names", ("mx.ours.test",))
        self.one = AcmeSettings(
            "mx", "https://acme.test/", None, "", names, f"{folder}/mx.pem", f"{folder}/mx.key", "http-01",
            changes.pop("hook", None), changes.pop("reuse_key", True), "ecdsa",
        )  # fmt: skip
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.renewals = self._made()

    def _made(self) -> Renewals:
        return Renewals([self.one], self.folder / "acme", self, self, self.told.append, self.told.append)  # type: ignore[arg-type]

    def now(self) -> float:
        return self.time

    async def lookup(self, name: str, kind: str) -> Answer:
        assert kind == "TLSA"
        records = tuple((0, text) for text in self.tlsa.get(name, []))
        return Answer(self.status if records or self.status == "failed" else "nodata", records, TTL)

    def obtain(self, settings: AcmeSettings, folder: Path, csr: bytes, *_: Any) -> bytes:
        if self.refuses:
            raise AcmeError(self.refuses)
        self.obtained += 1
        request = x509.load_pem_x509_csr(csr)
        begin = datetime.fromtimestamp(self.time, UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Some authority")])
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(issuer)
        builder = builder.public_key(request.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(begin).not_valid_after(begin + timedelta(days=LIFE))
        made = builder.add_extension(names, critical=True).sign(self._key, hashes.SHA256())
        return made.public_bytes(Encoding.PEM)

    def renewal(self, *_: Any) -> tuple[float | None, float]:
        return self.renew_at, self.time + 6 * 3600

    def pass_days(self, days: float, step: float = 0.25) -> None:
        """Time passes, with a look every few hours."""
        end = self.time + days * DAY
        while self.time < end:
            self.time += step * DAY
            asyncio.run(self.renewals.look_after())

    def public(self, file: str = "") -> str:
        return hashlib.sha256(files.public_octets(files.load_key(file or self.one.key))).hexdigest()

    def record(self, file: str = "") -> str:
        return f"030101{self.public(file)}"

    def certified(self) -> str:
        certificate = files.load_certificate(self.one.certificate)
        assert certificate is not None
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(key).hexdigest()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def make(**changes: Any) -> World:
        made = World(tmp_path, **changes)
        monkeypatch.setattr(acme, "obtain", made.obtain)
        monkeypatch.setattr(acme, "renewal", made.renewal)
        return made

    return make


def test_a_year_with_one_key(world: Callable[..., World]) -> None:
    here = world()
    here.pass_days(1)
    assert here.obtained == 1
    key = here.public()
    here.pass_days(LIFE * 2 / 3 - 2)
    assert here.obtained == 1
    here.pass_days(3)
    assert here.obtained == 2, "a third of its life was left"
    here.pass_days(365)
    assert here.obtained in (7, 8)
    assert here.certified() == here.public() == key


def test_what_stands_in_is_replaced_at_once(world: Callable[..., World]) -> None:
    here = world()
    assert renewal.prepare(here.one, here.time)
    assert not renewal.prepare(here.one, here.time)
    key = here.public()
    here.pass_days(0.25)
    assert (here.obtained, here.certified()) == (1, key)


def test_a_server_may_want_it_sooner(world: Callable[..., World]) -> None:
    here = world()
    here.pass_days(1)
    here.renew_at = here.time + 5 * DAY
    here.pass_days(4)
    assert here.obtained == 1
    here.pass_days(1.5)
    assert here.obtained == 2
    here.pass_days(5)
    assert here.obtained in (6, 7, 8), "one that wants it all the time gets it once a day"


def test_other_names_want_another_certificate(world: Callable[..., World]) -> None:
    here = world()
    here.pass_days(1)
    more = world(names=("mx.ours.test", "mx2.ours.test"))
    more.pass_days(0.25)
    assert more.obtained == 1


def test_whatever_goes_wrong_with_one_the_others_have_their_turn(world: Callable[..., World], monkeypatch: Any) -> None:
    here = world()
    other = replace(here.one, name="other", certificate=f"{here.folder}/other.pem", key=f"{here.folder}/other.key")
    here.renewals.settings = [here.one, other]
    obtain = here.obtain

    def broken(one: AcmeSettings, *more: Any) -> bytes:
        if one.name == "mx":
            raise RecursionError("odd")
        return obtain(one, *more)

    monkeypatch.setattr(acme, "obtain", broken)
    here.pass_days(0.25)
    assert Path(other.certificate).exists()
    assert here.told[0] == 'acme "mx": odd; it is tried again every hour'


def test_a_server_that_dribbles_holds_nobody_for_ever(world: Callable[..., World], monkeypatch: Any) -> None:
    here = world()
    monkeypatch.setattr(renewal, "PATIENCE", 0.2)
    over = threading.Event()
    monkeypatch.setattr(acme, "obtain", lambda *_: over.wait(20))
    here.pass_days(0.25)
    over.set()
    assert "took more than" in here.told[0]


def test_a_key_whose_certificate_did_not_come_is_put_back(world: Callable[..., World], monkeypatch: Any) -> None:
    here = world(reuse_key=False)
    here.pass_days(1)
    first = here.public()
    replace_file = os.replace

    def full(old: str, new: str) -> None:
        if str(new) == here.one.certificate:
            raise OSError(28, "No space left on device")
        replace_file(old, new)

    monkeypatch.setattr(os, "replace", full)
    here.pass_days(LIFE * 2 / 3)
    assert here.public() == here.certified() == first
    assert "No space left" in here.told[-1]
    monkeypatch.setattr(os, "replace", replace_file)


def test_a_process_that_ended_between_key_and_certificate(world: Callable[..., World]) -> None:
    here = world()
    here.pass_days(1)
    first = here.public()
    os.rename(here.one.key, f"{here.one.key}.before")
    Path(here.one.key).write_bytes(files.key_octets(files.make_key("ecdsa")))
    here.pass_days(0.25)
    assert (here.public(), here.obtained) == (first, 1)
    assert "was put back" in here.told[-1]
    assert not Path(f"{here.one.key}.before").exists()


def test_keys_that_do_not_fit_or_are_gone(world: Callable[..., World]) -> None:
    here = world()
    here.pass_days(1)
    files.put(here.one.key, files.key_octets(files.make_key("ecdsa")), 0o600)
    with pytest.raises(files.CertificateFileError, match="is not of the key"):
        renewal.prepare(here.one, here.time)
    here.pass_days(0.25)
    assert (here.obtained, here.certified()) == (2, here.public())
    os.unlink(here.one.key)
    here.pass_days(2)
    assert here.obtained == 2
    assert "put it back" in here.told[-1]


def test_what_cannot_be_written_is_not_ordered(world: Callable[..., World]) -> None:
    here = world()
    Path(f"{here.folder}/mx.pem").parent.joinpath("file").write_text("")
    here.one = replace(here.one, certificate=f"{here.folder}/file/mx.pem")
    here.renewals.settings = [here.one]
    here.pass_days(1)
    assert here.obtained == 0
    assert "file/mx.pem" in here.told[0]


def test_a_server_that_gives_none_is_asked_again_each_hour_and_told_of_once(world: Callable[..., World]) -> None:
    here = world()
    here.refuses = "rateLimited"
    here.pass_days(1, step=1 / 24 / 12)
    assert here.told == ['acme "mx": rateLimited; it is tried again every hour']
    here.refuses = ""
    here.pass_days(0.1, step=1 / 24 / 12)
    assert here.obtained == 1


def test_the_next_key_is_used_once_its_record_is_there_since_two_ttls(world: Callable[..., World]) -> None:
    here = world(reuse_key=False)
    here.pass_days(1)
    first = here.record()
    here.tlsa["_25._tcp.mx.ours.test"] = [first]
    here.pass_days(LIFE / 2)
    coming = here.record(f"{here.one.key}.next")
    assert sum(f"publish TLSA 3 1 1 {coming[6:]}" in text for text in here.told) == 1
    here.tlsa["_25._tcp.mx.ours.test"] = [first, coming.upper()]
    here.pass_days(LIFE / 6)
    assert (here.obtained, here.record()) == (2, coming)
    assert here.certified() == here.public()
    assert not Path(f"{here.one.key}.next").exists()
    assert any("records of the one before can go" in text for text in here.told)


@pytest.mark.parametrize("how", ["not published", "just now", "lookup fails"])
def test_a_key_that_the_world_does_not_know_is_not_used(world: Callable[..., World], how: str) -> None:
    here = world(reuse_key=False)
    here.pass_days(1)
    first = here.record()
    here.tlsa["_25._tcp.mx.ours.test"] = [first]
    here.pass_days(LIFE * 2 / 3 - 1.5)
    assert here.obtained == 1
    if how == "just now":
        here.time += 2 * DAY
        here.tlsa["_25._tcp.mx.ours.test"].append(here.record(f"{here.one.key}.next"))
    elif how == "lookup fails":
        here.status = "failed"
    here.pass_days(1)
    assert (here.obtained, here.record()) == (2, first)
    assert Path(f"{here.one.key}.next").exists(), "it is for the next time"
    assert any("the old key is used once more" in text for text in here.told)


def test_without_records_a_new_key_hurts_nobody(world: Callable[..., World], tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    hook.chmod(0o755)
    here = world(reuse_key=False, hook=str(hook), names=("mx.ours.test", "*.ours.test"))
    here.pass_days(1)
    first = here.public()
    here.pass_days(LIFE * 2 / 3)
    assert here.obtained == 2
    assert here.public() != first
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0] == f"renewed mx {here.one.certificate}"
    assert told[1].startswith("tlsa _25._tcp.mx.ours.test 3 1 1 ")
    assert len(told) == 3


def test_what_was_not_asked_for_is_not_put_in_place(world: Callable[..., World], monkeypatch: Any) -> None:
    here = world()
    stranger = files.request(files.make_key("ecdsa"), here.one.names)
    monkeypatch.setattr(acme, "obtain", lambda one, folder, csr, *_: here.obtain(one, folder, stranger))
    here.pass_days(0.25)
    assert not Path(here.one.certificate).exists()
    assert "of another key" in here.told[0]
    monkeypatch.setattr(acme, "obtain", lambda *_: b"what?")
    here.pass_days(0.25)
    assert "is no certificate" in here.told[1]

    def past(*given: Any) -> bytes:
        here.time -= 400 * DAY
        made = here.obtain(*given)
        here.time += 400 * DAY
        return made

    monkeypatch.setattr(acme, "obtain", past)
    here.pass_days(0.25)
    assert "not good now" in here.told[2]


def test_a_hook_that_fails_is_run_until_it_is_content(world: Callable[..., World], tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n[ -e {tmp_path}/works ] || {{ printf "\\377no"; exit 1; }}\n'
    )
    hook.chmod(0o755)
    here = world(reuse_key=False, hook=str(hook), names=("mx.ours.test", "mx2.ours.test"))

    def told() -> list[str]:
        return [line.split()[0] for line in (tmp_path / "told").read_text().splitlines()]

    here.pass_days(1)
    assert here.obtained == 1
    assert len(told()) > 1
    assert set(told()) == {"renewed"}
    (tmp_path / "works").touch()
    here.pass_days(0.25)
    (tmp_path / "told").write_text("")
    here.pass_days(1)
    assert told() == []
    (tmp_path / "works").unlink()
    here.pass_days(LIFE / 2)
    (tmp_path / "works").touch()
    here.pass_days(0.5)
    assert told().count("tlsa") > 2
    (tmp_path / "told").write_text("")
    here.pass_days(1)
    assert told() == []
