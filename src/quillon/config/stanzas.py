"""Stanzas that stand for themselves: loggers, modules, policies, control sockets. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from quillon.config.endpoint import parse_endpoint
from quillon.config.scope import Entry, Node, ancestors, resolve
from quillon.config.settings import (
    AcmeSettings,
    AlertSettings,
    CustomLog,
    CustomLoggerSettings,
    DatasourceSettings,
    EvidenceSettings,
    ListenSettings,
    LoggerSettings,
    PolicySettings,
    ScriptSettings,
    StampSettings,
    StsPolicySettings,
    TlsReportReceiverSettings,
    TlsReportSettings,
    WitnessSettings,
    build,
)
from quillon.config.tree import Tree
from quillon.mail.address import is_domain, parse_mailbox

GROUPS = "groups://"
CUSTOM_STAGES = ("reception", "delivery", "transient_failure", "permanent_failure", "rejection")


class ConsoleRights(NamedTuple):
    """What rules a socket of the console: where the file is that says who is of which group, None for none, and the
    regular expressions of what each role may say."""

    groups: str | None
    allowed: dict[str, list[str]]


class Stanzas:
    """Each kind of stanza as its reader wants it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._paths: dict[str, list[Node]] | None = None

    def loggers(self) -> list[LoggerSettings]:
        """One per enabled ec_logger stanza."""
        options = self.tree.table.modules["ec_logger"].options
        found = [
            build(LoggerSettings, lambda name, n=node: resolve(options[name], [n], self.tree.folder).value)  # type: ignore[misc]
            for node in self.tree.root.of("ec_logger")
        ]
        return [logger for logger in found if logger.enabled]

    def enabled(self, node: Node) -> bool:
        """Whether a module stanza is switched on."""
        return bool(resolve(self.tree.table.modules[node.kind].options["enabled"], [node], self.tree.folder).value)

    def in_force(self, node: Node) -> bool:
        """Whether a stanza and the modules that hold it are switched on, and the listener if there is one."""
        chain = ancestors(node)
        listener = next((n for n in chain if n.kind in ("listen", "esmtp_listener", "control_listener")), None)
        if listener is not None and not self.tree.listens(listener):
            return False
        modules = self.tree.table.modules
        return all(self.enabled(n) for n in chain if n.kind in modules and "enabled" in modules[n.kind].options)

    def custom_loggers(self) -> list[CustomLoggerSettings]:
        """One per enabled custom_logger stanza that logs something."""
        found = [self.custom_logger(node) for node in self.tree.root.of("custom_logger") if self.enabled(node)]
        return [logger for logger in found if logger.logs]

    def custom_logger(self, node: Node) -> CustomLoggerSettings:
        """A custom_logger stanza; a stage is logged if it has a format and is not switched off."""
        options = self.tree.table.modules["custom_logger"].options
        value = {name: resolve(option, [node], self.tree.folder).value for name, option in options.items()}
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
        listener = self.tree.root.get("control_listener")
        found = []
        for node in listener.of("listen") if listener is not None else ():
            if not self.tree.listens(node):
                continue
            mode = resolve(
                self.tree.table.options["file_mode"], [node, *([listener] if listener else [])], self.tree.folder
            ).value
            found.append(ListenSettings(node.label, *parse_endpoint(node.label), 16, mode))
        return found

    def console_rights(self) -> dict[str, ConsoleRights]:
        """What rules the Listens of consoles and HTTP with Enable_Authorization, by their names."""
        listeners = [self.tree.root.get(kind) for kind in ("control_listener", "http_listener")]
        options = self.tree.table.options
        allowed = {
            role.label: [pattern.pattern for pattern in role.settings["allow"].value]
            for node in self.tree.root.of("authorization")
            for role in node.of("role")
            if "allow" in role.settings
        }
        found = {}
        for node in [node for listener in listeners if listener is not None for node in listener.of("listen")]:
            chain = [node, *ancestors(node)]
            if resolve(options["enable_authorization"], chain, self.tree.folder).value:
                given = resolve(options["authorizationparameters"], chain, self.tree.folder).value or {}
                uri = str(given.get("uri", ""))
                found[node.label] = ConsoleRights(uri.removeprefix(GROUPS) if uri.startswith(GROUPS) else None, allowed)
        return found

    def scripts(self) -> ScriptSettings | None:
        """The scriptlet stanza, if there is one."""
        options = self.tree.table.modules["scriptlet"].options
        for node in self.tree.root.of("scriptlet"):
            scripts = tuple((s.label, s.settings["source"].value) for s in node.of("script") if "source" in s.settings)
            values = {
                n: resolve(options[n], [node], self.tree.folder).value
                for n in ("gc_pause", "gc_stepmul", "enabled", "cpu_limit", "memory_limit")
            }
            return ScriptSettings(scripts, **values)
        return None

    def policies(self) -> list[PolicySettings]:
        """The policy stanzas in the order of the file."""
        options = self.tree.table.modules["policy"].options
        found = []
        for node in self.tree.root.of("policy"):
            values = {
                n: resolve(options[n], [node], self.tree.folder).value for n in ("module", "enabled", "cpu_limit")
            }
            found.append(PolicySettings(node.label, **values))
        return found

    def module_nodes(self, kind: str) -> list[Node]:
        """The enabled stanzas of a module, in the order of the file."""
        return [node for node in self.tree.root.of(kind) if self.enabled(node)]

    def module_values(self, node: Node) -> dict[str, Any]:
        """Every option of a module's stanza."""
        options = self.tree.table.modules[node.kind].options
        return {name: resolve(option, [node], self.tree.folder).value for name, option in options.items()}

    def datasources(self) -> list[DatasourceSettings]:
        """The datasource stanzas."""
        options = self.tree.table.modules["datasource"].options
        names = ("uri", "cache_life", "cache_size", "max_rows", "no_cache")
        return [
            DatasourceSettings(node.label, *(resolve(options[n], [node], self.tree.folder).value for n in names))
            for node in self.tree.root.of("datasource")
        ]

    def curfew(self) -> tuple[str, Entry] | None:
        """Time zone and entry of the schedule of quiet hours, if there is one."""
        options = self.tree.table.modules["curfew"].options
        for node in self.tree.root.of("curfew"):
            entry = node.settings.get("schedule_file")
            if entry is not None and entry.value and self.enabled(node):
                return str(resolve(options["timezone"], [node], self.tree.folder).value), entry
        return None

    def alerts(self) -> AlertSettings | None:
        """The alerts stanza, if there is one. Raises ValueError for an address that is none."""
        for node in self.module_nodes("alerts"):
            values = self.module_values(node)
            addresses = tuple(parse_mailbox(text) for text in values["mail_to"] or ())
            if any(not address.domain for address in addresses):
                raise ValueError("mail_to: a domain is needed in each address")
            return build(AlertSettings, lambda name, v={**values, "mail_to": addresses}: v[name])  # type: ignore[misc]
        return None

    def evidence(self, spool: str, hostname: str) -> EvidenceSettings | None:
        """The evidence stanza, if there is one; what it leaves out is in `spool`, under the name `hostname`.
        Raises ValueError for time stamps and signatures of witnesses that nothing could verify."""
        for node in self.module_nodes("evidence"):
            values = self.module_values(node)
            folder = values["folder"] or f"{spool}/evidence"
            interval = max(int(values["checkpoint_interval"]), 1)
            key = values["key"] or f"{folder}/key.pem"
            node_name = values["node"] or hostname
            return EvidenceSettings(folder, key, node_name, interval, _stamps(values), _witness(values))
        return None

    def posture(self) -> int | None:
        """Seconds that days of posture are kept; None where they are not counted."""
        for node in self.module_nodes("posture"):
            return max(int(self.module_values(node)["keep"]), 86400)
        return None

    def acme(self) -> list[AcmeSettings]:
        """The acme stanzas. Raises ValueError for one that nothing could come of."""
        found = []
        for node in self.module_nodes("acme"):
            values = self.module_values(node)
            names = tuple(name.lower() for name in values["names"] or ())
            wanted = AcmeSettings(
                node.label,
                values["directory"],
                values["directory_ca"],
                values["email"] or "",
                names,
                values["certificate"] or "",
                values["key"] or "",
                values["challenge"],
                values["hook"],
                values["reuse_key"],
                values["key_type"],
                values["external_account"] or "",
                values["external_account_key"] or "",
            )
            fault = _acme_fault(wanted, agreed=values["agree_terms"])
            if fault:
                raise ValueError(f'acme "{node.label}": {fault}')
            found.append(wanted)
        return found

    def own_policies(self) -> dict[str, StsPolicySettings]:
        """The mta_sts_policy stanzas by domain. Raises ValueError for one that senders could not read."""
        found = {}
        for node in self.module_nodes("mta_sts_policy"):
            values = self.module_values(node)
            domain, mx = node.label.lower().removesuffix("."), tuple(name.lower() for name in values["mx"] or ())
            if not is_domain(domain):
                raise ValueError(f"mta_sts_policy {node.label!r}: its name is a domain")
            if not mx and values["mode"] != "none":
                raise ValueError(f'mta_sts_policy "{domain}": mx has to name the hosts that take its mail')
            wrong = next((name for name in mx if not is_domain(name.removeprefix("*."))), None)
            if wrong is not None:
                raise ValueError(f'mta_sts_policy "{domain}": mx: {wrong!r} is no name of a host, nor one behind *.')
            found[domain] = StsPolicySettings(domain, values["mode"], mx, values["max_age"])
        return found

    def tls_reports(self) -> TlsReportSettings | None:
        """The tls_reports stanza, if there is one. Raises ValueError for one without an address."""
        for node in self.module_nodes("tls_reports"):
            values = self.module_values(node)
            sender = values["from"]
            if sender is None or not sender.domain:
                raise ValueError("from has to be an address, whose domain is the one that reports")
            domain = sender.domain
            return TlsReportSettings(sender, domain, values["organization"] or domain, values["contact"] or str(sender))
        return None

    def tls_report_receivers(self) -> list[TlsReportReceiverSettings]:
        """The tls_report_receiver stanzas. Raises ValueError for one without an address."""
        found = []
        for node in self.module_nodes("tls_report_receiver"):
            values = self.module_values(node)
            address = values["address"]
            if address is None or not address.domain:
                raise ValueError("address has to be the one that _smtp._tls of your domains names")
            domains = tuple(name.lower().removesuffix(".") for name in values["domains"] or [address.domain])
            keep = max(values["keep"], 86400)
            found.append(TlsReportReceiverSettings(node.label, address, domains, keep, values["deliver"]))
        return found

    def monitors(self) -> list[tuple[int, int]]:
        """The windows of inbound_audit, as seconds and number. Raises ValueError."""
        found = []
        for node in self.tree.root.of("inbound_audit"):
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
        node = self.tree.root.get("binding_group", group)
        return [binding.label for binding in node.of("binding")] if node is not None else []

    def at_path(self, path: str) -> list[Node]:
        """The stanzas that `Node.path` names so."""
        if self._paths is None:
            self._paths = {}
            for node in self.tree.root.walk():
                self._paths.setdefault(node.path, []).append(node)
        return self._paths.get(path, [])


