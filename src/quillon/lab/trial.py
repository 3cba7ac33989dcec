"""One message to one peer of the fault farm, by the real parts of delivery, and what came of it."""

from __future__ import annotations

import asyncio
import dataclasses

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery.attempt import Attempt
from quillon.delivery.connection import Connection, ConnectionServices, Sent
from quillon.delivery.route import Host
from quillon.delivery.standards import plain
from quillon.delivery.tls_policy import Foreseen, certificate_names
from quillon.lab.farm import Farm
from quillon.lab.faults import DOMAIN, BrokenPeer
from quillon.mail.address import Mailbox
from quillon.mail.message import Batch, IdSource, Message, Origin
from quillon.mail.outcome import Delivered, Outcome

PATIENCE = 3.0  # seconds that a silent peer is given
BODY = b"Subject: trial\r\n\r\nA trial of the fault farm.\r\n"


@dataclasses.dataclass(frozen=True, slots=True)
class TrialResult:
    """How a delivery ended, and which way it went."""

    outcome: Outcome
    seen: Foreseen

    @property
    def delivered(self) -> bool:
        return isinstance(self.outcome, Delivered)

    def __str__(self) -> str:
        if self.seen.way == "held" and not self.seen.cause:
            return f"held: {self.outcome.reply.code}"
        if not self.delivered and self.seen.way != "held":
            return f"{self.seen}; then {self.outcome.reply.code}"
        return str(self.seen)


def patient(settings: DeliverySettings) -> DeliverySettings:
    """Delivery settings with the time limits of a trial."""
    seconds = max(int(PATIENCE), 1)
    return dataclasses.replace(
        settings,
        bind_address="*",
        connect_timeout=seconds,
        ehlo_timeout=seconds,
        mailfrom_timeout=seconds,
        rcptto_timeout=seconds,
        body_timeout=seconds,
        rset_timeout=seconds,
    )


async def deliver(
    farm: Farm, fault: BrokenPeer, settings: DeliverySettings, tls: OutboundTls, services: ConnectionServices
) -> TrialResult:
    """Send a message to a peer as a delivery to `farm.test` would. `settings` should be `patient`."""
    attempt = Attempt([Host(fault.host, "127.0.0.1", farm.ports[fault.name])])
    sender = _Sender()
    message = _message(services.clock.now())
    failed = ""
    while (step := attempt.next_step()) is not None:
        demand = plain(tls, certificate_names(tls, fault.host, DOMAIN, ""))
        connection = Connection(services, settings, demand, DOMAIN, "trial.test", owner=sender)
        obstructed = await connection.open(step)
        if obstructed is not None:
            attempt.failed(step, obstructed.obstacle, obstructed.failed, tls)
            failed = connection.facts.cause if connection.facts is not None else failed
            continue
        outcome = await sender.send(connection, message)
        facts = connection.facts
        if facts is not None and facts.protocol:
            return TrialResult(outcome, Foreseen("tls", facts.verified, facts.cause))
        return TrialResult(outcome, Foreseen("clear", cause=failed))
    assert attempt.trail.failed is not None
    held = attempt.trail.failed.outcome
    return TrialResult(held, Foreseen("held", cause=held.cause))


class _Sender:
    """Sends one message over a connection."""

    def __init__(self) -> None:
        self._done: asyncio.Future[Outcome] | None = None

    async def send(self, connection: Connection, message: Message) -> Outcome:
        self._done = asyncio.get_running_loop().create_future()
        connection.deliver([message], BODY)
        outcome = await self._done
        connection.quit()
        return outcome

    def sent(self, connection: Connection, sent: Sent) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(sent.results[0][1])

    def free(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...


def _message(now: float) -> Message:
    ids = IdSource(1)
    origin = Origin("127.0.0.1", "esmtp", ids.next(now))
    sender, recipient = Mailbox("trial", "quillon.test"), Mailbox("anybody", DOMAIN)
    batch = Batch(ids.next(now), sender, origin, now, len(BODY), BODY)
    return Message(ids.next(now), batch, recipient)
