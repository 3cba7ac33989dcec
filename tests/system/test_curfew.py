"""Quiet hours: schedules as the manual has them, and what they hold back."""

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.cli.main import main
from quillon.mail.event import Notice
from quillon.mail.outcome import Delivered
from quillon.queue.curfew import Curfew, ScheduleError, parse
from quillon.queue.destination import Key
from tests.support.compiled import pure_only
from tests.support.server import Server, free_port
from tests.unit.delivery.test_attempts import A, Peer, World, simulate

# the manual's example
SCHEDULE = """
# weekdays in the evening
*          gmail.com on * 18-23 * * 1-5
marketing  *         on * *     * * 0,6
production *         on * 2     * * 1
*          off.test  off * *    * * *
first      *         on 0-30/10 * 1 * 3
"""
FRIDAY = datetime.datetime(2026, 11, 27, 18, 30, tzinfo=datetime.UTC)


def _key(binding: str, domain: str, group: str = "default", via: str = "") -> Key:
    return Key(group, binding, domain, via)


@pytest.mark.parametrize(
    ("key", "at", "held"),
    [
        (_key("b", "gmail.com"), FRIDAY, True),
        (_key("b", "GMAIL.com"), FRIDAY.replace(hour=17, minute=59), False),
        (_key("b", "gmail.com"), FRIDAY.replace(day=28), False),
        (_key("b", "gw.test:25", via="gmail.com"), FRIDAY, True),
        (_key("marketing", "y.test"), FRIDAY.replace(day=28), True),
        (_key("marketing", "y.test"), FRIDAY.replace(day=29), True),
        (_key("marketing", "y.test"), FRIDAY, False),
        (_key("b1", "y.test", "production"), FRIDAY.replace(day=30, hour=2, minute=59), True),
        (_key("b1", "y.test", "production"), FRIDAY.replace(day=30, hour=3, minute=0), False),
        (_key("b", "off.test"), FRIDAY, False),
        (_key("first", "y.test"), FRIDAY.replace(day=1, minute=20), True),  # the day of the month
        (_key("first", "y.test"), FRIDAY.replace(day=25, minute=20), True),  # or a Wednesday
        (_key("first", "y.test"), FRIDAY.replace(day=25, minute=21), False),
        (_key("first", "y.test"), FRIDAY.replace(day=26, minute=20), False),
    ],
)
def test_the_manuals_schedule(key: Key, at: datetime.datetime, held: bool) -> None:
    now = at.timestamp() + 12.5
    assert parse(SCHEDULE).until(key, now) == ((now // 60 + 1) * 60 if held else 0.0)


def test_a_rule_for_the_binding_default_holds_for_it_alone() -> None:
    found = parse("default * on * * * * *")
    assert found.until(_key("default", "y.test"), FRIDAY.timestamp())
    assert not found.until(_key("b1", "y.test"), FRIDAY.timestamp())


@pytest.mark.parametrize(
    "line",
    ["* * on * * * *", "* * maybe * * * * *", "* * on 60 * * * *", "* * on * 5-3 * * *", "* * on */0 * * * *",
     "* * on x * * * *", "* * on * * 0 * *", "* * on * * * 13 *", "* * on * * * * 7", "* * on 5/2 * * * *"],
)  # fmt: skip
def test_a_line_that_cannot_be_read_refuses_the_schedule(line: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse(f"# fine\n* * on * * * * *\n{line}\n")
    assert caught.value.line == 3


@pure_only
def test_mail_waits_until_the_window_closes() -> None:
    async def main_(world: World) -> None:
        at = datetime.datetime.fromtimestamp(world.clock.now(), datetime.UTC)
        hour = (at + datetime.timedelta(minutes=1)).hour
        quiet = parse(f"* quiet.test on * {hour} * * *\n")
        await world.dispatcher.reconfigure(world.config, world.dispatcher.services.contexts, world.hooks, quiet)
        await asyncio.sleep(60)
        world.send("quiet.test")
        world.send("other.test")
        await asyncio.sleep(1800 if at.minute < 28 else 60)
        assert [event.message.destination for event in world.outcomes(Delivered)] == ["other.test"]
        await asyncio.sleep(3700)
        assert len(world.outcomes(Delivered)) == 2

    world = simulate(main_, {A: Peer()}, {"quiet.test": [A], "other.test": [A]})
    said = [event.text for event in world.events if isinstance(event, Notice)]
    assert said == [
        "curfew: rule #0 engaged (binding=* domain=quiet.test)",
        "curfew: rule #0 lifted (binding=* domain=quiet.test)",
    ]


def test_a_faulty_schedule_is_found_with_its_line(
    server: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q/times").write_text("* * on * * * *\n")
    made = server(f'ESMTP_Listener {{ Listen "127.0.0.1:{free_port()}" {{ }} }} curfew {{ Schedule_File = times }}')
    text = made.file.read_text()
    assert main(["check", "-c", str(made.file)]) == 2
    assert "/times:1: 7 fields, where 8 are wanted" in capsys.readouterr().out
    made.file.write_text(text.replace("times", "nowhere"))
    assert main(["check", "-c", str(made.file)]) == 2
    assert "No such file or directory" in capsys.readouterr().out


def test_nothing_is_held_without_a_schedule() -> None:
    assert Curfew().until(_key("b", "y.test"), 0.0) == 0.0
