"""Contexts: certificates, keys, CAs, protocols and ciphers, loaded once per distinct setting and shared.

A context cannot be changed once it is in use, and building one costs a thousand times a lookup. The key is the frozen
settings themselves. Files that change are loaded again by `refresh`; sessions in flight keep the context they began
with, and files that cannot be loaded leave the old context in force.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

from cryptography import x509

from quillon.config.settings import InboundTls, OutboundTls
from quillon.tls.anchors import Anchors
from quillon.tls.engine import ClientContext, ContextError, Engine, ServerContext
from quillon.tls.gnutls_context import GnuTLSClient, GnuTLSServer
from quillon.tls.openssl_context import OpenSSLClient, OpenSSLServer
from quillon.tls.responders import Responders
from quillon.tls.revocation import Revocations, stapled
from quillon.tls.verdict import TlsVerdict

S = TypeVar("S", InboundTls, OutboundTls)
C = TypeVar("C", ServerContext, ClientContext)
Stamps = dict[str, tuple[int, int, int]]


@dataclass
class _Held(Generic[C]):
    context: C
    stamps: Stamps
    made: float
    refused: Stamps = field(default_factory=dict)
    in_use: int = 0  # engines that live


class _Lease:
    """An engine's part in a context, for as long as it lives."""

    __slots__ = ("_held",)

    def __init__(self, held: _Held[Any]) -> None:
        self._held = held
        held.in_use += 1

    def __del__(self) -> None:
        self._held.in_use -= 1


@dataclass(frozen=True, slots=True)
class ContextRow:
    """One context of the cache, for the console: `server` or `client`, its settings, seconds of age, sessions on it."""

    kind: str
    settings: InboundTls | OutboundTls
    age: float
    in_use: int


class Reloaded(NamedTuple):
    """What became of a context that was to be loaded again: whether it was, and a line for the log."""

    done: bool
    text: str


