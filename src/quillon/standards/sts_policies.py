"""The MTA-STS policies of domains: found, kept on disk beside the spool, and fetched again in time (RFC 8461). Shell.

All workers keep them in one folder, a file for each domain. A policy that is kept holds until its max_age, whatever
becomes of the TXT record or of the host that publishes it (RFC 8461 3.3 and 5.1): who can take those away must not be
able to take away what they have said. The id of the record is looked at for each attempt to deliver, so a policy that
has changed is known before mail fails for the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from quillon.mail.shown import NAME, line
from quillon.net.clock import Clock
from quillon.net.resolver import Resolver
from quillon.standards.fetch import FetchError
from quillon.standards.mta_sts import StsPolicy, StsPolicyError, parse_policy, record_id

REFRESH = 86400.0  # seconds until a policy is fetched again, id changed or not
BACKOFF = 300.0  # seconds that a failed fetch is not repeated (RFC 8461 3.3)
_MOST = 100_000  # domains that are kept in memory
_AT_ONCE = 20  # policies that are looked at between two turns of the loop
_MOST_ON_DISK = 100_000  # policies that lie there
_ONLY_HERE = 0  # instead of the time of a file that could not be written
_DOMAIN = re.compile(r"(?=.{1,240}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})+\Z")

Fetch = Callable[[str], Awaitable[bytes]]


class StsFound(NamedTuple):
    """What is known of a domain: a policy, or none. `result` (of RFC 8460 4.3) and `detail` tell what has gone wrong on
    the way, though there may be a policy all the same. `ttl` is that of the TXT record, in seconds; `failed` tells that
    it could not be found out whether there is a policy."""

    policy: StsPolicy | None
    result: str = ""
    detail: str = ""
    ttl: int = 60
    failed: bool = False


class _Failed(NamedTuple):
    until: float
    id: str
    result: str
    detail: str


class StsPolicies:
    """`folder` keeps the policies. `fetch` gives what a domain publishes, and raises FetchError; `report` takes lines
    for the paniclog; with more than `aliases` CNAME records in a row before the TXT record there is no policy. `spread`
    is a factor about 1 by which workers refresh at different times. Without `writes` nothing on disk is touched, as
    becomes a command that only looks."""

    def __init__(
        self,
        resolver: Resolver,
        fetch: Fetch,
        folder: Path,
        clock: Clock,
        report: Callable[[str], None],
        *,
        aliases: int = 5,
        spread: float = 1.0,
        writes: bool = True,
    ) -> None:
        self._writes = writes
        self._resolver = resolver
        self._fetch = fetch
        self._folder = folder
        self._clock = clock
        self._report = report
        self._aliases = aliases
        self._known: dict[str, tuple[int, StsPolicy]] = {}
        self._failed: dict[str, _Failed] = {}
        self._running: dict[str, asyncio.Task[StsFound]] = {}
        self._spread = spread
        self._there = _MOST_ON_DISK  # policies on disk at most: they are counted before the first is written
        self._told_full = False

    async def find(self, domain: str) -> StsFound:
        """The policy that rules mail to a domain now."""
        name = domain.lower().removesuffix(".")
        if not _DOMAIN.match(name):
            return StsFound(None)
        kept = self.kept(name)
        answer = await self._resolver.lookup(f"_mta-sts.{name}", "TXT")
        try:
            found = record_id(text for _, text in answer.records) if answer.aliases <= self._aliases else ""
        except StsPolicyError as error:
            return StsFound(kept, "sts-policy-invalid", str(error), answer.ttl)
        if not found:
            return StsFound(kept, "", "", answer.ttl, answer.status == "failed")
        if kept is not None and kept.id == found:
            if self._is_stale(kept):
                self._start(name, found)
            return StsFound(kept, "", "", answer.ttl)
        fetched = await asyncio.shield(self._start(name, found))
        return fetched._replace(ttl=answer.ttl)

    async def refresh(self, domain: str) -> StsFound:
        """Fetch a policy now, whatever is kept."""
        name = domain.lower().removesuffix(".")
        if not _DOMAIN.match(name):
            return StsFound(None, "sts-policy-fetch-error", "no domain has this name")
        self._failed.pop(name, None)
        self._resolver.forget(f"_mta-sts.{name}")
        answer = await self._resolver.lookup(f"_mta-sts.{name}", "TXT")
        try:
            found = record_id(text for _, text in answer.records)
        except StsPolicyError as error:
            return StsFound(self.kept(name), "sts-policy-invalid", str(error))
        if not found:
            return StsFound(self.kept(name), "sts-policy-fetch-error", f"there is no TXT record _mta-sts.{name}")
        return await asyncio.shield(self._start(name, found))

    async def refresh_all(self) -> int:
        """Fetch again what is kept and due, used or not, for a policy that lapses is a protection lost (RFC 8461 10.2);
        gives how many. Those that have expired are taken off the disk."""
        due = 0
        for number, name in enumerate(await asyncio.to_thread(self.domains)):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            policy = self.kept(name)
            if policy is None:
                self._expire(name)
            elif self._is_stale(policy):
                due += 1
                try:
                    await self.find(name)
                    if name in self._running:
                        await asyncio.shield(self._running[name])
                except Exception as defect:  # of one domain, which must not keep the others from being refreshed
                    self._report(f"mta_sts: {name}: unexpected {defect!r}")
        return due

    def _expire(self, domain: str) -> None:
        """Take a policy off the disk whose time is over."""
        with contextlib.suppress(OSError):
            policy = self._load(domain)
            if policy is not None and policy.expires <= self._clock.now():
                self._forget(domain)

    def domains(self) -> list[str]:
        """Domains of which something is on disk."""
        try:
            return sorted(entry.name.removesuffix(".json") for entry in os.scandir(self._folder) if _is_ours(entry))
        except FileNotFoundError:
            return []

    def kept(self, domain: str) -> StsPolicy | None:
        """The policy that is kept of a domain, if it has not expired."""
        try:
            stamp = os.stat(self._file(domain)).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            stamp = _ONLY_HERE
        except OSError:
            stamp = -1  # it may well be there
        known = self._known.get(domain)
        if known is None or known[0] != stamp:
            try:
                policy = self._load(domain) if stamp != _ONLY_HERE else None
            except OSError as error:
                # no descriptor, a disk that fails: what is in memory holds, and what is on disk stays there
                self._report(f"mta_sts: {self._file(domain)}: {error.strerror}")
                return known[1] if known is not None and known[1].expires > self._clock.now() else None
            if policy is None:
                self._known.pop(domain, None)
                return None
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[domain] = stamp, policy
        return known[1] if known[1].expires > self._clock.now() else None

    def due(self, policy: StsPolicy) -> float:
        """When a policy is fetched again, in seconds since the epoch."""
        return policy.fetched + min(REFRESH, policy.max_age / 2) * self._spread

    def _is_stale(self, policy: StsPolicy) -> bool:
        return self._clock.now() >= self.due(policy)

    # fetching -------------------------------------------------------------------------------------------------

    def _start(self, name: str, policy_id: str) -> asyncio.Task[StsFound]:
        """Fetch a policy, once for all who ask."""
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.ensure_future(self._fetched(name, policy_id))
            task.add_done_callback(lambda _: self._running.pop(name, None))
        return task

    async def _fetched(self, name: str, policy_id: str) -> StsFound:
        failed = self._failed.get(name)
        if failed is not None and failed.until > self._clock.now() and failed.id == policy_id:
            kept = self.kept(name)
            return StsFound(kept, failed.result, failed.detail, failed=kept is None)
        try:
            body = await self._fetch(name)
            policy = parse_policy(body, name, policy_id, self._clock.now())
        except FetchError as error:
            return self._has_failed(name, policy_id, error.result, str(error))
        except StsPolicyError as error:
            return self._has_failed(name, policy_id, "sts-policy-invalid", str(error))
        self._failed.pop(name, None)
        self._keep(policy)
        return StsFound(policy)

    def _has_failed(self, name: str, policy_id: str, result: str, detail: str) -> StsFound:
        words = line(detail, NAME)
        if len(self._failed) >= _MOST:
            self._failed.clear()
        self._failed[name] = _Failed(self._clock.now() + BACKOFF, policy_id, result, words)
        kept = self.kept(name)
        went = "the one that is kept stays in force" if kept is not None else "it has none in force"
        self._report(f"mta_sts: {name}: {result}: {words}; {went}")
        return StsFound(kept, result, words, failed=kept is None)

    # on disk --------------------------------------------------------------------------------------------------

    def _file(self, domain: str) -> Path:
        return self._folder / f"{domain}.json"

    def _load(self, domain: str) -> StsPolicy | None:
        """Raises OSError."""
        try:
            row = json.loads(self._file(domain).read_bytes())
            return StsPolicy(
                str(row["domain"]),
                str(row["id"]),
                str(row["mode"]),
                tuple(map(str, row["mx"])),
                int(row["max_age"]),
                float(row["fetched"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            self._report(f"mta_sts: {self._file(domain)} cannot be read ({error}): it is fetched again")
            self._forget(domain)
            return None

    def _keep(self, policy: StsPolicy) -> None:
        """Write a policy, whole or not at all. What cannot be written is kept in memory."""
        self._known[policy.domain] = _ONLY_HERE, policy
        if not self._writes:
            return
        file = self._file(policy.domain)
        new = file.with_name(f"{file.name}.{os.getpid()}.new")
        try:
            if self._is_full(file):
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(asdict(policy), indent=1))
            os.replace(new, file)
            self._known[policy.domain] = file.stat().st_mtime_ns, policy
            self._there += 1  # or as many: they are counted when it seems to be full
        except OSError as error:
            self._report(f"mta_sts: {file}: {error.strerror or error}: the policy is lost at a restart")

    def _is_full(self, file: Path) -> bool:
        """Whether there is no room for another policy. None that is there gives way: it protects somebody. Raises
        OSError."""
        if self._there < _MOST_ON_DISK or file.exists():
            return False
        self._there = len(self.domains())
        full = self._there >= _MOST_ON_DISK
        if full and not self._told_full:
            self._report(f"mta_sts: {self._folder} holds {self._there} policies: further ones are lost at a restart")
        self._told_full = full
        return full

    def _forget(self, domain: str) -> None:
        self._known.pop(domain, None)
        if not self._writes:
            return
        try:
            os.unlink(self._file(domain))
        except OSError:
            return


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".json") and bool(_DOMAIN.match(entry.name.removesuffix(".json")))
