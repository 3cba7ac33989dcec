"""The AUTH command of the receiving role (RFC 4954): which mechanisms, and the lines of an exchange. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.smtp import sasl
from quillon.smtp.events import Authenticate, BeginAuth


class AuthDialog:
    """`mechanisms` can be used at all; those that send the password as it is only inside TLS, or where `in_clear` names
    them. `exchange` is the one that waits for the client."""

    def __init__(self, mechanisms: Sequence[str], in_clear: Sequence[str]) -> None:
        self.mechanisms = tuple(mechanisms)
        self.exchange: sasl.Exchange | None = None
        self.mechanism = ""
        self._in_clear = tuple(in_clear)

    def offered(self, *, in_tls: bool) -> list[str]:
        """Mechanisms that may be used now."""
        return [m for m in self.mechanisms if in_tls or m not in sasl.CLEARTEXT or m in self._in_clear]

    def command(self, argument: str, *, in_tls: bool) -> BeginAuth | Reply:
        """AUTH with its argument: the event, or the refusal."""
        mechanism, _, response = argument.strip().partition(" ")
        mechanism = mechanism.upper()
        if mechanism not in self.mechanisms:
            return replies.AUTH_MECHANISM_UNKNOWN
        if mechanism not in self.offered(in_tls=in_tls):
            return replies.AUTH_NEEDS_TLS
        initial = b"" if response == "=" else sasl.decode(response.encode("ascii")) if response else None
        if response and initial is None:
            return replies.AUTH_NO_BASE64
        return BeginAuth(mechanism, initial)

    def begin(self, mechanism: str, exchange: sasl.Exchange, initial: bytes | None) -> Authenticate | Reply:
        """The first step of an exchange: its end, or a reply, which is 334 where it goes on."""
        self.exchange, self.mechanism = exchange, mechanism
        return self._step(initial)

    def response(self, line: bytes) -> Authenticate | Reply:
        """A line of the client in the middle of an exchange; an answer as of `begin`."""
        text = line.rstrip(b"\r\n")
        if len(line) > sasl.MAX_RESPONSE or not line.endswith(b"\r\n") or text == b"*":
            self.exchange = None
            return replies.AUTH_CANCELLED if text == b"*" else replies.AUTH_LINE_TOO_LONG
        data = sasl.decode(text)
        if data is None:
            self.exchange = None
            return replies.AUTH_NO_BASE64
        return self._step(data)

    def _step(self, response: bytes | None) -> Authenticate | Reply:
        assert self.exchange is not None
        step = self.exchange.step(response)
        if isinstance(step, sasl.Challenge):
            return Reply(334, "", base64.b64encode(step.data).decode("ascii"))
        self.exchange = None
        return replies.AUTH_MALFORMED if isinstance(step, sasl.Malformed) else Authenticate(self.mechanism, step)

    def end(self, attempt: sasl.AuthOutcome) -> Authenticate:
        """End the exchange with this attempt instead of the client's next response."""
        self.exchange = None
        return Authenticate(self.mechanism, attempt)
