"""A loaded configuration: the scope tree behind questions. Pure; `load` makes it from files.

Settings are cached per set of stanzas that match, so that asking for each connection and each message is cheap.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, Generic, TypeVar

from quillon.config.options import Option, Table
from quillon.config.routes import split_gateway
from quillon.config.scope import (
    Entry,
    IPAddress,
    Node,
    Resolution,
    ancestors,
    inbound_chain,
    matching_peers,
    outbound_chain,
    pathway_nodes,
    resolve,
)
from quillon.config.settings import (
    CustomLog,
    CustomLoggerSettings,
    DatasourceSettings,
    DeliverySettings,
    InboundTls,
    ListenSettings,
    LoggerSettings,
    NodeSettings,
    OutboundTls,
    PolicySettings,
    ReceptionSettings,
    ScriptSettings,
    SecuritySettings,
    TlsIdentity,
    build,
)
from quillon.config.values import Throttle
from quillon.mail.message import Message, TlsDemand

K = TypeVar("K")
T = TypeVar("T")
MAX_SOCKET_PATH = 107  # octets, by sun_path of unix(7)
CUSTOM_STAGES = ("reception", "delivery", "transient_failure", "permanent_failure", "rejection")


@dataclass(frozen=True, slots=True)
class Routing:
    """`domain` is a routing domain, or a gateway as host or host:port; `via` the domain whose stanza rules TLS, and
    whether mail goes at all."""

    domain: str
    via: str = ""


class _Cache(Generic[K, T]):
    """Of two generations: when the younger is full, the older goes. Whoever asks for ever new names does not fill the
    memory, and what is asked for often stays."""

    SIZE = 65536

    def __init__(self) -> None:
        self._young: dict[K, T] = {}
        self._old: dict[K, T] = {}

    def get(self, key: K) -> T | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self[key] = found
        return found

    def __setitem__(self, key: K, value: T) -> None:
        if len(self._young) >= self.SIZE:
            self._young, self._old = {}, self._young
        self._young[key] = value


DEMANDS = ("tls", "tls_verify", "tls_ifavailable_fallback", "tls_ca")


@dataclass
class Config:
    """`files` are all files read, the main one first; `folder` is where relative paths start; `digest` is the SHA-256
    over the files as they were read, by which two processes know that they have read the same."""

    root: Node
    table: Table
    folder: str
    files: tuple[str, ...]
    digest: str = ""
    _inbound: dict[tuple[int, ...], tuple[ReceptionSettings, InboundTls]] = field(default_factory=dict)
    _clients: _Cache[tuple[int, IPAddress], tuple[ReceptionSettings, InboundTls]] = field(default_factory=_Cache)
    _outbound: _Cache[tuple[str, str, str, str], tuple[DeliverySettings, OutboundTls]] = field(default_factory=_Cache)
    _routing: _Cache[tuple[str, str, str], Routing] = field(default_factory=_Cache)
    _for_recipients: _Cache[tuple[str, str, str, str], DeliverySettings] = field(default_factory=_Cache)
    _demands: _Cache[tuple[str, str, str, str], TlsDemand] = field(default_factory=_Cache)
    _interned: _Cache[tuple[Any, ...], Any] = field(default_factory=_Cache)
    _bindings: dict[str, str] | None = None
    _paths: dict[str, list[Node]] | None = None

    def _build(self, cls: type[T], chain: Iterable[Node]) -> T:
        nodes = list(chain)
        return build(cls, lambda name: resolve(self.table.options[name], nodes, self.folder).value)

    @cached_property
    def _tls_options(self) -> frozenset[str]:
        """Options by which TLS of a delivery is ruled: those that `OutboundTls` has."""
        return frozenset(field.name for field in fields(OutboundTls))

    def _same(self, cls: type[T], *chains: list[Node], make: Callable[[], T] | None = None) -> T:
        """Settings by the stanzas that rule them: one object for all that the same stanzas rule."""
        key = (cls, *(tuple(map(id, chain)) for chain in chains))
        found: T | None = self._interned.get(key)
        if found is None:
            found = make() if make is not None else self._build(cls, chains[0])
            self._interned[key] = found
        return found

    def _inbound_tls(self, chain: Iterable[Node]) -> InboundTls:
        nodes = list(chain)
        return replace(self._build(InboundTls, nodes), tls_identities=_identities(nodes))

    # whole node -----------------------------------------------------------------------------------------------

    def node(self) -> NodeSettings:
        return self._build(NodeSettings, [self.root])

    def security(self) -> SecuritySettings:
        node = self.root.get("security")
        return self._build(SecuritySettings, [node] if node else [])

    def loggers(self) -> list[LoggerSettings]:
        """One per enabled ec_logger stanza."""
        options = self.table.modules["ec_logger"].options
        found = [
            build(LoggerSettings, lambda name, n=node: resolve(options[name], [n], self.folder).value)  # type: ignore[misc]
            for node in self.root.of("ec_logger")
        ]
        return [logger for logger in found if logger.enabled]

    def enabled(self, node: Node) -> bool:
        """Whether a module stanza is switched on."""
        return bool(resolve(self.table.modules[node.kind].options["enabled"], [node], self.folder).value)

    def in_force(self, node: Node) -> bool:
        """Whether a stanza and the modules that hold it are switched on, and the listener if there is one."""
        chain = ancestors(node)
        listener = next((n for n in chain if n.kind in ("listen", "esmtp_listener", "control_listener")), None)
        if listener is not None and not self._listens(listener):
            return False
        modules = self.table.modules
        return all(self.enabled(n) for n in chain if n.kind in modules and "enabled" in modules[n.kind].options)

    def _listens(self, node: Node) -> bool:
        """Whether a Listen is switched on, by itself or by its listener; a listener is where one of its Listens is."""
        if bool(resolve(self.table.options["enable"], ancestors(node), self.folder).value):
            return True
        return any(self._listens(listen) for listen in node.of("listen"))

    def custom_loggers(self) -> list[CustomLoggerSettings]:
        """One per enabled custom_logger stanza that logs something."""
        found = [self.custom_logger(node) for node in self.root.of("custom_logger") if self.enabled(node)]
        return [logger for logger in found if logger.logs]

    def custom_logger(self, node: Node) -> CustomLoggerSettings:
        """A custom_logger stanza; a stage is logged if it has a format and is not switched off."""
        options = self.table.modules["custom_logger"].options
        value = {name: resolve(option, [node], self.folder).value for name, option in options.items()}
        logs = tuple(
            CustomLog(
                stage,
                value[f"{stage}_format"],
                value[f"{stage}_logfile"] or value["mainlog"],
                value[f"{stage}_log_mode"],
            )
            for stage in CUSTOM_STAGES
            if value[f"{stage}_format"] and value[log_switch(stage)] is not False
        )
        return CustomLoggerSettings(logs, _comma_separated(value["namespace"]), _comma_separated(value["sanitize"]))

    def control_sockets(self) -> list[ListenSettings]:
        """The sockets of Control_Listener, which the console talks to."""
        listener = self.root.get("control_listener")
        found = []
        for node in listener.of("listen") if listener is not None else ():
            if not self._listens(node):
                continue
            mode = resolve(
                self.table.options["file_mode"], [node, *([listener] if listener else [])], self.folder
            ).value
            found.append(ListenSettings(node.label, *parse_endpoint(node.label), 16, mode))
        return found

    def scripts(self) -> ScriptSettings | None:
        """The scriptlet stanza, if there is one."""
        options = self.table.modules["scriptlet"].options
        for node in self.root.of("scriptlet"):
            scripts = tuple((s.label, s.settings["source"].value) for s in node.of("script") if "source" in s.settings)
            values = {
                n: resolve(options[n], [node], self.folder).value
                for n in ("gc_pause", "gc_stepmul", "enabled", "cpu_limit", "memory_limit")
            }
            return ScriptSettings(scripts, **values)
        return None

    def policies(self) -> list[PolicySettings]:
        """The policy stanzas in the order of the file."""
        options = self.table.modules["policy"].options
        found = []
        for node in self.root.of("policy"):
            values = {n: resolve(options[n], [node], self.folder).value for n in ("module", "enabled", "cpu_limit")}
            found.append(PolicySettings(node.label, **values))
        return found

    def module_nodes(self, kind: str) -> list[Node]:
        """The enabled stanzas of a module, in the order of the file."""
        return [node for node in self.root.of(kind) if self.enabled(node)]

    def module_values(self, node: Node) -> dict[str, Any]:
        """Every option of a module's stanza."""
        options = self.table.modules[node.kind].options
        return {name: resolve(option, [node], self.folder).value for name, option in options.items()}

    def datasources(self) -> list[DatasourceSettings]:
        """The datasource stanzas."""
        options = self.table.modules["datasource"].options
        names = ("uri", "cache_life", "cache_size", "max_rows", "no_cache")
        return [
            DatasourceSettings(node.label, *(resolve(options[n], [node], self.folder).value for n in names))
            for node in self.root.of("datasource")
        ]

    def curfew(self) -> tuple[str, Entry] | None:
        """Time zone and entry of the schedule of quiet hours, if there is one."""
        options = self.table.modules["curfew"].options
        for node in self.root.of("curfew"):
            entry = node.settings.get("schedule_file")
            if entry is not None and entry.value and self.enabled(node):
                return str(resolve(options["timezone"], [node], self.folder).value), entry
        return None

    def monitors(self) -> list[tuple[int, int]]:
        """The windows of inbound_audit, as seconds and number. Raises ValueError."""
        found = []
        for node in self.root.of("inbound_audit"):
            entry = node.settings.get("monitors")
            for text in entry.value if entry is not None and self.enabled(node) else ():
                seconds, comma, number = text.replace(" ", "").partition(",")
                if (
                    not comma
                    or not re.fullmatch("[0-9]{1,9}", seconds)
                    or not re.fullmatch("[0-9]{1,9}", number)
                    or not int(seconds)
                    or not int(number)
                ):
                    raise ValueError(f'{text!r} is no monitor: write "seconds,number of windows"')
                found.append((int(seconds), int(number)))
        return found

    def group_members(self, group: str) -> list[str]:
        """Bindings of a group, in the order of the file."""
        node = self.root.get("binding_group", group)
        return [binding.label for binding in node.of("binding")] if node is not None else []

    # reception ------------------------------------------------------------------------------------------------

    def listen_nodes(self) -> list[Node]:
        """Every Listen of an ESMTP listener that is enabled."""
        listener = self.root.get("esmtp_listener")
        return [node for node in listener.of("listen") if self._listens(node)] if listener is not None else []

    def listens(self) -> list[ListenSettings]:
        found = []
        for node in self.listen_nodes():
            chain = [node, node.parent] if node.parent else [node]
            backlog = resolve(self.table.options["listen_backlog"], chain, self.folder).value
            mode = resolve(self.table.options["file_mode"], chain, self.folder).value
            found.append(ListenSettings(node.label, *parse_endpoint(node.label), backlog, mode))
        return found

    def listen_node(self, name: str) -> Node | None:
        listener = self.root.get("esmtp_listener")
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
            chain = inbound_chain(self.root, self.table, node, client)
            found = self._inbound[key] = (
                self._build(ReceptionSettings, chain),
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
        chain += [*pathway_nodes(self.root, pathway), self.root]
        return self._build(ReceptionSettings, chain), self._inbound_tls(chain)

    def identity_nodes(self, listen: Node, client: IPAddress) -> list[Node]:
        """The TLS_Identity stanzas of a Listen, of each name the one that holds."""
        found: dict[str, Node] = {}
        for node in inbound_chain(self.root, self.table, listen, client):
            for stanza in node.of("tls_identity"):
                found.setdefault(stanza.label, stanza)
        return list(found.values())

    def inbound_stanzas(self) -> list[tuple[Node, InboundTls]]:
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

    def outbound_stanzas(self) -> list[tuple[Node, OutboundTls]]:
        """The global scope and every binding, group and Domain with the TLS that it rules on its own."""
        found = []
        for node in self.root.walk():
            if node.kind in ("global", "binding", "binding_group", "domain"):
                found.append((node, self._build(OutboundTls, ancestors(node))))
        return found

    def pathway_group(self, pathway: str) -> str:
        """The pathway group that holds a pathway, or `default`."""
        for group in self.root.of("pathway_group"):
            if group.get("pathway", pathway) is not None:
                return group.label
        return "default"

    # delivery -------------------------------------------------------------------------------------------------

    def bindings(self) -> dict[str, str]:
        """Every binding with its group."""
        if self._bindings is None:
            found = {"default": "default"}
            found.update((node.label, "default") for node in self.root.of("binding"))
            for group in self.root.of("binding_group"):
                found.update((node.label, group.label) for node in group.of("binding"))
            self._bindings = found
        return self._bindings

    def has_binding(self, group: str, binding: str) -> bool:
        """Whether there is this binding in this group."""
        return self.bindings().get(binding) == group

    def at_path(self, path: str) -> list[Node]:
        """The stanzas that `Node.path` names so."""
        if self._paths is None:
            self._paths = {}
            for node in self.root.walk():
                self._paths.setdefault(node.path, []).append(node)
        return self._paths.get(path, [])

    def routing(self, group: str, binding: str, domain: str) -> Routing:
        """Where mail for a recipient's domain goes: the domain itself, or the gateway of its stanzas.

        A gateway's own name rules its options (manual, gateway page). TLS that the recipient's own Domain stanza asks
        for holds all the same, for to drop it without a word would send in clear what was to be enforced.
        """
        key = (group, binding, domain)
        found = self._routing.get(key)
        if found is None:
            chain = outbound_chain(self.root, group, binding, lookup_name(domain))
            gateway = resolve(self.table.options["gateway"], chain, self.folder).value
            found = Routing(domain)
            if gateway is not None:
                host, port = gateway
                literal = f"[{host}]" if ":" in host else host
                own = [node for node in chain if node.kind == "domain" and self._tls_options & node.settings.keys()]
                own += [node for node in chain if node.kind == "domain" and "suspend_delivery" in node.settings]
                found = Routing(f"{literal}:{port}" if port else literal, domain if own else "")
            self._routing[key] = found
        return found

    def delivery(self, group: str, binding: str, domain: str, via: str = "") -> tuple[DeliverySettings, OutboundTls]:
        """Settings of delivery from a binding to a routing domain, which may be a gateway with its port."""
        key = (group, binding, domain, via)
        found = self._outbound.get(key)
        if found is None:
            name = lookup_name(domain)
            chain = outbound_chain(self.root, group, binding, name)
            secure = outbound_chain(self.root, group, binding, name, lookup_name(via))
            settings = self._same(DeliverySettings, chain)
            if via and resolve(self.table.options["suspend_delivery"], secure, self.folder).value:
                settings = self._same(
                    DeliverySettings, chain, secure, make=lambda: replace(settings, suspend_delivery=True)
                )
            found = (settings, self._same(OutboundTls, secure))
            self._outbound[key] = found
        return found

    def for_recipient(self, group: str, binding: str, domain: str, recipient: str) -> DeliverySettings:
        """What rules a message by itself on its way to a routing domain: retries, expiry, bounces and the like. Behind
        a gateway these are options of the recipient's own domain, unless the gateway's stanza has them."""
        if not recipient or recipient == domain:
            return self.delivery(group, binding, domain)[0]
        key = (group, binding, domain, recipient)
        found = self._for_recipients.get(key)
        if found is None:
            chain = outbound_chain(self.root, group, binding, lookup_name(domain))
            own = outbound_chain(self.root, group, binding, lookup_name(domain), lookup_name(recipient))
            options, folder = self.table.options, self.folder

            def value(name: str) -> Any:
                return resolve(options[name], own if options[name].gateway else chain, folder).value

            found = self._same(DeliverySettings, chain, own, [], make=lambda: build(DeliverySettings, value))
            self._for_recipients[key] = found
        return found

    def for_message(self, message: Message) -> DeliverySettings:
        """What rules a message by itself, whichever gateway takes it."""
        group, binding = message.binding_group, message.binding
        return self.for_recipient(group, binding, message.destination, message.wanted_domain)

    def demand(self, group: str, binding: str, domain: str, via: str = "") -> TlsDemand:
        """What is demanded of delivery, and where that is written; arguments as of `delivery`."""
        key = (group, binding, domain, via)
        found = self._demands.get(key)
        if found is None:
            chain = outbound_chain(self.root, group, binding, lookup_name(domain), lookup_name(via))
            found = self._same(TlsDemand, chain, make=lambda: self._demand(chain))
            self._demands[key] = found
        return found

    def _demand(self, chain: list[Node]) -> TlsDemand:
        values = [resolve(self.table.options[name], chain, self.folder) for name in DEMANDS]
        scopes = tuple(one.node.path if one.node is not None else "" for one in values)
        places = tuple(str(one.entry.position) if one.entry is not None else "" for one in values)
        tls, verify, fallback, ca = (one.value for one in values)
        return TlsDemand(tls, verify, fallback, ca or "", scopes, places)  # type: ignore[arg-type]

    def outbound(self, option: str, group: str, binding: str, domain: str) -> Resolution:
        """One outbound option with its provenance; a throttle belongs to the stanza that sets it."""
        chain = outbound_chain(self.root, group, binding, lookup_name(domain))
        return resolve(self.table.options[option], chain, self.folder)

    @cached_property
    def connections_in_all(self) -> int:
        """Scope_Max_Outbound_Connections in the global scope, where it is as Server_Max_Outbound_Connections; 0 for
        none."""
        entry = self.root.settings.get("scope_max_outbound_connections")
        return int(entry.value) if entry is not None else 0

    @cached_property
    def _caps_connections(self) -> bool:
        options = {"scope_max_outbound_connections", "server_max_outbound_connections"}
        return any(node is not self.root and node.settings.keys() & options for node in self.root.walk())

    def connection_caps(self, group: str, binding: str, domain: str) -> tuple[tuple[str, int], ...]:
        """Limits of connections that a destination shares with others, each with the words that name it: of the
        narrowest scope that sets Scope_Max_Outbound_Connections, summed over all that it rules (manual, page of that
        option), and Server_Max_Outbound_Connections of its binding. What the whole server may have is not among
        them."""
        if not self._caps_connections:
            return ()
        chain = outbound_chain(self.root, group, binding, lookup_name(domain))[:-1]
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

    @cached_property
    def throttles_hosts(self) -> bool:
        """Whether any Host stanza has a throttle."""
        options = ("outbound_throttle_messages", "outbound_throttle_connections")
        return any(node.kind == "host" and node.settings.keys() & set(options) for node in self.root.walk())

    def host_throttle(self, option: str, group: str, binding: str, host: str) -> tuple[Throttle, Node] | None:
        """The throttle of a Host stanza, and that stanza, whose counter all share who fall back to it (manual,
        outbound_throttle_messages): a Host of the binding in its group, of the group, of the binding, of all."""
        group_node = self.root.get("binding_group", group)
        inner = group_node.get("binding", binding) if group_node is not None else None
        for container in (inner, group_node, self.root.get("binding", binding), self.root):
            for node in container.matching("host", host) if container is not None else ():
                if option in node.settings:
                    throttle = node.settings[option].value
                    return (throttle, node) if throttle is not None and throttle.count else None
        return None

    def host_connections(self, host: str) -> int:
        """Max_Outbound_Connections or Scope_Max_Outbound_Connections of a Host stanza, whichever is less; -1 where
        there is none: that scope does not fall back."""
        options = ("max_outbound_connections", "scope_max_outbound_connections")
        for node in self.root.matching("host", host):
            found = [int(node.settings[option].value) for option in options if option in node.settings]
            if found:
                return min((limit for limit in found if limit > 0), default=-1)
        return -1

    # explain --------------------------------------------------------------------------------------------------

    def explain_outbound(self, group: str, binding: str, domain: str) -> list[Resolution]:
        """Every outbound option for mail to a recipient's domain, with where its value came from."""
        routing = self.routing(group, binding, domain)
        first = outbound_chain(self.root, group, binding, lookup_name(domain))
        name = lookup_name(routing.domain)
        chain = outbound_chain(self.root, group, binding, name)
        secure = outbound_chain(self.root, group, binding, name, lookup_name(routing.via))
        rows = [o for o in self.table.options.values() if {"domain", "binding"} & o.scopes or _for_every_tls(o)]
        own = (
            chain
            if lookup_name(domain) == name
            else outbound_chain(self.root, group, binding, name, lookup_name(domain))
        )
        chains = {"gateway": first, "opendkim_sign": first}

        def chain_of(option: Option) -> list[Node]:
            return (
                secure
                if option.name in self._tls_options
                else chains.get(option.name, own if option.gateway else chain)
            )

        return [resolve(option, chain_of(option), self.folder) for option in rows]

    def explain_inbound(self, listen: Node, client: IPAddress) -> list[Resolution]:
        """Every inbound option with its value and where it came from."""
        chain = inbound_chain(self.root, self.table, listen, client)
        rows = [o for o in self.table.options.values() if {"listen", "pathway"} & o.scopes or _for_every_tls(o)]
        return [resolve(option, chain, self.folder) for option in rows]


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


def _comma_separated(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def log_switch(stage: str) -> str:
    """`log_deliveries` for the stage delivery."""
    plural = {"delivery": "deliveries", "xfer": "xfers"}
    return f"log_{plural.get(stage, stage + 's')}"


def _for_every_tls(option: Option) -> bool:
    """Whether an option of the global scope alone rules TLS, as TLS_Engine does."""
    return option.chapter == "tls" and option.scopes == {"global"} and option.status == "honoured"


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


def parse_endpoint(text: str) -> tuple[str, int, str]:
    """Host, port and path of a Listen: `:25`, `*:25`, `192.0.2.1:25`, `[::]:25`, `[*]:25`, or a socket path.

    The host is "0.0.0.0" for any IPv4 address. Raises ValueError.
    """
    if text.startswith("/"):
        if len(text.encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"{text!r} is too long for a Unix socket: {MAX_SOCKET_PATH} octets at most")
        return "", 0, text
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(
            f'{text!r} is no address to listen on: write ":25", "192.0.2.1:25", "[2001:db8::1]:25" or a path from /'
        )
    if host in ("", "*"):
        return "0.0.0.0", int(port), ""  # noqa: S104 - any address is what the operator wrote
    if host.startswith("[") and host.endswith("]"):
        inner = "::" if host == "[*]" else host[1:-1]
        return str(ipaddress.IPv6Address(inner)), int(port), ""
    try:
        return str(ipaddress.IPv4Address(host)), int(port), ""
    except ValueError:
        raise ValueError(f"{text!r}: the address of a Listen is numeric, IPv6 in brackets") from None
