"""The fault farm: every peer against every value of TLS and TLS_Verify, by both engines, octet for octet."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import random
import re
from pathlib import Path
from typing import Any

import pytest

from quillon.config.options import table
from quillon.config.scope import resolve
from quillon.config.settings import DeliverySettings, OutboundTls, build
from quillon.delivery.connection import ConnectionServices
from quillon.delivery.probe import VALUES, probe
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import certificate_names
from quillon.lab import trial
from quillon.lab.farm import Farm
from quillon.lab.faults import DOMAIN, FAULTS, BrokenPeer
from quillon.lab.pki import Authority
from quillon.lab.trial import TrialResult
from quillon.net.clock import Deadlines, SystemClock
from quillon.policy.hook import NO_POLICY
from quillon.policy.tls import TlsHooks
from quillon.tls.context import Contexts

# what a client may say in clear to a host from which it wants TLS
BEFORE_TLS = re.compile(rb"\A(EHLO trial\.test\r\n(STARTTLS\r\n)?)?(QUIT\r\n)?\Z")
ROOT = Path(__file__).parents[3]
COLUMNS = [("no", "no"), *VALUES]


def outbound(**changes: object) -> OutboundTls:
    options = table().options
    settings = build(OutboundTls, lambda name: resolve(options[name], [], "/").value)
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def delivery() -> DeliverySettings:
    options = table().options
    return trial.patient(build(DeliverySettings, lambda name: resolve(options[name], [], "/").value))


class Field:
    """A farm, and the results of all trials by column and peer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[tuple[str, str], dict[str, TrialResult]] = {}
        self.clear: dict[tuple[str, str], dict[str, list[bytes]]] = {}
        self.foreseen: dict[tuple[str, str], dict[str, str]] = {}

    async def run(self, engine: str) -> None:
        clock = SystemClock()
        deadlines = Deadlines(clock, 0.05)
        deadlines.start()
        services = ConnectionServices(clock, deadlines, Contexts(clock.now), TlsHooks(NO_POLICY, "/"), 1.0)
        settings = delivery()
        for value, verify in COLUMNS:
            farm = Farm(self.folder)
            await farm.start()
            tls = outbound(tls=value, tls_verify=verify, tls_ca=str(farm.ca), tls_engine=engine)
            found = await asyncio.gather(*(trial.deliver(farm, fault, settings, tls, services) for fault in FAULTS))
            self.results[value, verify] = {fault.name: result for fault, result in zip(FAULTS, found, strict=True)}
            self.clear[value, verify] = {
                name: [bytes(record.clear) for record in records] for name, records in farm.records.items()
            }
            farm.stop()
        await self._probe(services, settings, engine)
        deadlines.stop()

    async def _probe(self, services: ConnectionServices, settings: DeliverySettings, engine: str) -> None:
        farm = Farm(self.folder)
        await farm.start()
        tls = outbound(tls_ca=str(farm.ca), tls_engine=engine)
        hosts = [Host(fault.host, "127.0.0.1", farm.ports[fault.name]) for fault in FAULTS]
        reports = await asyncio.gather(
            *(
                probe(host, certificate_names(tls, host.name, DOMAIN, ""), settings, tls, services, "trial.test")
                for host in hosts
            )
        )
        for value, verify in COLUMNS:
            changed = dataclasses.replace(tls, tls=value, tls_verify=verify)
            self.foreseen[value, verify] = {
                fault.name: report.problem or str(report.foresee(changed))
                for fault, report in zip(FAULTS, reports, strict=True)
            }
        farm.stop()


@pytest.fixture(scope="module", params=["openssl", "gnutls"])
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Field:
    found = Field(tmp_path_factory.mktemp("farm"))
    asyncio.run(found.run(request.param))
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_cause_is_found(field: Field, fault: BrokenPeer) -> None:
    result = field.results["required", "host"][fault.name]
    assert result.seen.cause == fault.cause
    if not fault.cause and not fault.reply[0] and fault.name != "close-after-handshake":
        assert result.delivered
        assert result.seen.verified is True


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("verify", ["no", "optional", "ca", "host"])
def test_nothing_leaves_in_clear_under_required(field: Field, fault: BrokenPeer, verify: str) -> None:
    assert field.results["required", verify][fault.name].seen.way != "clear"
    said = field.clear["required", verify][fault.name]
    assert said
    for octets in said:
        assert BEFORE_TLS.match(octets), octets


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_failed_verification_never_leads_to_clear_text(field: Field, fault: BrokenPeer) -> None:
    for verify in ("ca", "host"):
        result = field.results["ifavailable", verify][fault.name]
        if result.seen.verified is False and result.seen.cause:
            assert result.seen.way == "held"
            assert all(BEFORE_TLS.match(octets) for octets in field.clear["ifavailable", verify][fault.name])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fallback_comes_over_a_fresh_connection(field: Field, fault: BrokenPeer) -> None:
    result = field.results["ifavailable", "no"][fault.name]
    if result.seen.way == "clear" and result.seen.cause:
        first, second = field.clear["ifavailable", "no"][fault.name]
        assert BEFORE_TLS.match(first)
        assert second.startswith(b"EHLO trial.test\r\nMAIL FROM:")


