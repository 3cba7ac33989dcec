"""What is wrong with a configuration beyond single values and files: settings that contradict."""

from __future__ import annotations

import grp
import ipaddress
import pwd
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from quillon.config import datasource
from quillon.config.check_contracts import check_contracts
from quillon.config.check_delivery import check_delivery
from quillon.config.check_files import check_files
from quillon.config.endpoint import parse_endpoint
from quillon.config.model import Config
from quillon.config.scope import Node, ancestors, pathway_nodes, resolve
from quillon.config.settings import HttpListen, Network, OidcProvider
from quillon.config.stanzas import CUSTOM_STAGES, log_switch
from quillon.config.syntax import Fault
from quillon.config.values import TRUSTED_EXTENSIONS

CUSTOM_SWITCHES = {log_switch(stage): stage for stage in CUSTOM_STAGES}
_LISTEN_OPTIONS = {"use_ssl", "smtp_extensions", "tls_certificate", "tls_verify_mode", "tls_client_ca"}
_EVERYBODY = "lets everybody send anywhere: this is an open relay"


def check(config: Config, *, files_only: bool = False) -> list[Fault]:
    """Every such fault of a configuration; `files_only` where the tree is known to be incomplete."""
    faults: list[Fault] = []
    for node in config.root.walk():
        found: list[Fault] = []
        check_files(config, node, found)
        # what is switched off may name files that are not there yet
        faults += found if config.stanzas.in_force(node) else [replace(fault, warning=True) for fault in found]
    if files_only:
        return faults
    endpoints: dict[tuple[str, int, str], Node] = {}
    for node in config.inbound.listen_nodes():
        other = endpoints.setdefault(parse_endpoint(node.label), node)
        if other is not node:
            faults.append(Fault(node.position, f'Listen "{node.label}" is the same address as "{other.label}"'))
        _check_listen(config, node, ancestors(node), faults)
        _check_authentication(config, node, ancestors(node), faults)
        for container in (node, node.parent):
            for peer in container.of("peer") if container else ():
                _check_listen(config, peer, [peer, *ancestors(node)], faults)
                if peer.settings.keys() & {"smtp_extensions"}:
                    _check_authentication(config, peer, [peer, *ancestors(node)], faults)
    _check_names(config, faults)
    _check_relaying(config, faults)
    _check_loops(config, list(endpoints), faults)
    check_delivery(config, faults)
    _check_scripts(config, faults)
    _check_modules(config, faults)
    _check_loggers(config, faults)
    _check_control(config, faults)
    _check_http(config, faults)
    _check_own_policies(config, faults)
    _check_acme(config, faults)
    _check_alerts(config, faults)
    _check_tls_reports(config, faults)
    _check_tls_report_receivers(config, faults)
    _check_evidence(config, faults)
    check_contracts(config, faults)
    return faults


def _check_loops(config: Config, endpoints: list[tuple[str, int, str]], faults: list[Fault]) -> None:
    """A gateway that is a Listen of ours sends mail round and round."""
    for node in config.root.walk():
        entry = node.settings.get("gateway")
        if entry is None:
            continue
        host, port = entry.value
        for ip, own, _ in endpoints:
            if own == (port or 25) and (ip == host or (ip == "0.0.0.0" and host.startswith("127."))):  # noqa: S104
                text = f"Gateway = {entry.text} is an address that this configuration listens on: mail would loop"
                faults.append(Fault(entry.position, text, warning=True))


def _check_names(config: Config, faults: list[Fault]) -> None:
    """Users, groups and bindings that are named have to be there, once."""
    security = config.root.get("security")
    for name, find in (("user", pwd.getpwnam), ("group", grp.getgrnam)):
        entry = security.settings.get(name) if security else None
        try:
            if entry is not None:
                find(entry.value)
        except KeyError:
            faults.append(Fault(entry.position, f"there is no {name} {entry.value!r} on this system"))  # type: ignore[union-attr]
    seen: dict[str, str] = {}
    for group in config.root.of("binding_group"):
        for binding in group.of("binding"):
            first = seen.setdefault(binding.label, group.label)
            if first != group.label:
                text = f'Binding "{binding.label}" stands in group "{first}" too; named alone it means "{group.label}"'
                faults.append(Fault(binding.position, text, warning=True))


