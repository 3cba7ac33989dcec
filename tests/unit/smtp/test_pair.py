"""Our client against our server, machine to machine: whatever the cuts of the octets and the replies, both agree on what
became of each recipient."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quillon.lab.sink import reception_defaults
from quillon.mail.address import Mailbox
from quillon.mail.outcome import Stage
from quillon.mail.reply import Reply
from quillon.smtp import client as smtp
from quillon.smtp import events
from quillon.smtp.client import ClientSession, MailTransaction
from quillon.smtp.server import ServerSession
from quillon.smtp.wire import DotStuffer

SENDER = Mailbox("a", "x.test")
SETTINGS = reception_defaults(
    smtp_extensions=("ENHANCEDSTATUSCODES",), rfc2822_lone_lf_in_body="ignore", max_errors_per_connection=0
)


@dataclass
class Pair:
    """`answer` is asked for each event of the server; `cut` gives how many octets go over at once."""

    answer: Callable[[Any], Reply | None]
    cut: Callable[[], int]
    pipelining: bool = True
    client: ClientSession = field(default_factory=lambda: ClientSession("client.test"))
    told: list[Any] = field(default_factory=list)
    taken: list[tuple[tuple[str, ...], bytes]] = field(default_factory=list)
    _recipients: list[str] = field(default_factory=list)
    _data: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = ServerSession(SETTINGS, "server.test", "client", can_starttls=False)
        self.server.greet(Reply(220, "", "server.test ESMTP"))
        self.to_client: Callable[[bytes], object] = self.client.receive

    def exchange(self, body: bytes = b"") -> None:
        """Let octets pass until neither side has any more."""
        while True:
            to_client, to_server = self.server.data_to_send(), self.client.data_to_send()
            if not self.pipelining:
                to_client = to_client.replace(b"250-PIPELINING\r\n", b"")
            if not to_client and not to_server:
                return
            self._pass(to_client, self.to_client, lambda: self._client(body))
            self._pass(to_server, self.server.receive, self._server)

    def _pass(self, octets: bytes, into: Callable[[bytes], object], then: Callable[[], None]) -> None:
        while octets:
            size = self.cut()
            into(octets[:size])
            octets = octets[size:]
            then()

    def _client(self, body: bytes) -> None:
        while (event := self.client.next_event()) is not smtp.NEED_DATA:
            self.told.append(event)
            if isinstance(event, smtp.SendBody):
                stuffer = DotStuffer()
                octets = stuffer.feed(body) + stuffer.end()
                self.client.body_sent()
                self._pass(self.client.data_to_send() + octets, self.server.receive, self._server)

    def _server(self) -> None:
        while (event := self.server.next_event()) is not events.NEED_DATA and event is not events.PAUSED:
            if isinstance(event, events.Data):
                self._data.append(event.data)
                if not event.last:
                    continue
            reply = self.answer(event)
            if isinstance(event, events.MailFrom):
                self._recipients = []
            elif isinstance(event, events.RcptTo) and reply is None:
                self._recipients.append(str(event.mailbox))
            elif isinstance(event, events.Data):
                data, self._data = b"".join(self._data), []
                if reply is None:
                    self.taken.append((tuple(self._recipients), data))
            self.server.respond(reply)


def _pair(answer: Callable[[Any], Reply | None], cut: Callable[[], int], pipelining: bool) -> Pair:
    pair = Pair(answer, cut, pipelining)
    pair.exchange()
    assert isinstance(pair.told.pop(), smtp.HostReady)
    return pair


REPLIES = [None, None, None, Reply(450, "4.2.0", "later"), Reply(550, "5.1.1", "no"), Reply(452, "4.5.3", "enough")]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.booleans(), st.sampled_from([1, 2, 7, 1000]))
def test_both_sides_agree_on_each_recipient(seed: int, recipients: int, pipelining: bool, size: int) -> None:
    chance = random.Random(seed)
    answers: dict[str, Reply | None] = {}

    def answer(event: Any) -> Reply | None:
        if not isinstance(event, (events.MailFrom, events.RcptTo, events.Data)):
            return None
        name = str(event.mailbox) if isinstance(event, events.RcptTo) else type(event).__name__
        answers[name] = chance.choice(REPLIES if isinstance(event, events.RcptTo) else REPLIES[:5])
        return answers[name]

    pair = _pair(answer, lambda: chance.randint(1, size), pipelining)
    for _ in range(3):
        answers.clear()
        pair.told.clear()
        before = len(pair.taken)
        mailboxes = [Mailbox(f"b{n}", "y.test") for n in range(recipients)]
        body = b"".join(chance.choice([b".", b"..", b"x", b"\r\n", b".\r\n"]) for _ in range(chance.randint(1, 30)))
        body += b"\r\n"
        pair.client.send(MailTransaction(SENDER, mailboxes, len(body)))
        pair.exchange(body)
        (done,) = [event for event in pair.told if isinstance(event, smtp.Done)]
        for mailbox, (reply, stage) in zip(mailboxes, done.results, strict=True):
            mail, own, data = answers["MailFrom"], answers.get(str(mailbox)), answers.get("Data")
            said = mail or own or data
            refused = Stage.AFTER_MAIL if mail else Stage.AFTER_RCPT
            expected = refused if mail or own else Stage.READING_CONFIRMATION
            assert (reply.code if said else 250, stage) == (said.code if said else 250, expected), answers
            assert reply.positive == (said is None)
        good = tuple(str(m) for m, (reply, _) in zip(mailboxes, done.results, strict=True) if reply.positive)
        assert pair.taken[before:] == ([(good, body)] if good else [])
        pair.client.rset()
        pair.exchange()
        assert any(isinstance(event, smtp.Reset) for event in pair.told)


@pytest.mark.parametrize("at", range(1, 400, 7))
def test_a_session_that_is_cut_anywhere_gives_each_recipient_one_result(at: int) -> None:
    """The server's octets end after so many; what had been answered by then counts."""
    said = [0]

    def cut() -> int:
        return 1

    pair = Pair(lambda event: Reply(550, "5.1.1", "no") if _is(event, "b1") else None, cut)
    receive = pair.to_client

    def limited(octets: bytes) -> None:
        if said[0] < at:
            said[0] += len(octets)
            receive(octets)

    pair.to_client = limited
    pair.exchange()
    if any(isinstance(event, smtp.HostReady) for event in pair.told):
        pair.client.send(MailTransaction(SENDER, [Mailbox(f"b{n}", "y.test") for n in range(3)], 3))
        pair.exchange(b"x\r\n")
        pair.client.connection_lost()
        pair._client(b"")
        done = [event for event in pair.told if isinstance(event, smtp.Done)]
        assert len(done) == 1
        assert len(done[0].results) == 3
        replies = [reply for reply, _ in done[0].results]
        assert replies[1].permanent or replies[1].transient
        assert all(reply.positive or reply.transient for reply in (replies[0], replies[2]))
        if replies[0].positive:
            assert replies[1].permanent
            assert len(pair.taken) == 1


def _is(event: Any, local: str) -> bool:
    return isinstance(event, events.RcptTo) and event.mailbox.local == local
