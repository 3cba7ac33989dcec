"""A scope of the tree by the words that lead to it, such as `binding b1 domain bank.fi`, and what holds there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from quillon.config.labels import canonical
from quillon.config.nearest import did_you_mean
from quillon.config.options import Option, OptionTable
from quillon.config.scope import (
    NAMED,
    Node,
    Resolution,
    ancestors,
    inbound_chain,
    nested,
    outbound_chain,
    pathway_nodes,
    resolve,
    spelled,
    stored,
)

if TYPE_CHECKING:
    from quillon.config.model import Config

_LISTENING = ("esmtp_listener", "peer")


class ScopePlace(NamedTuple):
    """Scopes from the outermost on, each with its kind and its name, which is empty for one that takes none; `rest` are
    the words behind them, `options` those that may stand there."""

    scopes: tuple[tuple[str, str], ...]
    rest: tuple[str, ...]
    options: Mapping[str, Option]

    @property
    def words(self) -> str:
        """`Binding b1 Domain bank.fi`; empty for the global scope."""
        return " ".join(word for kind, label in self.scopes for word in (spelled(kind), label) if word)

    def find(self, root: Node, outer: int = 0) -> Node | None:
        """The stanza, or one that is `outer` scopes further out; None where the configuration has none."""
        node: Node | None = root
        for kind, label in self.scopes[: len(self.scopes) - outer]:
            node = node.get(kind, label) if node is not None else None
        return node


def read(words: Sequence[str], root: Node, table: OptionTable) -> ScopePlace:
    """The place that words lead to, as far as they do. Raises ValueError for a name that is none of its kind."""
    scopes: list[tuple[str, str]] = []
    kind, left = "global", list(words)
    node: Node | None = root
    while left:
        inner = nested(kind, table).get(left[0].lower())
        if inner is None:
            break
        word = left.pop(0)
        if inner in NAMED:
            if not left:
                raise ValueError(f"{word} wants a name")
            label = stored(inner, canonical(inner, left.pop(0)))
        else:
            label = _instance(inner, node, left, table)
        node = node.get(inner, label) if node is not None else None
        kind = inner
        scopes.append((inner, label))
    return ScopePlace(tuple(scopes), tuple(left), _options(kind, table))


def _instance(kind: str, outer: Node | None, left: list[str], table: OptionTable) -> str:
    """The name of a module's stanza, which need not be given where there is one only. It is taken off the words."""
    module = table.modules.get(kind)
    if module is None:
        return ""
    known = [one.label for one in outer.of(kind)] if outer is not None else []
    own = {*module.options, *module.children}
    if left and (left[0] in known or left[0].lower() not in own):
        return left.pop(0)
    return known[0] if len(known) == 1 else kind


def _options(kind: str, table: OptionTable) -> Mapping[str, Option]:
    module = table.modules.get(kind)
    if module is not None:
        return module.options
    return {name: option for name, option in table.options.items() if kind in option.scopes}


def option(place: ScopePlace, name: str, table: OptionTable) -> Option:
    """The option of a name that may stand there. Raises ValueError."""
    found = place.options.get(name.lower())
    if found is not None:
        return found
    elsewhere = table.options.get(name.lower())
    if elsewhere is not None:
        scopes = ", ".join(sorted(map(spelled, elsewhere.scopes)))
        raise ValueError(f"{name} cannot stand in {place.words or 'the global scope'}; it belongs in {scopes}")
    kind = place.scopes[-1][0] if place.scopes else "global"
    where = f" in {place.words}" if place.scopes else ""
    meant = did_you_mean(name.lower(), [*place.options, *nested(kind, table)])
    raise ValueError(f"there is no option or scope {name}{where}{meant}")


def _inbound(config: Config, listen: Node, peer: str | None) -> list[Node]:
    """The stanzas of a Listen, for clients of an address block, or for those that no Peer is about."""
    if peer is not None:
        return inbound_chain(config.root, config.table, listen, ip_network(peer).network_address)
    chain = ancestors(listen)
    pathway = str(resolve(config.table.options["pathway"], chain, config.folder).value)
    return [*chain[:-1], *pathway_nodes(config.root, pathway), config.root]


def effective(config: Config, place: ScopePlace, wanted: Option) -> Resolution:
    """What holds there for an option, with what falls back to broader scopes; for a Domain that is a name what rules
    mail to it, with its Gateway and its contract. Raises ValueError where there is no such place."""
    named, last = dict(place.scopes), place.scopes[-1][0] if place.scopes else "global"
    domain = named["domain"] if last == "domain" and not named["domain"].startswith(("/", "*")) else ""
    node = place.find(config.root, outer=1 if domain else 0)
    listen = place.find(config.root, outer=1) if last == "peer" else node
    if listen is not None and listen.kind == "listen":
        return resolve(wanted, _inbound(config, listen, named.get("peer")), config.folder)
    groups = config.outbound.bindings()
    pathways = pathway_nodes(config.root, named["pathway"]) if last == "pathway" else []
    if node is None and named.get("binding") not in groups and not pathways:
        raise ValueError(f"there is no {place.words}")
    if pathways:
        return resolve(wanted, [*pathways, config.root], config.folder)
    binding = named.get("binding", "" if "binding_group" in named else "default")
    if node is None or domain or last == "binding":
        group = named.get("binding_group") or groups.get(binding, "default")
        rows = config.outbound.explain(group, binding, domain) if domain else ()
        chain = outbound_chain(config.root, group, binding, domain)
        return next((row for row in rows if row.option is wanted), None) or resolve(wanted, chain, config.folder)
    return resolve(wanted, _inbound(config, node, None) if last in _LISTENING else ancestors(node), config.folder)