def _check_relaying(config: Config, faults: list[Fault]) -> None:
    """Values by which anybody may send anywhere, or speak for others."""
    for node in config.root.walk():
        for name in ("relay_hosts", "trusted_clients"):
            entry = node.settings.get(name)
            if entry is not None and _everybody(entry.value):
                words = _EVERYBODY if name == "relay_hosts" else "lets everybody speak for any other client"
                faults.append(Fault(entry.position, f"{name} in {node.path} {words}", warning=True))
        for name in ("relay_domains", "bounce_domains", "relay_for_sending_domains"):
            entry = node.settings.get(name)
            every = entry is not None and ("*" in entry.value or (name.startswith("relay_for") and not entry.value))
            if entry is not None and every:
                faults.append(Fault(entry.position, f"{name} in {node.path} {_EVERYBODY}", warning=True))
        entry = node.settings.get("open_relay")
        if entry is not None and entry.value is True:
            faults.append(Fault(entry.position, f"open_relay = true in {node.path} {_EVERYBODY}", warning=True))
        entry = node.settings.get("pathway")
        if entry is not None and entry.value != "default" and not pathway_nodes(config.root, entry.value):
            text = f'Pathway "{entry.value}" is not defined: there is no stanza of this name to take settings from'
            faults.append(Fault(entry.position, text, warning=True))


def _everybody(blocks: Iterable[Network]) -> bool:
    """Whether some blocks hold every address of a family together."""
    for version in (4, 6):
        family = [block for block in blocks if block.version == version]
        if any(block.prefixlen == 0 for block in ipaddress.collapse_addresses(family)):  # type: ignore[type-var]
            return True
    return False


def _check_listen(config: Config, listen: Node, chain: list[Node], faults: list[Fault]) -> None:
    """What contradicts in a Listen, or for a Peer of it; said only where that stanza sets something of it."""
    if not listen.settings.keys() & _LISTEN_OPTIONS and listen.kind == "peer":
        return
    name = f'{listen.kind.capitalize()} "{listen.label}"'
    options = config.table.options

    def value(name: str, nodes: list[Node] = chain) -> object:
        return resolve(options[name], nodes, config.folder).value

    extensions = resolve(options["smtp_extensions"], chain, config.folder)
    offered = "STARTTLS" in extensions.value
    implicit = resolve(options["use_ssl"], chain, config.folder)
    certificate = value("tls_certificate") or any("tls_certificate" in peer.settings for peer in listen.of("peer"))
    certificate = certificate or any(True for node in chain for _ in node.of("tls_identity"))
    if implicit.value and not certificate:
        where = implicit.entry.position if implicit.entry else listen.position
        faults.append(Fault(where, f"Use_SSL on {name} needs TLS_Certificate"))
    if implicit.value and offered and extensions.entry and implicit.entry:
        if extensions.node is implicit.node:
            faults.append(Fault(extensions.entry.position, "Use_SSL and STARTTLS exclude each other on one listener"))
        else:
            text = f"STARTTLS is not offered on {name}, which has Use_SSL"
            faults.append(Fault(extensions.entry.position, text, warning=True))
    if offered and not implicit.value and not certificate and extensions.entry:
        text = f"STARTTLS is not offered on {name} as long as it has no TLS_Certificate"
        faults.append(Fault(extensions.entry.position, text, warning=True))
    verify = resolve(options["tls_verify_mode"], chain, config.folder)
    if verify.value == "require" and not certificate:
        here = verify.node is not None and verify.node.kind != "global"
        where = verify.entry.position if verify.entry else listen.position
        text = f"TLS_Verify_Mode = require demands nothing of {name}: without TLS_Certificate there is no TLS there"
        faults.append(Fault(where, text, warning=not here))
    if certificate and verify.value == "require" and not value("tls_client_ca"):
        where = verify.entry.position if verify.entry else listen.position
        faults.append(Fault(where, "without TLS_Client_CA no client certificate verifies", warning=True))


def _check_loggers(config: Config, faults: list[Fault]) -> None:
    """A switch of a custom_logger without its format, and the macros of a stanza that is not there."""
    macros = [node for node in config.root.of("tls_macros") if config.stanzas.enabled(node)]
    for node in config.stanzas.module_nodes("custom_logger"):
        for name, entry in node.settings.items():
            if name.startswith("log_") and entry.value is True and name in CUSTOM_SWITCHES:
                stage = CUSTOM_SWITCHES[name]
                if f"{stage}_format" not in node.settings:
                    text = f"{name} logs nothing as long as there is no {stage}_format"
                    faults.append(Fault(entry.position, text, warning=True))
        namespace = node.settings.get("namespace")
        if namespace is not None and "outbound_tls" in namespace.value and not macros:
            text = "namespace outbound_tls needs a tls_macros stanza: tls_macros { }"
            faults.append(Fault(namespace.position, text))


def _check_control(config: Config, faults: list[Fault]) -> None:
    listener = config.root.get("control_listener")
    others = {node.label for node in config.inbound.listen_nodes()}
    for node in listener.of("listen") if listener is not None else ():
        if node.label in others:
            faults.append(Fault(node.position, f'Listen "{node.label}" is an ESMTP listener\'s address too'))
        if not node.label.startswith("/"):
            text = 'the console of this version listens on Unix sockets only: write a whole path, such as "/tmp/2025"'
            faults.append(Fault(node.position, text))


