"""The scope tree, and which stanza an option's value comes from.

Both directions of fallback are one thing: an ordered chain of stanzas, narrowest first. The value of an option is
that of the first stanza of the chain that has it; a stanza that matches but lacks the option is transparent. `resolve`
also tells which values were beaten, with file, line and column.

Outbound (manual, fallback page): domain in a binding in a group, domain in a binding, domain in a group, binding,
binding group, global domain, global. A binding therefore beats a global Domain. Inside one container the literal
Domain goes before the patterns, and those in the order of the file.

Inbound (the manual gives no full chain): Listen's Peers, listener's Peers, each by longest prefix; Listen; listener;
pathway in its group, pathway, pathway_group; global.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from quillon.config.options import Option, OptionTable, default
from quillon.config.syntax import Position

# What may stand in what (manual, options summary). Modules are allowed at the top only.
CHILDREN: dict[str, tuple[str, ...]] = {
    "global": (
        "binding_group",
        "binding",
        "domain",
        "host",
        "esmtp_listener",
        "pathway_group",
        "pathway",
        "security",
        "control_listener",
        "http_listener",
    ),
    "binding_group": ("binding", "domain", "host"),
    "binding": ("domain", "host"),
    "esmtp_listener": ("listen", "peer", "tls_identity"),
    "listen": ("peer", "tls_identity"),
    "pathway_group": ("pathway",),
    "control_listener": ("listen",),
    "http_listener": ("listen",),
}
NAMED = frozenset(
    {
        "binding_group",
        "binding",
        "domain",
        "host",
        "listen",
        "peer",
        "pathway_group",
        "pathway",
        "tls_contract",
        "tls_identity",
    }
)
_LOWERED = frozenset({"domain", "host", "listen", "peer", "tls_contract", "tls_identity"})
_WHOLE_WORDS = {"esmtp_listener": "ESMTP_Listener", "tls_contract": "TLS_Contract", "tls_identity": "TLS_Identity"}

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting as it stands in a file: the typed value, and the text for people, of one word or of a list or
    dictionary as it is written."""

    value: Any
    text: str
    position: Position
    one_word: bool = True


