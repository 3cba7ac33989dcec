"""What a worker answers to the console: a function for each command that the workers answer (`control/commands.py`).

Every answer is rows of JSON; the control process puts those of all workers together. An order that changes something is
counted first, and done with `--yes`.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quillon.app.configuration import Configuration
from quillon.app.counters import ScriptCounters
from quillon.app.orders import Orders, Rows
from quillon.app.tracing import Tracing
from quillon.config.outbound import lookup_name
from quillon.config.settings import InboundTls
from quillon.control.partners import summed
from quillon.control.rendering import MAILQ
from quillon.delivery import reasons, report, survey
from quillon.delivery.steering import Steering
from quillon.listener.recorder import Recorder
from quillon.log.metrics import histogram, labelled
from quillon.log.posture import Day, day_of, of_row
from quillon.mail.message import Message, MessageId
from quillon.net.slices import in_slices
from quillon.queue import selection
from quillon.queue.selection import Selection
from quillon.reception.from_files import front
from quillon.standards.report_store import ReportStore
from quillon.tls.context import ContextRow
from quillon.tls.expiry import ends

if TYPE_CHECKING:
    from quillon.app.worker import Worker

SHOWN = 1000  # characters of a setting in an answer
SAID = 12000  # characters of what a script answers
OLDEST_SECONDS = 60.0  # between two searches for the oldest message
PATIENCE = 3.0  # seconds for what has to be looked up for an answer
POSTURE_DAYS = 30
LISTED = 100  # messages and connections that are listed unless more are asked for
MOST_LISTED = 10_000
KINDS = ("A", "AAAA", "MX", "TXT", "NS", "CNAME", "PTR")
BODY = 65536  # octets of a message that are shown
PIECE = 9216  # octets of one that is exported which go in one row; three of them are four characters
MOST_EXPORTED = 32 << 20  # octets

Function = Callable[[list[str]], Awaitable[Rows]]


class Answers:
    """The answers of one worker. `who` is the user who asks, for the log."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._steering = Steering(worker.dispatcher)
        self.orders = Orders(worker, self._steering)
        self.tracing = Tracing(worker)
        self._at_once = Configuration(worker).functions | ScriptCounters(worker, worker.shared).functions
        self._before: dict[str, int] = {}  # counters at the last `summary reset`
        self._since = worker.clock.now()
        self._oldest, self._oldest_until = 0.0, 0.0  # when the oldest message came, as it is told until a time
        self._functions: dict[str, Function] = {
            "metrics": self._metrics,
            "summary": self._summary,
            "summary reset": self._reset,
            "mailq": self._mailq,
            "active": partial(self._larger, "active"),
            "delayed": partial(self._larger, "delayed"),
            "binding summary": self._bindings,
            "domain": self._domain,
            "showqueue": self._showqueue,
            "find": self._find,
            "message details": self._details,
            "message why": self._why,
            "message export": self._export,
            "suspended": self._suspended,
            "show inbound": self._inbound,
            "show outbound": self._outbound,
            "dns_cache lookup": self._cached,
            "dns_cache stats": self._cache_stats,
            "dns_cache submit": self._submit,
            "count": self._count,
            "module list": self._modules,
            "tls demand": self._demand,
            "mta_sts list all": self._policies,
            "mta_sts show domain": self._policy,
            "mta_sts refresh policy": self._refetch,
            "posture": self._posture,
            "refresh domain": self._refresh,
            "spool show": self._spool,
            "tls show cache": self._contexts,
            "tls flush cache": self._renew,
            "tls rekey": self._renew,
            "record start": partial(self._record, "start"),
            "record stop": partial(self._record, "stop"),
            "control": self._control,
        }

    async def to(self, command: str, words: list[str], who: str, number: int) -> Rows:
        """The rows of this worker's answer; `number` is the question's. Raises OSError, ValueError and what a script's
        command raises."""
        if self.orders.knows(command):
            return await self.orders.carry_out(command, words, who)
        if self.tracing.knows(command):
            return self.tracing.carry_out(command, words, who, number)
        if command in self._at_once:
            return self._at_once[command](words)
        function = self._functions.get(command)
        if function is None:
            raise ValueError(f"{command}: this worker knows no such command")
        return await function(words)

    def _now(self) -> float:
        return self._worker.clock.now()

    # what there is --------------------------------------------------------------------------------------------

    async def _metrics(self, _words: list[str]) -> Rows:
        return [list(item) for item in [*self._worker.metrics.rows(), *self._spent()]] + await self._gauges()

    def _spent(self) -> Iterator[tuple[str, float]]:
        """Where time goes, as series and values."""
        worker = self._worker
        for (module, phase), seconds in worker.policy_time.seconds.items():
            yield labelled("quillon_policy_seconds_total", module=module, phase=phase), seconds
        for (module, phase), count in worker.policy_time.calls.items():
            yield labelled("quillon_policy_calls_total", module=module, phase=phase), count
        for kind, count in worker.dns_asked.items():
            if kind == "hits":
                yield "quillon_dns_cache_hits_total", count
            else:
                yield labelled("quillon_dns_queries_total", kind=kind), count
        for option, seconds in worker.dispatcher.throttles.held.items():
            yield labelled("quillon_throttled_seconds_total", option=option), seconds
        took = {f"spool {tier}": one for tier, one in worker.store.took().items()}
        if worker.evidence is not None:
            took["evidence"] = worker.evidence.took
        for what, one in took.items():
            yield from histogram("quillon_commit_seconds", one, what=what)

    async def _gauges(self) -> Rows:
        """What goes up and down, as series and values."""
        worker, queues, now = self._worker, self._worker.dispatcher.queues, self._now()
        active, delayed, states = await report.census(queues, now)
        refuses = bool(worker.room.shortage() or worker.store.failing)
        rows = {
            labelled("quillon_queue_messages", state="active"): active,
            labelled("quillon_queue_messages", state="delayed"): delayed,
            labelled("quillon_queue_oldest_seconds"): await self.oldest(),
            labelled("quillon_queue_suspensions"): len(worker.dispatcher.halts.suspensions.current(now)),
            labelled("quillon_connections", direction="inbound"): len(worker.sessions),
            labelled("quillon_connections", direction="outbound"): queues.opened,
            labelled("quillon_spool_free_bytes"): worker.room.free,
            labelled("quillon_spool_pending_changes"): worker.store.waiting,
            labelled("quillon_spool_refusing"): int(refuses),
            labelled("quillon_workers"): 1,
            labelled("quillon_uptime_seconds"): now - worker.started,
        }
        for state, count in states.items():
            rows[labelled("quillon_queue_destinations", state=state)] = count
        for path, end in (await self.certificates()).items():
            rows[labelled("quillon_certificate_expiry_timestamp_seconds", file=path)] = end
        return [list(item) for item in rows.items()]

    async def oldest(self) -> float:
        """The age of the oldest message that waits, looked for once a minute; 0 for none."""
        now = self._now()
        if now >= self._oldest_until:
            self._oldest, self._oldest_until = await self._steering.oldest(), now + OLDEST_SECONDS
        return now - self._oldest if self._oldest else 0.0

    async def certificates(self) -> dict[str, float]:
        """When the certificates that are in use end, by file."""
        files = {row.settings.tls_certificate for row in self._worker.contexts.rows()}
        return await asyncio.to_thread(ends, filter(None, files))

    async def _summary(self, _words: list[str]) -> Rows:
        queues = self._worker.dispatcher.queues
        active, delayed = await report.totals(queues)
        row = {name: count - self._before.get(name, 0) for name, count in self._totals().items()}
        row["dns_pending"] = self._worker.resolver.pending
        row |= {"active": active, "delayed": delayed, "active_domains": len(queues)}
        row |= {"outbound": queues.opened, "inbound": len(self._worker.sessions)}
        return [{**row, "seconds": self._now() - self._since, "uptime": self._now() - self._worker.started}]

    async def _reset(self, _words: list[str]) -> Rows:
        self._before, self._since = self._totals(), self._now()
        return []

    def _totals(self) -> dict[str, int]:
        """What has been counted since the worker began."""
        asked = self._worker.dns_asked
        dns = {"dns_a": asked["A"], "dns_mx": asked["MX"], "dns_queries": asked.total() - asked["hits"]}
        return {**self._worker.metrics.totals(), **dns}

    async def _mailq(self, words: list[str]) -> Rows:
        return list(await report.largest(self._worker.dispatcher.queues, _number(words, MAILQ)))

    async def _larger(self, which: str, words: list[str]) -> Rows:
        rows = list(await report.larger(self._worker.dispatcher.queues, which, _number(words, 0)))
        known = self._worker.metrics.domains
        for row in rows:
            if row.get("domain") in known:
                row["sent"] = known[row["domain"]]["delivered"]
        rows[-1]["sent"] = self._worker.metrics.totals()["delivered"]
        return rows

    async def _bindings(self, words: list[str]) -> Rows:
        found = {row["binding"]: row for row in await report.bindings(self._worker.dispatcher.queues)}
        for name, counts in self._worker.metrics.bindings.items():
            row = found.setdefault(name, {"binding": name})
            row |= {"delivered": counts["delivered"], "failed": counts["permanent_failure"]}
            row |= {"received": counts["received"]}
        rows = [{**row, "seconds": self._now() - self._worker.started} for row in found.values()]
        return [row for row in rows if not words or words[0] in (row["binding"], row["binding"].split("/")[1])]

    async def _domain(self, words: list[str]) -> Rows:
        worker, name = self._worker, " ".join(words).lower()
        dispatcher = worker.dispatcher
        gateway = worker.config.outbound.routing("default", "default", name).domain
        names = dict.fromkeys((name, gateway))
        rows = [
            row
            for one in names
            for row in report.describe(dispatcher.queues, one, worker.config, dispatcher.halts, self._now())
            if one == name or row["via"] != name  # those are told of already
        ]
        return [{**row, "worker": worker.number} for row in rows]

    async def _showqueue(self, words: list[str]) -> Rows:
        """`[binding B] DOMAIN [limit,offset]`, as the manual has it."""
        binding = "default"
        if words[:1] == ["binding"]:
            if len(words) < 2:
                raise ValueError("showqueue binding wants the name of a binding, or all")
            binding, words = words[1], words[2:]
        limit, offset = LISTED, 0
        if len(words) == 2:
            first, _, second = words[1].partition(",")
            limit, offset = _number([first], LISTED), _number([second] if second else [], 0)
        elif len(words) != 1:
            raise ValueError("showqueue [binding B] DOMAIN [limit,offset]")
        wanted = Selection(domain=words[0].lower(), binding="" if binding == "all" else binding)
        return await self._listed(wanted, limit, offset)

    async def _find(self, words: list[str]) -> Rows:
        asked = selection.read(words, values=("limit",))
        selection.nothing_else(asked.rest)
        limit = str(asked.options.get("limit", LISTED))
        return await self._listed(asked.selection, _number([limit], LISTED))

    async def _listed(self, wanted: Selection, limit: int, offset: int = 0) -> Rows:
        """The oldest messages that are meant, and how many there are."""
        found = [one async for one in self._steering.find(wanted)]
        found.sort(key=lambda one: one.message.batch.received_at)
        rows: Rows = [
            report.message(one.message, one.queue, self._now()) for one in found[: min(limit + offset, MOST_LISTED)]
        ]
        return [*rows, {"total": len(found), "window": [limit, offset]}]

    async def _details(self, words: list[str]) -> Rows:
        how = words[0].lower() if len(words) == 2 else ""
        if len(words) not in (1, 2) or how not in ("", "full", "body"):
            raise ValueError("message details [full|body] ID")
        number = MessageId.parse(words[-1])
        message, row = await self._described(number)
        if message is None:
            return []
        rows: Rows = [] if how == "body" else [{"message": row}]
        if how:
            body = await self._worker.store.body_or_nothing(message.batch, BODY)
            text = body.decode("utf-8", "replace")
            pieces = [text[at : at + SHOWN] for at in range(0, len(text), SHOWN)]
            rows += [{"body": piece} for piece in pieces]
            rows += [{"cut": message.batch.size}] if message.batch.size > BODY else []
        return rows

    async def _export(self, words: list[str]) -> Rows:
        """All of a message in pieces, with its envelope in front, as `quillon spool export` writes it."""
        number = MessageId.parse(selection.only(words, "message export ID"))
        message, row = await self._described(number)
        if message is None:
            return []
        batch = message.batch
        if batch.size > MOST_EXPORTED:
            raise ValueError(f"it has {batch.size} octets: `quillon spool export` writes it, beside the server")
        body = await self._worker.store.body(batch)
        if body is None:
            raise ValueError("it has left meanwhile")
        octets = front(batch.sender, message.recipient, body, requiretls=batch.tls_request == "requiretls") + body
        pieces = [octets[at : at + PIECE] for at in range(0, len(octets), PIECE)]
        return [{"message": row, "whole": len(octets)}, *({"piece": b64encode(piece).decode()} for piece in pieces)]

    async def _described(self, number: MessageId) -> tuple[Message | None, dict[str, Any]]:
        """A message of this worker, which waits or is being delivered, and its row."""
        async for found in self._steering.find(Selection(id=number)):
            return found.message, report.message(found.message, found.queue, self._now())
        for connection, _ in self._worker.dispatcher.connections():
            for message in connection.carried:
                if message.id == number:
                    return message, {**report.message(message, None, self._now()), "host": connection.host_name}
        return None, {}

    async def _why(self, words: list[str]) -> Rows:
        number = MessageId.parse(selection.only(words, "message why ID"))
        dispatcher, now = self._worker.dispatcher, self._now()
        async for queue, message in self._steering.find(Selection(id=number)):
            halt = dispatcher.halts.of(queue.key, now)
            found = reasons.of_message(message, queue, self._worker.config, halt, now)
            return [{"message": report.message(message, queue, now), "reasons": report.as_rows(found)}]
        _, row = await self._described(number)
        words_of = f"it is being delivered to {row.get('host')}"
        return [{"message": row, "reasons": report.as_rows([reasons.Reason(words_of)])}] if row else []

    async def _suspended(self, _words: list[str]) -> Rows:
        found = self._worker.dispatcher.halts.suspensions.current(self._now())
        return [{**one.row(), "count": 0} for one in found]

    async def _inbound(self, _words: list[str]) -> Rows:
        rows = sorted((session.shown() for session in self._worker.sessions), key=lambda row: float(row["since"]))
        return [*rows[:LISTED], {"total": len(rows), "window": [LISTED, 0]}]

    async def _outbound(self, _words: list[str]) -> Rows:
        rows = sorted(report.connections(self._worker.dispatcher.connections()), key=lambda row: float(row["since"]))
        return [*rows[:LISTED], {"total": len(rows), "window": [LISTED, 0]}]

    async def _spool(self, _words: list[str]) -> Rows:
        store, room = self._worker.store, self._worker.room
        shortage = room.shortage() or store.failing
        row = {"worker": self._worker.number, "folder": str(store.folder), "free": room.free, "waiting": store.waiting}
        return [{**row, "refused": shortage or ""}]

    async def _contexts(self, _words: list[str]) -> Rows:
        return [_cache_row(row) for row in self._worker.contexts.rows()]

    async def _renew(self, _words: list[str]) -> Rows:
        self._worker.upkeep.tell_reloaded(self._worker.contexts.renew())
        return []

    async def _cached(self, words: list[str]) -> Rows:
        if len(words) != 2:
            raise ValueError("dns_cache lookup NAME TYPE")
        found = self._worker.resolver.cached(words[0].lower(), words[1].upper())
        if found is None:
            return []
        until, answer = found
        row = {"status": answer.status, "ttl": until - self._now(), "records": [list(one) for one in answer.records]}
        return [{**row, "secure": answer.secure, "detail": answer.detail}]

    async def _cache_stats(self, _words: list[str]) -> Rows:
        asked = self._worker.dns_asked
        kinds = {kind: count for kind, count in asked.items() if kind != "hits"}
        resolver = self._worker.resolver
        return [{"entries": len(resolver), "pending": resolver.pending, "hits": asked["hits"], "asked": kinds}]

    async def _submit(self, words: list[str]) -> Rows:
        """Look a name up for the cache."""
        if len(words) != 2 or words[1].upper() not in KINDS:
            raise ValueError(f"dns_cache submit NAME TYPE, of {', '.join(KINDS)}")
        self._worker.spawn(self._looked_up(words[0].lower(), words[1].upper()))
        return [{"said": "Submitted"}]

    async def _looked_up(self, name: str, kind: str) -> None:
        await self._worker.resolver.lookup(name, kind)

    async def _count(self, words: list[str]) -> Rows:
        """`SMTP BLOCK`: sessions of an address block."""
        if len(words) != 2 or words[0].upper() != "SMTP":
            raise ValueError("count SMTP ADDRESS|BLOCK")
        return [{"sessions": self._worker.count_sessions("SMTP", words[1])}]

    async def _modules(self, _words: list[str]) -> Rows:
        return [{"module": name, "asked": asked} for name, asked in self._worker.policies.policy.called()]

    async def _demand(self, words: list[str]) -> Rows:
        """`[binding B] DOMAIN`: what its hosts have to prove."""
        binding = "default"
        if words[:1] == ["binding"] and len(words) == 3:
            binding, words = words[1], words[2:]
        worker = self._worker
        name = selection.only(words, "tls demand [binding B] NAME").lower()
        bindings = worker.config.outbound.bindings()
        if binding not in bindings:
            raise ValueError(f"there is no binding {binding!r}")
        group = bindings[binding]
        try:
            async with asyncio.timeout(PATIENCE):
                found = await survey.survey(worker.config, group, binding, name, worker.finder, worker.standards)
        except TimeoutError:
            late = "DNS or the policy host does not answer in time; quillon explain --domain waits longer"
            raise ValueError(late) from None
        return [survey.as_row(found)]

    async def _policies(self, _words: list[str]) -> Rows:
        found = await asyncio.to_thread(self._worker.standards.policies.domains)
        return [{"domain": name} for name in found]

    async def _policy(self, words: list[str]) -> Rows:
        name = selection.only(words, "mta_sts show domain NAME").lower()
        found = await self._worker.standards.policies.find(name)
        return [{"domain": name, **survey.sts_row(found)}]

    async def _refetch(self, words: list[str]) -> Rows:
        """One worker fetches for all, who see the file."""
        name = selection.only(words, "mta_sts refresh policy NAME").lower()
        if self._worker.number:
            return []
        found = await self._worker.standards.policies.refresh(name)
        if found.result:
            return [{"error": f"{name}: {found.result}: {found.detail}"}]
        return [{"said": f"MTA-STS policy for {name} refreshed."}]

    async def _posture(self, words: list[str]) -> Rows:
        """Days of a domain's hosts and what others report of it, or a row for each domain."""
        if not words:
            raise ValueError("posture wants the name of a domain, or all, and may have a number of days")
        domain, days = lookup_name(words[0]), min(_number(words[1:], POSTURE_DAYS), 3660)
        keeper, since = self._worker.upkeep.posture, day_of(self._now() - days * 86400)
        counted = await keeper.rows(since) if keeper is not None else []
        if domain == "all":
            found: dict[str, list[Day]] = {}
            for one in counted:
                async for name, listed in in_slices(list(one.items())):
                    found.setdefault(name, []).extend(map(of_row, listed))
            return [summed(name, found[name]) for name in found]
        rows: Rows = [row for one in counted for row in one.get(domain, [])]
        if self._worker.number == 0:
            store = ReportStore(Path(self._worker.config.node().spoolbase, "tlsrpt/received"))
            reports = await asyncio.to_thread(lambda: list(store.of(domain, since)))
            rows += [{"report": report.row()} for report in reports]
        elif keeper is None:
            return []
        if keeper is None and not rows:
            raise ValueError("there is no stanza posture, so that nothing is counted")
        return rows

    async def _refresh(self, words: list[str]) -> Rows:
        """Look a domain and its hosts up anew."""
        name, resolver = selection.only(words, "refresh domain NAME").lower(), self._worker.resolver
        known = resolver.cached(name, "MX")
        names = [name, *(record for _, record in known[1].records)] if known is not None else [name]
        forgotten = sum(map(resolver.forget, names))
        self._worker.dispatcher.memory.forget_rests()
        return [{"said": f"{name} is looked up anew when it is wanted; {forgotten} answers forgotten"}]

    # scripts and recordings -----------------------------------------------------------------------------------

    async def _control(self, words: list[str]) -> Rows:
        """Raises ValueError for a command that nobody has registered."""
        control = self._worker.policies.environment.control
        for length in range(len(words), 0, -1):
            function = control.get(" ".join(words[:length]))
            if function is not None:
                return [{"said": (await function([" ".join(words[:length]), *words[length:]]))[:SAID]}]
        raise ValueError(f"{' '.join(words)}: unknown command; help lists what there is")

    async def _record(self, what: str, words: list[str]) -> Rows:
        """`start PATH [bodies]` or `stop`. Raises ValueError, OSError."""
        worker = self._worker
        if what == "stop" and not words:
            found, worker.recorder = worker.recorder, None
            worker.services.recorder = None
            if found is not None:
                found.close()
            return [{"said": f"worker {worker.number}: {found.sessions if found else 0} sessions"}]
        if what != "start" or len(words) not in (1, 2) or words[1:] not in ([], ["bodies"]):
            raise ValueError("record start NAME [bodies], record stop")
        if worker.recorder is not None:
            raise ValueError(f"sessions are being recorded to {worker.recorder.path} already")
        folder = worker.config.node().record_folder
        if not folder:
            raise ValueError("nothing may be recorded: set Record_Folder to the folder that recordings go to")
        worker.recorder = Recorder(folder, words[0], worker.clock.now, bodies=len(words) == 2)
        worker.services.recorder = worker.recorder
        return [{"said": ""}]


def _number(words: list[str], default: int) -> int:
    """Raises ValueError for what is none."""
    if len(words) > 1 or (words and not words[0].isdecimal()):
        raise ValueError(f"{' '.join(words)}: a number is wanted")
    return int(words[0]) if words else default


def _cache_row(row: ContextRow) -> dict[str, Any]:
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
