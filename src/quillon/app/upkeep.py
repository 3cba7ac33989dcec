"""What a worker does from time to time beside mail: it looks at files that change, at room and descriptors, at what
alerts are about, at what domains publish; it signs evidence and counts handshakes for reports. Shell."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from quillon.app import suspended
from quillon.app.posture import PostureKeeper
from quillon.app.tls_reports import TlsReports
from quillon.app.watchman import Watchman
from quillon.config.model import Config
from quillon.config.outbound import lookup_name
from quillon.delivery import report
from quillon.evidence.stamp import TimeStamps
from quillon.evidence.witness import Witness
from quillon.log.watch import TlsWatch
from quillon.mail.alert import Alert
from quillon.mail.event import Event, Notice
from quillon.policy.context import Context
from quillon.policy.hook import Call, Hook, Session
from quillon.standards.tlsrpt import DataPoint
from quillon.tls.context import Reloaded

if TYPE_CHECKING:
    from quillon.app.worker import Worker
    from quillon.certificates.renewal import Renewals

REFRESH = 5.0  # seconds between two rounds
SIGN = 1.0  # seconds between two looks at evidence, the shortest checkpoint_interval
WATCH = 15.0  # seconds between two looks at what alerts are about


class Upkeep:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._watchman: Watchman | None = None
        self._tls_reports: TlsReports | None = None
        self._stamps: TimeStamps | None = None
        self._witness: Witness | None = None
        self._renewals: Renewals | None = None
        self.posture: PostureKeeper | None = None
        self._tls_watch = TlsWatch(self._contract_of)
        self._told_of: set[str] = set()  # conditions that hold
        self._watches_at = 0.0
        self._signs_at = 0.0
        self._suspended = (0, 0)  # the state of the file of suspensions that was last looked at
        self._short = False
        self._exhausted = False
        self._timer: asyncio.TimerHandle | None = None
        self._evidence_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """On the event loop, once everything is there."""
        self._look_at_room()
        self._look_after_standards()
        self._timer = asyncio.get_running_loop().call_later(REFRESH, self._round)
        if self._worker.evidence is not None:
            self._look_after_evidence()

    def stop(self) -> None:
        """The worker ends."""
        for timer in filter(None, (self._timer, self._evidence_timer)):
            timer.cancel()
        if self._tls_reports is not None:
            self._tls_reports.write()
        if self.posture is not None:
            self.posture.write()

    def configure(self, config: Config) -> None:
        """A configuration rules from now on."""
        self._watchman = self._watchman_of(config)
        if self._tls_reports is not None:
            self._tls_reports.write()
        self._tls_reports = self._reports_of(config)
        self._stamps = self._stamps_of(config)
        self._witness = self._witness_of(config)
        self._renewals = self._renewals_of(config)
        before, self.posture = self.posture, self._posture_of(config)
        if before is not None and self.posture is None:
            before.write()

    def see(self, event: Event) -> None:
        """Whatever is logged."""
        if self.posture is not None:
            self.posture.see(event)
        if self._watchman is not None:
            for alert in self._tls_watch.see(event):
                self._alert(alert)

    def _contract_of(self, domain: str) -> str:
        contract = self._worker.config.contracts.inbound_of(lookup_name(domain))
        return contract.domain if contract is not None else ""

    def announce(self, alert: Alert) -> None:
        """Tell people of an alert, which the supervisor has found to be news."""
        if self._watchman is not None:
            self._worker.spawn(self._watchman.tell(alert, self._worker.clock.now()))

    def _round(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(REFRESH, self._round)
        self.tell_reloaded(self._worker.contexts.refresh())
        self._look_at_room()
        self._look_at_descriptors()
        self._look_after_standards()
        if self.posture is not None:
            self._worker.spawn(self.posture.look_after())
        if self._renewals is not None:
            self._worker.spawn(self._renewals.look_after())
        if self._tls_reports is not None:
            self._worker.spawn(self._tls_reports.look_after())
        stamp = suspended.stamp(Path(self._worker.config.node().spoolbase))
        if stamp != self._suspended:
            self._suspended = stamp
            self._worker.spawn(self._worker.answers.orders.follow())
        if self._watchman is not None and self._worker.clock.now() >= self._watches_at:
            self._watches_at = self._worker.clock.now() + WATCH
            self._worker.spawn(self._watch())

    def _look_after_evidence(self) -> None:
        self._evidence_timer = asyncio.get_running_loop().call_later(SIGN, self._look_after_evidence)
        self._sign()
        if self._stamps is not None:
            self._worker.spawn(self._stamps.look_after())
        if self._witness is not None:
            self._worker.spawn(self._witness.look_after())

    def _look_after_standards(self) -> None:
        outbound = self._worker.config.outbound
        if outbound.first_with_dane is not None or outbound.uses_mta_sts:
            dane = outbound.first_with_dane is not None
            self._worker.spawn(
                self._worker.standards.look_after(
                    dane=dane, policies=self._worker.number == 0 and outbound.uses_mta_sts
                )
            )

    async def _watch(self) -> None:
        """Look at what alerts are about, and tell of it."""
        watchman = self._watchman
        if watchman is None:
            return
        found = watchman.look(
            waiting=sum(await report.totals(self._worker.dispatcher.queues)),
            oldest=await self._worker.answers.oldest(),
            free=self._worker.room.free,
            refuses=self._worker.room.shortage() or self._worker.store.failing,
            ends=await self._worker.answers.certificates(),
            workers=self._worker.count,
            now=self._worker.clock.now(),
        )
        for alert in found:
            if alert.on or alert.key in self._told_of:
                self._alert(alert)
            (self._told_of.add if alert.on else self._told_of.discard)(alert.key)

    def _alert(self, alert: Alert) -> None:
        """To the supervisor, which says whether it is news."""
        self._worker.channel.send({"event": "alert", "alert": list(alert)}, wait=False)

    def _look_at_room(self) -> None:
        """Tell once that no mail is taken for want of room, and once that it is again."""
        shortage = self._worker.room.shortage()
        if bool(shortage) != self._short:
            self._short = bool(shortage)
            refused = f"spool: no new mail is taken (452 4.3.1): {shortage}"
            self._worker.report(refused if shortage else "spool: mail is taken again")

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
            self._worker.report(
                f"system: worker {self._worker.number} {gone if exhausted else 'has descriptors again'}"
            )

    def tell_reloaded(self, reloaded: list[Reloaded]) -> None:
        """What became of TLS contexts: a notice, or a panic line for one that could not be loaded."""
        for done, text in reloaded:
            if done:
                self._worker.log(Notice(self._worker.clock.now(), f"tls: {text}"))
            else:
                self._worker.report(f"tls: {text}")

    def _sign(self) -> None:
        """A checkpoint of the evidence, when it is time for one."""
        evidence, now = self._worker.evidence, self._worker.clock.now()
        if evidence is not None and now >= self._signs_at and evidence.checkpoint():
            given = self._worker.config.stanzas.evidence("", "")
            self._signs_at = now + (given.checkpoint_interval if given is not None else 60)

    def _stamps_of(self, config: Config) -> TimeStamps | None:
        """Who has checkpoints stamped, if the configuration wants that."""
        given, evidence = config.stanzas.evidence("", ""), self._worker.evidence
        if given is None or given.stamps is None or evidence is None:
            return None
        if self._stamps is not None and self._stamps.settings == given.stamps:
            return self._stamps
        return TimeStamps(given.stamps, evidence.folder, self._worker.clock, self._worker.report)

    def _witness_of(self, config: Config) -> Witness | None:
        """Who has checkpoints witnessed, if the configuration wants that."""
        given, evidence = config.stanzas.evidence("", ""), self._worker.evidence
        if given is None or given.witness is None or evidence is None:
            return None
        if self._witness is not None and self._witness.settings == given.witness:
            return self._witness
        return Witness(given.witness, evidence.folder, self._worker.clock, self._worker.report)

    def _posture_of(self, config: Config) -> PostureKeeper | None:
        """Who counts what partners do, if that is wanted."""
        keep, worker = config.stanzas.posture(), self._worker
        if keep is None:
            return None
        if self.posture is not None:
            self.posture.keep = keep
            return self.posture
        folder = Path(config.node().spoolbase, "posture")
        return PostureKeeper(folder, worker.number, worker.count, keep, worker.clock, worker.report)

    def _renewals_of(self, config: Config) -> Renewals | None:
        """Who renews certificates, if an ACME server gives them: one worker for all."""
        given, worker = config.stanzas.acme(), self._worker
        if not given or worker.number != 0:
            return None
        if self._renewals is not None:
            self._renewals.settings = given  # what it is at, and what has failed, goes on
            return self._renewals
        from quillon.certificates.renewal import Renewals  # noqa: PLC0415 - what nobody has, nobody waits for

        folder = Path(config.node().spoolbase, "acme")
        return Renewals(
            given,
            folder,
            worker.resolver,
            worker.clock,
            worker.report,
            lambda text: worker.log(Notice(worker.clock.now(), text)),
        )

    def _watchman_of(self, config: Config) -> Watchman | None:
        """Who watches, if the configuration wants alerts."""
        given = config.stanzas.alerts()
        return (
            Watchman(given, self._worker.hostname, self._worker.inject, self._worker.report)
            if given is not None
            else None
        )

    def _reports_of(self, config: Config) -> TlsReports | None:
        """Who counts handshakes for reports of SMTP TLS, if they are sent."""
        given, worker, made = config.stanzas.tls_reports(), self._worker, None
        if given is not None:
            made = TlsReports(
                given,
                Path(config.node().spoolbase, "tlsrpt"),
                worker.number,
                worker.resolver,
                worker.clock,
                worker.inject,
                worker.report,
                random.random(),  # noqa: S311 - spreads load
            )
        heard = made is not None or bool(self._worker.policies.policy.hooks(Hook.TLS_REPORTING))
        self._worker.standards.point = self._shake_hands if heard else None
        return made

    def _shake_hands(self, point: DataPoint) -> None:
        """A handshake with a host, for scripts and for reports."""
        policy = self._worker.policies.policy
        if policy.hooks(Hook.TLS_REPORTING):
            call = Call(Hook.TLS_REPORTING, Session(f"{point.ip}:0", "", ""), Context())
            policy.answers(Hook.TLS_REPORTING, call, json.dumps(point.as_json()))
        if self._tls_reports is not None:
            self._tls_reports.add(point)
