"""What holds for sessions that clients open: Listens, Peers and pathways. Pure.

Settings are kept by the set of stanzas that match, so that asking for each connection is cheap.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from quillon.config.cache import Cache
from quillon.config.endpoint import parse_endpoint
from quillon.config.scope import (
    IPAddress,
    Node,
    Resolution,
    ancestors,
    inbound_chain,
    matching_peers,
    pathway_nodes,
    resolve,
)
from quillon.config.settings import HttpListen, InboundTls, ListenSettings, OidcProvider, ReceptionSettings, TlsIdentity
from quillon.config.tree import Tree, for_every_tls


class Inbound:
    """The receiving side of a configuration."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._http: dict[int, ReceptionSettings] = {}
        self._inbound: dict[tuple[int, ...], tuple[ReceptionSettings, InboundTls]] = {}
        self._pathway_groups: dict[str, str] | None = None  # the first group of each pathway
        self._clients: Cache[tuple[int, IPAddress], tuple[ReceptionSettings, InboundTls]] = Cache()

    def listen_nodes(self) -> list[Node]:
        """Every Listen of an ESMTP listener that is enabled."""
        listener = self.tree.root.get("esmtp_listener")
        return [node for node in listener.of("listen") if self.tree.listens(node)] if listener is not None else []

    def listens(self) -> list[ListenSettings]:
        found = []
        for node in self.listen_nodes():
            chain = [node, node.parent] if node.parent else [node]
            backlog = resolve(self.tree.table.options["listen_backlog"], chain, self.tree.folder).value
            mode = resolve(self.tree.table.options["file_mode"], chain, self.tree.folder).value
            found.append(ListenSettings(node.label, *parse_endpoint(node.label), backlog, mode))
        return found

    def http_nodes(self) -> list[Node]:
        """Every Listen of an HTTP_Listener that is enabled."""
        listener = self.tree.root.get("http_listener")
        return [node for node in listener.of("listen") if self.tree.listens(node)] if listener is not None else []

    def http_listens(self) -> list[HttpListen]:
        """What listens for HTTP, and by what a client proves who it is."""
        found = []
        for node in self.http_nodes():
            chain = [node, *ancestors(node)]

            def value(name: str, chain: list[Node] = chain) -> Any:
                return resolve(self.tree.table.options[name], chain, self.tree.folder).value

            listen = ListenSettings(
                node.label, *parse_endpoint(node.label), value("listen_backlog"), value("file_mode")
            )
            certificate = value("tls_certificate")
            users = {key.lower(): text for key, text in (value("authplainparameters") or {}).items()}
            found.append(
                HttpListen(
                    listen,
                    value("tls_certificate"),
                    value("tls_key"),
                    value("tls_client_ca") if certificate else None,
                    value("tls_verified_peer_is_authorized"),
                    users.get("uri"),
                    value("well_known"),
                    self._oidc(value("oidcparameters")),
                )
            )
        return found

    def _oidc(self, given: Mapping[str, str] | None) -> OidcProvider | None:
        """The OpenID provider of a Listen; what is wrong with it is found by the checks, and holds nobody up here."""
        if not given:
            return None
        known = {key.lower(): text for key, text in given.items() if key.lower() in OidcProvider._fields}
        for name in ("secret_file", "ca"):
            if known.get(name) and not known[name].startswith("/"):
                known[name] = f"{self.tree.folder}/{known[name]}"
        empty = dict.fromkeys(("issuer", "client_id", "secret_file", "url"), "")
        return OidcProvider(**{**empty, **known})

    def http(self, name: str) -> ReceptionSettings:
        """What holds for messages that come by HTTP. Raises KeyError for a Listen that the configuration does not
        have."""
        node = next((node for node in self.http_nodes() if node.label == name), None)
        if node is None:
            raise KeyError(name)
        found = self._http.get(id(node))
        if found is None:
            found = self._http[id(node)] = self.tree.build(ReceptionSettings, [node, *ancestors(node)])
        return found

    def listen_node(self, name: str) -> Node | None:
        listener = self.tree.root.get("esmtp_listener")
        return listener.get("listen", name if name.startswith("/") else name.lower()) if listener else None

    def reception(self, listen: str, client: IPAddress) -> tuple[ReceptionSettings, InboundTls]:
        """Settings of a session. Raises KeyError for a Listen that the configuration does not have."""
        node = self.listen_node(listen)
        if node is None:
            raise KeyError(listen)
        known = self._clients.get((id(node), client))
        if known is not None:
            return known
        listener = node.parent
        assert listener is not None
        peers = matching_peers(node, client) + matching_peers(listener, client)
        key = (id(node), *map(id, peers))
        found = self._inbound.get(key)
        if found is None:
            chain = inbound_chain(self.tree.root, self.tree.table, node, client)
            found = self._inbound[key] = (
                self.tree.build(ReceptionSettings, chain),
                self._inbound_tls(chain),
            )
        self._clients[(id(node), client)] = found
        return found

    def reception_by_pathway(
        self, listen: str, client: IPAddress, pathway: str
    ) -> tuple[ReceptionSettings, InboundTls]:
        """Settings of a session whose pathway a policy has chosen anew."""
        node = self.listen_node(listen)
        if node is None or node.parent is None:
            raise KeyError(listen)
        chain = matching_peers(node, client) + matching_peers(node.parent, client) + [node, node.parent]
        chain += [*pathway_nodes(self.tree.root, pathway), self.tree.root]
        return self.tree.build(ReceptionSettings, chain), self._inbound_tls(chain)

    def _inbound_tls(self, chain: Iterable[Node]) -> InboundTls:
        nodes = list(chain)
        return replace(self.tree.build(InboundTls, nodes), tls_identities=_identities(nodes))

    def identity_nodes(self, listen: Node, client: IPAddress) -> list[Node]:
        """The TLS_Identity stanzas of a Listen, of each name the one that holds."""
        found: dict[str, Node] = {}
        for node in inbound_chain(self.tree.root, self.tree.table, listen, client):
            for stanza in node.of("tls_identity"):
                found.setdefault(stanza.label, stanza)
        return list(found.values())

    def stanzas(self) -> list[tuple[Node, InboundTls]]:
        """Every Listen, and every Peer of one, with its TLS."""
        found = []
        for listen in self.listen_nodes():
            peers = [*listen.of("peer"), *(listen.parent.of("peer") if listen.parent else ())]
            anybody = ipaddress.ip_address("0.0.0.0")  # noqa: S104 - an address that no Peer is likely to hold
            found.append((listen, self.reception(listen.label, anybody)[1]))
            for peer in peers:
                client = ipaddress.ip_network(peer.label).network_address
                found.append((peer, self.reception(listen.label, client)[1]))
        return found

    def pathway_group(self, pathway: str) -> str:
        """The pathway group that holds a pathway, or `default`."""
        if self._pathway_groups is None:  # asked for each message, and the tree may be large
            self._pathway_groups = {}
            for group in self.tree.root.of("pathway_group"):
                for one in group.of("pathway"):
                    self._pathway_groups.setdefault(one.label, group.label)
        return self._pathway_groups.get(pathway, "default")

    def explain(self, listen: Node, client: IPAddress) -> list[Resolution]:
        """Every inbound option with its value and where it came from."""
        chain = inbound_chain(self.tree.root, self.tree.table, listen, client)
        rows = [o for o in self.tree.table.options.values() if {"listen", "pathway"} & o.scopes or for_every_tls(o)]
        return [resolve(option, chain, self.tree.folder) for option in rows]


def _identities(chain: Iterable[Node]) -> tuple[TlsIdentity, ...]:
    """The TLS_Identity stanzas of a chain by name; the narrower stanza's wins."""
    found: dict[str, TlsIdentity] = {}
    for node in chain:
        for stanza in node.of("tls_identity"):
            certificates = stanza.settings["tls_certificate"].value if "tls_certificate" in stanza.settings else ()
            keys = stanza.settings["tls_key"].value if "tls_key" in stanza.settings else ()
            pairs = tuple(zip_longest(certificates, keys[: len(certificates)], fillvalue=""))
            found.setdefault(stanza.label, TlsIdentity(stanza.label, pairs))
    return tuple(found.values())
