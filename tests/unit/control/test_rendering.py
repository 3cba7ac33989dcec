"""What the rows of several workers become, as values and as text."""

from __future__ import annotations

import time
from typing import Any

from quillon.control import rendering
from quillon.control.commands import COMMANDS


def test_every_command_of_the_workers_survives_an_answer_of_no_rows() -> None:
    for command in COMMANDS:
        if command.by.name == "WORKERS" and command.merge is not rendering.merge_said:
            merged = command.merge([])
            if not (isinstance(merged, dict) and "error" in merged):
                assert isinstance(command.render(merged), str), command.name


def test_an_order_is_added_up_and_asks_for_a_word() -> None:
    rows = [{"count": 2, "done": False, "what": "failed"}, {"count": 3, "done": False, "what": "failed"}]
    merged = rendering.merge_order(rows)
    assert merged["count"] == 5
    assert merged["error"] == "5 messages would be failed; with --yes it is done"
    done = rendering.merge_order([{**row, "done": True, "domain": "all"} for row in rows])
    assert "error" not in done
    assert rendering.text_purged(done) == "All domains purged, 5 messages failed.\n"


def test_an_order_about_one_message_is_done_by_the_worker_that_has_it() -> None:
    nothing = {"count": 0, "done": True, "what": "failed"}
    assert "error" not in rendering.merge_one([nothing, {**nothing, "count": 1}])
    assert rendering.merge_one([nothing, nothing])["error"] == "no message of this id waits here"
    assert "is being delivered" in rendering.merge_one([nothing, {**nothing, "busy": True}])["error"]


def test_what_is_listed_is_cut_after_it_is_sorted() -> None:
    def rows(*created: int) -> list[Any]:
        return [*({"created": when} for when in created), {"total": len(created), "window": [2, 1]}]

    merged = rendering.merge_listed([*rows(1, 4, 5), *rows(2, 3)])
    assert [row["created"] for row in merged["items"]] == [2, 3]
    assert merged["total"] == 5
    assert rendering._rest(merged) == ["2 more are not listed"]


def test_a_suspension_is_one_whatever_the_number_of_workers() -> None:
    row = {"domain": "x.test", "binding": "b1", "reason": "", "by": "root", "since": time.time(), "until": None}
    merged = rendering.merge_suspensions([{**row, "count": 2, "done": True}, {**row, "count": 1, "done": True}])
    assert [one["count"] for one in merged] == [3]
    text = rendering.text_suspend(merged)
    assert text.startswith("domain x.test of binding b1 is suspended until it is resumed, by root since ")
    assert text.endswith("3 messages wait under what is suspended.\n")


def test_domains_are_added_up_and_have_to_be_over_a_number() -> None:
    total = {"active": 5, "delayed": 1, "over": 3, "which": "active", "sent": 7}
    one = [{"domain": "x.test", "active": 2, "delayed": 0, "connections": 1}, total]
    two = [{"domain": "x.test", "active": 2, "delayed": 1, "connections": 1}, {**total, "active": 4}]
    merged = rendering.merge_larger([*one, *two])
    assert merged["domains"] == [{"domain": "x.test", "active": 4, "delayed": 1, "connections": 2}]
    assert rendering.text_larger(merged).splitlines()[-1].split() == ["Total:", "A:", "9", "D:", "2", "S:", "14"]


def test_times_to_go_read_as_people_say_them() -> None:
    spans = [rendering.span(seconds) for seconds in (-1, 90, 8000, 200000, 253402300799 - time.time())]
    assert spans == ["0 s", "90 s", "2.2 h", "2.3 days", "as long as nobody ends it"]
