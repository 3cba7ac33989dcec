"""One command line of a client to a value, by the grammar of RFC 5321 4.1.2. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from quillon.mail import reply as replies
from quillon.mail.address import NULL_PATH, AddressError, Mailbox, parse_mailbox
from quillon.mail.reply import Reply

# RFC 5321 4.1.1.2: "MAIL FROM:" Reverse-path [SP Mail-parameters]
_PATH = re.compile(r"(?:FROM|TO):(?P<blank> *)<(?P<path>(?:\"(?:\\.|[^\"\\])*\"|[^<>\"])*)>(?P<rest>.*)\Z", re.I)
# RFC 5321 4.1.2: esmtp-param = esmtp-keyword ["=" esmtp-value]
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?\Z")
_SIZE = re.compile(r"[0-9]{1,20}\Z")  # RFC 1870 4


@dataclass(frozen=True, slots=True)
class SyntaxFault:
    """The line is wrong; `reply` says so to the client."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class PathRules:
    """What the configuration tolerates in MAIL and RCPT."""

    pedantic: bool
    inner_whitespace: bool
    trailing_whitespace: bool
    auth: bool  # AUTH is offered, and with it the parameter of MAIL (RFC 4954 5)


path_rules = lru_cache(maxsize=16)(PathRules)  # there are no more of them, and each session asks for some


class PathCommand(NamedTuple):
    """MAIL FROM or RCPT TO. `size` is the octets announced (RFC 1870), or None."""

    mailbox: Mailbox
    size: int | None = None
    eight_bit: bool = False
    requiretls: bool = False


def split(line: str) -> tuple[str, str]:
    """Verb in upper case, and argument."""
    verb, _, argument = line.partition(" ")
    return verb.upper(), argument


def parse_path(argument: str, rules: PathRules, *, sender: bool, requiretls: bool = False) -> PathCommand | SyntaxFault:
    """The argument of MAIL (`sender`) or RCPT; `requiretls` tells whether that is offered, and with it the parameter of
    MAIL."""
    wrong = replies.MAIL_SYNTAX if sender else replies.RCPT_SYNTAX
    word = "FROM:" if sender else "TO:"
    if argument[: len(word)].upper() != word:
        return SyntaxFault(wrong)
    if rules.trailing_whitespace:
        argument = argument.rstrip()
    cut = _cut(argument, len(word))
    if cut is None:
        match = _PATH.match(argument)
        if match is None or (match["blank"] and not rules.inner_whitespace):
            return SyntaxFault(wrong)
        cut = match["path"], match["rest"]
    path, rest = cut
    if rules.inner_whitespace:
        path = path.strip()
    try:
        mailbox = parse_mailbox(path, pedantic=rules.pedantic) if path or not sender else NULL_PATH
    except AddressError as error:
        return SyntaxFault(Reply(wrong.code, wrong.enhanced, f"{wrong.text}: {error}"))
    if not rest:
        return PathCommand(mailbox)
    if not rest.startswith(" "):
        return SyntaxFault(wrong)
    return _parameters(mailbox, rest.split(), sender, auth=rules.auth, requiretls=requiretls)


def _cut(argument: str, at: int) -> tuple[str, str] | None:
    """The path that begins at a place, and what follows it; None for one that is not plain to see."""
    end = argument.find(">", at)
    path = argument[at + 1 : max(end, 0)]
    if not argument.startswith("<", at) or end < 0 or '"' in path or "<" in path or "\n" in argument:
        return None
    return path, argument[end + 1 :]


def _parameters(
    mailbox: Mailbox, words: list[str], sender: bool, *, auth: bool, requiretls: bool
) -> PathCommand | SyntaxFault:
    found: dict[str, str] = {}
    for word in words:
        match = _PARAMETER.match(word)
        if match is None or match[1].upper() in found:
            return SyntaxFault(replies.MAIL_SYNTAX if sender else replies.RCPT_SYNTAX)
        found[match[1].upper()] = match[2] or ""
    if not sender:
        return SyntaxFault(replies.UNKNOWN_PARAMETER)
    return _mail_parameters(mailbox, found, auth=auth, requiretls=requiretls)


def _mail_parameters(
    mailbox: Mailbox, found: Mapping[str, str], *, auth: bool, requiretls: bool
) -> PathCommand | SyntaxFault:
    """SIZE (RFC 1870), BODY (RFC 6152), AUTH (RFC 4954 5), REQUIRETLS (RFC 8689 4); any other is one that EHLO did not
    offer."""
    size: int | None = None
    eight_bit = False
    required = False
    for keyword, value in found.items():
        if keyword == "SIZE" and _SIZE.match(value):
            size = int(value)
        elif keyword == "BODY" and value.upper() in ("7BIT", "8BITMIME"):
            eight_bit = value.upper() == "8BITMIME"
        elif keyword in ("SIZE", "BODY"):
            return SyntaxFault(replies.MAIL_SYNTAX)
        elif keyword == "REQUIRETLS" and requiretls:
            if value:
                return SyntaxFault(replies.MAIL_SYNTAX)
            required = True
        elif keyword == "AUTH" and auth and value:
            continue  # whom the client speaks for: nobody is trusted to say so, which RFC 4954 5 treats as AUTH=<>
        else:
            return SyntaxFault(replies.UNKNOWN_PARAMETER)
    return PathCommand(mailbox, size, eight_bit, required)