class Contexts:
    """Engines for sessions, from contexts that are built on first use. `clock` gives seconds since the epoch;
    `any_client` has clients show certificates of whichever authority, and each time."""

    def __init__(self, clock: Callable[[], float], *, any_client: bool = False) -> None:
        self._clock = clock
        self._any_client = any_client
        self._inbound: dict[InboundTls, _Held[ServerContext]] = {}
        self._outbound: dict[OutboundTls, _Held[ClientContext]] = {}
        self._anchors: dict[str | None, Anchors] = {}  # for answers of responders
        self._responders = Responders(clock)
        self._lists: dict[InboundTls | OutboundTls, tuple[Revocations, Anchors]] = {}

    def server(self, settings: InboundTls) -> Engine:
        """An engine for a session that a client opened. Raises ContextError."""
        held = self._inbound.get(settings)
        if held is None:
            held = self.load(settings)
        engine = held.context.engine()
        engine.lease = _Lease(held)
        return engine

    def client(self, settings: OutboundTls, server_name: str, peer: str = "") -> Engine:
        """An engine for a delivery to `peer`, an address with its port. Raises ContextError."""
        held = self._outbound.get(settings)
        if held is None:
            held = self.load_client(settings)
        engine = held.context.engine(server_name, peer)
        engine.lease = _Lease(held)
        return engine

    def load(self, settings: InboundTls) -> _Held[ServerContext]:
        """Build a server context now, so that what is wrong shows before a client comes. Raises ContextError."""
        held = self._inbound.get(settings)
        if held is None:
            stamps = _stamps(settings)
            held = self._inbound[settings] = _Held(self._new_server(settings), stamps, self._clock())
        return held

    def load_client(self, settings: OutboundTls) -> _Held[ClientContext]:
        """Build a client context now. Raises ContextError."""
        held = self._outbound.get(settings)
        if held is None:
            stamps = _stamps(settings)
            held = self._outbound[settings] = _Held(self._new_client(settings), stamps, self._clock())
        return held

    def verdict(self, settings: InboundTls | OutboundTls, engine: Engine) -> TlsVerdict:
        """What a handshake found out under some settings: as the engine says, and as revocation lists do. Who `asks`
        has `by_responder` look at it as well."""
        verdict = engine.verdict()
        if settings.tls_crl is None or not verdict.checked or verdict.cause:
            return verdict
        lists, anchors = self._lists_of(settings)
        hard = settings.tls_crl_check == "hard"
        own = verdict.certificate.parsed if verdict.certificate is not None else None
        others = [certificate for certificate in engine.chain() if certificate != own]
        errors = [("certificate_rejected", 0, "the certificate cannot be read")]
        if own is not None:  # which OpenSSL leaves out of the chain of a client
            errors = lists.errors([own, *others], anchors.certificates, self._clock(), hard=hard)
        return replace(verdict, errors=(*verdict.errors, *errors)) if errors else verdict

    async def by_responder(self, settings: InboundTls | OutboundTls, engine: Engine, verdict: TlsVerdict) -> TlsVerdict:
        """The same, with what the OCSP responder of the certificate says, if the settings want to know."""
        if not asks(settings, verdict):
            return verdict
        path = settings.tls_ca if isinstance(settings, OutboundTls) else settings.tls_client_ca
        anchors = self._anchors.setdefault(path, Anchors(path)).certificates
        cause, words = await self.responder_says(settings, engine, verdict, anchors)
        return replace(verdict, errors=(*verdict.errors, (cause, 0, words))) if cause else verdict

    async def responder_says(
        self,
        settings: InboundTls | OutboundTls,
        engine: Engine,
        verdict: TlsVerdict,
        anchors: Sequence[x509.Certificate],
    ) -> tuple[str, str]:
        """The cause why a certificate that leads to one of `anchors` may not pass, and words: by the answer that was
        stapled, or by asking for one; empty if it may."""
        own = verdict.certificate.parsed if verdict.certificate is not None else None
        if own is None:
            return "", ""
        chain = [own, *(certificate for certificate in engine.chain() if certificate != own)]
        cause, words = stapled(engine.staple(), chain, anchors, self._clock())
        if cause not in ("", "revoked"):
            unhelpful = (cause, words)
            cause, words = await self._responders.ask(chain, anchors, settings.tls_ocsp_responder)
            if cause == "ocsp_missing" and engine.staple():
                cause, words = unhelpful
        if cause != "revoked" and settings.tls_ocsp != "hard":
            return "", ""
        return cause, words

    def lists(self, settings: InboundTls) -> tuple[Revocations, bool] | None:
        """The revocation lists of a Listen, and whether they have to be there and fresh; None where it has none."""
        if settings.tls_crl is None:
            return None
        return self._lists_of(settings)[0], settings.tls_crl_check == "hard"

    def _lists_of(self, settings: InboundTls | OutboundTls) -> tuple[Revocations, Anchors]:
        """Raises ContextError."""
        found = self._lists.get(settings)
        if found is None:
            ca = settings.tls_client_ca if isinstance(settings, InboundTls) else settings.tls_ca
            found = self._lists[settings] = Revocations(settings.tls_crl or ""), Anchors(ca)
        return found

    def _new_server(self, settings: InboundTls) -> ServerContext:
        if settings.tls_crl is not None:
            self._lists.pop(settings, None)
            self._lists_of(settings)
        if settings.tls_crl is not None or settings.tls_ocsp != "no":
            settings = replace(settings, tls_session_resumption=False)  # a resumed session shows no chain
        self._anchors.pop(settings.tls_client_ca, None)
        if self._any_client:
            settings = replace(settings, tls_session_resumption=False, tls_any_client=True)
        return (
            GnuTLSServer(settings, self._clock)
            if settings.tls_engine == "gnutls"
            else OpenSSLServer(settings, self._clock)
        )

    def _new_client(self, settings: OutboundTls) -> ClientContext:
        if settings.tls_crl is not None and settings.tls_verify != "no":
            self._lists.pop(settings, None)
            self._lists_of(settings)
            settings = replace(settings, tls_session_resumption=False)
        if settings.tls_spki or settings.tls_ocsp != "no":  # a resumed session shows no certificate, and no answer
            settings = replace(settings, tls_session_resumption=False)
        self._anchors.pop(settings.tls_ca, None)
        return GnuTLSClient(settings) if settings.tls_engine == "gnutls" else OpenSSLClient(settings, self._clock)

    # the cache ------------------------------------------------------------------------------------------------

    def refresh(self) -> list[Reloaded]:
        """Load again what has changed on disk; one line for each context that was loaded, or could not be."""
        return self._reload(changed_only=True)

    def renew(self) -> list[Reloaded]:
        """Load every context anew, and with it the keys of tickets."""
        return self._reload(changed_only=False)

    def _reload(self, *, changed_only: bool) -> list[Reloaded]:
        said: list[Reloaded] = []
        self._reload_cache(self._inbound, self._new_server, changed_only, said)
        self._reload_cache(self._outbound, self._new_client, changed_only, said)
        return list(dict.fromkeys(said))

    def _reload_cache(
        self, cache: dict[S, _Held[C]], make: Callable[[S], C], changed_only: bool, said: list[Reloaded]
    ) -> None:
        for settings, held in list(cache.items()):
            stamps = _stamps(settings)
            if changed_only and stamps in (held.stamps, held.refused):
                continue
            changed = ", ".join(sorted(path for path in stamps if stamps[path] != held.stamps.get(path)))
            try:
                cache[settings] = _Held(make(settings), stamps, self._clock())
                said.append(Reloaded(True, f"loaded again: {changed or 'on request'}"))
            except ContextError as error:
                held.refused = stamps  # said once for this state of the files
                failed = f"{changed} changed and cannot be loaded" if changed_only else "cannot be loaded anew"
                said.append(Reloaded(False, f"{failed}, the old one stays in use: {error}"))

    def rows(self) -> list[ContextRow]:
        """What the cache holds."""
        now = self._clock()
        servers = [ContextRow("server", s, now - held.made, held.in_use) for s, held in self._inbound.items()]
        clients = [ContextRow("client", s, now - held.made, held.in_use) for s, held in self._outbound.items()]
        return servers + clients


def asks(settings: InboundTls | OutboundTls, verdict: TlsVerdict) -> bool:
    """Whether a responder has to be asked before a verdict holds."""
    return settings.tls_ocsp != "no" and verdict.chain_verified


def _stamps(settings: InboundTls | OutboundTls) -> Stamps:
    """The files of some settings with what tells one state of a file from another; zeros for one that is gone."""
    paths = [settings.tls_certificate, settings.tls_key, settings.tls_dhparams_file, settings.tls_crl]
    if isinstance(settings, InboundTls):
        paths += [settings.tls_client_ca, settings.tls_ocsp_response]
        paths += [path for one in settings.tls_identities for pair in one.pairs for path in pair]
    else:
        paths.append(settings.tls_ca)
    found: Stamps = {}
    for path in paths:
        if path and path.startswith("/"):
            try:
                state = os.stat(path)
                found[path] = (state.st_mtime_ns, state.st_size, state.st_ino)
            except OSError:
                found[path] = (0, 0, 0)
    return found
