"""MX, A and Routes: what is asked of a real resolver, and where mail goes then."""

import asyncio
import dataclasses
import smtplib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quillon.config.options import table
from quillon.config.routes import RouteError, Target, parse_route
from quillon.config.scope import resolve
from quillon.config.settings import DeliverySettings, NodeSettings, build
from quillon.delivery import route
from quillon.delivery.hosts import HostFinder
from quillon.delivery.route import Host
from quillon.mail.outcome import PermanentFailure, TransientFailure
from quillon.net.clock import SystemClock
from quillon.net.resolver import Resolver
from tests.support.clients import MESSAGE
from tests.support.server import Server, free_port
from tests.support.unbound import Unbound, port_on

DELIVERY = build(DeliverySettings, lambda name: resolve(table().options[name], [], "/").value)
NODE = build(NodeSettings, lambda name: resolve(table().options[name], [], "/").value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("__mx__", Target("bank.fi", 0, True, 3)),
        ("relay.test", Target("relay.test", 0, True, 3)),
        ("192.0.2.1", Target("192.0.2.1", 0, False, 3)),
        ("smtp://127.0.0.1?port=2600", Target("127.0.0.1", 2600, False, 3)),
        ("smtp://Relay.test?pref=7&ttl=60&type=a&port=26", Target("relay.test", 26, False, 7)),
    ],
)
def test_routes(text: str, target: Target) -> None:
    assert parse_route(text, 3, "bank.fi") == target


@pytest.mark.parametrize(
    "text", ["smtp://", "smtp://h?port=x", "smtp://h?color=red", "smtp://h?type=txt", "smtp://h?port=70000"]
)
def test_bad_routes(text: str) -> None:
    with pytest.raises(RouteError):
        parse_route(text, 0, "bank.fi")


def test_order_and_targets() -> None:
    assert route.order([(20, "c"), (10, "a"), (10, "b")], lambda items: items.reverse()) == [
        (10, "b"),
        (10, "a"),
        (20, "c"),
    ]
    assert route.targets("gw.test:2600", ()) == [Target("gw.test", 2600, True)]
    assert route.targets("[192.0.2.7]", ()) == [Target("192.0.2.7", 0, False)]
    assert [t.name for t in route.targets("x.test", ("smtp://b.test?pref=2", "smtp://a.test?pref=1"))] == [
        "a.test",
        "b.test",
    ]


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unbound]:
    running = Unbound(tmp_path_factory.mktemp("unbound"))
    yield running
    running.stop()


def _find(port: int, domain: str, node: NodeSettings = NODE, times: int = 1, **changes: object) -> object:
    settings = dataclasses.replace(DELIVERY, **changes)  # type: ignore[arg-type]

    async def run() -> object:
        clock = SystemClock()
        finder = HostFinder(Resolver(clock, [("127.0.0.1", port)], ""), node, clock)
        for _ in range(times):
            found = await finder.find(domain, settings)
        return found

    return asyncio.run(run())


@pytest.mark.peer
def test_lookups(unbound: Unbound) -> None:
    assert _find(unbound.port, "two.test") == [
        Host("mx1.two.test", "127.0.0.11", 25),
        Host("mx2.two.test", "127.0.0.12", 25),
    ]
    assert _find(unbound.port, "bare.test") == [Host("bare.test", "127.0.0.13", 25)]
    best = dataclasses.replace(NODE, relay_domains=("two.test",))
    assert _find(unbound.port, "two.test", best) == [Host("mx1.two.test", "127.0.0.11", 25)]
    mixed = _find(unbound.port, "bare.test", routes=("smtp://192.0.2.1?pref=1", "__mx__"))
    assert mixed == [Host("192.0.2.1", "192.0.2.1", 25), Host("bare.test", "127.0.0.13", 25)] or mixed == [
        Host("bare.test", "127.0.0.13", 25),
        Host("192.0.2.1", "192.0.2.1", 25),
    ]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("domain", "kind", "text"),
    [
        ("null.test", PermanentFailure, "550 5.4.4 [internal] NULL MX domain does not accept mail"),
        ("nowhere.test", PermanentFailure, "554 5.4.4 [internal] Domain Lookup Failed"),
        ("nothing.test", TransientFailure, "454 4.4.4 [internal] no MX or A for domain"),
        ("lost.test", TransientFailure, "454 4.4.4 [internal] no MX or A for domain"),
    ],
)
def test_failed_lookups(unbound: Unbound, domain: str, kind: type, text: str) -> None:
    found = _find(unbound.port, domain)
    assert isinstance(found, kind)
    assert str(found.reply) == text  # type: ignore[attr-defined]


@pytest.mark.peer
def test_a_domain_fails_for_good_after_so_many_failures_each_a_retry_apart(unbound: Unbound) -> None:
    assert isinstance(_find(unbound.port, "nothing.test", times=12), TransientFailure)
    assert isinstance(_find(unbound.port, "nothing.test", times=10, retry_interval=0), PermanentFailure)


def test_a_resolver_that_is_not_there_is_no_permanent_failure() -> None:
    found = _find(free_port(), "two.test")
    assert isinstance(found, TransientFailure)


def test_prohibited_and_skipped_hosts() -> None:
    import ipaddress

    loopback = (ipaddress.ip_network("127.0.0.0/8"),)
    prohibited = _find(1, "127.0.0.1:2600", dataclasses.replace(NODE, prohibited_hosts=loopback))
    assert isinstance(prohibited, PermanentFailure)
    assert str(prohibited.reply) == "551 5.4.6 [internal] Private/Loopback Address"
    skipped = _find(1, "127.0.0.1:2600", dataclasses.replace(NODE, skip_hosts=loopback))
    assert isinstance(skipped, TransientFailure)


@pytest.mark.peer
def test_the_second_mx_takes_over_while_the_first_is_down(
    unbound: Unbound, server: Callable[..., Server], tmp_path: Path
) -> None:
    from tests.support.sinks import SinkThread

    port, mx_port = free_port(), port_on(["127.0.0.11", "127.0.0.12"])
    sink = SinkThread(host="127.0.0.12", port=mx_port)
    running = server(
        f"""ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
        DNS_Servers = ( "127.0.0.1:{unbound.port}" ) Remote_SMTP_Port = {mx_port}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@example.test", ["b@two.test"], MESSAGE)
        client.sendmail("a@example.test", ["b@nowhere.test"], MESSAGE)
    events = running.wait_attempts("b@two.test", "b@nowhere.test")
    assert (events["b@two.test"]["outcome"], events["b@two.test"]["host"]) == ("delivered", "mx2.two.test")
    assert events["b@nowhere.test"]["outcome"] == "permanent_failure"
    running.stop()
    sink.stop()
