"""TLS that two parties have agreed on: one stanza for both directions. Pure.

    TLS_Contract "bank.fi" { CA = bank-ca.pem Names = ( "mx.bank.fi" ) }

What is sent to the domain, and what comes from it, goes over TLS of a version agreed on, with a certificate of the
authority, names or keys agreed on. It is a floor: options and policies may demand more, and nothing makes it less.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from quillon.config.cache import Cache
from quillon.config.scope import Entry, Node, resolve
from quillon.config.settings import OutboundTls
from quillon.config.tree import Tree
from quillon.config.values import PROTOCOLS

KIND = "tls_contract"
SYSTEM_TRUST = "system"  # TLS_CA


class Contract(NamedTuple):
    """`domain` is its label, `path` and `place` say where it stands; `inbound` and `outbound` whether it holds in that
    direction. `ca` is a file of authorities, `names` are those of which a certificate has to bear one, `spki` SHA-256
    of keys in hexadecimal digits; none of either: as the direction itself has it. `client_certificate` tells that mail
    from the domain has to come with one."""

    domain: str
    path: str
    place: str
    inbound: bool
    outbound: bool
    ca: str | None
    names: tuple[str, ...]
    spki: tuple[str, ...]
    min_version: str
    client_certificate: bool

    @property
    def versions(self) -> frozenset[str]:
        """The protocol versions that it allows."""
        return frozenset(PROTOCOLS[PROTOCOLS.index(self.min_version) :])

    @property
    def by_key_alone(self) -> bool:
        """Whether a key is all that a certificate is known by."""
        return bool(self.spki) and not self.ca and not self.names

    def terms(self) -> str:
        """What it wants of a certificate, in words; empty for nothing."""
        wanted = [f"CA {self.ca}"] if self.ca else []
        wanted += [f"names {', '.join(self.names)}"] if self.names else []
        wanted += [f"{len(self.spki)} keys"] if self.spki else []
        return "; ".join(wanted)

    def on(self, tls: OutboundTls) -> OutboundTls:
        """TLS to the domain, where something else has been set: nothing of the contract is lost, and what is stricter
        stays."""
        if not self.outbound:
            return tls
        kept = tls.tls_verify if tls.tls_verify in ("ca", "host") else "no"
        verify = kept if self.by_key_alone else "host"
        written = tls.tls_ca if tls.tls_ca != SYSTEM_TRUST else None
        own = self.ca if self.ca != SYSTEM_TRUST else None
        return replace(
            tls,
            tls="required",
            tls_verify=verify,
            tls_ca=own or written or self.ca or tls.tls_ca or (None if self.by_key_alone else SYSTEM_TRUST),
            tls_protocols=tls.tls_protocols & self.versions,
            tls_names=self.names or tls.tls_names,
            tls_spki=self.spki or tls.tls_spki,
            tls_enforce="enforce",
            tls_agreed=True,
        )

    def with_other(self, other: Contract) -> Contract:
        """This one and another one at a time, of those that another takes mail for and of the other: a certificate has
        to be good for both."""
        return self._replace(
            ca=self.ca or other.ca,
            names=_both(self.names, other.names),
            spki=_both(self.spki, other.spki),
            min_version=max(self.min_version, other.min_version),
        )


NOBODY = "invalid"  # a name that no certificate bears (RFC 2606 2)


def _both(own: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """What is in two lists, of which an empty one says nothing."""
    if not own or not others:
        return own or others
    return tuple(one for one in own if one in others) or (NOBODY,)


class Contracts:
    """Those of a configuration."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._known: Cache[str, tuple[Contract, ...]] = Cache()
        options = tree.table.modules[KIND].options
        found = [
            (self._contract(node), node)
            for node in tree.root.of(KIND)
            if resolve(options["enabled"], [node], tree.folder).value
        ]
        self._all = [contract for contract, _ in found]
        self._nodes = {contract.path: node for contract, node in found}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._all)

    def all(self) -> list[Contract]:
        """Those that are switched on, in the order of the file."""
        return list(self._all)

    def node(self, contract: Contract) -> Node:
        """Its stanza."""
        return self._nodes[contract.path]

    def outbound_of(self, domain: str) -> Contract | None:
        """That of mail to a domain, as `lookup_name` has it: the one of its name, else the first pattern that matches,
        of those that say something of that direction."""
        return next((one for one in self._of(domain) if one.outbound), None)

    def inbound_of(self, domain: str) -> Contract | None:
        """That of mail from a domain."""
        return next((one for one in self._of(domain) if one.inbound), None)

    def _of(self, domain: str) -> tuple[Contract, ...]:
        if not self._all:
            return ()
        known = self._known.get(domain)
        if known is None:
            stanzas = self._tree.root.matching(KIND, domain) if domain else []
            by_path = {contract.path: contract for contract in self._all}
            known = tuple(by_path[node.path] for node in stanzas if node.path in by_path)
            self._known[domain] = known
        return known

    @property
    def asks_clients(self) -> bool:
        """Whether any wants a certificate of clients."""
        return any(one.inbound and one.client_certificate for one in self._all)

    def _contract(self, node: Node) -> Contract:
        options = self._tree.table.modules[KIND].options
        value = {name: resolve(option, [node], self._tree.folder).value for name, option in options.items()}
        names = tuple(name.lower() for name in value["names"] or ())
        spki = tuple(value["spki"] or ())
        known = bool(value["ca"] or names or spki)
        client = value["client_certificate"]
        return Contract(
            domain=node.label,
            path=node.path,
            place=str(node.position),
            inbound=value["inbound"] == "required",
            outbound=value["outbound"] == "required",
            ca=value["ca"] or None,
            names=names,
            spki=spki,
            min_version=value["min_version"],
            client_certificate=known if client is None else client == "true",
        )

    def entry(self, node: Node, option: str, tls: OutboundTls) -> Entry:
        """How an option of TLS that a contract sets is shown: where the contract says so, or where it stands."""
        said = {"tls": "outbound", "tls_ca": "ca", "tls_names": "names", "tls_spki": "spki"}
        written = node.settings.get({**said, "tls_protocols": "min_version"}.get(option, ""))
        value = getattr(tls, option)
        shown = " ".join(sorted(value)) if isinstance(value, (frozenset, tuple)) else str(value)
        return Entry(value, shown, written.position if written is not None else node.position)