class Patterns:
    """Labels that are patterns: `/regex/`, unanchored, or a left glob `*suffix` (own extension). Globs are found by
    their suffix, whatever their number; each regular expression has to be tried."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._globs: dict[str, tuple[int, Node]] = {}
        self._lengths: list[int] = []
        self._expressions: list[tuple[int, re.Pattern[str], Node]] = []
        for number, node in enumerate(nodes):
            label = node.label
            if len(label) > 2 and label[0] == label[-1] == "/":
                self._expressions.append((number, re.compile(label[1:-1], re.IGNORECASE), node))
            elif label.startswith("*"):
                self._globs[label[1:]] = (number, node)
        self._lengths = sorted({len(suffix) for suffix in self._globs})

    def matching(self, name: str) -> list[Node]:
        """Those that match a name, in the order of the file."""
        found = [(number, node) for number, pattern, node in self._expressions if pattern.search(name)]
        for length in self._lengths:
            if length > len(name):
                break
            hit = self._globs.get(name[len(name) - length :])
            if hit is not None:
                found.append(hit)
        return [node for _, node in sorted(found, key=lambda one: one[0])]


@dataclass
class Node:
    """One scope. `kind` is its name in lower case, `label` its instance name or empty."""

    kind: str
    label: str
    position: Position
    parent: Node | None = None
    settings: dict[str, Entry] = field(default_factory=dict)
    children: dict[tuple[str, str], Node] = field(default_factory=dict)
    _patterns: dict[str, Patterns] = field(default_factory=dict, repr=False, compare=False)

    def child(self, kind: str, label: str, position: Position) -> Node:
        """The child of that name, made if it is new: scopes of the same name merge."""
        key = (kind, stored(kind, label))
        node = self.children.get(key)
        if node is None:
            node = self.children[key] = Node(kind, key[1], position, self)
            self._patterns.clear()
        return node

    def drop(self, kind: str, label: str) -> None:
        """Forget a child, if it is there."""
        if self.children.pop((kind, label), None) is not None:
            self._patterns.clear()

    def matching(self, kind: str, name: str) -> list[Node]:
        """Children of a kind whose label is a name or a pattern that matches it: the literal one, then patterns in the
        order of the file."""
        patterns = self._patterns.get(kind)
        if patterns is None:
            patterns = self._patterns[kind] = Patterns(self.of(kind))
        literal = self.children.get((kind, name))
        found = patterns.matching(name)
        return found if literal is None or literal in found else [literal, *found]

    def of(self, kind: str) -> Iterator[Node]:
        """Children of one kind in the order of the file."""
        return (node for (k, _), node in self.children.items() if k == kind)

    def get(self, kind: str, label: str = "") -> Node | None:
        return self.children.get((kind, label))

    def walk(self) -> Iterator[Node]:
        yield self
        for node in self.children.values():
            yield from node.walk()

    @property
    def path(self) -> str:
        """`Binding "b1" > Domain "bank.fi"`, or `global`."""
        names: list[str] = []
        node: Node | None = self
        while node is not None and node.kind != "global":
            names.append(f'{spelled(node.kind)} "{node.label}"' if node.label else spelled(node.kind))
            node = node.parent
        return " > ".join(reversed(names)) or "global"


def ancestors(node: Node) -> list[Node]:
    """A stanza and those that hold it, innermost first."""
    chain = [node]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    return chain


def stored(kind: str, label: str) -> str:
    """The name of a scope as its parent has it; a pattern or a socket path means what its letters are."""
    return label.lower() if kind in _LOWERED and not label.startswith("/") else label


@cache
def nested(kind: str, table: OptionTable) -> Mapping[str, str]:
    """Scopes that may stand in one of a kind, as they are written in lower case, and the kinds that they are."""
    module = table.modules.get(kind)
    if module is not None:
        return dict(module.children)
    found = {name: name for name in CHILDREN.get(kind, ())}
    if kind == "global":
        inner = {child for row in table.modules.values() for child in row.children.values()}
        inner |= {child for names in CHILDREN.values() for child in names}
        found |= {name: name for name in table.modules if name not in inner}
    return found


def spelled(kind: str) -> str:
    """A kind of scope as the manual writes it, such as ESMTP_Listener."""
    return _WHOLE_WORDS.get(kind) or "_".join(part.capitalize() for part in kind.split("_"))


@dataclass(frozen=True, slots=True)
class Resolution:
    """The effective value of an option. `node` is None where the default holds; `beaten` is nearest first."""

    option: Option
    value: Any
    node: Node | None
    entry: Entry | None
    beaten: tuple[tuple[Node, Entry], ...]


def resolve(option: Option, chain: Iterable[Node], folder: str) -> Resolution:
    """The value of `option` along a chain of stanzas, with what it beat."""
    found = [(node, node.settings[option.name]) for node in chain if option.name in node.settings]
    if not found:
        return Resolution(option, default(option, folder), None, None, ())
    return Resolution(option, found[0][1].value, found[0][0], found[0][1], tuple(found[1:]))


def outbound_chain(root: Node, group: str, binding: str, domain: str, via: str = "") -> list[Node]:
    """Stanzas that rule delivery to a routing domain, narrowest first.

    `via` is a recipient's domain whose own stanzas count behind those of the gateway's name, container by container.
    """
    group_node = root.get("binding_group", group)
    inner = group_node.get("binding", binding) if group_node else None
    outer = root.get("binding", binding)
    chain: list[Node] = []
    for container in (inner, outer, group_node):
        chain += matching_domains(container, domain) + matching_domains(container, via)
    chain += [node for node in (inner, outer, group_node) if node is not None]
    chain += matching_domains(root, domain) + matching_domains(root, via)
    chain.append(root)
    return chain


def matching_domains(container: Node | None, domain: str) -> list[Node]:
    """Domain stanzas of one container: the literal one, then patterns in the order of the file."""
    if container is None or not domain:
        return []
    return container.matching("domain", domain)


def glob_matches(patterns: Iterable[str], domain: str) -> bool:
    """Whether a domain is in a list such as Relay_Domains: names, and left globs `*suffix`."""
    return any(p == domain or (p.startswith("*") and domain.endswith(p[1:])) for p in patterns)


def matching_peers(container: Node, client: IPAddress) -> list[Node]:
    """Peer stanzas that hold the client, longest prefix first."""
    nets = []
    for node in container.of("peer"):
        net = ipaddress.ip_network(node.label)
        if net.version == client.version and client in net:
            nets.append((net.prefixlen, node))
    return [node for _, node in sorted(nets, key=lambda pair: -pair[0])]


def inbound_chain(root: Node, table: OptionTable, listen: Node, client: IPAddress) -> list[Node]:
    """Stanzas that rule a session of `client` on `listen`, narrowest first."""
    listener = listen.parent
    assert listener is not None
    chain = matching_peers(listen, client) + matching_peers(listener, client) + [listen, listener]
    name = str(resolve(table.options["pathway"], chain, "").value)
    return chain + pathway_nodes(root, name) + [root]


def pathway_nodes(root: Node, name: str) -> list[Node]:
    """pathway_group::pathway, pathway, pathway_group (manual, pathway page)."""
    inner = [
        group.children[("pathway", name)] for group in root.of("pathway_group") if ("pathway", name) in group.children
    ]
    outer = root.get("pathway", name)
    groups = [node.parent for node in inner if node.parent is not None]
    return inner + ([outer] if outer is not None else []) + groups
