"""The configuration in force as the console shows it. Pure."""

from __future__ import annotations

from typing import Any

from quillon.control.rendering import text_explained

Row = dict[str, Any]
Rows = list[Any]


def of_one(rows: Rows) -> Rows:
    """The rows of one worker, for all have the same configuration; each row begins with the number of its worker."""
    first = min((row[0] for row in rows), default=0)
    return [row[1] for row in rows if row[0] == first]


def merge_got(rows: Rows) -> Row:
    """An option as `provenance.row` has it, or the words on its absence."""
    found: Rows = of_one(rows)
    return found[0] if found else {"error": "no worker has an answer"}


def text_got(found: Row) -> str:
    return f"{found['option']} = {found['written']}    {found['set_at']}\n"


def text_evaluated(found: Row) -> str:
    return text_explained({"goes_to": "", "options": [found]})


def merge_lines(rows: Rows) -> Row:
    return {"lines": of_one(rows)}


def text_lines(found: Row) -> str:
    return "".join(f"{line}\n" for line in found["lines"]) or "nothing is written there\n"


def merge_changes(rows: Rows) -> Row:
    """The changes, and the numbers of workers that have others."""
    all_of: dict[int, Rows] = {}
    for worker, row in rows:
        all_of.setdefault(worker, []).extend([row] if row else [])
    most: Rows = max(all_of.values(), key=len, default=[])
    return {"changes": most, "workers_without": sorted(worker for worker, had in all_of.items() if had != most)}


def text_changes(found: Row) -> str:
    lines = [f"config {row['do']} {row['words']}    {row['origin']}\n" for row in found["changes"]]
    lines += [f"worker {number} does not have all of them: reload\n" for number in found["workers_without"]]
    return "".join(lines) or "the console has changed nothing since the last reload\n"
