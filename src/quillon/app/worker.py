"""A worker: one process, one event loop, one spool. It shares nothing with the others but listening addresses.

It is told what to do over its channel: reload, drain. If the supervisor goes, the channel ends and the worker drains by
itself, so that none is left behind.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import json
import os
import re
import resource
import signal
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from quillon.app import compose
from quillon.config.load import load
from quillon.config.model import Config
from quillon.config.settings import InboundTls, share
from quillon.control.commands import MAILQ
from quillon.delivery import report
from quillon.delivery.bounce import Bouncer
from quillon.delivery.connection import ConnectionServices
from quillon.delivery.dispatcher import Dispatcher, Share
from quillon.delivery.hosts import HostFinder
from quillon.listener import credentials
from quillon.listener.authentication import Authenticator
from quillon.listener.esmtp import EsmtpSession
from quillon.listener.failed_logins import FailedLogins
from quillon.listener.recorder import Recorder
from quillon.listener.services import Counts, OpenSession, SessionServices
from quillon.log.metrics import Metrics
from quillon.log.sink import Loggers
from quillon.lua.msys import audit, db
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.event import Event, Notice, Panic
from quillon.mail.message import IdSource, Message
from quillon.modules import load as policies
from quillon.modules.load import LoadError, Policies, Services
from quillon.net.channel import Channel
from quillon.net.clock import Deadlines, SystemClock
from quillon.net.turns import Turns
from quillon.policy.environment import Lookup
from quillon.policy.hook import Policy, PolicyError, words_of
from quillon.policy.tls import TlsHooks
from quillon.reception.accept import Envelope, Reception, ResidentBodies
from quillon.reception.mail_data import MailData
from quillon.spool.errors import SpoolError, is_full
from quillon.spool.room import Room
from quillon.spool.store import Store
from quillon.tls.context import Reloaded, Row

FAULTY = 3  # exit status: starting anew will not help
WAITING = 4  # exit status: it may help later, as for room on the disk
REFRESH = 5.0  # seconds between looks at the files of TLS contexts
MOST_CHANGED = 50  # demands that are lost or weaker that the answer to a reload names
SHOWN = 1000  # characters of a setting in an answer
SAID = 12000  # characters of what a script answers to a command of the console
ANSWER = 16384  # octets of an answer to the console, after which a new datagram begins


class Worker:
    """`number` counts from 0; `sockets` maps Listen names to this worker's listening sockets."""

    def __init__(
        self, config: Config, number: int, count: int, sockets: dict[str, socket.socket], channel: Channel
    ) -> None:
        self._config = config
        self._number = number
        self._count = count
        self._sockets = sockets
        self._channel = channel
        self._clock = SystemClock()
        self._servers: dict[str, asyncio.AbstractServer] = {}
        self._draining = asyncio.Event()
        self._one_reload = asyncio.Lock()  # scripts may wait while they load
        self._metrics = Metrics()
        self._recorder: Recorder | None = None
        self._orders: set[asyncio.Task[None]] = set()
        self._short = False
        self._exhausted = False

    async def run(self) -> None:
        """Until drained. Raises SpoolError, LoadError and OSError for what keeps it from starting."""
        loop = self._loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        loop.add_signal_handler(signal.SIGTERM, self._draining.set)
        self._loggers = Loggers(self._config.stanzas.loggers(), loop.call_soon, self._config.stanzas.custom_loggers())
        self._loggers.open()
        self._open_spool()
        await self._build(self._config)
        loop.add_reader(self._channel.fileno(), self._told)
        self._deadlines.start()
        self._store.start()
        for name, sock in self._sockets.items():
            await self._listen(name, sock)
        self._dispatcher.start(self._store.recovered())
        self._start_heartbeat()
        self._look_at_room()
        self._refreshing = self._loop.call_later(REFRESH, self._refresh)
        gc.collect()
        gc.freeze()
        gc.set_threshold(20000, 50, 50)
        self._channel.send({"event": "ready"})
        await self._draining.wait()
        await self._drain()

    def _open_spool(self) -> None:
        node = self._config.node()
        base = Path(node.spoolbase)
        self._store = Store(base / f"worker-{self._number}", node.spool_mode, self._report)
        for folder in sorted(base.glob("worker-*")):
            name = folder.name.removeprefix("worker-")
            if not re.fullmatch("[0-9]+", name) or int(name) < self._count or int(name) % self._count != self._number:
                continue
            try:
                taken = self._store.adopt(folder)
                self.log(Notice(self._clock.now(), f"took over {taken} messages from {folder}"))
            except SpoolError as error:
                # it waits for whoever mends it; a spool of our own that cannot be used is found by `open`
                self._report(f"{error}; its mail was not taken over")
        self._store.open()

    async def _build(self, config: Config) -> None:
        """Put the parts together. Raises LoadError."""
        node = config.node()
        self._deadlines = Deadlines(self._clock)
        self._contexts = compose.contexts(config, self._clock, self._report)
        self._hostname = compose.hostname(node)
        self._resolver = compose.resolver(node, self._clock)
        self._shared: dict[str, Any] = {}
        self._policies = await policies.load(config, self._clock, self._report, self._policy_services())
        self._hooks = TlsHooks(self._policies.policy, config.folder)
        self._ids = IdSource(os.getpid(), self._store.newest)
        self._resident_bodies = ResidentBodies(share(node.max_resident_messages, self._count))
        self._finder = HostFinder(self._resolver, node, self._clock, compose.own(config))
        self._counts = Counts()
        octets, inodes = node.spool_minimum_free_space, node.spool_minimum_free_inodes
        self._room = Room(self._store.folder, octets, inodes, self._clock.now)
        self._turns = Turns()
        self._failed_logins = FailedLogins(self._clock.now, self._tell_failure)
        self._sessions: set[OpenSession] = set()
        self._reception = Reception(
            config=config,
            policy=self._policies.policy,
            store=self._store,
            room=self._room,
            ids=self._ids,
            clock=self._clock,
            resident_bodies=self._resident_bodies,
            enqueue=self._submit,
            log=self.log,
        )
        self._bouncer = Bouncer(config, self._reception, self._store, self._ids, self._clock, self._hostname)
        self._dispatcher = Dispatcher(
            config=config,
            store=self._store,
            resident_bodies=self._resident_bodies,
            finder=self._finder,
            bouncer=self._bouncer,
            services=ConnectionServices(self._clock, self._deadlines, self._contexts, self._hooks),
            hostname=self._hostname,
            share=Share(self._count),
            log=self.log,
            say=self._channel.send,
            curfew=compose.curfew(config),
        )
        self._services = self._session_services(config, self._policies)

    def _policy_services(self) -> Services:
        """What policies may use of this worker."""
        return Services(
            lookup=self._lookup,
            inject=self._inject,
            sessions=self._count_sessions,
            delay_domain=lambda domain, note: _drop(self._dispatcher.delay_domain(domain, note)),
            hostname=self._hostname,
            shared=self._shared,
        )

    async def _lookup(self, name: str, kind: str, server: str) -> Lookup:
        found = await compose.look_up(self._resolver, name, kind, server)
        if self._recorder is not None:
            self._recorder.looked_up(name, kind, server, found)
        return found

    async def _inject(self, sender: Mailbox, recipients: Sequence[Mailbox], data: bytes) -> None:
        """A message of a policy's own. Raises PolicyError if it cannot be stored."""
        number = self._ids.next(self._clock.now())
        envelope = Envelope.internal(number, sender, recipients)
        mail_data = MailData(self._store, number.number, self._reception.node.large_message_threshold, lambda _: b"", 0)
        mail_data.add(data)
        reply = await self._reception.accept(envelope, mail_data)
        if not reply.positive:
            raise PolicyError(f"the message was not taken: {reply}")

    def _count_sessions(self, service: str, block: str) -> int:
        """Open sessions of an address block; of services that are not here there are none."""
        if service != "SMTP":
            return 0
        network = ipaddress.ip_network(block, strict=False)
        return sum(ipaddress.ip_address(session.client) in network for session in self._sessions)

    def _session_services(self, config: Config, loaded: Policies) -> SessionServices:
        environment = loaded.environment
        return SessionServices(
            config=config,
            contexts=self._contexts,
            policy=loaded.policy,
            authenticator=Authenticator(self._clock, self._report, environment.auth),
            failed_logins=self._failed_logins,
            turns=self._turns,
            recorder=self._recorder,
            note=partial(audit.note, self._shared) if environment.monitors else _unheard,
            hooks=self._hooks,
            reception=self._reception,
            ids=self._ids,
            clock=self._clock,
            deadlines=self._deadlines,
            hostname=self._hostname,
            workers=self._count,
            log=self.log,
            counts=self._counts,
            sessions=self._sessions,
        )

    def _submit(self, messages: list[Message]) -> None:
        self._dispatcher.submit(messages)

    async def _listen(self, name: str, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        make = lambda: EsmtpSession(self._services, name).stream  # noqa: E731 - the factory of each connection
        if sock.family == socket.AF_UNIX:
            self._servers[name] = await loop.create_unix_server(make, sock=sock)
        else:
            backlog = next((s.backlog for s in self._config.inbound.listens() if s.name == name), 500)
            self._servers[name] = await loop.create_server(make, sock=sock, backlog=backlog)

    # log ------------------------------------------------------------------------------------------------------

    def log(self, event: Event) -> None:
        self._metrics.count(event)
        self._loggers.log(event)

    def _report(self, text: str) -> None:
        """A panic line, from whichever thread."""
        event = Panic(self._clock.now(), text)
        if threading.current_thread() is threading.main_thread():
            self.log(event)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.log, event)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A defect of ours in a callback: one line for the operator, the traceback on stderr, and mail goes on."""
        error = context.get("exception")
        self._report(f"unexpected: {context.get('message')}: {error!r}")
        if error is not None:
            traceback.print_exception(error)

    def _start_heartbeat(self) -> None:
        interval = self._loggers.heartbeat
        if self._number == 0 and interval:
            self._loggers.beat(self._clock.now())
            self._loop.call_later(interval, self._start_heartbeat)

    # what the supervisor says ---------------------------------------------------------------------------------

    def _told(self) -> None:
        got = self._channel.receive()
        if got is None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._draining.set()
            return
        message, descriptors = got
        if message["do"] == "reload":
            sockets = {name: socket.socket(fileno=fd) for name, fd in zip(message["new"], descriptors, strict=False)}
            missing = len(message["new"]) - len(descriptors)
            reload = self._reload(sockets, message["round"], message["digest"], missing)
            self._reloading = asyncio.get_running_loop().create_task(reload)
        elif message["do"] == "drain":
            self._draining.set()
        elif message["do"] == "console":
            ordered = self._ordered(message["id"], message["command"], message["words"])
            task = asyncio.get_running_loop().create_task(ordered)
            self._orders.add(task)
            task.add_done_callback(self._orders.discard)
        elif message["do"] == "reopen":
            self._reopen()
        elif message["do"] == "leased":
            self._dispatcher.leased(message["name"])
        elif message["do"] == "wanted":
            self._dispatcher.wanted(message["name"])
        elif message["do"] == "guessed":
            self._failed_logins.heard(message["client"])

    def _tell_failure(self, client: str) -> None:
        """A failed authentication, for the other workers; not worth waiting for."""
        self._channel.send({"event": "guessed", "client": client}, wait=False)

    async def _ordered(self, number: int, command: str, words: list[str]) -> None:
        """A command of the console; what goes wrong in it is its answer."""
        rows: list[Any]
        try:
            rows = await self._answer(command, words)
        except (OSError, ValueError, PolicyError) as error:
            rows = [{"error": str(error)[:SAID]}]
        except Exception as error:
            # a script's command that fails is its own fault
            rows = [{"error": words_of(error)[:SAID]}]
        self._send_rows(number, rows)

    async def _answer(self, command: str, words: list[str]) -> list[Any]:
        """The rows of this worker's answer. Raises OSError, ValueError and what a script's command raises."""
        if command == "metrics":
            return [list(item) for item in self._metrics.counts.items()]
        if command == "mailq":
            return list(await report.largest(self._dispatcher.queues, _number(words, MAILQ)))
        if command == "domain":
            rows = report.describe(self._dispatcher.queues, " ".join(words).lower(), self._clock.now())
            return [{**row, "worker": self._number} for row in rows]
        if command == "spool show":
            shortage = self._room.shortage() or self._store.failing
            state = f"no new mail is taken: {shortage}" if shortage else "mail is taken"
            free = f"{self._room.free >> 20} MiB free, {self._store.waiting} changes wait to be written"
            return [f"worker {self._number}: {self._store.folder}: {free}; {state}"]
        if command == "tls show cache":
            return [_cache_row(row) for row in self._contexts.rows()]
        if command in ("tls flush cache", "tls rekey"):
            self._tell(self._contexts.renew())
            return []
        if command in ("record start", "record stop"):
            return [{"said": self._record([command.split()[1], *words])[:SAID]}]
        if command == "control":
            return [{"said": (await self._controlled(words))[:SAID]}]
        raise ValueError(f"{command}: this worker knows no such command")

    async def _controlled(self, words: list[str]) -> str:
        """Raises ValueError for a command that nobody has registered."""
        control = self._policies.environment.control
        for length in range(len(words), 0, -1):
            function = control.get(" ".join(words[:length]))
            if function is not None:
                return await function([" ".join(words[:length]), *words[length:]])
        raise ValueError(f"{' '.join(words)}: unknown command; help lists what there is")

    def _record(self, words: list[str]) -> str:
        """`start PATH [bodies]` or `stop`. Raises ValueError, OSError."""
        if words[:1] == ["stop"] and len(words) == 1:
            found, self._recorder = self._recorder, None
            self._services.recorder = None
            if found is not None:
                found.close()
            return f"worker {self._number}: {found.sessions if found else 0} sessions"
        if words[:1] != ["start"] or len(words) not in (2, 3) or words[2:] not in ([], ["bodies"]):
            raise ValueError("record start NAME [bodies], record stop")
        if self._recorder is not None:
            raise ValueError(f"sessions are being recorded to {self._recorder.path} already")
        folder = self._config.node().record_folder
        if not folder:
            raise ValueError("nothing may be recorded: set Record_Folder to the folder that recordings go to")
        self._recorder = self._services.recorder = Recorder(folder, words[1], self._clock.now, bodies=len(words) == 3)
        return ""

    def _send_rows(self, number: int, rows: list[Any]) -> None:
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
            self._channel.send({"event": "answer", "id": number, "rows": part, "last": n == len(parts)})

    def _reopen(self) -> None:
        try:
            self._loggers.open()
        except OSError as error:
            self._report(f"cannot open log {error.filename}: {error.strerror}")

    def _refresh(self) -> None:
        """Certificates and keys that have changed on disk."""
        self._refreshing = self._loop.call_later(REFRESH, self._refresh)
        self._tell(self._contexts.refresh())
        self._look_at_room()
        self._look_at_descriptors()

    def _look_at_room(self) -> None:
        """Tell once that no mail is taken for want of room, and once that it is again."""
        shortage = self._room.shortage()
        if bool(shortage) != self._short:
            self._short = bool(shortage)
            refused = f"spool: no new mail is taken (452 4.3.1): {shortage}"
            self._report(refused if shortage else "spool: mail is taken again")

    def _look_at_descriptors(self) -> None:
        """Tell once that no descriptor is left, without which clients are hung up on before a word is said."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            exhausted = False
        except OSError as error:
            exhausted = error.errno in (errno.EMFILE, errno.ENFILE)
        if exhausted != self._exhausted:
            self._exhausted = exhausted
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            gone = f"has no descriptor left of {limit}: raise LimitNOFILE; clients are hung up on"
            self._report(f"system: worker {self._number} {gone if exhausted else 'has descriptors again'}")

    def _tell(self, reloaded: list[Reloaded]) -> None:
        """What became of TLS contexts: a notice, or a panic line for one that could not be loaded."""
        for done, text in reloaded:
            if done:
                self.log(Notice(self._clock.now(), f"tls: {text}"))
            else:
                self._report(f"tls: {text}")

    async def _reload(self, new: dict[str, socket.socket], number: int, digest: str, missing: int) -> None:
        """Read the configuration again and use it, or keep the running one and say why. `digest` is that of the files
        as they were tried, `missing` how many sockets did not come with the order."""
        async with self._one_reload:
            try:
                if missing:
                    raise LoadError(f"{missing} sockets could not be handed over: no descriptors are left")
                loaded = load(self._config.files[0])
                if loaded.config is None:
                    raise LoadError("; ".join(str(fault) for fault in loaded.errors))
                if loaded.config.digest != digest:
                    raise LoadError("files of the configuration have changed since they were tried: reload again")
                changed = await self._adopt(loaded.config, new)
            except Exception as error:
                # whatever a new configuration does, the old one serves on, and the operator is told
                for sock in new.values():
                    sock.close()
                text = str(error) if isinstance(error, (LoadError, OSError)) else f"unexpected {error!r}"
                self.log(Panic(self._clock.now(), f"config: reload refused, the running configuration stays: {text}"))
                self._channel.send({"event": "refused", "round": number, "text": text[:SAID]})
                return
        self._channel.send({"event": "reloaded", "round": number, "changed": list(changed.items())[:MOST_CHANGED]})

    async def _adopt(self, config: Config, new: dict[str, socket.socket]) -> Counter[str]:
        node = config.node()
        resolver = compose.resolver(node, self._clock)
        loaded = await policies.load(config, self._clock, self._report, self._policy_services())
        faults = credentials.faults(config, loaded.environment.auth)
        if faults:
            loaded.policy.close()
            raise LoadError("; ".join(faults))
        curfew = compose.curfew(config)
        contexts = compose.contexts(config, self._clock, self._report)
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
        old_policy, policy = self._policies.policy, loaded.policy
        self._config, self._policies = config, loaded
        self._resolver = resolver
        self._contexts = contexts
        self._hooks = TlsHooks(policy, config.folder)
        self._hostname = compose.hostname(node)
        self._resident_bodies.limit = share(node.max_resident_messages, self._count)
        self._finder.reconfigure(resolver, node, compose.own(config))
        self._bouncer.config = config
        self._reception.reconfigure(config, policy)
        self._services = self._session_services(config, loaded)
        for session in self._sessions:
            session.retire()
        wanted = {listen.name for listen in config.inbound.listens()}
        for name in self._servers.keys() - wanted:
            self._servers.pop(name).close()
        for name, sock in new.items():
            await self._listen(name, sock)
        self._close(old_policy)
        changed = await self._dispatcher.reconfigure(config, self._contexts, self._hooks, curfew)
        self.log(Notice(self._clock.now(), "configuration reloaded"))
        return changed

    def _close(self, policy: Policy) -> None:
        """Tell scripts that they are replaced; what they make of it is theirs."""
        try:
            policy.close()
        except PolicyError as error:
            self._report(str(error))

    # the end --------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Take no more, let what is under way end, close the spool."""
        self._refreshing.cancel()
        for server in self._servers.values():
            server.close()
        seconds = float(self._config.node().drain_timeout)
        end = self._clock.now() + seconds
        for session in list(self._sessions):
            if not session.busy:
                session.end(replies.SHUTTING_DOWN)
        stopping = asyncio.ensure_future(self._dispatcher.stop(seconds))
        while self._sessions and self._clock.now() < end:
            await asyncio.sleep(0.02)
            for session in list(self._sessions):
                if not session.busy:
                    session.end(replies.SHUTTING_DOWN)
        for session in list(self._sessions):
            if not session.committing:
                session.end(replies.SHUTTING_DOWN)
        await stopping
        await self._store.close()
        for session in list(self._sessions):
            session.end(replies.SHUTTING_DOWN)  # what was committed has been answered by now
        self._deadlines.stop()
        self._close(self._policies.policy)
        await db.close(self._shared)
        self.log(Notice(self._clock.now(), "drained"))
        self._loggers.close()


def _drop(_count: int) -> None:
    """How many messages were delayed, which no script asks."""


def _unheard(event: str, ip: str) -> None:
    """Nobody counts."""


def _number(words: list[str], default: int) -> int:
    """Raises ValueError for what is none."""
    if len(words) > 1 or (words and not words[0].isdecimal()):
        raise ValueError(f"{' '.join(words)}: a number is wanted")
    return int(words[0]) if words else default


def _cache_row(row: Row) -> dict[str, Any]:
    """A TLS context for the console, by the labels of the manual."""
    tls = row.settings
    shown = {
        "engine": tls.tls_engine,
        "certificate": tls.tls_certificate or "none",
        "ca list": (tls.tls_client_ca if isinstance(tls, InboundTls) else tls.tls_ca) or "none",
        "ciphers": tls.tls_ciphers or "default",
        "protocols": ", ".join(sorted(tls.tls_protocols)),
    }
    shown["verify"] = (tls.tls_verify_mode or "unset") if isinstance(tls, InboundTls) else tls.tls_verify
    short = {name: value[:SHOWN] for name, value in shown.items()}
    return {"kind": row.kind, "settings": short, "age": row.age, "in_use": row.in_use}


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
