"""Messages that came by HTTP, handed to a worker over a Unix socket in its folder of the spool. Shell.

One connection a message: a line of JSON says whose it is and for whom, so many octets of mail data follow, and a line
of JSON answers with the reply that SMTP would have given. The same reception takes it, with the same rules and policy.
Who may connect has the rights of the server itself; the control process has asked who is at the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from quillon.config.contracts import KIND, Contract
from quillon.config.outbound import lookup_name
from quillon.config.settings import ReceptionSettings
from quillon.listener.services import SessionServices
from quillon.mail import reply as replies
from quillon.mail.address import NULL_PATH, AddressError, Mailbox, parse_mailbox
from quillon.mail.event import Rejected
from quillon.mail.message import NULL_ID, MessageId, Origin
from quillon.mail.reply import Reply
from quillon.policy.context import Context
from quillon.policy.hook import Call, Phase, Recipients, Session
from quillon.policy.message import MessageView
from quillon.reception import content
from quillon.reception.accept import Envelope
from quillon.reception.content import Trace
from quillon.reception.mail_data import MailData
from quillon.smtp.tables import State

NAME = "intake"  # of the socket, in a worker's folder of the spool
MAX_LINE = 1 << 20  # octets of the line that begins a message, with its recipients
PIECE = 65536
PATIENCE = 60.0  # seconds without an octet


class _Octets:
    """The mail data that follow, in pieces. Raises TimeoutError and IncompleteReadError for those that do not come."""

    def __init__(self, reader: asyncio.StreamReader, size: int) -> None:
        self._reader = reader
        self._left = size
        self.refused: dict[str, str] = {}  # recipients that policy has refused, while others were taken

    def __aiter__(self) -> _Octets:
        return self

    async def __anext__(self) -> bytes:
        if self._left <= 0:
            raise StopAsyncIteration
        async with asyncio.timeout(PATIENCE):
            data = await self._reader.readexactly(min(self._left, PIECE))
        self._left -= len(data)
        return data


class Intake:
    """`services` gives what a message that comes now is to be taken with."""

    def __init__(self, services: Callable[[], SessionServices]) -> None:
        self._services = services
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        """Begin, unless it has; in place of whoever listened there before. Raises OSError."""
        if self._server is not None:
            return
        await asyncio.to_thread(path.unlink, missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE)
        await asyncio.to_thread(path.chmod, 0o600)

    def close(self) -> None:
        """Take no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                given = json.loads(await reader.readline())
            octets = _Octets(reader, given["size"])
            reply, number = await self._take(given, octets)
            async for _ in octets:
                pass  # what is refused is read all the same, or its sender would not hear why
            said = {"code": reply.code, "enhanced": reply.enhanced, "text": reply.text, "id": str(number)}
            said["refused"] = octets.refused
            writer.write(json.dumps(said).encode() + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError, KeyError, asyncio.IncompleteReadError):
            pass  # whoever broke off gets no answer, and nothing of it was taken
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    def _broken(self, contract: Contract, given: dict[str, Any], sender: Mailbox, number: MessageId) -> Reply:
        """The refusal of mail that a contract wants by SMTP, which the logs tell of."""
        services, reply = self._services(), replies.CONTRACT_NOT_SMTP.because(contract.domain)
        services.log(
            Rejected(
                services.clock.now(),
                str(given["client"]),
                given["listen"],
                number,
                "http",
                "",
                State.AWAITING_MAIL.value,
                reply,
                KIND,
                {"http_user": given["user"], "remote": given["client"]},
                {"mailfrom": str(sender), "mailfrom_domain": sender.domain},
                None,
                "contract_no_tls",
                contract.domain,
            )
        )
        return reply

    async def _take(self, given: dict[str, Any], octets: _Octets) -> tuple[Reply, MessageId]:
        services = self._services()
        settings = services.config.inbound.http(given["listen"])
        number = services.ids.next(services.clock.now())
        try:
            sender = parse_mailbox(given["sender"]) if given["sender"] else NULL_PATH
            recipients = [parse_mailbox(text) for text in given["recipients"]]
        except AddressError as error:
            return Reply(553, "5.1.3", f"not an address: {error}"), number
        if not all(one.domain for one in (*recipients, sender) if not one.null):
            return replies.UNQUALIFIED, number
        contract = services.config.contracts.inbound_of(lookup_name(sender.domain))
        if contract is not None:
            return self._broken(contract, given, sender, number), number
        if not recipients:
            return replies.NO_VALID_RECIPIENTS, number
        if settings.max_recipients_per_message and len(recipients) > settings.max_recipients_per_message:
            return replies.RECIPIENTS_PER_MESSAGE, number
        if settings.max_message_size and given["size"] > settings.max_message_size:
            return replies.MESSAGE_TOO_LARGE, number
        trace = _trace(services, settings, number, given)
        session = Session(str(given["client"]), given["listen"], str(NULL_ID), "http")
        context = Context({"http_user": given["user"], "remote": given["client"]}, {})
        reply, taken = await _asked(services, session, context, sender, recipients, octets.refused)
        if reply is not None:
            return reply, number
        envelope = _envelope(settings, services.hostname, trace, session, taken, number, sender)
        mail_data = MailData(
            services.reception.store,
            number.number,
            services.reception.node.large_message_threshold,
            lambda head: content.trace_field(settings, trace) + envelope.missing(head),
            content.line_limit(settings),
        )
        try:
            async for data in octets:
                mail_data.add(data)
        except BaseException:
            mail_data.discard()
            raise
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answer(reply: Reply) -> None:
            if not answered.done():
                answered.set_result(reply)

        services.reception.take(envelope, mail_data, settings, context, answer, services.policy, lambda: None)
        return await answered, number


