"""What is wrong with TLS contracts, and with TLS that is reported only: demands that nothing can meet."""

from __future__ import annotations

from collections.abc import Iterator

from quillon.config.contracts import SYSTEM_TRUST, Contract
from quillon.config.model import Config
from quillon.config.scope import Node, ancestors, resolve
from quillon.config.settings import InboundTls
from quillon.config.syntax import Fault, Position
from quillon.mail.address import is_domain


def check_contracts(config: Config, faults: list[Fault]) -> None:
    """Every such fault."""
    for contract in config.contracts.all():
        node = config.contracts.node(contract)
        _check_terms(contract, node, faults)
        if contract.inbound:
            _check_inbound(config, contract, node, faults)
        if contract.outbound:
            _check_outbound(config, contract, node, faults)
    _check_reported(config, faults)


def _place(node: Node, option: str) -> Position:
    entry = node.settings.get(option)
    return entry.position if entry is not None else node.position


def _check_terms(contract: Contract, node: Node, faults: list[Fault]) -> None:
    for name in contract.names:
        if not is_domain(name):
            text = (
                f"Names of {contract.path}: {name!r} is no host name; a certificate with a wildcard is held against one"
            )
            faults.append(Fault(_place(node, "names"), text))
    if contract.ca == SYSTEM_TRUST and contract.inbound and contract.client_certificate and not contract.names:
        text = (
            f"CA = system in {contract.path} lets any certificate speak for the domain: add Names, or a CA of its own"
        )
        if not contract.spki:
            faults.append(Fault(_place(node, "ca"), text))
    if not contract.inbound and not contract.outbound:
        text = f"{contract.path} demands nothing: Inbound and Outbound are no"
        faults.append(Fault(node.position, text, warning=True))


def _check_inbound(config: Config, contract: Contract, node: Node, faults: list[Fault]) -> None:
    """Some Listen has to offer what the partner is to use."""
    able = [tls for tls in _with_tls(config) if tls.tls_protocols & contract.versions]
    where = _place(node, "inbound")
    if not able:
        text = (
            f"{contract.path}: no Listen has TLS of {contract.min_version} or later, so that no mail could come from it"
        )
        faults.append(Fault(where, text))
    elif contract.client_certificate:
        asking = [tls for tls in able if tls.tls_verify_mode != "none"]
        if not asking:
            text = f"{contract.path}: no Listen asks for a client certificate (TLS_Verify_Mode = none)"
            faults.append(Fault(where, text))
        elif not contract.ca and not contract.by_key_alone and not any(tls.tls_client_ca for tls in asking):
            text = f"{contract.path}: without CA here, or TLS_Client_CA of a Listen, no client certificate verifies"
            faults.append(Fault(where, text))


def _with_tls(config: Config) -> Iterator[InboundTls]:
    """TLS of the Listens and Peers that have any."""
    for node, tls in config.inbound.stanzas():
        chain = ancestors(node)
        implicit, offered = (
            resolve(config.table.options[name], chain, config.folder).value for name in ("use_ssl", "smtp_extensions")
        )
        if (tls.tls_certificate or tls.tls_identities) and (implicit or "STARTTLS" in offered):
            yield tls


def _check_outbound(config: Config, contract: Contract, node: Node, faults: list[Fault]) -> None:
    """No stanza may leave TLS without a version that is agreed on."""
    for stanza, tls in config.outbound.stanzas():
        if _may_rule(stanza, contract) and not tls.tls_protocols & contract.versions:
            wanted = " or ".join(sorted(contract.versions))
            where = stanza.settings.get("tls_protocols")
            text = f"TLS_Protocols of {stanza.path} leaves nothing that {contract.path} allows: {wanted}"
            faults.append(Fault(where.position if where is not None else node.position, text))


def _may_rule(stanza: Node, contract: Contract) -> bool:
    """Whether a stanza may rule mail to a contract's domain: patterns may, whatever they match."""
    patterns = (stanza.label[:1] in ("*", "/"), contract.domain[:1] in ("*", "/"))
    return stanza.kind != "domain" or stanza.label == contract.domain or any(patterns)


def _check_reported(config: Config, faults: list[Fault]) -> None:
    for node, tls in config.outbound.stanzas():
        entry = node.settings.get("tls_enforce")
        if entry is None or entry.value != "report":
            continue
        strict = tls.tls == "required" or tls.tls_verify in ("ca", "host")
        words = f"TLS = {tls.tls}, TLS_Verify = {tls.tls_verify}"
        if strict:
            text = f"TLS_Enforce = report in {node.path}: {words} is told of in logs, and holds no mail back"
        else:
            text = f"TLS_Enforce = report in {node.path} has nothing to report: {words}"
        faults.append(Fault(entry.position, text, warning=True))
