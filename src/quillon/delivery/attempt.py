"""One attempt to reach a site: which host next, with TLS or in clear, and when to stop. Pure.

The shell asks `next_step`, does it, and tells what came of it. A host that cannot be reached or will not talk leads to
the next one. A TLS failure does not: it is either answered by a fresh connection in clear to the same host, where the
configuration allows that, or it ends the attempt, so that nothing is sent past a policy by walking on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from quillon.config.settings import OutboundTls
from quillon.delivery import tls_policy
from quillon.delivery.route import Host
from quillon.mail import reply as replies
from quillon.mail.outcome import Stage, TransientFailure
from quillon.mail.reply import Reply


@dataclass(frozen=True, slots=True)
class TryHost:
    """Connect to this host. `in_clear` is a fallback after failed TLS."""

    host: Host
    in_clear: bool


Step = TryHost | TransientFailure


class Attempt:
    """`hosts` in the order in which they are tried."""

    def __init__(self, tls: OutboundTls, hosts: Sequence[Host]) -> None:
        self._tls = tls
        self._todo = deque(TryHost(host, in_clear=False) for host in hosts)
        self._over: TransientFailure | None = None
        self._last = TransientFailure(replies.NO_VALID_HOSTS, Stage.NOT_CONNECTED)

    def next_step(self) -> Step:
        """The next host, or the failure that ends the attempt."""
        if self._over is not None:
            return self._over
        return self._todo.popleft() if self._todo else self._last

    def unreachable(self, step: TryHost, reply: Reply) -> None:
        """No connection, or none in time."""
        self._last = TransientFailure(reply, Stage.NOT_CONNECTED, step.host.ip)

    def unwilling(self, step: TryHost, reply: Reply, stage: Stage) -> None:
        """The host answered the banner or EHLO with a refusal, or broke off. Its mail is not lost for that."""
        self._last = TransientFailure(reply, stage, step.host.ip)

    def not_offered(self, step: TryHost) -> None:
        """TLS is required and the host does not offer STARTTLS."""
        self._over = TransientFailure(replies.STARTTLS_NOT_ADVERTISED, Stage.AFTER_EHLO, step.host.ip, "no_starttls")

    def tls_failed(self, step: TryHost, reply: Reply, stage: Stage, cause: str) -> None:
        """STARTTLS was refused, or the handshake failed."""
        if cause != "bad_local_settings" and tls_policy.falls_back(self._tls):
            self._todo.appendleft(TryHost(step.host, in_clear=True))
        else:
            self._over = TransientFailure(reply, stage, step.host.ip, cause)

    def rejected(self, step: TryHost, judgement: tls_policy.Judgement) -> None:
        """The handshake ended well and TLS_Verify says no: never clear text, never the next host."""
        reply = judgement.reply or replies.TLS_FAILED
        self._over = TransientFailure(reply, Stage.HANDSHAKING_TLS, step.host.ip, judgement.cause)
