"""What an operator orders of a worker over the console: a function for each command that changes what waits.

An order about several messages is counted first, and done with `--yes`. Whatever is done is logged with who ordered it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quillon.app import suspended
from quillon.delivery.steering import Choose, Steering
from quillon.mail import reply as replies
from quillon.mail.address import is_domain, is_routing_name
from quillon.mail.event import Notice
from quillon.mail.message import Message, MessageId
from quillon.mail.reply import Reply
from quillon.mail.reply import words as plain
from quillon.queue import selection
from quillon.queue.selection import Selection
from quillon.queue.suspension import FOREVER, Suspension, Suspensions

if TYPE_CHECKING:
    from quillon.app.worker import Worker

Rows = list[Any]
_ENDS = ("fail", "binding fail", "discard", "message fail", "message discard")  # orders that end messages


class Orders:
    """The orders to one worker."""

    def __init__(self, worker: Worker, steering: Steering) -> None:
        self._worker = worker
        self._steering = steering
        self._functions: dict[str, Callable[[list[str], str], Awaitable[Rows]]] = {
            "flush": self._flush,
            "flush domain": self._flush_domain,
            "fail": self._fail,
            "fail domain": partial(self._fail_domain, quiet=False),
            "fail domain quiet": partial(self._fail_domain, quiet=True),
            "fail all": partial(self._fail_all, quiet=False),
            "fail all quiet": partial(self._fail_all, quiet=True),
            "binding flush domain": self._flush_of_binding,
            "binding fail domain": partial(self._fail_domain, quiet=False, binding=True),
            "binding fail domain quiet": partial(self._fail_domain, quiet=True, binding=True),
            "delay": self._delay,
            "discard": self._discard,
            "rebind": self._rebind,
            "reroute queue": self._reroute,
            "message retry": self._retry,
            "message fail": partial(self._fail_message, reply=replies.MANUALLY_FAILED, quiet=False),
            "message fail quiet": partial(self._fail_message, reply=replies.MANUALLY_FAILED, quiet=True),
            "message discard": partial(self._fail_message, reply=replies.MANUALLY_DISCARDED, quiet=True),
            "suspend": self._suspend,
            "resume": self._resume,
        }

    def knows(self, command: str) -> bool:
        """Whether a command is an order."""
        return command in self._functions

    async def carry_out(self, command: str, words: list[str], who: str) -> Rows:
        """What came of an order. Raises ValueError for one that is not understood, or that nothing would come of now,
        OSError."""
        why = self._worker.trouble() if command.startswith(_ENDS) else ""
        if why:
            raise ValueError(f"no message is given up while that cannot be written down: {why}")
        rows = await self._functions[command](words, who)
        self._note(command, words, who, rows)
        return rows

    def _note(self, command: str, words: list[str], who: str, rows: Rows) -> None:
        """Who has changed what."""
        done = sum(row["count"] for row in rows if row.get("done"))
        if done or any(row.get("noted") for row in rows):
            text = f"console: {who}: {' '.join([command, *words])}: {done} messages"
            self._worker.log(Notice(self._now(), plain(text)))

    def _now(self) -> float:
        return self._worker.clock.now()

    # messages ---------------------------------------------------------------------------------------------------

    async def _flush(self, words: list[str], _who: str) -> Rows:
        asked = selection.read(words, flags=("yes",))
        selection.nothing_else(asked.rest)
        return await self._order(asked, "tried now", lambda: self._steering.flush(asked.selection))

    async def _flush_domain(self, words: list[str], _who: str) -> Rows:
        name = selection.only(words, "flush domain NAME, or all").lower()
        return await self._flush_named("", name)

    async def _flush_of_binding(self, words: list[str], _who: str) -> Rows:
        if len(words) != 2:
            raise ValueError("binding flush domain BINDING NAME, or all")
        return await self._flush_named(words[0], words[1].lower())

    async def _flush_named(self, binding: str, name: str) -> Rows:
        wanted = Selection(binding=binding, domain="" if name == "all" else name)
        return [{"count": await self._steering.flush(wanted), "done": True, "what": "tried now", "domain": name}]

    async def _fail(self, words: list[str], _who: str) -> Rows:
        asked = selection.read(words, values=("note",), flags=("yes", "quiet"))
        selection.nothing_else(asked.rest)
        reply, quiet = _purged(str(asked.options.get("note", ""))), "quiet" in asked.options
        return await self._order(asked, "failed", lambda: self._steering.fail(asked.selection, reply, quiet=quiet))

    async def _fail_domain(self, words: list[str], _who: str, *, quiet: bool, binding: bool = False) -> Rows:
        """`NAME [text]`, or all; with `binding` that of a binding, which comes first."""
        done = "--yes" in words
        words = [word for word in words if word != "--yes"]
        if len(words) < 1 + binding:
            raise ValueError(f"{'binding ' * binding}fail domain [quiet] {'BINDING ' * binding}NAME [TEXT], or all")
        given = ["--binding", words.pop(0)] if binding else []
        name = words[0].lower()
        given += ["--domain", name] if name != "all" else []
        asked = selection.read([*(given or ["--all"]), *(["--yes"] if done else [])], flags=("yes",))
        reply = _purged(" ".join(words[1:]))
        rows = await self._order(asked, "failed", lambda: self._steering.fail(asked.selection, reply, quiet=quiet))
        return [{**row, "domain": name} for row in rows]

    async def _fail_all(self, words: list[str], who: str, *, quiet: bool) -> Rows:
        return await self._fail_domain(["all", *words], who, quiet=quiet)

    async def _discard(self, words: list[str], _who: str) -> Rows:
        asked = selection.read(words, flags=("yes",))
        selection.nothing_else(asked.rest)
        reply = replies.MANUALLY_DISCARDED
        return await self._order(asked, "discarded", lambda: self._steering.fail(asked.selection, reply, quiet=True))

    async def _delay(self, words: list[str], _who: str) -> Rows:
        asked = selection.read(words, flags=("yes",))
        seconds = selection.seconds(selection.only(asked.rest, "delay TIME, and which messages"))
        return await self._order(asked, "delayed", lambda: self._steering.delay(asked.selection, seconds))

    async def _rebind(self, words: list[str], _who: str) -> Rows:
        """`BINDING|all [DOMAIN] [--to BINDING]`, or a selection."""
        plain_words = [word for word in words if word != "--yes"]
        if plain_words and not plain_words[0].startswith("--"):
            source, rest = plain_words[0], plain_words[1:]
            given = [] if source == "all" else ["--binding", source]
            if rest and not rest[0].startswith("--"):
                given += ["--domain", rest.pop(0)]
            words = [*(given or ["--all"]), *rest, *(["--yes"] if "--yes" in words else [])]
        asked = selection.read(words, values=("to",), flags=("yes",))
        selection.nothing_else(asked.rest)
        choose = self._chooser(str(asked.options["to"]) if "to" in asked.options else None)
        return await self._order(asked, "rebound", lambda: self._steering.rebind(asked.selection, choose))

    def _chooser(self, name: str | None) -> Choose:
        """Gives each message the binding of a name; without one its own, or the default where that is gone. Raises
        ValueError for a binding that is not there."""
        outbound = self._worker.config.outbound
        if name is None:

            def keep(message: Message) -> tuple[str, str]:
                known = outbound.has_binding(message.binding_group, message.binding)
                return (message.binding_group, message.binding) if known else ("default", "default")

            return keep
        bindings = outbound.bindings()
        if name not in bindings:
            raise ValueError(f"there is no binding {name!r}; there are {', '.join(sorted(bindings))}")
        return lambda _: (bindings[name], name)

    async def _reroute(self, words: list[str], _who: str) -> Rows:
        """`FROM TO`, of domains, or `TO` and a selection."""
        names = [word.lower() for word in words if not word.startswith("--")]
        if len(names) == 2 and {word for word in words if word.startswith("--")} <= {"--yes"}:
            given = ["--all"] if names[0] == "all" else ["--domain", names[0]]
            words = [*given, names[1], *(["--yes"] if "--yes" in words else [])]
        asked = selection.read(words, flags=("yes",))
        target = selection.only(asked.rest, "reroute queue FROM TO").lower()
        if not is_domain(target) and not is_routing_name(target):
            raise ValueError(f"{target!r} is no domain and no address")
        return await self._order(asked, "moved", lambda: self._steering.reroute(asked.selection, target))

    async def _retry(self, words: list[str], _who: str) -> Rows:
        number = MessageId.parse(selection.only(words, "message retry ID"))
        return [await self._one(number, "tried now", self._steering.flush)]

    async def _fail_message(self, words: list[str], _who: str, *, reply: Reply, quiet: bool) -> Rows:
        number = MessageId.parse(selection.only(words, "message fail [quiet] ID, message discard ID"))
        return [await self._one(number, "failed", lambda wanted: self._steering.fail(wanted, reply, quiet=quiet))]

    async def _one(self, number: MessageId, what: str, act: Callable[[Selection], Awaitable[int]]) -> dict[str, Any]:
        count = await act(Selection(id=number))
        busy = not count and any(
            message.id == number for line, _ in self._worker.dispatcher.connections() for message in line.carried
        )
        return {"count": count, "done": True, "what": what, "busy": busy}

    async def _order(self, asked: selection.Asked, what: str, act: Callable[[], Awaitable[int]]) -> Rows:
        """Do it, or say how many messages it would concern."""
        if "yes" not in asked.options:
            return [{"count": await self._steering.count(asked.selection), "done": False, "what": what}]
        return [{"count": await act(), "done": True, "what": what}]

    # suspension -----------------------------------------------------------------------------------------------

    async def _suspend(self, words: list[str], who: str) -> Rows:
        """`[DOMAIN] [--binding B] [--for TIME] [--reason TEXT]`"""
        domain, binding, options = _place(words, ("for", "reason"))
        now = self._now()
        until = now + selection.seconds(options["for"]) if "for" in options else FOREVER
        one = Suspension(domain, binding, plain(options.get("reason", "")), who, now, until)
        count = await self._change(domain, lambda found: found.add(one))
        return [{**one.row(), "count": count, "done": True, "noted": True}]

    async def _resume(self, words: list[str], _who: str) -> Rows:
        domain, binding, _ = _place(words, ())
        one = self._worker.dispatcher.halts.suspensions.get(domain, binding)
        await self._change(domain, lambda found: found.remove(domain, binding))
        return [{**one.row(), "count": 0, "done": True, "noted": True}] if one is not None else []

    async def follow(self) -> None:
        """Take over what other workers have suspended or resumed while this one was not there to be told."""
        base = Path(self._worker.config.node().spoolbase)
        found = await asyncio.to_thread(suspended.read, base, self._worker.report)
        before = self._worker.dispatcher.halts.suspensions.current(self._now())
        places = {(one.domain, one.binding) for one in found.current(self._now())}
        if places != {(one.domain, one.binding) for one in before}:
            for domain in {domain for domain, _ in places} | {one.domain for one in before}:
                await self._steering.suspend(found, domain)

    async def _change(self, domain: str, make: Callable[[Suspensions], None]) -> int:
        """Gives how many messages wait under what is suspended then."""
        base = Path(self._worker.config.node().spoolbase)
        found = await asyncio.to_thread(suspended.change, base, self._now(), make)
        return await self._steering.suspend(found, domain)


def _place(words: list[str], values: tuple[str, ...]) -> tuple[str, str, dict[str, str]]:
    """The domain and binding that are suspended, and other options. Raises ValueError."""
    if words and not words[0].startswith("--"):
        words = ["--domain", *words]
    asked = selection.read(words, values=values)
    selection.nothing_else(asked.rest)
    wanted = asked.selection
    if wanted != Selection(domain=wanted.domain, binding=wanted.binding):
        raise ValueError("what is suspended is a domain, a binding, or --all")
    if wanted.domain and not is_domain(wanted.domain.partition(":")[0]) and not is_routing_name(wanted.domain):
        raise ValueError(f"{wanted.domain!r} is no domain and no address")
    return wanted.domain, wanted.binding, {name: str(value) for name, value in asked.options.items()}


def _purged(text: str) -> Reply:
    """The reply that failed mail is given up with, in the operator's words."""
    return Reply(554, "5.7.0", plain(text)) if text.strip() else replies.MANUALLY_PURGED
