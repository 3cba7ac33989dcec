"""The console's commands, one row each: what it is called, what it is for, who answers it, and how the answer reads.

What all workers answer is put together here. Rows are JSON. What is no command of this table may be one that a script
has registered (`control`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

from quillon.log.metrics import render

ERROR = "error: "  # how an answer begins that is none
MAILQ = 20  # destinations that mailq lists unless it is told otherwise

Render = Callable[[list[Any]], str]


class By(Enum):
    """Who answers a command."""

    CONSOLE = "the console itself"
    SUPERVISOR = "the supervisor"
    WORKERS = "all workers"


class Command(NamedTuple):
    """`words` are the arguments as help shows them. `render` makes the text out of the rows of all workers."""

    name: str
    words: str
    help: str
    render: Render | None = None
    by: By = By.WORKERS


def _metrics(rows: list[Any]) -> str:
    counts: Counter[str] = Counter()
    for series, count in rows:
        counts[series] += count
    return render(counts)


def _lines(rows: list[Any]) -> str:
    return "".join(f"{row}\n" for row in sorted(map(str, rows)))


def said(rows: list[dict[str, Any]]) -> str:
    """What workers said, each text once; errors of all of them where none has done anything."""
    good = list(dict.fromkeys(row["said"] for row in rows if "said" in row))
    if good:
        return "".join(text.rstrip("\n") + "\n" for text in good if text)
    return "".join(f"{ERROR}{text}\n" for text in dict.fromkeys(row["error"] for row in rows))


def cache_text(rows: list[dict[str, Any]]) -> str:
    """`tls show cache` as the manual prints it, contexts of all workers with equal settings as one."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = repr((row["kind"], sorted(row["settings"].items())))
        found = merged.setdefault(key, {**row, "in_use": 0})
        found["in_use"] += row["in_use"]
        found["age"] = max(found["age"], row["age"])
    out = []
    for number, row in enumerate(merged.values(), 1):
        lines = [("age", f"{int(row['age'])} seconds old"), ("in use by", f"{row['in_use']} sessions")]
        lines += list(row["settings"].items())
        out.append(f"{number:4}) {row['kind']} context")
        out += [f"{label:>18}: {value}" for label, value in lines]
    return "\n".join(out or ["no context is cached"]) + "\n"


def mailq(rows: list[Any]) -> str:
    """The largest queues of all workers, as the manual's mailq has them, and the totals. Rows are the binding with its
    group, the domain, active and delayed messages; one without a domain has a worker's totals, and how many it
    lists."""
    sizes: dict[tuple[str, str], list[int]] = {}
    total, most = [0, 0], MAILQ
    for binding, domain, active, delayed in rows:
        if not domain:
            total = [total[0] + active, total[1] + delayed]
            most = int(binding)
            continue
        found = sizes.setdefault((binding, domain), [0, 0])
        found[0] += active
        found[1] += delayed
    head = f"{'Group/Binding':<28}{'Domain':>30}{'AQ':>8}{'DQ':>8}"
    listed = sorted(sizes.items(), key=lambda item: (-sum(item[1]), item[0]))[:most]
    lines = [f"{binding:<28}{domain:>30}{sums[0]:>8}{sums[1]:>8}" for (binding, domain), sums in listed]
    return "\n".join([head, "-" * len(head), *lines, f"{'Total':<58}{total[0]:>8}{total[1]:>8}"]) + "\n"


def domain_text(rows: list[dict[str, Any]]) -> str:
    """What each worker has for a domain, and why it waits."""
    if not rows:
        return "nothing is queued for this domain\n"
    now = time.time()
    out = []
    for row in rows:
        via = f" (mail for {row['via']})" if row["via"] else ""
        out.append(f"{row['binding']} {row['domain']}{via}, worker {row['worker']}: {row['state']}{_paused(row, now)}")
        next_at = f", the next in {max(row['next_at'] - now, 0):.0f} s" if row["next_at"] else ""
        out.append(f"    messages: {row['active']} may leave, {row['delayed']} wait for their next attempt{next_at}")
        out.append(
            f"    connections: {row['busy']} busy, {row['idle']} idle, {row['connecting']} being opened;"
            f" {row['allowed']} are allowed now"
        )
        for name, (used, most) in row["shared_limits"].items():
            out.append(f"    {name}: {used} of {most} in use")
        out += [f"    demanded: {row['demand']}"] if row["demand"] else []
        out += [f"    last reply: {row['last_reply']}"] if row["last_reply"] else []
    return "\n".join(out) + "\n"


def _paused(row: dict[str, Any], now: float) -> str:
    return f" for {row['paused_until'] - now:.0f} s: {row['why']}" if row["paused_until"] > now else ""


COMMANDS = (
    Command("help", "", "what can be asked", by=By.CONSOLE),
    Command("version", "", "the version of Quillon", by=By.CONSOLE),
    Command("pid", "", "process id of the supervisor", by=By.CONSOLE),
    Command("metrics", "", "counters, in the text format of Prometheus", _metrics),
    Command("mailq", "[N]", "the N largest queues (20), with active and delayed messages", mailq),
    Command("domain", "NAME", "what is queued for a domain, its connections, and why it waits", domain_text),
    Command("reopen logs", "", "open the log files anew, as after a rotation", by=By.SUPERVISOR),
    Command("config reload", "", "read the configuration again, as SIGHUP does", by=By.SUPERVISOR),
    Command("tls show cache", "", "the TLS contexts of all workers", cache_text),
    Command(
        "tls flush cache",
        "",
        "load them anew from their files; sessions that stand go on",
        lambda _: "Cache flush request submitted.\n",
    ),
    Command(
        "tls rekey",
        "",
        "new keys for session tickets; a session made before is not resumed",
        lambda _: "Rekey request submitted.\n",
    ),
    Command("record start", "NAME [bodies]", "write sessions to a file of Record_Folder, for replay", said),
    Command("record stop", "", "write no more", said),
    Command("spool show", "", "room on the spool's disk, and what waits to be written", _lines),
)
CONTROL = Command("control", "", "what scripts have registered with msys.registerControl", said)


def find(words: list[str]) -> tuple[Command, list[str]]:
    """The command that words name, and its arguments; `CONTROL` with all of them for what is none of this table."""
    for command in COMMANDS:
        name = command.name.split()
        if [word.lower() for word in words[: len(name)]] == name and (command.words or len(words) == len(name)):
            return command, words[len(name) :]
    return CONTROL, words


def help_text() -> str:
    """What `help` prints."""
    rows: Iterable[Command] = COMMANDS
    lines = [f"{f'{row.name} {row.words}'.strip():<28}{row.help}" for row in rows]
    return "\n".join([*lines, f"and {CONTROL.help}"]) + "\n"