def _check_tls_reports(config: Config, faults: list[Fault]) -> None:
    for node in config.root.of("tls_reports"):
        try:
            config.stanzas.tls_reports()
        except ValueError as error:
            faults.append(Fault(node.position, f"tls_reports: {error}"))


def _check_tls_report_receivers(config: Config, faults: list[Fault]) -> None:
    for node in config.root.of("tls_report_receiver"):
        try:
            config.stanzas.tls_report_receivers()
        except ValueError as error:
            faults.append(Fault(node.position, f"tls_report_receiver: {error}"))


def _check_evidence(config: Config, faults: list[Fault]) -> None:
    for node in config.root.of("evidence"):
        try:
            config.stanzas.evidence("", "")
        except ValueError as error:
            faults.append(Fault(node.position, f"evidence: {error}"))


def _check_alerts(config: Config, faults: list[Fault]) -> None:
    for node in config.root.of("alerts"):
        try:
            given = config.stanzas.alerts()
        except ValueError as error:
            faults.append(Fault(node.position, f"alerts: {error}"))
            continue
        if given is not None and given.webhook and not given.webhook.startswith(("http://", "https://")):
            faults.append(Fault(node.position, f"alerts: webhook: {given.webhook!r} is no http:// or https:// address"))


def _check_acme(config: Config, faults: list[Fault]) -> None:
    nodes = list(config.root.of("acme"))
    try:
        wanted = config.stanzas.acme()
    except ValueError as error:
        faults.append(Fault(nodes[0].position, str(error)))
        return
    for one in wanted:
        if sum(other.certificate == one.certificate or other.key == one.key for other in wanted) > 1:
            faults.append(Fault(nodes[0].position, f'acme "{one.name}": another stanza has its files, too'))
        if not Path(one.certificate).exists():
            text = f'acme "{one.name}": {one.certificate} is not there: quillon acme prepare makes one to begin with'
            faults.append(Fault(nodes[0].position, text, warning=True))
    if any(one.challenge == "http-01" for one in wanted) and not any(
        one.well_known for one in config.inbound.http_listens()
    ):
        text = 'acme: http-01 needs an HTTP_Listener with Well_Known = true and Listen ":80"'
        faults.append(Fault(nodes[0].position, text))


def _check_own_policies(config: Config, faults: list[Fault]) -> None:
    """A policy that is served has to be readable, and one that nobody serves is worth a word."""
    nodes = list(config.root.of("mta_sts_policy"))
    try:
        policies = config.stanzas.own_policies()
    except ValueError as error:
        faults.append(Fault(nodes[0].position, str(error)))
        return
    if policies and not any(one.well_known and one.certificate for one in config.inbound.http_listens()):
        text = "mta_sts_policy is served by nobody: an HTTP_Listener with Well_Known = true and TLS_Certificate would"
        faults.append(Fault(nodes[0].position, text, warning=True))


def _check_http(config: Config, faults: list[Fault]) -> None:
    """Whoever reaches a console over the network has to prove who he is, and says so over TLS."""
    others = {listen.name for listen in config.inbound.listens()}
    for node, http in zip(config.inbound.http_nodes(), config.inbound.http_listens(), strict=True):
        listen = http.listen
        name = f'HTTP Listen "{node.label}"'
        if node.label in others:
            faults.append(Fault(node.position, f"{name} is an ESMTP listener's address too"))
        if http.well_known or listen.path or ipaddress.ip_address(listen.host).is_loopback:
            pass
        elif http.certificate is None:
            text = (
                f"{name} can be reached from other machines: it needs TLS_Certificate, or an address such as 127.0.0.1;"
                " Enable = false leaves it out"
            )
            faults.append(Fault(node.position, text))
        elif not http.asks:
            text = (
                f"{name} can be reached from other machines: say who may use it with AuthPlainParameters ="
                ' [ uri = "file://..." ], or TLS_Client_CA and TLS_Verified_Peer_Is_Authorized'
            )
            faults.append(Fault(node.position, text))
        _check_oidc(config, node, http, faults)
        scheme = (http.users or "file://").partition("://")[0].lower()
        if scheme not in HTTP_USERS:
            text = f"{name}: {http.users!r} cannot be used over HTTP; it needs {', '.join(HTTP_USERS)}"
            faults.append(Fault(node.position, text))


