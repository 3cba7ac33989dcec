"""What holds for mail that leaves: bindings, domains, hosts, gateways, and what is demanded of TLS. Pure.

Settings are one object for all that the same stanzas rule, and are kept by name, so that asking for each message is
cheap.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

from quillon.config.cache import Cache
from quillon.config.contracts import Contract, Contracts
from quillon.config.options import Option
from quillon.config.routes import split_gateway
from quillon.config.scope import Entry, Node, Resolution, ancestors, outbound_chain, resolve
from quillon.config.settings import DeliverySettings, OutboundTls, build
from quillon.config.tree import Tree, for_every_tls
from quillon.config.values import Throttle
from quillon.mail.message import Message, TlsDemand

T = TypeVar("T")
DEMANDS = (
    "tls",
    "tls_verify",
    "tls_ifavailable_fallback",
    "tls_ca",
    "use_dane",
    "use_mta_sts",
    "tls_names",
    "tls_spki",
    "tls_protocols",
)  # what a TlsDemand has, in its order


@dataclass(frozen=True, slots=True)
class Routing:
    """`domain` is a routing domain, or a gateway as host or host:port; `via` the domain whose stanza rules TLS, and
    whether mail goes at all."""

    domain: str
    via: str = ""


# options by which TLS of a delivery is ruled: those that OutboundTls has
_TLS_OPTIONS = frozenset(one.name for one in fields(OutboundTls) if one.default is MISSING)
_CAPS = frozenset(("scope_max_outbound_connections", "server_max_outbound_connections"))
_HOST_THROTTLES = frozenset(("outbound_throttle_messages", "outbound_throttle_connections"))


class _Anywhere(NamedTuple):
    """What any stanza says: asked for each message, and the tree may be large."""

    caps_connections: bool
    reports: bool
    throttles_hosts: bool
    uses_mta_sts: bool
    first_dane: Entry | None


def _said_anywhere(root: Node) -> _Anywhere:
    caps = reports = throttles = mta_sts = False
    dane: Entry | None = None
    for node in root.walk():
        found = node.settings
        caps = caps or (node is not root and not _CAPS.isdisjoint(found))
        throttles = throttles or (node.kind == "host" and not _HOST_THROTTLES.isdisjoint(found))
        reports = reports or ("tls_enforce" in found and found["tls_enforce"].value == "report")
        mta_sts = mta_sts or ("use_mta_sts" in found and bool(found["use_mta_sts"].value))
        if dane is None and "use_dane" in found and found["use_dane"].value != "false":
            dane = found["use_dane"]
    return _Anywhere(caps, reports, throttles, mta_sts, dane)


class Reported(NamedTuple):
    """Values of TLS, TLS_Verify and TLS_Ifavailable_Fallback that are not enforced, and told of instead."""

    tls: str
    verify: str
    fallback: bool = True


def _loosened(tls: OutboundTls) -> OutboundTls:
    """What TLS_Enforce = report makes of it: no mail waits for it, and as much is found out as if it did."""
    return replace(
        tls,
        tls="ifavailable" if tls.tls == "required" else tls.tls,
        tls_ifavailable_fallback=True,
        tls_verify="optional" if tls.tls_verify in ("ca", "host") else tls.tls_verify,
    )


class Outbound:
    """The sending side of a configuration."""

    def __init__(self, tree: Tree, contracts: Contracts) -> None:
        self.tree = tree
        self.contracts = contracts
        self._outbound: Cache[tuple[str, str, str, str], tuple[DeliverySettings, OutboundTls]] = Cache()
        self._routing: Cache[tuple[str, str, str], Routing] = Cache()
        self._for_recipients: Cache[tuple[str, str, str, str], DeliverySettings] = Cache()
        self._demands: Cache[tuple[str, str, str, str], TlsDemand] = Cache()
        self._interned: Cache[tuple[Any, ...], Any] = Cache()
        self._bindings: dict[str, str] | None = None
        self._said: _Anywhere | None = None

    def _anywhere(self) -> _Anywhere:
        if self._said is None:
            self._said = _said_anywhere(self.tree.root)
        return self._said

    def bindings(self) -> dict[str, str]:
        """Every binding with its group."""
        if self._bindings is None:
            found = {"default": "default"}
            found.update((node.label, "default") for node in self.tree.root.of("binding"))
            for group in self.tree.root.of("binding_group"):
                found.update((node.label, group.label) for node in group.of("binding"))
            self._bindings = found
        return self._bindings

    def has_binding(self, group: str, binding: str) -> bool:
        """Whether there is this binding in this group."""
        return self.bindings().get(binding) == group

    def routing(self, group: str, binding: str, domain: str) -> Routing:
        """Where mail for a recipient's domain goes: the domain itself, or the gateway of its stanzas.

        A gateway's own name rules its options (manual, gateway page). TLS that the recipient's own Domain stanza asks
        for holds all the same, for to drop it without a word would send in clear what was to be enforced.
        """
        key = (group, binding, domain)
        found = self._routing.get(key)
        if found is None:
            chain = outbound_chain(self.tree.root, group, binding, lookup_name(domain))
            gateway = resolve(self.tree.table.options["gateway"], chain, self.tree.folder).value
            found = Routing(domain)
            if gateway is not None:
                host, port = gateway
                literal = f"[{host}]" if ":" in host else host
                own = [node for node in chain if node.kind == "domain" and not _TLS_OPTIONS.isdisjoint(node.settings)]
                own += [node for node in chain if node.kind == "domain" and "suspend_delivery" in node.settings]
                ruled = own or self.contract(domain) is not None
                found = Routing(f"{literal}:{port}" if port else literal, domain if ruled else "")
            self._routing[key] = found
        return found

    def way(self, group: str, binding: str, routed: str, recipient: str) -> Routing:
        """Where a message goes: by its recipient's domain, or one that policy has `routed` it to, which takes it out of
        no contract of the recipient's."""
        found = self.routing(group, binding, routed or recipient)
        if not routed or lookup_name(routed) == lookup_name(recipient) or self.contract(recipient) is None:
            return found
        return Routing(found.domain, recipient)

    def delivery(self, group: str, binding: str, domain: str, via: str = "") -> tuple[DeliverySettings, OutboundTls]:
        """Settings of delivery from a binding to a routing domain, which may be a gateway with its port."""
        key = (group, binding, domain, via)
        found = self._outbound.get(key)
        if found is None:
            name = lookup_name(domain)
            chain = outbound_chain(self.tree.root, group, binding, name)
            secure = outbound_chain(self.tree.root, group, binding, name, lookup_name(via))
            settings = self._same(DeliverySettings, chain)
            if via and resolve(self.tree.table.options["suspend_delivery"], secure, self.tree.folder).value:
                settings = self._same(
                    DeliverySettings, chain, secure, make=lambda: replace(settings, suspend_delivery=True)
                )
            found = (settings, self._agreed(self._same(OutboundTls, secure), secure, domain, via))
            self._outbound[key] = found
        return found

    def contract(self, domain: str, via: str = "") -> Contract | None:
        """The contract that rules TLS to a routing domain, if there is one: that of the recipient's own domain, which
        others take mail for, that of theirs, or both together."""
        own = self.contracts.outbound_of(lookup_name(via)) if via else None
        found = self.contracts.outbound_of(lookup_name(domain))
        return own.with_other(found) if own is not None and found is not None and own != found else own or found

    def reported(self, group: str, binding: str, domain: str, via: str = "") -> Reported | None:
        """What is not enforced and told instead; None where all is enforced. Arguments as of `delivery`."""
        if self.delivery(group, binding, domain, via)[1].tls_enforce != "report":
            return None
        chain = outbound_chain(self.tree.root, group, binding, lookup_name(domain), lookup_name(via))
        written = self._same(OutboundTls, chain)
        return Reported(written.tls, written.tls_verify, written.tls_ifavailable_fallback)

    def _agreed(self, tls: OutboundTls, chain: list[Node], domain: str, via: str) -> OutboundTls:
        contract = self.contract(domain, via)
        if tls.tls_enforce == "report":
            tls = self._same(OutboundTls, chain, [], make=lambda: _loosened(tls))
        if contract is None:
            return tls
        return self._same(OutboundTls, chain, [self.contracts.node(contract)], make=lambda: contract.on(tls))

    def for_recipient(self, group: str, binding: str, domain: str, recipient: str) -> DeliverySettings:
        """What rules a message by itself on its way to a routing domain: retries, expiry, bounces and the like. Behind
        a gateway these are options of the recipient's own domain, unless the gateway's stanza has them."""
        if not recipient or recipient == domain:
            return self.delivery(group, binding, domain)[0]
        key = (group, binding, domain, recipient)
        found = self._for_recipients.get(key)
        if found is None:
            chain = outbound_chain(self.tree.root, group, binding, lookup_name(domain))
            own = outbound_chain(self.tree.root, group, binding, lookup_name(domain), lookup_name(recipient))
            options, folder = self.tree.table.options, self.tree.folder

            def value(name: str) -> Any:
                return resolve(options[name], own if options[name].gateway else chain, folder).value

            found = self._same(DeliverySettings, chain, own, [], make=lambda: build(DeliverySettings, value))
            self._for_recipients[key] = found
        return found

    def for_message(self, message: Message) -> DeliverySettings:
        """What rules a message by itself, whichever gateway takes it."""
        group, binding = message.binding_group, message.binding
        return self.for_recipient(group, binding, message.destination, message.wanted_domain)

    def _same(self, cls: type[T], *chains: list[Node], make: Callable[[], T] | None = None) -> T:
        """Settings by the stanzas that rule them: one object for all that the same stanzas rule."""
        key = (cls, *(tuple(map(id, chain)) for chain in chains))
        found: T | None = self._interned.get(key)
        if found is None:
            found = make() if make is not None else self.tree.build(cls, chains[0])
            self._interned[key] = found
        return found

    def demand(self, group: str, binding: str, domain: str, via: str = "") -> TlsDemand:
        """What is demanded of delivery, and where that is written; arguments as of `delivery`."""
        key = (group, binding, domain, via)
        found = self._demands.get(key)
        if found is None:
            chain = outbound_chain(self.tree.root, group, binding, lookup_name(domain), lookup_name(via))
            contract = self.contract(domain, via)
            agreed = [self.contracts.node(contract)] if contract is not None else []
            found = self._same(TlsDemand, chain, agreed, make=lambda: self._demand(chain, contract))
            self._demands[key] = found
        return found

    def _demand(self, chain: list[Node], contract: Contract | None) -> TlsDemand:
        tls = self.tree.build(OutboundTls, chain)
        values = [self._with(contract, name, chain, tls) for name in DEMANDS]
        scopes = tuple(one.node.path if one.node is not None else "" for one in values)
        places = tuple(str(one.entry.position) if one.entry is not None else "" for one in values)
        tls, verify, fallback, ca, dane, sts, *more = (one.value for one in values)
        known = [" ".join(sorted(one or ())) for one in more]
        return TlsDemand(tls, verify, fallback, ca or "", scopes, places, dane, sts, *known)

    def _with(self, contract: Contract | None, name: str, chain: list[Node], tls: OutboundTls) -> Resolution:
        """An option along a chain, under a contract; `tls` is what the chain says without it."""
        found = resolve(self.tree.table.options[name], chain, self.tree.folder)
        if name not in _TLS_OPTIONS or (contract is None and tls.tls_enforce == "enforce"):
            return found
        loose = _loosened(tls) if tls.tls_enforce == "report" else tls
        agreed = contract.on(loose) if contract is not None else loose
        if getattr(agreed, name) == found.value:
            return found
        if contract is not None and getattr(agreed, name) != getattr(loose, name):
            node, entry = (
                self.contracts.node(contract),
                self.contracts.entry(self.contracts.node(contract), name, agreed),
            )
        else:
            why = resolve(self.tree.table.options["tls_enforce"], chain, self.tree.folder)
            assert why.node is not None, "the default is to enforce"
            assert why.entry is not None
            node, entry = why.node, replace(why.entry, value=getattr(agreed, name), text=str(getattr(agreed, name)))
        beaten = (
            found.beaten if found.node is None or found.entry is None else ((found.node, found.entry), *found.beaten)
        )
        return Resolution(found.option, entry.value, node, entry, beaten)

    def option(self, option: str, group: str, binding: str, domain: str) -> Resolution:
        """One outbound option with its provenance; a throttle belongs to the stanza that sets it."""
        chain = outbound_chain(self.tree.root, group, binding, lookup_name(domain))
        return resolve(self.tree.table.options[option], chain, self.tree.folder)

    @property
    def connections_in_all(self) -> int:
        """Scope_Max_Outbound_Connections in the global scope, where it is as Server_Max_Outbound_Connections; 0 for
        none."""
        entry = self.tree.root.settings.get("scope_max_outbound_connections")
        return int(entry.value) if entry is not None else 0

    def connection_caps(self, group: str, binding: str, domain: str) -> tuple[tuple[str, int], ...]:
        """Limits of connections that a destination shares with others, each with the words that name it: of the
        narrowest scope that sets Scope_Max_Outbound_Connections, summed over all that it rules (manual, page of that
        option), and Server_Max_Outbound_Connections of its binding. What the whole server may have is not among
        them."""
        if not self._anywhere().caps_connections:
            return ()
        chain = outbound_chain(self.tree.root, group, binding, lookup_name(domain))[:-1]
        found = []
        for node in chain:
            if "scope_max_outbound_connections" in node.settings:
                limit = int(node.settings["scope_max_outbound_connections"].value)
                found += [(f"Scope_Max_Outbound_Connections of {node.path}", limit)] if limit > 0 else []
                break
        for node in chain:
            if node.kind in ("binding", "binding_group") and "server_max_outbound_connections" in node.settings:
                limit = int(node.settings["server_max_outbound_connections"].value)
                name = f'Server_Max_Outbound_Connections of Binding "{binding}"'
                found += [(f'Binding_Group "{group}" > {name}', limit)] if limit > 0 else []
                break
        return tuple(found)

    @property
    def any_reported(self) -> bool:
        """Whether any stanza says TLS_Enforce = report."""
        return self._anywhere().reports

    @property
    def throttles_hosts(self) -> bool:
        """Whether any Host stanza has a throttle."""
        return self._anywhere().throttles_hosts

    def host_throttle(self, option: str, group: str, binding: str, host: str) -> tuple[Throttle, Node] | None:
        """The throttle of a Host stanza, and that stanza, whose counter all share who fall back to it (manual,
        outbound_throttle_messages): a Host of the binding in its group, of the group, of the binding, of all."""
        group_node = self.tree.root.get("binding_group", group)
        inner = group_node.get("binding", binding) if group_node is not None else None
        for container in (inner, group_node, self.tree.root.get("binding", binding), self.tree.root):
            for node in container.matching("host", host) if container is not None else ():
                if option in node.settings:
                    throttle = node.settings[option].value
                    return (throttle, node) if throttle is not None and throttle.count else None
        return None

    @property
    def uses_mta_sts(self) -> bool:
        """Whether use_mta_sts is set anywhere."""
        return self._anywhere().uses_mta_sts

    @property
    def first_with_dane(self) -> Entry | None:
        """The first use_dane that is not false, as it is written; None where there is none."""
        return self._anywhere().first_dane

    def host_connections(self, host: str) -> int:
        """Max_Outbound_Connections or Scope_Max_Outbound_Connections of a Host stanza, whichever is less; -1 where
        there is none: that scope does not fall back."""
        options = ("max_outbound_connections", "scope_max_outbound_connections")
        for node in self.tree.root.matching("host", host):
            found = [int(node.settings[option].value) for option in options if option in node.settings]
            if found:
                return min((limit for limit in found if limit > 0), default=-1)
        return -1

    def stanzas(self) -> list[tuple[Node, OutboundTls]]:
        """The global scope and every binding, group and Domain with the TLS that it rules on its own."""
        found = []
        for node in self.tree.root.walk():
            if node.kind in ("global", "binding", "binding_group", "domain"):
                found.append((node, self.tree.build(OutboundTls, ancestors(node))))
        return found

    def explain(self, group: str, binding: str, domain: str) -> list[Resolution]:
        """Every outbound option for mail to a recipient's domain, with where its value came from."""
        routing = self.routing(group, binding, domain)
        first = outbound_chain(self.tree.root, group, binding, lookup_name(domain))
        name = lookup_name(routing.domain)
        chain = outbound_chain(self.tree.root, group, binding, name)
        secure = outbound_chain(self.tree.root, group, binding, name, lookup_name(routing.via))
        rows = [o for o in self.tree.table.options.values() if {"domain", "binding"} & o.scopes or for_every_tls(o)]
        own = (
            chain
            if lookup_name(domain) == name
            else outbound_chain(self.tree.root, group, binding, name, lookup_name(domain))
        )
        chains = {"gateway": first, "opendkim_sign": first}

        def chain_of(option: Option) -> list[Node]:
            return secure if option.name in _TLS_OPTIONS else chains.get(option.name, own if option.gateway else chain)

        contract, tls = self.contract(routing.domain, routing.via), self.tree.build(OutboundTls, secure)
        return [self._with(contract, option.name, chain_of(option), tls) for option in rows]


def lookup_name(domain: str) -> str:
    """The name by which Domain stanzas are found: without port, brackets, `IPv6:` or a trailing dot. Whatever it is
    given, it raises nothing: a spool and a policy may hold names that are none."""
    name = split_gateway(domain.lower())[0].removesuffix(".").strip("[]").removeprefix("ipv6:")
    if ":" in name:
        try:
            return str(ipaddress.ip_address(name))
        except ValueError:
            return name
    return name
