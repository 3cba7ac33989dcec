"""The console against a supervisor that is played, and the supervisor's side against a process that does not read."""

import asyncio
import selectors
import socket
from pathlib import Path
from typing import Any

import pytest

from quillon.app.control import MOST, Control
from quillon.control import console as console_module
from quillon.control.console import Console
from quillon.net.channel import Channel


async def _asked(console: Console, path: Path, line: str) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line.encode() + b"\n")
    said = (await reader.read()).decode()
    writer.close()
    return said


def _play(tmp_path: Path, lines: list[str], answers: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is answered to lines, all at once, by a supervisor that does with each question what `answers` does."""
    monkeypatch.setattr(console_module, "PATIENCE", 0.3)
    monkeypatch.setattr(console_module, "ORDER_PATIENCE", 0.3)
    path = tmp_path / "console"

    async def run() -> list[str]:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        console = Console(lambda message: answers(console, message), 4711)
        await console.listen({"c": listening}, {"c"}, {})
        found = await asyncio.gather(*(_asked(console, path, line) for line in lines))
        await console.listen({}, set(), {})
        return list(found)

    return asyncio.run(run())


def test_answers_of_workers_are_added_up_and_late_ones_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(console: Console, message: dict[str, Any]) -> None:
        number = message["id"]
        console.told({"do": "asked", "id": number, "pids": [1, 2, 3]})
        console.told({"do": "part", "id": number, "pid": 1, "rows": [{"said": "a"}], "last": False})
        console.told({"do": "part", "id": number, "pid": 1, "rows": [{"said": "b"}], "last": True})
        console.told({"do": "gone", "pid": 2})
        console.told({"do": "part", "id": number + 1000, "pid": 3, "rows": [{"said": "of nobody"}], "last": True})

    (said,) = _play(tmp_path, ["refresh domain x.test"], answers, monkeypatch)
    assert said == "a\nb\n1 workers did not answer\n"


def test_questions_do_not_get_each_others_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []

    def answers(console: Console, message: dict[str, Any]) -> None:
        waiting.append(message["id"])
        console.told({"do": "asked", "id": message["id"], "pids": [1]})
        if len(waiting) == 3:
            for number in reversed(waiting):
                console.told(
                    {"do": "part", "id": number, "pid": 1, "rows": [{"said": f"answer {number}"}], "last": True}
                )

    said = _play(tmp_path, ["refresh domain x.test"] * 3, answers, monkeypatch)
    assert sorted(said) == ["answer 1\n", "answer 2\n", "answer 3\n"]


def test_what_goes_wrong_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(console: Console, message: dict[str, Any]) -> None:
        console.told({"do": "asked", "id": message["id"], "pids": []})

    assert _play(tmp_path, ["mailq"], nobody, monkeypatch) == ["error: no worker is running\n"]
    (tmp_path / "console").unlink()

    def nonsense(console: Console, message: dict[str, Any]) -> None:
        console.told({"do": "asked", "id": message["id"], "pids": [1]})
        console.told({"do": "part", "id": message["id"], "pid": 1, "rows": [None], "last": True})

    (said,) = _play(tmp_path, ["domain x.test"], nonsense, monkeypatch)
    assert said.startswith("error: unexpected TypeError")


def test_what_a_process_does_not_read_is_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, _: ended.append(pid))
    with selectors.DefaultSelector() as selector:
        control = Control(selector, lambda _: None, lambda _: None, lambda _: None)
        control._channel, theirs = Channel.pair()
        control.pid = 4711
        selector.register(control._channel, selectors.EVENT_READ, control._receive)
        huge = {"do": "said", "id": 0, "text": "x" * 100_000}
        control.tell(huge)  # type: ignore[arg-type]
        for number in range(1, 800):
            control.tell({"do": "said", "id": number, "text": "x" * 1000})
        assert not ended
        found: list[dict[str, Any]] = []
        while len(found) < 800:
            got = theirs.receive()
            assert got is not None
            found.append(got[0])
            for key, _ in selector.select(0):
                key.data(key.fileobj)
        assert [message["id"] for message in found] == list(range(800)), "in order, the one that was too long cut off"
        assert found[0]["text"].endswith(" ...")
        for number in range(MOST + 2000):
            control.tell({"do": "said", "id": number, "text": ""})
        assert ended[:1] == [4711]
        control._channel.close()
        theirs.close()