def _check_oidc(config: Config, node: Node, http: HttpListen, faults: list[Fault]) -> None:
    """A provider that cannot be used would let nobody in, or somebody else."""
    found = resolve(config.table.options["oidcparameters"], [node, *ancestors(node)], config.folder)
    if http.oidc is None or found.entry is None:
        return
    where = found.entry.position

    def fault(text: str) -> None:
        faults.append(Fault(where, f'HTTP Listen "{node.label}": OIDCParameters: {text}'))

    for key in found.value:
        if key.lower() not in OidcProvider._fields:
            fault(f"there is no {key!r}; there are {', '.join(OidcProvider._fields)}")
    for name in ("issuer", "client_id", "secret_file", "url"):
        if not getattr(http.oidc, name):
            fault(f"{name} is missing")
    for name in ("issuer", "url"):
        if not re.fullmatch(r"https://[A-Za-z0-9.:\[\]-]+(/[^?#\s]*)?", getattr(http.oidc, name) or "https://x"):
            fault(f"{name} has to be an https:// address")
    if http.certificate is None or http.well_known:
        fault("sign in needs TLS_Certificate, and a Listen that is not Well_Known")


def _check_authentication(config: Config, node: Node, chain: list[Node], faults: list[Fault]) -> None:
    """A mechanism that is offered needs parameters with a uri."""
    options = config.table.options
    listed = resolve(options["smtp_extensions"], chain, config.folder)
    if listed.entry is None:
        return
    mechanisms = {word for name in listed.value if name.startswith("AUTH ") for word in name.split()[1:]}
    for mechanism in sorted(mechanisms):
        name = f"auth{mechanism.replace('-', '').lower()}parameters"
        found = resolve(options[name], chain, config.folder)
        keys = {key.lower(): value for key, value in (found.value or {}).items()}
        where = found.entry.position if found.entry is not None else listed.entry.position
        if not keys.get("uri"):
            text = f'{node.kind} "{node.label}" offers AUTH {mechanism}, which needs {name} = [ uri = "file://..." ]'
            faults.append(Fault(where, text))
            continue
        scheme, mark, _ = keys["uri"].partition("://")
        if not mark:
            faults.append(Fault(where, f'{keys["uri"]!r} is no uri of credentials, such as "file:///etc/users"'))
        elif mechanism in _NEEDS_FILE and scheme.lower() not in _NEEDS_FILE[mechanism]:
            text = f"AUTH {mechanism} cannot use {scheme}://; it needs {', '.join(_NEEDS_FILE[mechanism])}"
            faults.append(Fault(where, text))
    trusted = resolve(options["trusted_clients"], chain, config.folder)
    unheard = [name for name in listed.value if name in TRUSTED_EXTENSIONS]
    if unheard and not trusted.value:
        text = f"{', '.join(unheard)}: offered to nobody without Trusted_Clients = ( ... )"
        faults.append(Fault(listed.entry.position, text, warning=True))


HTTP_USERS = ("file", "digest", "scram")
_NEEDS_FILE = {
    "CRAM-MD5": ("file",),
    "DIGEST-MD5": ("digest", "file"),
    "SCRAM-SHA-256": ("scram", "file"),
}


def _check_modules(config: Config, faults: list[Fault]) -> None:
    for node in config.root.of("datasource"):
        uris = node.settings.get("uri")
        if uris is None or not uris.value:
            faults.append(Fault(node.position, f'datasource "{node.label}" has no uri'))
            continue
        for uri in uris.value:
            text = datasource.fault(uri)
            if text is not None:
                faults.append(Fault(uris.position, f'datasource "{node.label}": {text}'))
    _check_signing(config, faults)
    try:
        config.stanzas.monitors()
    except ValueError as error:
        node = next(config.root.of("inbound_audit"))
        faults.append(Fault(node.settings["monitors"].position, str(error)))


def _check_signing(config: Config, faults: list[Fault]) -> None:
    """Mail that is to be signed needs somebody who signs it."""
    values = [config.stanzas.module_values(node) for node in config.stanzas.module_nodes("opendkim")]
    keys = any(value["key"] for value in values) or any(
        child for node in config.stanzas.module_nodes("opendkim") for child in node.of("dkim_domain")
    )
    for node in config.root.walk():
        entry = node.settings.get("opendkim_sign")
        if entry is not None and entry.value is True and not keys:
            missing = "a dkim_domain or a key in its opendkim stanza" if values else "an opendkim stanza"
            faults.append(Fault(entry.position, f"Opendkim_Sign = true in {node.path} needs {missing}"))


def _check_scripts(config: Config, faults: list[Fault]) -> None:
    for node in config.root.of("policy"):
        if "module" not in node.settings:
            faults.append(Fault(node.position, f'policy "{node.label}" has no module'))
    for node in config.root.of("scriptlet"):
        for script in node.of("script"):
            if "source" not in script.settings:
                faults.append(Fault(script.position, f'script "{script.label}" has no source'))
