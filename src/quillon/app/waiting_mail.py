"""What a configuration would make of the mail that waits: which of it would be held for a demand that is lost, or go
with less than was demanded.

Reads the spool beside a server that runs, and changes nothing in it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from quillon.config.model import Config
from quillon.delivery import override
from quillon.mail.address import NULL_PATH
from quillon.mail.message import NULL_ID, Batch, Origin
from quillon.spool.inspect import Spool, SpoolRow, rows
from quillon.spool.record import RecordError, decode_message

MOST = 100_000  # messages of one worker that are looked at


def changed_demands(config: Config) -> list[str]:
    """A line for each demand that is lost or weaker, with the number of messages concerned.

    Modules are not loaded: where any stands in the configuration, it is taken for one that rules the TLS of messages.
    """
    batch = Batch(NULL_ID, NULL_PATH, Origin("", "", NULL_ID), 0.0, 0, None)
    by_policy = any(list(config.root.of(kind)) for kind in ("policy", "scriptlet"))
    found: Counter[str] = Counter()
    for folder in Spool(Path(config.node().spoolbase)).folders():
        for row in _rows(folder):
            try:
                message = decode_message(row.number, row.record, batch)
            except RecordError:
                continue  # the server sets it aside, and names it
            message.via = override.via_of(message, config)
            now = override.demand_of(message, config)
            held = override.lost(message, config, now, by_policy=by_policy)
            if held is not None:
                found[f"wait: {held.words}"] += 1
            elif not (by_policy and message.demand and "policy" in message.demand.scopes):
                words = override.eased(message, now)
                if words:
                    found[f"go with less: {words}"] += 1
    return [f"{count} messages of the spool would {words}" for words, count in found.items()]


def _rows(folder: Path) -> Iterator[SpoolRow]:
    try:
        yield from islice(rows(folder), MOST)
    except (OSError, sqlite3.Error):
        return  # the server says what is wrong with it
