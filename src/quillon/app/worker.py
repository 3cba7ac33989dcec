"""A worker: one process, one event loop, one spool. It shares nothing with the others but listening addresses.

It is told what to do over its channel: reload, drain. If the supervisor goes, the channel ends and the worker drains by
itself, so that none is left behind.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvloop

from quillon.app import compose, suspended
from quillon.app.answers import Answers
from quillon.app.upkeep import Upkeep
from quillon.config.changes import ConfigChange
from quillon.config.load import load
from quillon.config.model import Config
from quillon.config.settings import share
from quillon.delivery.bounce import Bouncer
from quillon.delivery.connection import ConnectionServices
from quillon.delivery.dispatcher import Dispatcher, Share
from quillon.delivery.hosts import HostFinder
from quillon.delivery.settlement import at_once
from quillon.evidence.files import DamagedError
from quillon.evidence.keys import KeyFileError
from quillon.evidence.record import Source
from quillon.evidence.writer import Evidence, seal_others
from quillon.listener import credentials, intake
from quillon.listener.authentication import Authenticator
from quillon.listener.esmtp import EsmtpSession
from quillon.listener.failed_logins import FailedLogins
from quillon.listener.recorder import Recorder
from quillon.listener.services import Counts, OpenSession, SessionServices
from quillon.log.metrics import Metrics
from quillon.log.sink import Loggers
from quillon.log.trace import Tracers
from quillon.lua.msys import audit, db
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.alert import Alert
from quillon.mail.event import Discarded, Event, HostFailed, Notice, Panic, Rejected
from quillon.mail.message import IdSource, Message
from quillon.modules import load as policies
from quillon.modules.load import LoadError, Policies, Services
from quillon.net.channel import Channel
from quillon.net.clock import Deadlines, SystemClock
from quillon.net.stream import Stream
from quillon.net.turns import Turns
from quillon.policy.environment import Lookup
from quillon.policy.hook import Policy, PolicyError, PolicyTime, words_of
from quillon.policy.tls import TlsHooks
from quillon.reception.accept import Envelope, Reception, ResidentBodies
from quillon.reception.mail_data import MailData
from quillon.spool.errors import SpoolError, is_full
from quillon.spool.room import Room
from quillon.spool.store import Store

FAULTY = 3  # exit status: starting anew will not help
WAITING = 4  # exit status: it may help later, as for room on the disk
READ_SECONDS = 60.0  # until an answer that the supervisor does not read is given up
FLUSH = 10.0  # seconds that evidence and spool have for what is to be written at the end
MOST_CHANGED = 50  # demands that are lost or weaker that the answer to a reload names
SAID = 12000  # characters of what went wrong, in an answer
ANSWER = 16384  # octets of an answer to the console, after which a new datagram begins


class Worker:
    """`number` counts from 0; `sockets` maps Listen names to this worker's listening sockets."""

    def __init__(
        self, config: Config, number: int, count: int, sockets: dict[str, socket.socket], channel: Channel
    ) -> None:
        self.config = config
        self.number = number
        self.count = count
        self._sockets = sockets
        self.channel = channel
        self.clock = SystemClock()
        self._servers: dict[str, asyncio.AbstractServer] = {}
        self._draining = asyncio.Event()
        self._one_reload = asyncio.Lock()  # scripts may wait while they load
        self.metrics = Metrics()
        self.dns_asked: Counter[str] = Counter()
        self.policy_time = PolicyTime()
        self.recorder: Recorder | None = None
        self.tracers = Tracers(self.clock.now, self.report)
        self.started = self.clock.now()
        self.evidence: Evidence | None = None
        self._orders: set[asyncio.Task[None]] = set()
        self._intake = intake.Intake(lambda: self.services)
        self.upkeep = Upkeep(self)

    async def run(self) -> None:
        """Until drained. Raises SpoolError, LoadError and OSError for what keeps it from starting."""
        loop = self._loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        loop.add_signal_handler(signal.SIGTERM, self._draining.set)
        self._loggers = Loggers(self.config.stanzas.loggers(), loop.call_soon, self.config.stanzas.custom_loggers())
        self._loggers.open()
        self._open_spool()
        await self._build(self.config)
        loop.add_reader(self.channel.fileno(), self._told)
        self._deadlines.start()
        self.store.start()
        if self.evidence is not None:
            self.evidence.start()
        for name, sock in self._sockets.items():
            await self._listen(name, sock)
        await self._take_in(self.config)
        self.dispatcher.start(self.store.recovered())
        self._start_heartbeat()
        gc.collect()
        gc.freeze()
        gc.set_threshold(20000, 50, 50)
        self.upkeep.start()
        self.channel.send({"event": "ready"})
        await self._draining.wait()
        await self._drain()

    def _open_spool(self) -> None:
        node = self.config.node()
        base = Path(node.spoolbase)
        self.store = Store(base / f"worker-{self.number}", node.spool_mode, self.report)
        for folder in sorted(base.glob("worker-*")):
            name = folder.name.removeprefix("worker-")
            if not re.fullmatch("[0-9]+", name) or int(name) < self.count or int(name) % self.count != self.number:
                continue
            try:
                taken = self.store.adopt(folder)
                self.log(Notice(self.clock.now(), f"took over {taken} messages from {folder}"))
            except SpoolError as error:
                # it waits for whoever mends it; a spool of our own that cannot be used is found by `open`
                self.report(f"{error}; its mail was not taken over")
        self.store.open()

    async def _build(self, config: Config) -> None:
        """Put the parts together. Raises LoadError."""
        node = config.node()
        self._deadlines = Deadlines(self.clock)
        self.contexts = compose.contexts(config, self.clock, self.report)
        self.hostname = compose.hostname(node)
        self.resolver = compose.resolver(node, self.clock, self.dns_asked)
        self.shared: dict[str, Any] = {}  # what policies keep over reloads
        self.policies = await policies.load(config, self.clock, self.report, self._policy_services())
        self._hooks = TlsHooks(self.policies.policy, config.folder)
        self._ids = IdSource(os.getpid(), self.store.newest)
        self.evidence = self._evidence_of(config)
        self._resident_bodies = ResidentBodies(share(node.max_resident_messages, self.count))
        self.finder = HostFinder(self.resolver, node, self.clock, compose.own(config))
        self.standards = compose.standards(node, self.resolver, self.clock, self.report)
        self._counts = Counts()
        octets, inodes = node.spool_minimum_free_space, node.spool_minimum_free_inodes
        self.room = Room(self.store.folder, octets, inodes, self.clock.now)
        self._turns = Turns()
        self._failed_logins = FailedLogins(self.clock.now, self._tell_failure)
        self.sessions: set[OpenSession] = set()
        self._reception = Reception(
            config=config,
            policy=self.policies.policy,
            store=self.store,
            room=self.room,
            ids=self._ids,
            clock=self.clock,
            resident_bodies=self._resident_bodies,
            enqueue=self._submit,
            log=self.log,
            evidence=self.evidence,
        )
        self._bouncer = Bouncer(config, self._reception, self.store, self._ids, self.clock, self.hostname)
        self.dispatcher = Dispatcher(
            config=config,
            store=self.store,
            resident_bodies=self._resident_bodies,
            finder=self.finder,
            standards=self.standards,
            bouncer=self._bouncer,
            services=ConnectionServices(
                self.clock,
                self._deadlines,
                self.contexts,
                self._hooks,
                keep=self.evidence.keep if self.evidence is not None else None,
                tracers=self.tracers,
            ),
            hostname=self.hostname,
            share=Share(self.count),
            log=self.log,
            say=self.channel.send,
            prove=self.evidence.prove if self.evidence is not None else at_once,
            put_off=self.evidence.put_off if self.evidence is not None else None,
            trouble=self.trouble if self.evidence is not None else None,
            curfew=compose.curfew(config),
            suspensions=suspended.read(Path(node.spoolbase), self.report),
        )
        self.answers = Answers(self)
        self.metrics.is_named = compose.named_domains(config).__contains__
        self.upkeep.configure(config)
        self.services = self._session_services(config, self.policies)

    def _policy_services(self) -> Services:
        """What policies may use of this worker."""
        return Services(
            lookup=self._lookup,
            inject=self.inject,
            log=self.log,
            sessions=self.count_sessions,
            delay_domain=lambda domain, note: _drop(self.dispatcher.sorting.delay_domain(domain, note)),
            hostname=self.hostname,
            shared=self.shared,
            spent=self.policy_time,
        )

    async def _lookup(self, name: str, kind: str, server: str) -> Lookup:
        found = await compose.look_up(self.resolver, name, kind, server)
        if self.recorder is not None:
            self.recorder.looked_up(name, kind, server, found)
        return found

    async def inject(self, sender: Mailbox, recipients: Sequence[Mailbox], data: bytes) -> None:
        """A message of a policy's own. Raises PolicyError if it cannot be stored."""
        number = self._ids.next(self.clock.now())
        envelope = Envelope.internal(number, sender, recipients)
        mail_data = MailData(self.store, number.number, self._reception.node.large_message_threshold, lambda _: b"", 0)
        mail_data.add(data)
        reply = await self._reception.accept(envelope, mail_data)
        if not reply.positive:
            raise PolicyError(f"the message was not taken: {reply}")

    def count_sessions(self, service: str, block: str) -> int:
        """Open sessions of an address block; of services that are not here there are none."""
        if service != "SMTP":
            return 0
        network = ipaddress.ip_network(block, strict=False)
        return sum(ipaddress.ip_address(session.client) in network for session in self.sessions)

    def _session_services(self, config: Config, loaded: Policies) -> SessionServices:
        environment = loaded.environment
        return SessionServices(
            config=config,
            contexts=self.contexts,
            policy=loaded.policy,
            authenticator=Authenticator(self.clock, self.report, environment.auth),
            failed_logins=self._failed_logins,
            turns=self._turns,
            recorder=self.recorder,
            tracers=self.tracers,
            keep=self.evidence.keep if self.evidence is not None else None,
            note=partial(audit.note, self.shared) if environment.monitors else _unheard,
            hooks=self._hooks,
            reception=self._reception,
            ids=self._ids,
            clock=self.clock,
            deadlines=self._deadlines,
            hostname=self.hostname,
            workers=self.count,
            log=self.log,
            counts=self._counts,
            sessions=self.sessions,
        )

    def _submit(self, messages: list[Message]) -> None:
        self.dispatcher.submit(messages)

    async def _listen(self, name: str, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def make() -> Stream:
            return cast(Stream, EsmtpSession(self.services, name).stream)

        if sock.family == socket.AF_UNIX:
            self._servers[name] = await loop.create_unix_server(make, sock=sock)
        else:
            backlog = next((s.backlog for s in self.config.inbound.listens() if s.name == name), 500)
            self._servers[name] = await loop.create_server(make, sock=sock, backlog=backlog)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside."""
        task = asyncio.get_running_loop().create_task(work)
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)

    def _evidence_of(self, config: Config) -> Evidence | None:
        """The log of evidence, if one is kept. Raises LoadError."""
        given = config.stanzas.evidence(config.node().spoolbase, self.hostname)
        if given is None:
            return None
        source = Source(given.node, self.number, config.digest)
        try:
            made = Evidence(Path(given.folder), self.number, Path(given.key), source, self.clock, self.report)
            if self.number == 0:
                seal_others(made, self.count, Path(given.key), self.clock, self.report)
            return made
        except (KeyFileError, DamagedError) as error:
            raise LoadError(f"evidence: {error}") from None
        except OSError as error:
            raise LoadError(f"evidence: {error.filename or given.folder}: {error.strerror}") from None

    def trouble(self) -> str:
        """What is wrong with this server, so that nothing may leave; "" for nothing."""
        failing = self.evidence.failing if self.evidence is not None else ""
        return f"no evidence can be written: {failing}" if failing else ""

    async def _take_in(self, config: Config) -> None:
        """Take messages that come by HTTP, if there is a listener for them."""
        if config.inbound.http_nodes():
            try:
                await self._intake.listen(self.store.folder / intake.NAME)
            except OSError as error:
                self.report(f"HTTP_Listener: worker {self.number} takes no messages: {error}")

    # log ------------------------------------------------------------------------------------------------------

    def log(self, event: Event) -> None:
        self.metrics.count(event)
        self._loggers.log(event)
        if self.evidence is not None and isinstance(event, (HostFailed, Rejected, Discarded)):
            self.evidence.note(event)
        self.upkeep.see(event)

    def report(self, text: str) -> None:
        """A panic line, from whichever thread."""
        event = Panic(self.clock.now(), text)
        if threading.current_thread() is threading.main_thread():
            self.log(event)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.log, event)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A defect of ours in a callback: one line for the operator, the traceback on stderr, and mail goes on."""
        error = context.get("exception")
        self.report(f"unexpected: {context.get('message')}: {error!r}")
        if error is not None:
            traceback.print_exception(error)

    def _start_heartbeat(self) -> None:
        interval = self._loggers.heartbeat
        if self.number == 0 and interval:
            self._loggers.beat(self.clock.now())
            self._loop.call_later(interval, self._start_heartbeat)

    # what the supervisor says ---------------------------------------------------------------------------------

    def _told(self) -> None:
        got = self.channel.receive()
        if got is None:
            asyncio.get_running_loop().remove_reader(self.channel.fileno())
            self._draining.set()
            return
        message, descriptors = got
        if message["do"] == "reload":
            sockets = {name: socket.socket(fileno=fd) for name, fd in zip(message["new"], descriptors, strict=False)}
            missing = len(message["new"]) - len(descriptors)
            changed = [ConfigChange(do, tuple(words), origin) for do, words, origin in message["changed"]]
            reload = self._reload(sockets, message["round"], message["digest"], changed, missing)
            self._reloading = asyncio.get_running_loop().create_task(reload)
        elif message["do"] == "drain":
            self._draining.set()
        elif message["do"] == "console":
            ordered = self._ordered(message["id"], message["command"], message["words"], message["who"])
            self.spawn(ordered)
        elif message["do"] == "announce":
            self.upkeep.announce(Alert(*message["alert"]))
        elif message["do"] == "reopen":
            self._reopen()
        elif message["do"] == "leased":
            self.dispatcher.places.leased(message["name"])
        elif message["do"] == "wanted":
            self.dispatcher.places.wanted(message["name"])
        elif message["do"] == "guessed":
            self._failed_logins.heard(message["client"])

    def _tell_failure(self, client: str) -> None:
        """A failed authentication, for the other workers; not worth waiting for."""
        self.channel.send({"event": "guessed", "client": client}, wait=False)

    async def _ordered(self, number: int, command: str, words: list[str], who: str) -> None:
        """A command of the console; what goes wrong in it is its answer."""
        rows: list[Any]
        try:
            rows = await self.answers.to(command, words, who, number)
        except (OSError, ValueError, PolicyError) as error:
            rows = [{"error": str(error)[:SAID]}]
        except Exception as error:
            # a script's command that fails is its own fault
            rows = [{"error": words_of(error)[:SAID]}]
        await self._send_rows(number, rows)

    async def _send_rows(self, number: int, rows: list[Any]) -> None:
        """An answer to the console, in parts that fit into a datagram."""
        parts: list[list[Any]] = [[]]
        size = 0
        for row in rows:
            size += len(json.dumps(row))
            if size > ANSWER:
                parts.append([])
                size = 0
            parts[-1].append(row)
        for n, part in enumerate(parts, 1):
            message = {"event": "answer", "id": number, "rows": part, "last": n == len(parts)}
            end = self.clock.now() + READ_SECONDS
            while not self.channel.send(message, wait=False):  # the supervisor reads it a turn at a time
                if self.clock.now() >= end:
                    return
                await asyncio.sleep(0.005)

    def _reopen(self) -> None:
        try:
            self._loggers.open()
        except OSError as error:
            self.report(f"cannot open log {error.filename}: {error.strerror}")

    async def _reload(
        self, new: dict[str, socket.socket], number: int, digest: str, changed: list[ConfigChange], missing: int
    ) -> None:
        """Read the configuration again and use it, or keep the running one and say why. `digest` is that of the files
        as they were tried, `changed` what the console has changed in them, `missing` how many sockets did not come with
        the order."""
        async with self._one_reload:
            try:
                if missing:
                    raise LoadError(f"{missing} sockets could not be handed over: no descriptors are left")
                loaded = load(self.config.files[0], changed=changed)
                if loaded.config is None:
                    raise LoadError("; ".join(str(fault) for fault in loaded.errors))
                if loaded.config.digest != digest:
                    raise LoadError("files of the configuration have changed since they were tried: reload again")
                demands = await self._adopt(loaded.config, new)
            except Exception as error:
                # whatever a new configuration does, the old one serves on, and the operator is told
                for sock in new.values():
                    sock.close()
                text = str(error) if isinstance(error, (LoadError, OSError)) else f"unexpected {error!r}"
                self.log(Panic(self.clock.now(), f"config: reload refused, the running configuration stays: {text}"))
                self.channel.send({"event": "refused", "round": number, "text": text[:SAID]})
                return
        self.channel.send({"event": "reloaded", "round": number, "changed": list(demands.items())[:MOST_CHANGED]})

    async def _adopt(self, config: Config, new: dict[str, socket.socket]) -> Counter[str]:
        node = config.node()
        resolver = compose.resolver(node, self.clock, self.dns_asked)
        loaded = await policies.load(config, self.clock, self.report, self._policy_services())
        faults = credentials.faults(config, loaded.environment.auth)
        if faults:
            loaded.policy.close()
            raise LoadError("; ".join(faults))
        curfew = compose.curfew(config)
        contexts = compose.contexts(config, self.clock, self.report)
        loggers = Loggers(
            config.stanzas.loggers(), asyncio.get_running_loop().call_soon, config.stanzas.custom_loggers()
        )
        try:
            loggers.open()
        except OSError:
            loggers.close()
            loaded.policy.close()
            raise
        # nothing below fails: from here on the new configuration is the running one
        old_loggers, self._loggers = self._loggers, loggers
        old_loggers.close()
        old_policy, policy = self.policies.policy, loaded.policy
        self.config, self.policies = config, loaded
        self.resolver = resolver
        self.contexts = contexts
        self._hooks = TlsHooks(policy, config.folder)
        self.hostname = compose.hostname(node)
        self._resident_bodies.limit = share(node.max_resident_messages, self.count)
        if self.evidence is not None:
            self.evidence.source = self.evidence.source._replace(configuration=config.digest)
        self.finder.reconfigure(resolver, node, compose.own(config))
        self.standards.reconfigure(resolver, compose.sts_policies(node, resolver, self.clock, self.report))
        self.metrics.is_named = compose.named_domains(config).__contains__
        self.upkeep.configure(config)
        self._bouncer.config = config
        self._reception.reconfigure(config, policy)
        self.services = self._session_services(config, loaded)
        for session in self.sessions:
            session.retire()
        wanted = {listen.name for listen in config.inbound.listens()}
        for name in self._servers.keys() - wanted:
            self._servers.pop(name).close()
        for name, sock in new.items():
            await self._listen(name, sock)
        await self._take_in(config)
        self._close(old_policy)
        changed = await self.dispatcher.reconfigure(config, self.contexts, self._hooks, curfew)
        self.log(Notice(self.clock.now(), "configuration reloaded"))
        return changed

    def _close(self, policy: Policy) -> None:
        """Tell scripts that they are replaced; what they make of it is theirs."""
        try:
            policy.close()
        except PolicyError as error:
            self.report(str(error))

    # the end --------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Take no more, let what is under way end, close the spool."""
        self._intake.close()
        for server in self._servers.values():
            server.close()
        seconds = float(self.config.node().drain_timeout)
        end = self.clock.now() + seconds
        for session in list(self.sessions):
            if not session.busy:
                session.end(replies.SHUTTING_DOWN)
        stopping = asyncio.ensure_future(self.dispatcher.stop(seconds))
        while self.sessions and self.clock.now() < end:
            await asyncio.sleep(0.02)
            for session in list(self.sessions):
                if not session.busy:
                    session.end(replies.SHUTTING_DOWN)
        for session in list(self.sessions):
            if not session.committing:
                session.end(replies.SHUTTING_DOWN)
        await stopping
        self.upkeep.stop()
        if self.evidence is not None:
            end = self.clock.now() + FLUSH
            while not (self.evidence.idle and self.store.idle) and self.clock.now() < end:  # noqa: ASYNC110 - two
                await asyncio.sleep(0.01)
            await self.evidence.close()
        await self.store.close()
        for session in list(self.sessions):
            session.end(replies.SHUTTING_DOWN)  # what was committed has been answered by now
        self._deadlines.stop()
        self._close(self.policies.policy)
        await db.close(self.shared)
        self.log(Notice(self.clock.now(), "drained"))
        self._loggers.close()


def _drop(_count: int) -> None:
    """How many messages were delayed, which no script asks."""


def _unheard(event: str, ip: str) -> None:
    """Nobody counts."""


def main(config: Config, number: int, count: int, sockets: dict[str, socket.socket], channel: Channel) -> int:
    """Run a worker to its end; gives the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def run() -> None:
        await Worker(config, number, count, sockets, channel).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except (SpoolError, LoadError, OSError) as error:
        text: Any = error
        waits = error.may_heal if isinstance(error, SpoolError) else isinstance(error, OSError) and is_full(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"quillon: worker {number}: {text}", file=sys.stderr, flush=True)
        channel.send({"event": "failed", "text": str(text), "waits": waits})
        return WAITING if waits else FAULTY
    return 0
