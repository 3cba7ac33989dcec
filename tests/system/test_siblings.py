"""Mail of one domain over the connection of another: the same host, the same demand, a certificate for both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quillon.lab.pki import Authority
from quillon.lab.sink import inbound_tls
from tests.support.server import Server, free_port
from tests.support.sinks import SinkThread
from tests.system.test_next_hosts import _listen, _send

ENGINES = ("openssl", "gnutls")


def _domains(sink: SinkThread, first: str, second: str) -> str:
    routes = f'Routes = ("127.0.0.1:{sink.port}")'
    return f"Domain one.test {{ {routes} {first} }} Domain two.test {{ {routes} {second} }}"


def _deliver(running: Server, port: int) -> dict[str, dict[str, Any]]:
    """A message to each of two domains, the second once the first has been delivered."""
    _send(port, "a@one.test")
    running.wait_attempts("a@one.test")
    _send(port, "a@two.test")
    return running.wait_attempts("a@one.test", "a@two.test")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("names", [("one.test", "two.test"), ("one.test",)], ids=["for both", "for one"])
def test_a_connection_is_taken_where_its_certificate_is_for_both(
    server: Callable[..., Server], tmp_path: Path, names: tuple[str, ...], engine: str
) -> None:
    authority = Authority(tmp_path)
    authority.write()
    authority.issue("host", names)
    tls = inbound_tls(f"{tmp_path}/host.pem", f"{tmp_path}/host.key")
    strict = f"TLS = required TLS_Verify = host TLS_CA = {tmp_path}/ca.pem"
    with SinkThread(tls=tls) as sink:
        port = free_port()
        more = f"TLS_Engine = {engine} Idle_Timeout = 60 " + _domains(sink, strict, strict)
        found = _deliver(server(_listen(port, more)).start(), port)
        one, two = found["a@one.test"], found["a@two.test"]
        assert (one["outcome"], one["tls"]["matched"]) == ("delivered", "one.test")
        if len(names) == 2:
            assert (two["outcome"], two["tls"]["matched"]) == ("delivered", "two.test")
            assert sink.sink.sessions == 1
        else:
            assert (two["outcome"], two["cause"]) == ("transient_failure", "name_mismatch")
            assert sink.sink.sessions == 2, "what was found out is from a connection of its own"
            assert [caught.recipients for caught in sink.messages] == [("a@one.test",)]


def test_no_mail_that_demands_tls_takes_a_connection_in_clear(server: Callable[..., Server], pki: Path) -> None:
    with SinkThread(tls=inbound_tls(f"{pki}/good.pem", f"{pki}/good.key")) as sink:
        port = free_port()
        more = "Idle_Timeout = 60 " + _domains(sink, "TLS = no", "TLS = required")
        found = _deliver(server(_listen(port, more)).start(), port)
        assert {event["outcome"] for event in found.values()} == {"delivered"}
        assert sink.sink.sessions == 2
        assert [caught.tls is not None for caught in sink.messages] == [False, True]


def test_domains_of_one_host_count_together(server: Callable[..., Server]) -> None:
    standing: list[int] = []

    def count(_: object) -> None:
        standing.append(len(sink.sink.open))

    with SinkThread(count) as sink:
        port = free_port()
        more = "".join(f'Domain d{n}.test {{ Routes = ("127.0.0.1:{sink.port}") }} ' for n in range(40))
        running = server(_listen(port, f"MX_Rollup = true Max_Outbound_Connections = 2 {more}"))
        running.start()
        _send(port, *(f"a@d{n}.test" for n in range(40)))
        found = running.wait_attempts(*(f"a@d{n}.test" for n in range(40)))
        assert {event["outcome"] for event in found.values()} == {"delivered"}
        assert max(standing) <= 2
