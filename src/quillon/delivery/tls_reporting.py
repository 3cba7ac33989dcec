"""What a connection to a host says in reports of SMTP TLS (RFC 8460): one data point for each handshake, none for a
connection that is kept, nor for one that carries nothing but what Quillon has written itself, lest reports report on
reports. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from quillon.delivery.attempt import Obstacle
from quillon.delivery.demand import Demand, Published, Refused, demand, judge
from quillon.delivery.route import Host
from quillon.mail.event import TlsFacts
from quillon.mail.message import Message
from quillon.queue.destination import DestinationQueue
from quillon.standards.mta_sts import StsPolicy
from quillon.standards.tlsrpt import DataPoint, PolicyFound, result_of
from quillon.tls.verdict import TlsVerdict

_OURS = frozenset({"no_requiretls", "requiretls_insecure", "bad_local_settings"})  # causes that reports say nothing of
_LOOKED_AT = 20  # messages that wait, by which a connection is known to be for reports


def is_counted(queue: DestinationQueue[Any]) -> bool:
    """Whether mail of others waits for the connection."""
    waiting: list[Message] = list(islice(queue.messages(), _LOOKED_AT))
    return any(message.batch.origin.protocol != "internal" for message in waiting)


def is_routed(queue: DestinationQueue[Any]) -> bool:
    """Whether a gateway of the operator's has brought all that waits there."""
    waiting: list[Message] = list(islice(queue.messages(), _LOOKED_AT))
    return bool(waiting) and all(message.wanted_domain != message.destination for message in waiting)


def refused(refusal: Refused, host: Host, domain: str, now: float) -> DataPoint | None:
    """Of a host that must get nothing; None where that is no fault of the domain's."""
    if refusal.cause in _OURS:
        return None
    result = result_of(refusal.cause)
    return DataPoint(now, domain, refusal.policy, result, refusal.cause, "", host.name, host.ip)


def failed(
    demanded: Demand, obstacle: Obstacle, cause: str, host: Host, local_ip: str, domain: str, now: float
) -> DataPoint | None:
    """Of a connection that did not come about; None where TLS was not why."""
    if obstacle not in (Obstacle.NEGOTIATION, Obstacle.REJECTED) or not cause or cause in _OURS:
        return None
    return DataPoint(now, domain, demanded.policy, result_of(cause), cause, local_ip, host.name, host.ip)


def opened(
    demanded: Demand,
    published: Published,
    facts: TlsFacts | None,
    verdict: TlsVerdict | None,
    certificates: Callable[[], Sequence[bytes]],
    host: Host,
    local_ip: str,
    domain: str,
    now: float,
) -> DataPoint | None:
    """Of a connection that takes mail; None where TLS was not to be tried. A policy in mode testing is told what it
    would have met with if it were enforced."""
    if demanded.tls.tls == "no":
        return None
    cause = "" if facts is not None and facts.protocol else "no_starttls"
    if not cause and published.sts is not None and published.sts.mode == "testing" and not demanded.tlsa:
        cause = _under_test(demanded, published.sts, verdict, certificates, host, domain, now)
    result = result_of(cause) if cause else ""
    if not cause and demanded.standard == "dane" and not demanded.tlsa:
        result, cause = "tlsa-invalid", "tlsa_missing"
    return DataPoint(now, domain, demanded.policy, result, cause, local_ip, host.name, host.ip)


def _under_test(
    demanded: Demand,
    policy: StsPolicy,
    verdict: TlsVerdict | None,
    certificates: Callable[[], Sequence[bytes]],
    host: Host,
    domain: str,
    now: float,
) -> str:
    """The cause for which a host would have been refused, "" for none."""
    enforced = StsPolicy(policy.domain, policy.id, "enforce", policy.mx, policy.max_age, policy.fetched)
    would = demand(demanded.configured, demanded.names, host, domain, Published(sts=enforced), now)
    if isinstance(would, Refused):
        return would.cause
    return judge(would, verdict, certificates).cause if verdict is not None else ""


def not_found(result: str, detail: str, domain: str, now: float) -> DataPoint:
    """Of a policy of MTA-STS that could not be had."""
    return DataPoint(now, domain, PolicyFound("sts", domain), result, detail)