async def _asked(
    services: SessionServices,
    session: Session,
    context: Context,
    sender: Mailbox,
    recipients: list[Mailbox],
    refused: dict[str, str],
) -> tuple[Reply | None, Recipients]:
    """What policy says to the sender, to each recipient and to their list, in the phases that SMTP has for them. Gives
    the refusal of all of it, or the recipients that are left; `refused` takes the others."""
    policy, left = services.policy, Recipients()
    session.recipients = left
    context.message |= {"mailfrom_localpart": sender.local, "mailfrom_domain": sender.domain}
    context.message["mailfrom_string"] = f"MAIL FROM:<{sender}>"
    if policy.has(Phase.MAILFROM):
        reply = await policy.run(Call(Phase.MAILFROM, session, context, context.message["mailfrom_string"]))
        if reply is not None:
            return reply, left
    last: Reply | None = None
    for recipient in recipients:
        context.message |= {"rcptto_localpart": recipient.local, "rcptto_domain": recipient.domain}
        context.message["rcptto_string"] = f"RCPT TO:<{recipient}>"
        reply = None
        if policy.has(Phase.RCPTTO):
            view = MessageView("", "", str(NULL_ID), str(sender), str(recipient))
            reply = await policy.run(Call(Phase.RCPTTO, session, context, context.message["rcptto_string"], view))
            if reply is None and view.routing_domain:
                left.routes[recipient] = view.routing_domain
        if reply is None:
            left.append(recipient)
        else:
            last = reply
            refused[str(recipient)] = str(reply)
    if not left:
        return last or replies.NO_VALID_RECIPIENTS, left
    for phase in (Phase.RCPTTO_LIST, Phase.RCPTTO_LIST_FINAL):
        reply = await policy.run(Call(phase, session, context)) if policy.has(phase) else None
        if reply is not None:
            return reply, left
    return (None, left) if left else (replies.NO_VALID_RECIPIENTS, left)


def _envelope(
    settings: ReceptionSettings,
    hostname: str,
    trace: Trace,
    session: Session,
    recipients: Recipients,
    number: MessageId,
    sender: Mailbox,
) -> Envelope:
    origin = Origin(trace.client_ip, "http", NULL_ID, settings.pathway)
    servers = settings.authserv_ids or (settings.received_hostname or hostname,)
    missing = partial(content.missing_fields, settings=settings, trace=trace)
    return Envelope(number, sender, recipients, origin, session, None, servers, missing)


def _trace(services: SessionServices, settings: ReceptionSettings, number: MessageId, given: dict[str, Any]) -> Trace:
    ip, _, port = str(given["client"]).rpartition(":")
    return Trace(
        client_ip=str(ipaddress.ip_address(ip.strip("[]"))),
        client_port=int(port),
        helo="",
        hostname=settings.received_hostname or services.hostname,
        sender=str(given["sender"]),
        protocol="HTTP",
        tls="",
        message_id=str(number),
        date=services.date(),
    )
