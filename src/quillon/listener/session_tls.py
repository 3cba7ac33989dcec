"""The TLS of one session: its settings, its engine, and what the handshake leaves for policy and log. Shell."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.serialization import Encoding

from quillon.config.contracts import Contract
from quillon.config.outbound import lookup_name
from quillon.config.settings import InboundTls
from quillon.listener.contract import Breach, Shown
from quillon.listener.recorder import SessionRecord
from quillon.listener.services import SessionServices
from quillon.log.trace import SessionTrace
from quillon.mail import reply as replies
from quillon.mail.event import Handshaken, Panic, TlsFacts
from quillon.mail.message import MessageId
from quillon.mail.reply import Reply
from quillon.net.stream import SessionStream
from quillon.policy.context import Context, tls_variables
from quillon.policy.hook import Call, Hook, Session
from quillon.policy.tls import HookFailed
from quillon.tls.engine import ContextError, Engine
from quillon.tls.verdict import HandshakeFailure, TlsVerdict


class SessionTls:
    """`settings` may change until the handshake begins; `facts` are those of the last handshake."""

    def __init__(
        self, services: SessionServices, settings: InboundTls, info: Session, number: MessageId, context: Context
    ) -> None:
        self.settings = settings
        self.facts: TlsFacts | None = None
        self.record: SessionRecord | None = None
        self.trace: SessionTrace | None = None
        self._services = services
        self._info = info
        self._number = number
        self._context = context
        self._engine: Engine | None = None
        self._verdict: TlsVerdict | None = None
        self._rejected = False
        self._answer = ("", "")  # of a responder, where it is no part of the verdict
        self.spoken_for = False
        self._looked_at: dict[Contract, Breach | None] = {}

    def breach(self, domain: str) -> Breach | None:
        """What the session breaks of the contract that rules mail from a domain, if anything."""
        contracts = self._services.config.contracts
        contract = contracts.inbound_of(lookup_name(domain)) if contracts else None
        if contract is None:
            return None
        if contract not in self._looked_at:
            self._looked_at[contract] = self._services.contract_checks.look(contract, self._shown())
        return self._looked_at[contract]

    def _shown(self) -> Shown:
        if self._engine is None or self._verdict is None or self.spoken_for:
            return Shown(None)
        lists = self._services.contexts.lists(self.settings)
        return Shown(
            self.facts,
            self._verdict,
            self._engine.chain(),
            self._rejected,
            self.settings.tls_client_ca,
            lists,
            self._answer,
        )

    def become(self) -> None:
        """The client speaks for another one from here on, of whose TLS nobody knows."""
        self.spoken_for = True
        self._looked_at.clear()

    @property
    def handshaking(self) -> bool:
        return self._engine is not None and not self._engine.established

    def prepare(self) -> Reply | None:
        """Have policy change the parameters, and make the engine; the refusal if that is not to be.

        454 where policy wants no TLS. What fails ends the session: a client told 454 would go on in clear.
        """
        services = self._services
        try:
            if services.hooks.asks(Hook.INBOUND_PARAMETERS):
                call = Call(Hook.INBOUND_PARAMETERS, self._info, self._context)
                changed = services.hooks.inbound_parameters(call, self.settings)
                if changed is None:
                    return replies.TLS_NOT_AVAILABLE
                self.settings = changed
            self._engine = services.contexts.server(self.settings)
        except HookFailed:
            return replies.TLS_POLICY_FAILED
        except ContextError as error:
            services.log(Panic(services.clock.now(), f"tls: {error}"))
            return replies.TLS_POLICY_FAILED
        return None

    def begin(self, stream: SessionStream) -> None:
        """Start the handshake, after `prepare`."""
        assert self._engine is not None
        if self.trace is not None:
            stream.tap = self.trace.octets
        stream.start_tls(self._engine)

    async def secured(self) -> None:
        """The handshake ended well: look at what the client has shown, tell policy and log."""
        assert self._engine is not None
        contexts, engine = self._services.contexts, self._engine
        verdict = contexts.verdict(self.settings, engine)
        if self.settings.tls_ocsp != "no":
            self._answer = await self._by_contract(engine, verdict)
            verdict = await contexts.by_responder(self.settings, engine, verdict)
        if self.record is not None:
            self.record.tls(verdict)
        self._verdict = verdict
        if self._services.hooks.asks(Hook.INBOUND_VERIFY):
            call = Call(Hook.INBOUND_VERIFY, self._info, self._context)
            verdict = self._services.hooks.inbound_verdict(call, verdict)
        self._rejected = verdict.cause == "rejected_by_policy"
        self._looked_at.clear()
        presented = verdict.certificate is not None
        self.facts = verdict.facts(
            verified=verdict.chain_verified if presented and verdict.checked else None,
            cause=verdict.cause if presented else "",
        )
        if verdict.certificate is not None and self._services.keep is not None:
            others = [one.public_bytes(Encoding.DER) for one in engine.chain()]
            chain = [verdict.certificate.der, *(der for der in others if der != verdict.certificate.der)]
            self.facts = replace(self.facts, certificates=self._services.keep(chain))
        self._context.connection.update(tls_variables(verdict))
        if self.trace is not None and verdict.certificate is not None:
            self.trace.certificates([verdict.certificate.der])
        self._log(self.facts, ok=True)

    async def _by_contract(self, engine: Engine, verdict: TlsVerdict) -> tuple[str, str]:
        """What the responder says of a certificate that the Listen does not trust, and a contract may."""
        contracts = self._services.config.contracts
        if not verdict.cause or verdict.certificate is None or not contracts:
            return "", ""
        shown = Shown(None, verdict, engine.chain())
        anchors = self._services.contract_checks.anchors(contracts.all(), shown)
        if not anchors:
            return "", ""
        return await self._services.contexts.responder_says(self.settings, engine, verdict, anchors)

    def release(self) -> None:
        """The connection has ended; nothing holds the engine any more."""
        self._engine = None

    def unsecured(self, failure: HandshakeFailure) -> None:
        """The handshake failed."""
        if self.facts is None or not self.facts.protocol:
            self._log(failure.facts(), ok=False)

    def _log(self, facts: TlsFacts, *, ok: bool) -> None:
        services = self._services
        if self.trace is not None:
            self.trace.secured(facts)
        services.log(Handshaken(services.clock.now(), self._info.remote, self._info.local, self._number, facts, ok))
