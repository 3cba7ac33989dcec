"""One message to one peer of the fault farm, by the real parts of delivery, and what came of it."""

from __future__ import annotations

import asyncio
import dataclasses

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery.attempt import Attempt, TryHost
from quillon.delivery.connection import Connection, Surroundings
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import Foreseen
from quillon.lab.farm import Farm
from quillon.lab.faults import DOMAIN, Fault
from quillon.mail.address import Mailbox
from quillon.mail.message import Batch, IdSource, Message, Origin
from quillon.mail.outcome import Delivered, Outcome

PATIENCE = 1.5  # seconds that a silent peer is given
BODY = b"Subject: trial\r\n\r\nA trial of the fault farm.\r\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
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
    farm: Farm, fault: Fault, settings: DeliverySettings, tls: OutboundTls, around: Surroundings
) -> Result:
    """Send a message to a peer as a delivery to `farm.test` would. `settings` should be `patient`."""
    attempt = Attempt(tls, [Host(fault.host, "127.0.0.1", farm.ports[fault.name])])
    message = _message(around.clock.now())
    failed = ""
    while isinstance(found := attempt.next_step(), TryHost):
        connection = Connection(around, settings, tls, (fault.host, DOMAIN), DOMAIN, "trial.test", gone=lambda _: None)
        if not await connection.open(attempt, found):
            failed = connection.facts.cause if connection.facts is not None else failed
            continue
        outcome = await _send(connection, message)
        facts = connection.facts
        if facts is not None and facts.protocol:
            return Result(outcome, Foreseen("tls", facts.verified, facts.cause))
        return Result(outcome, Foreseen("clear", cause=failed))
    return Result(found, Foreseen("held", cause=found.cause))


async def _send(connection: Connection, message: Message) -> Outcome:
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settle(_: Message, outcome: Outcome) -> None:
        if not done.done():
            done.set_result(outcome)

    connection.deliver([message], BODY, settle, lambda ended: ended.quit())
    outcome = await done
    connection.quit()
    return outcome


def _message(now: float) -> Message:
    ids = IdSource(1)
    origin = Origin("127.0.0.1", "esmtp", ids.next(now))
    sender, recipient = Mailbox("trial", "quillon.test"), Mailbox("anybody", DOMAIN)
    batch = Batch(ids.next(now), sender, origin, now, len(BODY), BODY)
    return Message(ids.next(now), batch, recipient)
