"""A configuration against the fault farm: which broken peers would get mail, and how.

What is tested are the decisions that a domain's settings lead to. The farm's own authority stands in for TLS_CA, and
the peers for the domain's hosts; everything else is as configured.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery.connection import ConnectionServices
from quillon.lab import trial
from quillon.lab.farm import Farm
from quillon.lab.faults import BrokenPeer
from quillon.lab.trial import PATIENCE, TrialResult
from quillon.net.clock import Deadlines, SystemClock
from quillon.policy.hook import NO_POLICY
from quillon.policy.tls import TlsHooks
from quillon.tls.context import Contexts

_AT_ONCE = 16


async def run(
    folder: Path, settings: DeliverySettings, columns: list[OutboundTls]
) -> list[list[tuple[BrokenPeer, TrialResult]]]:
    """One list of results per TLS setting. `folder` is for the farm's certificates."""
    farm = Farm(folder)
    await farm.start()
    clock = SystemClock()
    deadlines = Deadlines(clock, 0.05)
    deadlines.start()
    services = ConnectionServices(clock, deadlines, Contexts(clock.now), TlsHooks(NO_POLICY, "/"), PATIENCE)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(fault: BrokenPeer, tls: OutboundTls) -> tuple[BrokenPeer, TrialResult]:
        async with gate:
            return fault, await trial.deliver(farm, fault, trial.patient(settings), tls, services)

    try:
        return [list(await asyncio.gather(*(one(f, trusting(tls, farm)) for f in farm.faults))) for tls in columns]
    finally:
        deadlines.stop()
        farm.stop()


def trusting(tls: OutboundTls, farm: Farm) -> OutboundTls:
    """The same settings with the farm's authority where there was one, which has no revocation lists, and the names of
    its hosts. No peer has a key of TLS_SPKI."""
    if tls.tls_ca:
        tls = dataclasses.replace(tls, tls_ca=str(farm.ca), tls_crl=None)
    return dataclasses.replace(tls, tls_names=())


def lets_through(fault: BrokenPeer, result: TrialResult) -> bool:
    """Whether mail went to a peer whose TLS is broken: in clear, or to a certificate that is not in order.

    A host that wants a client certificate and got one is in order.
    """
    if fault.wants_client and result.seen.way == "tls":
        return False
    return bool(fault.cause) and result.seen.way != "held"
