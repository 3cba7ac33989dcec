"""What is wrong with stanzas of delivery: options that would have no effect, demands that something weaker beats."""

from __future__ import annotations

from collections.abc import Iterator

from quillon.config.model import Config
from quillon.config.options import default
from quillon.config.outbound import lookup_name
from quillon.config.scope import Entry, Node, Patterns, ancestors, outbound_chain, resolve
from quillon.config.syntax import Fault
from quillon.mail.message import TLS_STRENGTH, VERIFY_STRENGTH

_AUTH = "outbound_smtp_auth_type"


def check_delivery(config: Config, faults: list[Fault]) -> None:
    """Every such fault of the outbound stanzas."""
    for node in config.root.walk():
        _check_verify(config, node, faults)
    bindings = [node for node in config.root.walk() if node.kind in ("binding", "binding_group")]
    for name, strength in (("tls", TLS_STRENGTH), ("tls_verify", VERIFY_STRENGTH)):
        for domain in config.root.of("domain"):
            wanted = domain.settings.get(name)
            if wanted is None or not strength[wanted.value]:
                continue
            rivals = bindings + _gateway_stanzas(config, domain)
            _warn_weaker(domain, name, [n for n in rivals if name in n.settings], strength, faults)
    _check_behind_gateways(config, faults)
    _check_outbound_auth(config, faults)


def _check_verify(config: Config, node: Node, faults: list[Fault]) -> None:
    """Verification that nothing verifies by, or that is not asked for since there is no TLS."""
    options = config.table.options
    verify, ca = node.settings.get("tls_verify"), node.settings.get("tls_ca")
    wanted = [entry for entry in (verify, ca) if entry is not None and entry.value not in ("no", None)]
    if not wanted or node.kind not in ("global", "binding", "binding_group", "domain"):
        return
    chain = ancestors(node)
    tls = resolve(options["tls"], chain, config.folder)
    if tls.value == "no" and not _tls_elsewhere(config, node):
        where = f" ({tls.entry.position})" if tls.entry is not None else ", the default"
        for entry in wanted:
            name = "TLS_Verify" if entry is verify else "TLS_CA"
            text = f"{name} in {node.path} has no effect: TLS = no there{where}; set TLS = required"
            faults.append(Fault(entry.position, text, warning=True))
    elif verify is not None and verify.value != "no" and not resolve(options["tls_ca"], chain, config.folder).value:
        text = f"TLS_Verify = {verify.text} in {node.path} without TLS_CA: no certificate verifies (unknown_issuer)"
        faults.append(Fault(verify.position, text, warning=True))


def _tls_elsewhere(config: Config, node: Node) -> bool:
    """Whether another stanza, or a policy, may ask for TLS for mail that a stanza rules."""
    if any(list(config.root.of(kind)) for kind in ("policy", "scriptlet")):
        return True
    # any binding may beat a Domain of the top; in a binding only that one stands in
    others = config.root if node.kind == "domain" and node.parent is config.root else node
    return any("tls" in other.settings and other.settings["tls"].value != "no" for other in others.walk())


def _gateway_of(config: Config, domain: Node) -> Entry | None:
    """The Gateway of mail for a Domain, by its own stanza, others that match it, or those that hold it."""
    container = domain.parent
    group = binding = "default"
    if container is not None and container.kind == "binding":
        binding = container.label
        group = container.parent.label if container.parent is not None else "default"
    elif container is not None and container.kind == "binding_group":
        group = container.label
    if domain.label.startswith(("/", "*")):
        chain = ancestors(domain)
    else:
        chain = outbound_chain(config.root, group, binding, domain.label)
    return resolve(config.table.options["gateway"], chain, config.folder).entry


def _check_behind_gateways(config: Config, faults: list[Fault]) -> None:
    """Options of connections in the Domain of a recipient whose mail goes to a gateway: the gateway's stanza has
    them."""
    for node in config.root.walk():
        if node.kind != "domain":
            continue
        gateway = _gateway_of(config, node)
        if gateway is None:
            continue
        name = lookup_name(gateway.value[0])
        if _rules(node, name):
            continue
        for key, entry in node.settings.items():
            option = config.table.options[key]
            if option.gateway or option.status != "honoured" or entry.value == default(option, config.folder):
                continue
            if entry.value in (None, "", "false"):
                continue  # it cancels what would not be there
            what = "AUTH" if key == _AUTH else key
            text = (
                f"{what} of {node.path} has no effect: its mail goes to the gateway {name}, whose own stanza rules"
                f' {"AUTH" if key == _AUTH else "it"}; write it into Domain "{name}"'
            )
            faults.append(Fault(entry.position, text))


def _ways(config: Config, node: Node) -> Iterator[list[Node]]:
    """The chains of stanzas that mail ruled by a stanza may go under: those of its gateway, if it has one."""
    chain = list(ancestors(node))
    gateway = resolve(config.table.options["gateway"], chain, config.folder).value
    if gateway is None:
        yield chain
        return
    name = lookup_name(gateway[0])
    found = [domain for holder in chain for domain in holder.of("domain") if _rules(domain, name)]
    yield [*found, *chain] if node.label != name else chain


def _rules(domain: Node, name: str) -> bool:
    return domain.label == name or bool(Patterns([domain]).matching(name))


def _check_outbound_auth(config: Config, faults: list[Fault]) -> None:
    """A password that has no way to the host, or that goes to whoever answers."""
    options, folder = config.table.options, config.folder
    domains = [node for node in config.root.walk() if node.kind == "domain"]
    ruled = {n.label for domain in domains if "tls" in domain.settings for n in _gateway_stanzas(config, domain)}
    refused = {fault.position for fault in faults if not fault.warning}
    for node in config.root.walk():
        own = node.settings.get(_AUTH)
        entry = own or node.settings.get("tls_verify") or node.settings.get("tls")
        if entry is None or node.label in ruled or (own is not None and own.position in refused):
            continue
        for chain in _ways(config, node):
            kind, tls, verify, in_clear = (
                resolve(options[name], chain, folder).value
                for name in (_AUTH, "tls", "tls_verify", "outbound_smtp_auth_in_clear")
            )
            if kind == "false" or in_clear:
                continue
            if tls == "no":
                text = (
                    f"AUTH in {node.path} needs TLS, and TLS = no there: its mail will wait;"
                    " set TLS = required (or Outbound_SMTP_Auth_In_Clear = true)"
                )
                faults.append(Fault(entry.position, text, warning=True))
            elif verify in ("no", "optional"):
                text = f"AUTH in {node.path} gives the password to whoever answers; set TLS_Verify = host"
                faults.append(Fault(entry.position, text, warning=True))


def _gateway_stanzas(config: Config, domain: Node) -> list[Node]:
    """Stanzas of the gateway that a Domain sends its mail to, whose options go before its own."""
    gateway = domain.settings.get("gateway")
    found = config.root.get("domain", lookup_name(gateway.value[0])) if gateway else None
    return [found] if found is not None and found is not domain else []


def _warn_weaker(domain: Node, name: str, rivals: list[Node], strength: dict[str, int], faults: list[Fault]) -> None:
    """A binding's or a gateway's value beats a global Domain's, which surprises where it weakens TLS."""
    wanted = domain.settings[name]
    for node in rivals:
        entry = node.settings[name]
        if strength[entry.value] < strength[wanted.value]:
            text = (
                f"{name} = {entry.text} of {node.path} beats the stricter {name} = {wanted.text}"
                f" of {domain.path} ({wanted.position})"
            )
            faults.append(Fault(entry.position, text, warning=True))