@pytest.mark.parametrize("column", COLUMNS, ids=" ".join)
def test_a_probe_foresees_what_a_delivery_does(field: Field, column: tuple[str, str]) -> None:
    for fault in FAULTS:
        foreseen, result = field.foreseen[column][fault.name], field.results[column][fault.name]
        if fault.name == "close-after-handshake":
            continue  # says nothing after the handshake: there is no EHLO to tell what would happen
        assert foreseen == str(result.seen), fault.name


def test_without_tls_everything_is_in_clear(field: Field) -> None:
    assert {result.seen.way for result in field.results["no", "no"].values()} == {"clear"}


def test_the_page_about_broken_hosts_is_what_was_found(field: Field) -> None:
    """Both engines lead to the same table."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs/reference/farm.md").read_text() == generate.farm_page(field.results), "run docs/generate.py"


# what each option of a delivery's TLS may be, beside its default; by name for what lies in the farm's folder
OPTIONS: dict[str, tuple[Any, ...]] = {
    "tls": ("no", "ifavailable", "required"),
    "tls_ifavailable_fallback": (True, False),
    "tls_verify": ("no", "optional", "ca", "host"),
    "tls_ca": ("the farm's", None, "another"),
    "tls_certificate": (None, "ours"),
    "tls_ciphers": (None, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"),
    "tlsv13_ciphersuites": (None, "TLS_AES_256_GCM_SHA384"),
    "tls_ec_curve_names": (None, "secp384r1", "X25519"),
    "tls_protocols": (frozenset({"1.2", "1.3"}), frozenset({"1.2"}), frozenset({"1.3"})),
    "tls_session_resumption": (False, True),
    "tls_dhparams_file": (None,),  # of the receiving role
    "tls_enable_dhe_ciphers": (False, True),
    "tls_crl": (None,),  # tests/system/test_revocation.py
    "tls_crl_check": ("hard",),
    "tls_ocsp": ("no",),  # tests/system/test_ocsp.py
    "tls_ocsp_responder": (None,),
    "tls_names": ((), ("another.test",), ("a.farm.test", "good.farm.test", "tls12.farm.test")),
    "tls_spki": ((), ("ab" * 32,)),
    "tls_enforce": ("enforce",),  # what it loosens is loosened before: tests/unit/config/test_contracts.py
}
FOLLOWS = {"tls_engine", "tls_key"}  # the parameter of the test, and the certificate's


def test_every_option_of_tls_is_tried() -> None:
    options = {field.name for field in dataclasses.fields(OutboundTls) if field.default is dataclasses.MISSING}
    assert OPTIONS.keys() | FOLLOWS == options


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
@pytest.mark.parametrize("seed", [0, 1, 2, 109])
def test_a_probe_foresees_what_a_delivery_does_under_any_settings(tmp_path: Path, engine: str, seed: int) -> None:
    chance = random.Random(seed)
    chosen = {name: chance.choice(values) for name, values in OPTIONS.items()}
    foreseen, found = asyncio.run(_both(tmp_path, engine, chosen))
    for name, words in foreseen.items():
        if name != "close-after-handshake":
            assert words == found[name], (name, chosen)


async def _both(folder: Path, engine: str, chosen: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What a probe of each peer foresees, and what a delivery to it does."""
    farm = Farm(folder)
    await farm.start()
    other = Authority(folder / "other")
    other.write()
    other.issue("client", ["client.test"])
    authorities = {"the farm's": str(farm.ca), "another": str(folder / "other/ca.pem"), None: None}
    ours = chosen["tls_certificate"] is not None
    tls = outbound(
        **{
            **chosen,
            "tls_ca": authorities[chosen["tls_ca"]],
            "tls_certificate": str(folder / "other/client.pem") if ours else None,
            "tls_key": str(folder / "other/client.key") if ours else None,
            "tls_engine": engine,
        }
    )
    clock = SystemClock()
    deadlines = Deadlines(clock, 0.05)
    deadlines.start()
    services = ConnectionServices(clock, deadlines, Contexts(clock.now), TlsHooks(NO_POLICY, "/"), 1.0)
    settings = delivery()
    found = await asyncio.gather(*(trial.deliver(farm, fault, settings, tls, services) for fault in FAULTS))
    hosts = [Host(fault.host, "127.0.0.1", farm.ports[fault.name]) for fault in FAULTS]
    reports = await asyncio.gather(
        *(probe(host, (host.name, DOMAIN), settings, tls, services, "trial.test") for host in hosts)
    )
    deadlines.stop()
    farm.stop()
    names = [fault.name for fault in FAULTS]
    foreseen = [report.problem or str(report.foresee(tls)) for report in reports]
    return dict(zip(names, foreseen, strict=True)), dict(zip(names, (str(r.seen) for r in found), strict=True))
