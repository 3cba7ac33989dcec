"""AUTH of one session: the exchange begun, its outcome decided, told to policy and the acctlog, answered. Shell."""

from __future__ import annotations

import asyncio
import contextlib

from quillon.config.settings import ReceptionSettings
from quillon.listener import authentication
from quillon.listener.recorder import SessionRecord
from quillon.listener.services import SessionServices
from quillon.mail import reply as replies
from quillon.mail import shown
from quillon.mail.event import Authenticated
from quillon.mail.message import MessageId
from quillon.mail.reply import Reply, parse_reply
from quillon.policy.context import Context
from quillon.policy.hook import AuthInfo, Call, Hook, Phase, Session, Unanswered
from quillon.smtp.events import Authenticate, BeginAuth
from quillon.smtp.server import ServerSession

AUTH_KEYS = ("auth_name", "auth_user", "auth_status")


class Login:
    """`settings` may change while the session lasts."""

    def __init__(
        self, services: SessionServices, settings: ReceptionSettings, info: Session, number: MessageId, context: Context
    ) -> None:
        self.settings = settings
        self.record: SessionRecord | None = None
        self._services = services
        self._info = info
        self._number = number
        self._context = context

    def begin(self, session: ServerSession, event: BeginAuth, ip: str) -> None:
        """AUTH: begin the exchange, unless the client has failed too often."""
        if self._services.failed_logins.blocked(self.settings, ip):
            session.respond(replies.AUTH_TOO_MANY)
            return
        hostname = self.settings.banner_hostname or self._services.hostname
        session.auth(self._services.authenticator.begin(self.settings, event.mechanism, hostname), event.initial)

    async def finish(self, session: ServerSession, event: Authenticate, ip: str) -> None:
        """An exchange is over: check, have policy look at it, log, and let a failure wait."""
        attempt, context, failed_logins = event.attempt, self._context, self._services.failed_logins
        if failed_logins.blocked(self.settings, ip):
            session.respond(replies.AUTH_TOO_MANY)
            return
        failed_logins.attempted(self.settings, ip)
        try:
            status, refusal = await self._status(event)
        except Unanswered:
            status, refusal = "error", replies.POLICY_FAILED
        if self.record is not None:
            self.record.authenticated(event.mechanism, attempt.user, status)
        for key, value in zip(AUTH_KEYS, (event.mechanism, attempt.user, status), strict=True):
            context.connection[key] = shown.line(value, shown.NAME)
        if not attempt.user:
            del context.connection["auth_user"]
        if self._services.policy.has(Phase.AUTH):
            info = AuthInfo(event.mechanism, attempt.user, status)
            refusal = await self._services.policy.run(Call(Phase.AUTH, self._info, context, auth=info)) or refusal
        good = status == "pass" and refusal is None
        if status == "pass" and not good:
            context.connection["auth_status"] = "fail"  # policy has the last word
        self._log(event.mechanism, attempt.user, ok=good)
        if good:
            failed_logins.passed(ip)
            context.connection["can_relay"] = "true"
            session.respond(None)
        else:
            await self._refuse(session, refusal, status, ip)

    async def _status(self, event: Authenticate) -> tuple[str, Reply | None]:
        """pass, fail or error, by the hooks that decide instead of the source of credentials, or by that source."""
        policy, attempt = self._services.policy, event.attempt
        if policy.hooks(Hook.PRE_AUTH):
            call = Call(Hook.PRE_AUTH, self._info, self._context)
            said = await policy.asked(Hook.PRE_AUTH, call, event.mechanism, attempt.user)
            if said in (authentication.OK, authentication.FAIL):
                return ("pass" if said == authentication.OK else "fail"), None
        if authentication.scheme(self.settings, event.mechanism) != "ac_auth":
            return await self._services.authenticator.decide(self.settings, event.mechanism, attempt), None
        call = Call(Hook.AC_AUTH, self._info, self._context)
        found = await policy.asked(Hook.AC_AUTH, call, attempt.user, attempt.password)
        said, text = found if isinstance(found, tuple) else (found, "")
        if said == authentication.OK:
            return "pass", None
        if said != authentication.FAIL:
            return "error", None
        with contextlib.suppress(Unanswered):  # it only takes notice
            await policy.asked(Hook.AC_AUTH_FAILED, call, attempt.user, text or "")
        try:
            reply = parse_reply(text) if text else None
            if reply is not None and reply.positive:
                raise ValueError(f"{reply} is no refusal")
            return "fail", reply
        except ValueError as error:
            policy.report(f"policy: {Hook.AC_AUTH.value}: {error}")
            return "fail", None

    async def _refuse(self, session: ServerSession, refusal: Reply | None, status: str, ip: str) -> None:
        failed_logins = self._services.failed_logins
        reply = refusal or (replies.AUTH_ERROR if status == "error" else replies.AUTH_FAILED)
        if status == "fail":
            failed_logins.failed(ip)
            delay = failed_logins.delay(self.settings, ip)
            if failed_logins.blocked(self.settings, ip):
                reply = replies.AUTH_TOO_MANY
            if delay:
                await asyncio.sleep(delay)
        else:
            failed_logins.passed(ip)
        session.respond(reply)

    def given_up(self) -> None:
        """A policy waited too long: nobody has authenticated, and a failure that was found stays one."""
        if self._context.connection.get("auth_status") != "fail":
            self._context.connection["auth_status"] = "error"

    def ended(self, session: ServerSession) -> None:
        """The client has gone; one in the middle of an exchange is a line of the acctlog."""
        if session.authenticating:
            self._log(session.authenticating, "", ok=False, timed_out=True)

    def _log(self, mechanism: str, user: str, *, ok: bool, timed_out: bool = False) -> None:
        given = authentication.parameters(self.settings, mechanism) or {}
        if given.get("log_authentication", "false").lower() in ("true", "1", "yes", "on"):
            services, info = self._services, self._info
            now = services.clock.now()
            services.log(Authenticated(now, info.local, info.remote, user, ok, mechanism, self._number, timed_out))