def _comma_separated(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def log_switch(stage: str) -> str:
    """`log_deliveries` for the stage delivery."""
    plural = {"delivery": "deliveries", "xfer": "xfers"}
    return f"log_{plural.get(stage, stage + 's')}"


def _acme_fault(wanted: AcmeSettings, *, agreed: bool) -> str:
    """What is wrong with a stanza; empty for nothing."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", wanted.name):
        return "its name is made of letters, digits, and -_."
    if not wanted.names or not wanted.certificate or not wanted.key:
        return "it needs names, certificate and key"
    wrong = next((name for name in wanted.names if not is_domain(name.removeprefix("*."))), None)
    if wrong is not None:
        return f"names: {wrong!r} is no name of a host"
    if not agreed:
        return "agree_terms = true says that you agree to the terms of its server, without which it gives none"
    if not wanted.directory.startswith("https://"):
        return f"directory = {wanted.directory}: it is a URL that begins with https://"
    if wanted.challenge == "dns-01" and not wanted.hook:
        return "dns-01 needs a hook, which publishes records"
    if wanted.challenge == "http-01" and any(name.startswith("*.") for name in wanted.names):
        return "a wildcard needs challenge = dns-01"
    return ""


def _stamps(values: dict[str, Any]) -> StampSettings | None:
    url, ca = values["time_stamp_authority"], values["time_stamp_ca"]
    if not url and not ca:
        return None
    if not url or not ca:
        raise ValueError("time_stamp_authority and time_stamp_ca go together: what is stamped has to be verified")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"time_stamp_authority = {url}: it is a URL, as https://tsa.example/tsr")
    return StampSettings(url, ca, max(int(values["time_stamp_interval"]), 1))


def _witness(values: dict[str, Any]) -> WitnessSettings | None:
    url, key = values["witness"], values["witness_key"]
    if not url and not key:
        return None
    if not url or not key:
        raise ValueError("witness and witness_key go together: what is signed has to be verified")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"witness = {url}: it is a URL, as https://witness.example/")
    name, octets = verifier_key(key)
    return WitnessSettings(url, name, octets, max(int(values["witness_interval"]), 1))


def verifier_key(text: str) -> tuple[str, bytes]:
    """The name and the 32 octets of a witness's key as verifiers of notes take it (C2SP signed-note, type 4). Raises
    ValueError."""
    name, _, rest = text.strip().partition("+")
    known, _, encoded = rest.partition("+")
    try:
        octets = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        octets = b""
    if not name or " " in name or octets[:1] != b"\x04" or len(octets) != 33:
        raise ValueError(f"witness_key = {text[:100]}: it is NAME+HASH+KEY, with an Ed25519 key of type 4")
    expected = hashlib.sha256(name.encode() + b"\n" + octets).hexdigest()[:8]
    if known != expected:
        raise ValueError(f"witness_key = {text[:100]}: its hash is {expected}, and not {known}")
    return name, octets[1:]
