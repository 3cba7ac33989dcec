"""Which messages an operator means: a domain, a binding, patterns of sender and recipient, words of the last reply, an
age. Pure.

What is named has to hold all together. Nothing named would be everything, which has to be said: `--all`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from typing import NamedTuple

from quillon.mail.message import Message, MessageId
from quillon.queue.destination import Key

WORDS = "[--id ID] [--domain D] [--binding B] [--sender P] [--recipient P] [--cause TEXT] [--older TIME] [--all]"
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Selection(NamedTuple):
    """`id` is that of one message, or of a reception with all its recipients; `domain` a routing domain or that of the
    recipient; `sender` and `recipient` are patterns with `*` and `?`; `cause` is found in the last reply, `older` are
    seconds since the reception."""

    id: MessageId | None = None
    domain: str = ""
    binding: str = ""
    sender: re.Pattern[str] | None = None
    recipient: re.Pattern[str] | None = None
    cause: str = ""
    older: float = 0.0

    def concerns(self, key: Key) -> bool:
        """Whether messages of a destination may be meant."""
        return not self.binding or key.leaves_from(self.binding)

    def predicate(self, now: float) -> Callable[[Message], bool]:
        """Whether a message is meant, of a destination that `concerns`: no more is asked than is named, for a million
        may be asked about."""
        number, domain, sender, recipient, cause = self.id, self.domain, self.sender, self.recipient, self.cause
        before = now - self.older
        checks: list[Callable[[Message], bool]] = []
        if number is not None:
            checks.append(lambda message: number in (message.id, message.batch.id))
        if domain:
            checks.append(lambda message: domain in (message.recipient.domain, message.destination))
        if cause:
            checks.append(lambda message: cause in message.last_reply.lower())
        if self.older:
            checks.append(lambda message: message.batch.received_at <= before)
        if sender is not None:
            checks.append(lambda message: sender.match(str(message.batch.sender)) is not None)
        if recipient is not None:
            checks.append(lambda message: recipient.match(str(message.recipient)) is not None)
        if not checks:
            return lambda _: True
        return checks[0] if len(checks) == 1 else lambda message: all(check(message) for check in checks)


class Asked(NamedTuple):
    """The words of a command, read: what is meant, other options by name (`True` for one without a value), and the
    words that are none."""

    selection: Selection
    options: dict[str, str | bool]
    rest: list[str]


def read(words: Sequence[str], values: Sequence[str] = (), flags: Sequence[str] = ()) -> Asked:
    """Read a selection, with options of the command's own: `values` are followed by one, `flags` are not. Raises
    ValueError for what cannot be read, and where nothing is selected."""
    known = {"id", "domain", "binding", "sender", "recipient", "cause", "older"}
    found, rest = options(words, [*known, *values], [*flags, "all"])
    selection = _selection({name: str(found.pop(name)) for name in known & found.keys()})
    everything = bool(found.pop("all", False))
    if everything and selection != Selection():
        raise ValueError("--all means everything: leave out the other options, or --all")
    if not everything and selection == Selection():
        raise ValueError(f"say which messages: {WORDS}")
    return Asked(selection, found, rest)


def options(
    words: Sequence[str], values: Sequence[str], flags: Sequence[str]
) -> tuple[dict[str, str | bool], list[str]]:
    """Options by their names, and the words that are none: `values` are followed by one, `flags` are not. Raises
    ValueError for what cannot be read."""
    found: dict[str, str | bool] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name = word.removeprefix("--").lower()
        if not word.startswith("--"):
            rest.append(word)
        elif name in found:
            raise ValueError(f"{word} stands twice")
        elif name in flags:
            found[name] = True
        elif name not in values:
            raise ValueError(f"{word} is no option of this command")
        elif not left or left[0].startswith("--"):
            raise ValueError(f"{word} wants a value")
        else:
            found[name] = left.pop(0)
    return found, rest


def only(words: Sequence[str], usage: str) -> str:
    """The only word that is left. Raises ValueError for more or less."""
    if len(words) != 1:
        raise ValueError(f"write it so: {usage}")
    return words[0]


def nothing_else(words: Sequence[str]) -> None:
    """Raises ValueError for words that are left."""
    if words:
        raise ValueError(f"{' '.join(words)}: not understood; which messages is said with {WORDS}")


def _selection(given: dict[str, str]) -> Selection:
    return Selection(
        id=MessageId.parse(given["id"]) if "id" in given else None,
        domain=given.get("domain", "").lower().rstrip("."),
        binding=given.get("binding", ""),
        sender=_pattern(given.get("sender")),
        recipient=_pattern(given.get("recipient")),
        cause=given.get("cause", "").lower(),
        older=seconds(given["older"]) if "older" in given else 0.0,
    )


def _pattern(text: str | None) -> re.Pattern[str] | None:
    """`<>` is the null sender."""
    if text is None:
        return None
    return re.compile(translate("" if text == "<>" else text), re.IGNORECASE)


def seconds(text: str) -> float:
    """`90`, `30s`, `15m`, `2h` or `3d` in seconds. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text.lower())
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is no time: write 90, 15m, 2h or 3d")
    return float(int(match[1]) * _UNITS[match[2]])
