"""Fixtures: a test PKI for the whole run, and servers that are stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quillon.lab.farm import Farm
from quillon.lab.pki import CLIENT, DAY, SERVER, Authority
from tests.support.farm import FarmThread
from tests.support.server import Server


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates: good ones, and one for each way to be bad. Server names are mx.partner.test."""
    folder = tmp_path_factory.mktemp("pki")
    folder.chmod(0o755)
    authority = Authority(folder)
    authority.write()
    other = Authority(folder, "Another CA")
    other.write("other-ca.pem")
    names = ["mx.partner.test", "127.0.0.1", "localhost"]
    authority.issue("server", [*names, "mx.quillon.test"])
    authority.issue("server-rsa", [*names, "mx.quillon.test"], kind="rsa2048")
    authority.issue("good", names)
    authority.issue("expired", names, start=-30 * DAY, life=10 * DAY)
    authority.issue("not-yet", names, start=10 * DAY)
    authority.issue("self-signed", names, self_signed=True)
    authority.issue("wrong-name", ["mx.elsewhere.test"])
    other.issue("wrong-ca", names)
    middle = Authority(folder, "Intermediate CA", authority)
    middle.issue("chained", names)
    middle.issue("no-chain", names, with_chain=False)
    authority.issue("client", ["client.bank.fi"], usage=[CLIENT])
    authority.issue("client-expired", ["client.bank.fi"], start=-30 * DAY, life=10 * DAY)
    authority.issue("client-not-yet", ["client.bank.fi"], start=10 * DAY)
    middle.issue("client-chained", ["client.bank.fi"])
    middle.issue("client-no-chain", ["client.bank.fi"], with_chain=False)
    authority.issue("one", ["mx.one.test"])
    authority.issue("two", ["*.two.test"])
    authority.issue("two-rsa", ["*.two.test"], kind="rsa2048")
    authority.issue("client-self-signed", ["client.bank.fi"], self_signed=True)
    authority.issue("client-wrong-purpose", ["client.bank.fi"], usage=[SERVER])
    other.issue("client-wrong-ca", ["client.bank.fi"])
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers that are stopped at the end of the test."""
    made: list[Server] = []

    def make(config: str, *, workers: int = 1, name: str = "q") -> Server:
        made.append(Server(tmp_path / name, config, workers=workers))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """The fault farm: peers that are broken in one way each."""
    thread = FarmThread(tmp_path_factory.mktemp("farm"))
    yield thread.farm
    thread.stop()
