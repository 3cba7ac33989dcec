"""The policies of a configuration, and what they may use of a worker. Shell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from quillon.config import script_files
from quillon.config.model import Config
from quillon.config.scope import Node
from quillon.config.syntax import Position
from quillon.lua.runtime import load_scripts
from quillon.mail.address import Mailbox
from quillon.mail.event import Event
from quillon.mailauth.dkim import DEFAULT_HEADERS
from quillon.modules import opendkim, spf_v1
from quillon.modules.dmarc import Dmarc
from quillon.modules.openarc import OpenArc
from quillon.modules.opendkim import OpenDkim
from quillon.modules.spf_v1 import Spf
from quillon.modules.tls_report_receiver import TlsReportReceiver
from quillon.net.clock import Clock
from quillon.policy.environment import Datasource, Environment
from quillon.policy.hook import NO_POLICY, Module, Policy, PolicyError, PolicyTime
from quillon.policy.python_module import load_module

PATIENCE = 30.0  # seconds that scripts may wait, for DNS or a database, until they are loaded


class LoadError(Exception):
    """A part of a configuration cannot be made; the message says which and why."""


@dataclass
class Services:
    """What a worker gives to the policies that it loads; `shared` and `spent` outlive a reload.

    Without `live` a policy is only looked at: it loads as it would, and nothing of it runs later.
    """

    lookup: Callable[[str, str, str], Any] | None = None
    inject: Callable[[Mailbox, Sequence[Mailbox], bytes], Any] | None = None
    sessions: Callable[[str, str], int] | None = None
    delay_domain: Callable[[str, str], None] | None = None
    log: Callable[[Event], None] | None = None
    hostname: str = "localhost"
    shared: dict[str, Any] = field(default_factory=dict)
    live: bool = True
    spent: PolicyTime = field(default_factory=PolicyTime)


@dataclass
class Policies:
    """A policy with the environment that its modules know."""

    policy: Policy
    environment: Environment


async def load(
    config: Config, clock: Clock, report: Callable[[str], None], services: Services | None = None
) -> Policies:
    """The scripts of the scriptlet stanza, then the Python policies. Raises LoadError."""
    services = services or Services(live=False)
    environment = _environment(config, clock, report, services)
    try:
        async with asyncio.timeout(PATIENCE):
            modules = await _modules(config, environment)
    except BaseException as error:
        environment.stop()  # what one script has begun before another one failed
        if isinstance(error, TimeoutError):
            words = f"the policies waited for more than {PATIENCE:.0f} seconds while they loaded"
            raise LoadError(words) from None
        raise
    policy = (
        Policy(modules, report, _sleep, stop=environment.stop, elapsed=time.perf_counter, spent=services.spent)
        if modules or environment.stops
        else NO_POLICY
    )
    return Policies(policy, environment)


async def _modules(config: Config, environment: Environment) -> list[Module]:
    """Raises LoadError."""
    try:
        modules: list[Module] = _own_modules(config, environment)
    except PolicyError as error:
        raise LoadError(str(error)) from None
    settings = config.stanzas.scripts()
    if settings is not None:
        try:
            modules += await load_scripts(settings, script_files.folders(config.folder, config.files), environment)
        except PolicyError as error:
            raise LoadError(f"{_script_position(config, error.script)}: {error}") from None
    for stanza in config.stanzas.policies():
        try:
            loaded = await load_module(stanza.name, Path(stanza.module), environment, stanza.cpu_limit)
        except PolicyError as error:
            node = config.root.get("policy", stanza.name)
            raise LoadError(f"{node.settings['module'].position if node else ''}: {error}") from None
        if stanza.enabled:
            modules.append(loaded)
    return modules


def _own_modules(config: Config, environment: Environment) -> list[Module]:
    """The modules of stanzas that come with Quillon. Raises PolicyError for a key that cannot be read."""
    found: list[Module] = []
    for node in config.stanzas.module_nodes("spf_v1"):
        value = config.stanzas.module_values(node)
        found.append(
            Spf(
                spf_v1.SpfSettings(
                    node.label, value["context_variable"], value["add_headers"], value["add_authentication_results"]
                ),
                environment,
            )
        )
    for node in config.stanzas.module_nodes("opendkim"):
        try:
            found.append(OpenDkim(_dkim_settings(config, node), environment, partial(_signs, config)))
        except PolicyError as error:
            text = str(error)
            raise PolicyError(text if text.startswith(node.position.file) else f"{node.position}: {text}") from None
    found += [Dmarc(node.label, environment) for node in config.stanzas.module_nodes("dmarc")]
    found += [OpenArc(node.label, environment) for node in config.stanzas.module_nodes("openarc")]
    for given in config.stanzas.tls_report_receivers():
        folder = Path(config.node().spoolbase, "tlsrpt/received")
        found.append(TlsReportReceiver(given, folder, environment))
    return found


def _signs(config: Config, group: str, binding: str, domain: str) -> bool:
    return config.outbound.delivery(group, binding, domain)[0].opendkim_sign


def _dkim_settings(config: Config, node: Node) -> opendkim.DkimSettings:
    value = config.stanzas.module_values(node)
    headers = tuple(value["headerlist"]) or DEFAULT_HEADERS
    domains = {}
    for child in node.of("dkim_domain"):
        own = config.stanzas.module_values(child)
        chosen = {key: own[key] or value[key] for key in ("selector", "key", "header_canon", "body_canon")}
        if not chosen["selector"] or not chosen["key"]:
            raise PolicyError(f'{child.position}: dkim_domain "{child.label}" needs a selector and a key')
        domains[child.label.lower()] = _signing(own["base_domain"] or child.label.lower(), chosen, headers, value)
    default = _signing("", value, headers, value)
    return opendkim.DkimSettings(node.label, value["verify"], default, domains)


def _signing(
    domain: str, chosen: Mapping[str, Any], headers: tuple[str, ...], value: Mapping[str, Any]
) -> opendkim.Signing:
    return opendkim.Signing(
        domain,
        chosen["selector"] or "",
        chosen["key"] or "",
        chosen["header_canon"],
        chosen["body_canon"],
        headers,
        value["identity"] or "",
    )


async def _sleep(seconds: float) -> None:
    await asyncio.create_task(asyncio.sleep(seconds))


def _environment(config: Config, clock: Clock, report: Callable[[str], None], services: Services) -> Environment:
    environment = Environment(
        clock.now, report, hostname=services.hostname, folder=config.folder, shared=services.shared
    )
    environment.datasources = {
        s.name: Datasource(s.uri, s.cache_life, s.cache_size, s.max_rows, s.no_cache)
        for s in config.stanzas.datasources()
    }
    bindings = config.outbound.bindings()
    environment.bindings = {"binding": bindings.keys(), "binding_group": frozenset(bindings.values())}
    environment.monitors = config.stanzas.monitors()
    environment.option = lambda path: option(config, path)
    if services.lookup is not None:
        environment.lookup = services.lookup
    if services.inject is not None:
        environment.inject = services.inject
    if services.log is not None:
        environment.log = services.log
    if services.sessions is not None:
        environment.sessions = services.sessions
    environment.delay_domain = services.delay_domain
    if not services.live:
        environment.later = _nothing
        environment.after = lambda seconds, function: _stopped
        return environment
    loop = asyncio.get_running_loop()
    environment.later = lambda function: _drop(loop.call_soon(function))
    environment.after = lambda seconds, function: loop.call_later(seconds, function).cancel
    return environment


def _nothing(_function: object) -> None:
    """Where nothing runs later."""


def _stopped() -> None:
    """A timer that never runs is easily stopped."""


def _drop(_handle: object) -> None:
    """The handle of a call that nobody takes back."""


def option(config: Config, path: Sequence[str]) -> tuple[str, str]:
    """An option's value by its path, as `config get` of the console has it. Raises ValueError."""
    *scopes, name = path
    node: Node | None = config.root
    chain: list[Node] = []
    at = 0
    while node is not None:
        chain.append(node)
        if at >= len(scopes):
            break
        kind = scopes[at].lower()
        named = node.get(kind, scopes[at + 1]) if at + 1 < len(scopes) else None
        if named is not None:
            node, at = named, at + 2
        else:
            node, at = node.get(kind), at + 1
    # what a stanza does not set, or one that is not there, falls back to the scopes around it
    entry = next((node.settings[name.lower()] for node in reversed(chain) if name.lower() in node.settings), None)
    if entry is not None:
        return entry.text, f"{name} = {entry.text}"
    known = config.table.options.get(name.lower())
    if known is None:
        raise ValueError(f"{name!r} is no option")
    value = known.default or ""
    return value, f"{name} = {value}"


def _script_position(config: Config, script: str) -> Position:
    """Where the source of a script is named, or the scriptlet stanza."""
    node = next(config.root.of("scriptlet"))
    stanza = node.get("script", script)
    return stanza.settings["source"].position if stanza is not None else node.position
