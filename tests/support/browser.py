"""A browser without a window, steered over a pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.peers import require
from tests.support.server import until


class Browser:
    """Chromium with one page, which trusts any certificate. `console` are errors that the page has told."""

    def __init__(self, folder: Path) -> None:
        theirs, self._out = os.pipe()
        self._in, said = os.pipe()
        command = [
            require("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            "--ignore-certificate-errors", f"--user-data-dir={folder}/chromium", "about:blank",
        ]  # fmt: skip
        # the protocol is spoken on descriptors 3 and 4
        begin = "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 200); os.dup2(b, 201); os.dup2(200, 3); "
        begin += "os.dup2(201, 4); os.execv(sys.argv[3], sys.argv[3:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", begin, str(theirs), str(said), *command],
            pass_fds=(theirs, said),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(said)
        self._left = b""
        self._number = 0
        self._session = ""
        self.console: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._ask("Browser.close")
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self._left:
                read = os.read(self._in, 1 << 20)
                if not read:
                    raise OSError("the browser has ended")
                self._left += read
            octets, _, self._left = self._left.partition(b"\0")
            heard = json.loads(octets)
            if heard.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(heard["params"]))
            if heard.get("id") == self._number:
                assert "error" not in heard, (method, heard)
                result: dict[str, Any] = heard["result"]
                return result

    def go(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def see(self, expression: str) -> Any:
        """The value of an expression in the page; None while there is none."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value") if "exceptionDetails" not in found else None

    def text(self) -> str:
        return str(self.see("document.body.innerText") or "")

    def shows(self, words: str) -> None:
        """Wait until the page has these words."""
        until(lambda: words in self.text(), f"{words!r} in the page", 30)

    def press(self, label: str) -> None:
        """Click the button of a label, as a user does: at its place, by the mouse."""
        where = self.see(
            f"""(() => {{ const one = [...document.querySelectorAll("button")].find(b => b.innerText.trim() == {label!r});
            one.scrollIntoView({{block: "center"}}); const r = one.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""
        )
        assert where, f"there is no button {label!r} in: {self.text()}"
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)
        time.sleep(0.1)
