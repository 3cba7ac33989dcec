"""Lua fragments in a runtime of their own, with an environment that a test makes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from quillon.config.settings import ScriptSettings
from quillon.lua.msys import db
from quillon.lua.runtime import load_scripts
from quillon.mail.address import Mailbox
from quillon.mail.reply import Reply
from quillon.net.eager import at_once
from quillon.policy.context import Context
from quillon.policy.environment import Environment, Lookup
from quillon.policy.hook import Call, Hook, Phase, Policy, Session
from quillon.policy.message import Content, MessageView

MESSAGE = (
    b"From: Alice <alice+tag@bank.fi>\r\nTo: b@example.com\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\nX-A: 1\r\nX-A: 2\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n\r\nHello world\r\n"
)


class Stage:
    """What scripts said and did. `lookups` maps (name, type) to records."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.reports: list[str] = []
        self.injected: list[tuple[Mailbox, Sequence[Mailbox], bytes]] = []
        self.lookups: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self.time = 1_700_000_000.0
        self.environment = Environment(lambda: self.time, self.reports.append, "mx.test", str(folder))
        self.environment.lookup, self.environment.inject = self._lookup, self._inject
        self._settings = settings
        self.session = Session("192.0.2.7:1234", "127.0.0.1:25", "00/00-00001-00000000")
        self.context = Context({"tls": "on", "ehlo_domain": "client.test"}, {"mailfrom_domain": "bank.fi"})
        self.message = MESSAGE

    async def _lookup(self, name: str, kind: str, server: str) -> Lookup:
        await asyncio.sleep(0)
        found = self.lookups.get((name, kind))
        return Lookup(tuple(found)) if found else Lookup((), "nxdomain", "nxdomain")

    async def _inject(self, sender: Mailbox, recipients: Sequence[Mailbox], data: bytes) -> None:
        self.injected.append((sender, recipients, data))

    def load(self, *scripts: str) -> Policy:
        """Scripts as they stand; each must register something."""
        names = []
        for number, text in enumerate(scripts):
            (self.folder / f"t{number}.lua").write_text(text)
            names.append((f"t{number}", f"t{number}"))
        settings = ScriptSettings(tuple(names), 200, 200, True, **self._settings)
        return Policy(
            at_once(load_scripts(settings, [self.folder], self.environment)),
            self.reports.append,
            asyncio.sleep,
            stop=self.environment.stop,
        )

    def view(self, *, own: bool = False) -> MessageView:
        end = self.message.index(b"\r\n\r\n") + 4
        content = Content(self.message[:end], len(self.message), lambda: self.message)
        view = MessageView("id", "batch", "conn", "alice@bank.fi", "b@example.com", content)
        view.may_edit, view.own_copy = True, own
        return view

    def run(
        self, body: str, phase: Phase = Phase.DATA_SPOOL, view: MessageView | None = None, init: str = ""
    ) -> Reply | None:
        """One callout with this body; `msg`, `ac`, `vctx` are there, `out(...)` notes values in `said`."""
        text = f"""require("msys.core")
        local m = {{}}
        {f"function m:init() {init} return true end" if init else ""}
        function out(...) local t = {{}} for i = 1, select("#", ...) do t[i] = tostring((select(i, ...))):gsub("[\\r\\n]", "?") end
          print("OUT " .. table.concat(t, "|")) end
        function m:{phase.value}({"msg, ac, vctx" if phase is not Phase.SET_BINDING else "msg"})
        {body}
        return msys.core.VALIDATE_CONT end
        msys.registerModule("t", m)"""
        return asyncio.run(self._run(self.load(text), phase, view))

    async def _run(self, policy: Policy, phase: Phase, view: MessageView | None) -> Reply | None:
        try:
            return await self.call(policy, phase, view)
        finally:
            await db.close(self.environment.shared)

    def call(
        self, policy: Policy, phase: Phase, view: MessageView | None = None, text: str = ""
    ) -> Coroutine[Any, Any, Reply | None]:
        return policy.run(Call(phase, self.session, self.context, text, view or self.view()))

    @property
    def said(self) -> list[str]:
        """What `out` was given, one line each."""
        return [line.removeprefix("scriptlet: OUT ") for line in self.reports if "OUT " in line]

    @property
    def faults(self) -> list[str]:
        return [line for line in self.reports if "OUT " not in line]


class Answers:
    """A module with one answer to one question."""

    name = facility = "p"

    def __init__(self, hook: Hook, answer: Callable[..., object]) -> None:
        self._hook, self._answer = hook, answer

    def callout(self, phase: Phase) -> None:
        return None

    def hook(self, hook: Hook) -> Callable[..., object] | None:
        return self._answer if hook is self._hook else None

    def close(self) -> None:
        return None


Runner = Callable[..., Stage]
