"""What a host does with TLS, found out by connecting as a delivery would, without sending anything. Shell.

The handshake is judged by the strictest rules whatever is configured, so that each value of TLS and TLS_Verify can be
foreseen from one connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery.attempt import TryHost
from quillon.delivery.connection import Connection, ConnectionServices, Sent
from quillon.delivery.demand import Demand
from quillon.delivery.demand import foresee as foresee_demand
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import Foreseen, Judgement, Observed, foresee, judge
from quillon.mail.event import TlsFacts
from quillon.tls.engine import SYSTEM_TRUST

VALUES = tuple((tls, verify) for tls in ("ifavailable", "required") for verify in ("no", "optional", "ca", "host"))


@dataclass(frozen=True, slots=True)
class HostReport:
    """One host. `problem` says why it could not be talked to at all; `judgement` is that of TLS_Verify = host."""

    host: Host
    names: tuple[str, ...]
    ca: str
    problem: str
    observed: Observed
    facts: TlsFacts | None
    judgement: Judgement | None
    chain: tuple[x509.Certificate, ...]

    def foresee(self, tls: OutboundTls) -> Foreseen:
        """What a delivery under these settings would do."""
        return foresee(tls, self.observed, self.names)

    def under(self, demand: Demand) -> Foreseen:
        """What a delivery under a demand would do."""
        certificates = [certificate.public_bytes(Encoding.DER) for certificate in self.chain]
        return foresee_demand(demand, self.observed, certificates)


async def probe(
    host: Host,
    names: Sequence[str],
    settings: DeliverySettings,
    tls: OutboundTls,
    services: ConnectionServices,
    ehlo: str,
    server_name: str = "",
) -> HostReport:
    """Connect to a host up to the point where it would take a message; `server_name` is for SNI instead of the host's
    own name."""
    strict = replace(tls, tls="required", tls_verify="optional", tls_ca=tls.tls_ca or SYSTEM_TRUST)
    demand = Demand(strict, strict, tuple(names), tlsa_names=(server_name,) if server_name else ())
    connection = Connection(services, settings, demand, names[-1], ehlo, owner=_Nobody())
    obstructed = await connection.open(TryHost(host))
    chain = tuple(connection.chain())
    if obstructed is None:
        connection.quit()
        verdict, cause, problem = connection.verdict, "", ""
    else:
        # whatever the handshake showed is worth nothing once the host has taken it back
        end = obstructed.failed.outcome
        verdict, cause, problem = None, end.cause, "" if end.cause else str(end.reply)
    return HostReport(
        host=host,
        names=tuple(names),
        ca=strict.tls_ca or "",
        problem=problem,
        observed=Observed(connection.offered, "" if cause == "no_starttls" else cause, verdict),
        facts=connection.facts,
        judgement=judge(replace(strict, tls_verify="host"), verdict, names) if verdict is not None else None,
        chain=chain,
    )


class _Nobody:
    """Nothing is sent."""

    def sent(self, connection: Connection, sent: Sent) -> None: ...
    def free(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...
