"""What is demanded of each host of a domain, for people: found as a delivery finds it, and sent nothing. Shell.

`as_row` is what `explain --json` and the console have; `control/demands.py` makes text of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from quillon.config.model import Config
from quillon.config.outbound import lookup_name
from quillon.config.settings import DeliverySettings
from quillon.delivery.demand import Demand, Published, Refused
from quillon.delivery.hosts import HostFinder
from quillon.delivery.route import Host
from quillon.delivery.standards import Standards
from quillon.delivery.tls_policy import certificate_names
from quillon.standards.sts_policies import StsFound

Row = dict[str, Any]


class Survey(NamedTuple):
    """`problem` says why there are no hosts, or why none of them may be used; `sts` is None where no policy is looked
    for."""

    domain: str
    problem: str = ""
    sts: StsFound | None = None
    hosts: tuple[tuple[Host, Demand | Refused], ...] = ()


async def survey(
    config: Config, group: str, binding: str, recipient: str, finder: HostFinder, standards: Standards
) -> Survey:
    """What holds for mail from a binding to a recipient's domain."""
    routing = config.outbound.routing(group, binding, recipient)
    settings, _ = config.outbound.delivery(group, binding, routing.domain, routing.via)
    found = await finder.find(routing.domain, settings)
    if not isinstance(found, list):
        return Survey(routing.domain, str(found.reply))
    return await of_hosts(config, group, binding, recipient, found, settings, standards)


async def of_hosts(
    config: Config,
    group: str,
    binding: str,
    recipient: str,
    hosts: list[Host],
    settings: DeliverySettings,
    standards: Standards,
) -> Survey:
    """The same for hosts that are known."""
    routing = config.outbound.routing(group, binding, recipient)
    _, tls = config.outbound.delivery(group, binding, routing.domain, routing.via)
    domain = routing.domain
    published = await standards.of_domain(domain, settings, routed=domain != recipient.lower())
    problem = ""
    if not isinstance(published, Published):
        problem, published = str(published.reply), Published()
    rows = []
    for host in hosts:
        names = certificate_names(tls, host.name, domain, routing.via)
        rows.append((host, await standards.of_host(host, names, tls, lookup_name(domain), published)))
    return Survey(domain, problem, await standards.sts(domain, settings), tuple(rows))


def as_row(found: Survey) -> Row:
    """With stable names, for machines."""
    row: Row = {"domain": found.domain, "problem": found.problem}
    if found.sts is not None:
        row["mta_sts"] = sts_row(found.sts)
    return {**row, "hosts": [host_row(host, demand) for host, demand in found.hosts]}


def sts_row(found: StsFound) -> Row:
    """A policy of MTA-STS, or that there is none, and what went wrong on the way."""
    row: Row = {"result": found.result, "detail": found.detail, "txt_ttl": found.ttl, "policy": None}
    if found.policy is not None:
        policy = found.policy
        shown = {"id": policy.id, "mode": policy.mode, "mx": list(policy.mx), "max_age": policy.max_age}
        row["policy"] = {**shown, "fetched": policy.fetched, "expires": policy.expires}
    return row


def host_row(host: Host, demand: Demand | Refused) -> Row:
    """One host, with what it has to prove, or why it gets nothing."""
    row: Row = {"host": host.name, "ip": host.ip, "port": host.port, "dnssec": bool(host.bases)}
    if isinstance(demand, Refused):
        return {**row, "refused": str(demand.reply), "cause": demand.cause, "reasons": []}
    return {
        **row,
        "refused": "",
        "tls": demand.tls.tls,
        "tls_verify": demand.tls.tls_verify,
        "standard": demand.standard,
        "names": list(demand.tlsa_names if demand.tlsa else demand.names),
        "tlsa": [str(record) for record in demand.tlsa],
        "reasons": list(demand.reasons),
    }
