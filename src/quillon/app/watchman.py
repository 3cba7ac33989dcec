"""A worker's eye on itself: queue, disk and certificates, for alerts; and the one that sends them. Shell.

What it sees goes to the supervisor, which says what is new; that comes back to one worker, which writes the mail and
calls the webhook.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid

import httpx

from quillon.config.settings import AlertSettings
from quillon.mail.address import Mailbox
from quillon.mail.alert import Alert

WEBHOOK_SECONDS = 10.0
DAY = 86400.0


class Watchman:
    """`hostname` is the server's name, `inject` takes a message of our own, `report` a panic line."""

    def __init__(
        self,
        settings: AlertSettings,
        hostname: str,
        inject: Callable[[Mailbox, list[Mailbox], bytes], Awaitable[None]],
        report: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self._hostname = hostname
        self._inject = inject
        self._report = report

    def look(
        self, *, waiting: int, oldest: float, free: int, refuses: str, ends: dict[str, float], workers: int, now: float
    ) -> Iterator[Alert]:
        """Every condition of a worker, whether it holds or not. `oldest` is an age in seconds, `free` octets, `ends`
        when certificates end by file."""
        given = self.settings
        if given.queue_size:
            text = f"{waiting} messages wait in a worker, more than its share of queue_size = {given.queue_size}"
            yield Alert("queue size", waiting * workers > given.queue_size, text, "`quillon console mailq` lists them.")
        if given.queue_age:
            text = f"the oldest message waits for {oldest / 3600:.1f} h"
            action = f"`quillon console find --older {given.queue_age}` lists them, `message why ID` says why."
            yield Alert("queue age", oldest > given.queue_age, text, action)
        if given.free_space:
            text = f"{free >> 20} MiB are left on the spool's disk"
            yield Alert("disk", free < given.free_space, text, "Make room: with too little, new mail is refused.")
        text = f"no new mail is taken: {refuses}"
        yield Alert("reception", bool(refuses), text, "`quillon console spool show` says of which worker.")
        for file, end in ends.items() if given.certificate_days else ():
            days = (end - now) / DAY
            text = f"{file} ends in {days:.0f} days" if days > 0 else f"{file} has ended"
            action = "Put a new certificate in its place; it is used within seconds."
            yield Alert(f"certificate {file}", days < given.certificate_days, text, action)

    async def tell(self, alert: Alert, now: float) -> None:
        """Send one, by mail and to the webhook, as the configuration says."""
        given = self.settings
        jobs = [self._mail(alert, now)] if given.mail_to else []
        jobs += [self._call(alert, given.webhook)] if given.webhook else []
        for problem in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(problem, Exception):
                self._report(f"alert: could not be sent: {problem}: {alert.text}")

    async def _mail(self, alert: Alert, now: float) -> None:
        given = self.settings
        sender = given.mail_from or Mailbox("mailer-daemon", self._hostname)
        message = EmailMessage(policy=SMTP)
        message["From"] = f"Quillon on {self._hostname} <{sender}>"
        message["To"] = ", ".join(map(str, given.mail_to))
        message["Subject"] = f"[{'alert' if alert.on else 'over'}] {self._hostname}: {alert.text}"[:200]
        message["Date"] = formatdate(now, localtime=True)
        message["Message-ID"] = make_msgid(domain=self._hostname)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(f"{alert.text}\n\n{alert.action}\n" if alert.action else f"{alert.text}\n")
        # the null reverse-path: nobody is told that an alert could not be delivered
        await self._inject(Mailbox("", ""), list(given.mail_to), message.as_bytes())

    async def _call(self, alert: Alert, url: str) -> None:
        told = {"host": self._hostname, **alert._asdict(), "state": "alert" if alert.on else "over"}
        async with httpx.AsyncClient(timeout=WEBHOOK_SECONDS, trust_env=False) as client:
            answer = await client.post(url, content=json.dumps(told), headers={"Content-Type": "application/json"})
            answer.raise_for_status()
