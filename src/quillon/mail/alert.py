"""What an operator is told of his own accord: that something is wrong, and that it is over."""

from __future__ import annotations

from typing import NamedTuple


class Alert(NamedTuple):
    """`key` names the condition; `on` tells whether it holds or is over. `text` is what is wrong, in one line, `action`
    what to do."""

    key: str
    on: bool
    text: str
    action: str = ""
