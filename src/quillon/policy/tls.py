"""Questions about TLS that policy may answer: with which parameters, and whether a certificate is good.

The names are those of the manual's C hooks. Each module that has the function is asked, in order; a later one sees
what an earlier one has changed. A function that fails has not answered: the connection gets no TLS parameters (it is
refused, not weakened), and a certificate is not good.

Parameters: use_tls (no, ifavailable, required, or the manual's 0, 1, 2), tls_verify (outbound no, ca, host, optional;
inbound none, require or empty), certfile, keyfile, ca (paths; relative ones start at the configuration's folder),
cipherlist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quillon.config.settings import InboundTls, OutboundTls
from quillon.policy.hook import Call, Hook, Policy, words_of
from quillon.tls.engine import SYSTEM_TRUST
from quillon.tls.verdict import TlsVerdict

_USE_TLS = {"0": "no", "1": "ifavailable", "2": "required", "no": "no", "ifavailable": "ifavailable"}
_USE_TLS["required"] = "required"
_OUTBOUND_VERIFY = ("no", "ca", "host", "optional")
_INBOUND_VERIFY = ("none", "require", "")

Parameters = tuple[str, str, str, str, str, str]


class HookFailed(Exception):
    """A module could not answer; the message says which, at what, and why. It has been reported."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a delivery is going."""

    host: str
    ip: str
    domain: str


class TlsHooks:
    """The questions, put to a policy. `folder` is where relative paths start."""

    def __init__(self, policy: Policy, folder: str) -> None:
        self.policy = policy
        self._folder = folder

    def asks(self, hook: Hook) -> bool:
        """Whether anybody answers this question."""
        return bool(self.policy.hooks(hook))

    def inbound_parameters(self, call: Call, tls: InboundTls) -> InboundTls | None:
        """The TLS of a session; None where policy wants none. Raises HookFailed."""
        before = (
            "ifavailable",
            tls.tls_verify_mode or "",
            *_files(tls),
            tls.tls_client_ca or "",
            tls.tls_ciphers or "",
        )
        use_tls, verify, certificate, key, ca, ciphers = self._ask(
            call, Hook.INBOUND_PARAMETERS, before, _INBOUND_VERIFY
        )
        if use_tls == "no":
            return None
        return replace(
            tls,
            tls_verify_mode=verify or None,
            tls_certificate=certificate or None,
            tls_key=key or None,
            tls_client_ca=ca or None,
            tls_ciphers=ciphers or None,
        )

    def outbound_parameters(self, call: Call, tls: OutboundTls) -> OutboundTls:
        """The TLS of one message. Raises HookFailed."""
        before = (tls.tls, tls.tls_verify, *_files(tls), tls.tls_ca or "", tls.tls_ciphers or "")
        use_tls, verify, certificate, key, ca, ciphers = self._ask(
            call, Hook.OUTBOUND_PARAMETERS, before, _OUTBOUND_VERIFY
        )
        return replace(
            tls,
            tls=use_tls,
            tls_verify=verify,
            tls_certificate=certificate or None,
            tls_key=key or None,
            tls_ca=ca or None,
            tls_ciphers=ciphers or None,
        )

    def _ask(self, call: Call, hook: Hook, values: Parameters, verify: tuple[str, ...]) -> Parameters:
        before = values
        for name, answer in self.policy.hooks(hook):
            try:
                given = answer(call, *values)
                values = self._checked(given, verify)
            except Exception as error:
                raise self._failed(hook, name, error) from None
        return before if values == before else values

    def _checked(self, given: Any, verify: tuple[str, ...]) -> Parameters:
        """What a module has set, as settings take it. Raises ValueError."""
        use_tls, mode, certificate, key, ca, ciphers = (_word(value) for value in given)
        if use_tls.lower() not in _USE_TLS:
            raise ValueError(f"use_tls = {use_tls!r}: it is no, ifavailable or required (0, 1, 2)")
        if mode.lower() not in verify:
            raise ValueError(f"tls_verify = {mode!r}: it is one of {', '.join(word or 'nothing' for word in verify)}")
        if not ciphers.isprintable():
            raise ValueError(f"cipherlist = {ciphers!r} is not printable")
        paths = [self._path(text) for text in (certificate, key, ca)]
        return _USE_TLS[use_tls.lower()], mode.lower(), paths[0], paths[1], paths[2], ciphers

    def _path(self, text: str) -> str:
        if "\0" in text or not text.isprintable():
            raise ValueError(f"{text!r} is no path")
        return text if text in ("", SYSTEM_TRUST) or text.startswith("/") else f"{self._folder}/{text}"

    def inbound_verdict(self, call: Call, verdict: TlsVerdict) -> TlsVerdict:
        """The verdict on a client, as policy sees it."""
        return self._judged(Hook.INBOUND_VERIFY, call, verdict, ())

    def outbound_verdict(self, call: Call, verdict: TlsVerdict, to: Remote) -> TlsVerdict:
        """The verdict on a host's chain, as policy sees it; names are judged later. TLS_Verify no does not ask."""
        if not verdict.checked:
            return verdict
        return self._judged(Hook.OUTBOUND_VERIFY, call, verdict, (to.host, to.ip, to.domain))

    def _judged(self, hook: Hook, call: Call, verdict: TlsVerdict, place: tuple[str, ...]) -> TlsVerdict:
        certificate = verdict.certificate
        shown = _shown(verdict)
        for name, answer in self.policy.hooks(hook):
            try:
                said = answer(call, verdict.chain_verified, *shown, verdict.cause, *place)
                good = None if said is None else bool(int(said))
            except Exception as error:
                self._failed(hook, name, error)
                good = False
            if good is False:
                rejected = ("rejected_by_policy", 0, f"module {name}")
                verdict = replace(verdict, errors=(rejected, *verdict.errors), by_policy="")
            elif good and certificate is not None and verdict.errors:
                verdict = replace(verdict, errors=(), by_policy=name)
        return verdict

    def _failed(self, hook: Hook, name: str, error: Exception) -> HookFailed:
        text = f"{hook.value} error in {name}: {words_of(error)}"
        self.policy.report(f"policy: {text}")
        return HookFailed(text)


def _files(tls: InboundTls | OutboundTls) -> tuple[str, str]:
    return tls.tls_certificate or "", tls.tls_key or ""


def _word(value: object) -> str:
    """What a module has left in a field: nothing, text, or a number as Lua has them."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) else str(value)


def _shown(verdict: TlsVerdict) -> tuple[str, ...]:
    """What hooks that judge a certificate are told of it."""
    certificate, anchor = verdict.certificate, verdict.anchor
    if certificate is None:
        return ("",) * 6
    # a line each: no name holds a line end, as any other character may stand in one
    names = "\n".join(certificate.alternative_names)
    known = (certificate.subject, certificate.issuer, certificate.sha256, certificate.spki_sha256)
    return (*known, names, anchor.sha256 if anchor is not None else "")
