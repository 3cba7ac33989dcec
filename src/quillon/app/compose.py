"""Parts that are made from a configuration: policy, resolver, names. Used by workers, and by `check` to try them."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from quillon.config.model import Config
from quillon.config.scope import Node, ancestors
from quillon.config.settings import NodeSettings
from quillon.config.syntax import Position
from quillon.delivery.hosts import Own
from quillon.delivery.standards import Standards
from quillon.evidence import keys, stamp
from quillon.listener import credentials
from quillon.listener.sockets import BindError, is_possible
from quillon.log.macros import compile_format
from quillon.lua.msys import db
from quillon.modules import load as policies
from quillon.modules.load import LoadError
from quillon.net.clock import Clock
from quillon.net.resolver import Resolver
from quillon.policy.environment import Lookup
from quillon.policy.hook import PolicyError
from quillon.queue.curfew import Curfew, ScheduleError
from quillon.queue.curfew import parse as parse_schedule
from quillon.standards.fetch import fetch
from quillon.standards.sts_policies import StsPolicies
from quillon.tls.context import Contexts
from quillon.tls.engine import ContextError

PRELOADED = 1000  # stanzas; a TLS context takes some 30 KiB and half a millisecond


def resolver(node: NodeSettings, clock: Clock, asked: Counter[str] | None = None) -> Resolver:
    """`asked` counts questions, as `Resolver` does. Raises LoadError for resolvers that cannot be read."""
    servers = [_server(text) for text in node.dns_servers]
    try:
        return Resolver(
            clock,
            servers,
            node.resolv_conf,
            min_ttl=node.min_dns_ttl,
            max_ttl=node.max_dns_ttl,
            trusted=node.dnssec_trusted_servers,
            asked=asked,
        )
    except OSError as error:
        raise LoadError(f"Resolv_Conf: {error}; name resolvers with DNS_Servers") from None


def _server(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?|([0-9.]+)(?::(\d{1,5}))?", text)
    if match is None:
        raise LoadError(f"DNS_Servers: {text!r} is no IP, IP:port or [IPv6]:port")
    return match[1] or match[3], int(match[2] or match[4] or 53)


def standards(
    node: NodeSettings, resolver: Resolver, clock: Clock, report: Callable[[str], None], *, writes: bool = True
) -> Standards:
    """What looks up what domains publish about the TLS of their mail; without `writes` nothing on disk is touched."""
    return Standards(resolver, sts_policies(node, resolver, clock, report, writes=writes), clock, report)


def sts_policies(
    node: NodeSettings, resolver: Resolver, clock: Clock, report: Callable[[str], None], *, writes: bool = True
) -> StsPolicies:
    """The MTA-STS policies that are kept on disk, and those to come."""
    return StsPolicies(
        resolver,
        lambda domain: fetch(resolver, domain, use_ipv6=node.use_ipv6),
        Path(node.mta_sts_policy_store or Path(node.spoolbase, "mtasts")),
        clock,
        report,
        aliases=node.mta_sts_dns_cname_max_depth,
        spread=random.uniform(0.8, 1.2),  # noqa: S311 - spreads load
        writes=writes,
    )


def _try_evidence(config: Config) -> list[str]:
    """What is wrong with the key of evidence, where there is one already, and with what time stamps are verified by."""
    node = config.node()
    given = config.stanzas.evidence(node.spoolbase, hostname(node))
    if given is None:
        return []
    try:
        if Path(given.key).exists():
            keys.load(Path(given.key))
        if given.stamps is not None:
            stamp.trust(given.stamps.ca)
    except (keys.KeyFileError, stamp.StampError) as error:
        return [f"{next(config.root.of('evidence')).position}: evidence: {error}"]
    return []


def _try_dane(config: Config, clock: Clock) -> list[str]:
    """What is wrong with the resolvers where use_dane is set."""
    entry = config.outbound.first_with_dane
    if entry is None:
        return []
    try:
        untrusted = resolver(config.node(), clock).untrusted
    except LoadError:
        return []  # said elsewhere
    if not untrusted:
        return []
    words = (
        f"use_dane: the word of {', '.join(untrusted)} on DNSSEC does not count, since it is not on this machine: name"
        " a resolver here that validates (DNS_Servers), or that one in DNSSEC_Trusted_Servers if the way to it is safe"
    )
    return [f"{entry.position}: {words}"]


async def look_up(resolver: Resolver, name: str, kind: str, server: str) -> Lookup:
    """What DNS answers a policy."""
    answer = await resolver.lookup(name, kind, server)
    return Lookup(answer.records, "" if answer.status == "ok" else answer.detail or answer.status, answer.status)


def hostname(node: NodeSettings) -> str:
    return node.hostname or socket.gethostname().lower()


def curfew(config: Config) -> Curfew:
    """The quiet hours. Raises LoadError for a schedule that cannot be read."""
    found = config.stanzas.curfew()
    if found is None:
        return Curfew()
    zone, entry = found
    try:
        return parse_schedule(Path(entry.value).read_text(encoding="utf-8"), utc=zone == "UTC")
    except ScheduleError as error:
        raise LoadError(f"{entry.value}:{error.line}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise LoadError(f"{entry.position}: schedule_file: {entry.value}: {words}") from None


def own(config: Config) -> Own:
    """As what this server is known to itself."""
    return Own(
        hostname(config.node()),
        frozenset((listen.host, listen.port) for listen in config.inbound.listens() if listen.port),
    )


def workers(node: NodeSettings) -> int:
    return node.workers if node.workers > 0 else len(os.sched_getaffinity(0))


def try_out(config: Config, clock: Clock) -> list[str]:
    """What goes wrong when the parts of a configuration are made, without using them."""
    problems: list[str] = []
    for make in (
        lambda: _try_policies(config, clock),
        lambda: resolver(config.node(), clock),
        lambda: curfew(config),
    ):
        try:
            make()
        except (LoadError, PolicyError) as error:
            problems.append(str(error))
    problems += _load_tls(config, Contexts(clock.now))
    problems += _try_formats(config)
    problems += _try_dane(config, clock)
    problems += _try_evidence(config)
    return problems


def try_to_bind(config: Config) -> list[str]:
    """What is wrong with the addresses of Listen stanzas."""
    problems = []
    for node, listen in zip(config.inbound.listen_nodes(), config.inbound.listens(), strict=True):
        try:
            is_possible(listen)
        except BindError as error:
            problems.append(f"{node.position}: {error}")
    return problems


async def load_to_look(config: Config, clock: Clock, report: Callable[[str], None]) -> policies.Policies:
    """The policies of a configuration as a worker loads them, but nothing of them runs later. Raises LoadError."""

    @cache
    def asked() -> Resolver:
        return resolver(config.node(), clock)

    async def lookup(name: str, kind: str, server: str) -> Lookup:
        return await look_up(asked(), name, kind, server)

    services = policies.Services(lookup=lookup, hostname=hostname(config.node()), live=False)
    loaded = await policies.load(config, clock, report, services)
    await db.close(loaded.environment.shared)
    return loaded


def _try_policies(config: Config, clock: Clock) -> None:
    """Raises LoadError, PolicyError."""
    loaded = asyncio.run(load_to_look(config, clock, lambda _: None))
    problems = credentials.faults(config, loaded.environment.auth)
    loaded.policy.close()
    if problems:
        raise LoadError("\n".join(problems))


def _try_formats(config: Config) -> list[str]:
    """What is wrong with the formats of custom_logger stanzas, and with their sanitize options."""
    problems = []
    for node in config.root.of("custom_logger"):
        stanza = config.stanzas.custom_logger(node)
        formats = {"sanitize": ""} | {f"{log.stage}_format": log.format for log in stanza.logs}
        for name, text in formats.items():
            try:
                compile_format(text, stanza.namespaces, stanza.sanitize)
            except ValueError as error:
                entry = node.settings.get(name)
                words = str(error) if name == "sanitize" else f"{name}: {error}"
                problems.append(f"{entry.position if entry else node.position}: {words}")
                if name == "sanitize":
                    break  # it would be the same for each format
    return problems


def contexts(config: Config, clock: Clock, report: Callable[[str], None]) -> Contexts:
    """The TLS contexts of the stanzas, loaded now: what is on disk later is no matter.

    What cannot be loaded is reported and tried again when it is needed: a worker that takes the place of another must
    not keep the server down for a file that is being renewed.

    Of very many stanzas that rule delivery, those beyond PRELOADED are loaded when they are first used.
    """
    made = Contexts(clock.now, any_client=config.contracts.asks_clients)
    for problem in _load_tls(config, made, PRELOADED):
        report(f"tls: {problem}")
    return made


def _load_tls(config: Config, contexts: Contexts, limit: int = 0) -> list[str]:
    """Build the contexts of every stanza that rules TLS; what is wrong, as `check` prints it."""
    problems: dict[str, str] = {}  # by words: many stanzas may inherit one fault
    for node, inbound in config.inbound.stanzas():
        if inbound.tls_certificate or inbound.tls_identities:
            try:
                contexts.load(inbound)
            except ContextError as error:
                problems.setdefault(str(error), f"{_option_position(node, error)}: {node.path}: {error}")
    stanzas = config.outbound.stanzas()
    for node, outbound in stanzas[:limit] if limit else stanzas:
        if outbound.tls != "no" or node.kind == "global":
            try:
                contexts.load_client(outbound)
            except ContextError as error:
                problems.setdefault(str(error), f"{_option_position(node, error)}: {node.path}: {error}")
    return list(problems.values())


def _option_position(node: Node, error: ContextError) -> Position:
    """Where the option stands that a context's error begins with, or the stanza."""
    name = str(error).split()[0].lower()
    for stanza in ancestors(node):
        if name in stanza.settings:
            return stanza.settings[name].position
    return node.position


def named_domains(config: Config) -> frozenset[str]:
    """Domains that the configuration names, by a stanza of theirs or a contract."""
    stanzas = {node.label for node in config.root.walk() if node.kind == "domain"}
    return frozenset(stanzas | {contract.domain for contract in config.contracts.all()})
