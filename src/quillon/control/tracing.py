"""Traces of sessions as the console shows them. Pure."""

from __future__ import annotations

import time
from typing import Any

Row = dict[str, Any]
Rows = list[Any]


def merge_registered(rows: Rows) -> Row:
    return dict(rows[0]) if rows else {"error": "no worker traces anything"}


def text_registered(found: Row) -> str:
    """As the manual has it."""
    return f"Registered smtp tracer #{found['number']}\n"


def merge_tracers(rows: Rows) -> list[Row]:
    """A row for each trace, with what all workers have of it."""
    merged: dict[int, Row] = {}
    for row in rows:
        known = merged.setdefault(row["number"], {**row, "sessions": 0, "lines": 0, "workers": 0})
        known["sessions"] += row["sessions"]
        known["lines"] += row["lines"]
        known["workers"] += 1
    return [merged[number] for number in sorted(merged)]


def text_tracers(found: list[Row]) -> str:
    out = []
    for row in found:
        end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["until"]))
        told = f"{row['sessions']} sessions, {row['lines']} lines, in {row['workers']} workers, until {end}"
        out.append(f"[{row['number']:>6}]  {row['wanted'] or 'all sessions'}: {told}\n")
    return "".join(out) or "nothing is traced\n"


def merge_lines(rows: Rows) -> Row:
    """Lines of all workers by time, those that were lost, and what to give as AFTER to have those that follow."""
    heads = [row for row in rows if isinstance(row, dict)]
    if not heads:
        return {"error": "there is no such trace, or it has ended"}
    lines = [row for row in rows if isinstance(row, list)]
    last = {row["worker"]: 0 for row in heads}
    for worker, number, *_ in lines:
        last[worker] = max(last[worker], number)
    lines.sort(key=lambda row: row[2])
    shown = [
        {"worker": worker, "time": when, "session": session, "way": way, "peer": peer, "text": text}
        for worker, _, when, session, way, peer, text in lines
    ]
    return {"lines": shown, "lost": sum(row["lost"] for row in heads), "last": last}


def text_lines(found: Row) -> str:
    out = [f"{found['lost']} lines are not kept any more\n"] if found["lost"] else []
    return "".join([*out, *map(text_line, found["lines"])]) or "no session has been traced yet\n"


def text_line(row: Row) -> str:
    """A line of a trace: time, worker and session, direction and peer, what was said."""
    clock = time.strftime("%H:%M:%S", time.localtime(row["time"])) + f"{row['time'] % 1:.3f}"[1:]
    return f"{clock} {row['worker']}/{row['session']} {row['way']} {row['peer']} {row['text']}\n"


def merge_removed(rows: Rows) -> Row:
    return dict(rows[0]) if rows else {"error": "there is no such trace, or it has ended"}


def text_removed(found: Row) -> str:
    """As the manual has it."""
    return f"Removed smtp tracer #{found['number']}\n"
