"""Words of a configuration to Python values. Pure; every function raises ValueError with words for the operator."""

from __future__ import annotations

import base64
import ipaddress
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quillon.config.routes import named_host, parse_route
from quillon.config.syntax import DictValue, ListValue, Value, Word
from quillon.mail.address import is_domain, parse_domain, parse_mailbox

PROTOCOLS = ("TLSv1.0", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_GONE_PROTOCOLS = ("sslv2", "sslv3")
_BOOLEANS = {
    **dict.fromkeys(("on", "true", "enabled", "1", "yes"), True),
    **dict.fromkeys(("off", "false", "disabled", "0", "no"), False),
}


@dataclass(frozen=True, slots=True)
class Throttle:
    """`count` events in `seconds` seconds; count 0 is no limit."""

    count: int
    seconds: int


def path(text: str, folder: str) -> str:
    if text.startswith(("jlog:", "cluster:")):
        raise ValueError(f"{text!r}: this version writes logs to plain files only")
    if text in ("", "system") or text.startswith("/"):
        return text
    return f"{folder.rstrip('/')}/{text}"


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is no boolean: write true or false") from None


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,15}", text):
        raise ValueError(f"{text!r} is no whole number (units are not written)")
    return int(text)


def _seconds(text: str) -> int:
    number = _integer(text)
    if number < 0:
        raise ValueError(f"{text!r}: seconds cannot be negative")
    return number


def _limit(text: str) -> int:
    number = _integer(text)
    if number < -1:
        raise ValueError(f"{text!r} is no limit: write a number, or -1 for none")
    return number


def _count(text: str) -> int:
    number = _integer(text)
    if number < 0:
        raise ValueError(f"{text!r} cannot be negative")
    return number


def _port(text: str) -> int:
    number = _integer(text)
    if not 0 < number < 65536:
        raise ValueError(f"{text!r} is no port")
    return number


def _retries(text: str) -> str:
    if text.lower() not in ("auto", "none") and not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{text!r}: write auto, none or a number")
    return text.lower()


def _line_length(text: str) -> str:
    if text.lower() not in ("ignore", "pedantic", "fix") and not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"{text!r}: write ignore, pedantic or a number of octets")
    if text.isdigit() and int(text) > 65535:
        raise ValueError(f"{text!r}: write 65535 at most, or ignore")
    return text.lower()


def _source(text: str) -> str:
    if text == "*":
        return text
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError(f"{text!r} is no IP address of this host, nor *") from None


def _ehlo_name(text: str) -> str:
    if text in ("__hostname__", "__message__"):
        return text
    return _domain(text)


def _banner(text: str) -> str:
    if not re.match(r"220[ -]", text) or not text.isascii():
        raise ValueError(f"{text!r}: a banner begins with 220 and a space")
    return text


def _routes(value: Value) -> tuple[str, ...]:
    items = _list(value)
    for number, item in enumerate(items):
        parse_route(item, number, "domain.example")
    return items


def _mode(text: str) -> int:
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise ValueError(f"{text!r} is no octal file mode such as 0640")
    return int(text, 8)


def _throttle(text: str) -> Throttle:
    match = re.fullmatch(r"([0-9]{1,9})(?:/([1-9][0-9]{0,6}))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no throttle: write N for N per second, or N/S for N per S seconds")
    return Throttle(int(match[1]), int(match[2] or 1))


def compile_pattern(text: str) -> re.Pattern[str]:
    """A regular expression. Raises ValueError, also for what PCRE reads and Python would read otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compiled = re.compile(text, re.IGNORECASE)
            if _explodes(re._parser.parse(text)):  # type: ignore[attr-defined]
                raise ValueError(
                    f"{text!r} may take time without end: a repetition stands in a repetition, such as (a+)+; write a+"
                )
            return compiled
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from None
        except Warning:
            raise ValueError(f"{text!r}: POSIX classes such as [:alnum:] are not read; write a-z0-9") from None


def _explodes(parsed: Any, repeated: bool = False) -> bool:
    """Whether a pattern repeats without end what is itself nothing but something repeated without end, or one of
    several alternatives that begin alike: the time then doubles with each character."""
    items = list(parsed)
    for operator, argument in items:
        name = str(operator)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            endless = argument[1] > 1000
            alone = all(str(op) in ("MAX_REPEAT", "MIN_REPEAT", "AT") for op, _ in items)
            anything = str(list(argument[2])[:1]) == "[(ANY, None)]"
            if (endless and repeated and (alone or anything)) or _explodes(argument[2], repeated=endless):
                return True
        elif name == "SUBPATTERN":
            if _explodes(argument[-1], repeated=repeated and len(items) == 1):
                return True
        elif name == "BRANCH":
            firsts = [str(list(branch)[:1]) for branch in argument[1]]
            if repeated and len(set(firsts)) < len(firsts):
                return True
            if any(_explodes(branch, repeated=repeated and len(items) == 1) for branch in argument[1]):
                return True
    return False


def _domain(text: str) -> str:
    if not is_domain(text):
        raise ValueError(f"{text!r} is no domain name")
    return parse_domain(text)


def _gateway(text: str) -> tuple[str, int]:
    return named_host(text)


def _protocols(text: str) -> frozenset[str]:
    """`+ALL:-TLSv1.2` and its looser spellings. ALL is TLS 1.2 and 1.3: what is unsafe has to be named."""
    names = {p.lower(): p for p in PROTOCOLS} | {"tlsv1": "TLSv1.0"}
    parts = [part for part in text.replace(" ", "").split(":") if part]
    if not parts:
        raise ValueError("no protocol is named")
    result = {"TLSv1.2", "TLSv1.3"} if parts[0].startswith("-") else set()
    for part in parts:
        sign, name = (part[0], part[1:]) if part[0] in "+-" else ("+", part)
        if name.lower() in _GONE_PROTOCOLS:
            continue  # no library of today speaks them: nothing to take away, nothing to add
        if name.lower() == "all":
            chosen = {"TLSv1.2", "TLSv1.3"} if sign == "+" else set(PROTOCOLS)
        elif name.lower() in names:
            chosen = {names[name.lower()]}
        else:
            raise ValueError(f"{name!r} is no protocol: write ALL, {', '.join(PROTOCOLS)}")
        result = result | chosen if sign == "+" else result - chosen
    if not result:
        raise ValueError(f"{text!r} leaves no protocol")
    return frozenset(result)


def words(value: Value) -> tuple[Word, ...]:
    """The words of a list, or the one word written in its place. Raises ValueError for a dictionary."""
    if isinstance(value, DictValue):
        raise ValueError("a list is expected, not a dictionary")
    return (value,) if isinstance(value, Word) else value.items


def _list(value: Value) -> tuple[str, ...]:
    return tuple(word.text for word in words(value))


def _cidr_list(value: Value) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(network(word.text) for word in words(value))


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address or CIDR block. Raises ValueError, also for host bits behind the mask."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no IP address or CIDR block: {error}") from None


def _domain_list(value: Value) -> tuple[str, ...]:
    names = []
    for name in _list(value):
        bare = name.lstrip("*").lstrip(".")
        if bare and not is_domain(bare):
            raise ValueError(f"{name!r} is no domain name and no *suffix")
        names.append(name.lower())
    return tuple(names)


_EXTENSIONS = {
    "STARTTLS": "STARTTLS",
    "ENHANCEDSTATUSCODES": "ENHANCEDSTATUSCODES",
    "ENHANCEDSTATUSCODE": "ENHANCEDSTATUSCODES",
    "PIPELINING": "PIPELINING",
    "8BITMIME": "8BITMIME",
    "SIZE": "SIZE",
    "HELP": "HELP",
    "REQUIRETLS": "REQUIRETLS",
}
TRUSTED_EXTENSIONS = ("XCLIENT", "XREMOTEIP", "XSETCONTEXT", "XDUMPCONTEXT")
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-256")


def _extensions(value: Value) -> tuple[str, ...]:
    """Keywords in upper case; `AUTH` with its mechanisms as one word."""
    names = []
    for name in _list(value):
        keyword, *rest = name.upper().split() or [""]
        if keyword in TRUSTED_EXTENSIONS and not rest:
            names.append(keyword)
        elif keyword == "AUTH":
            unknown = [word for word in rest if word not in MECHANISMS]
            if unknown or not rest:
                raise ValueError(f"{name!r}: AUTH takes mechanisms, {', '.join(MECHANISMS)}")
            names.append(" ".join(["AUTH", *rest]))
        elif keyword in _EXTENSIONS:
            names.append(_EXTENSIONS[keyword])
        else:
            raise ValueError(f"{name!r} is no SMTP extension of this server")
    return tuple(names)


def _mechanisms(value: Value) -> tuple[str, ...]:
    """SASL mechanisms that send the password as it is."""
    found = tuple(name.upper() for name in _list(value))
    for name in found:
        if name not in ("PLAIN", "LOGIN"):
            raise ValueError(f"{name!r}: only PLAIN and LOGIN need to be allowed in clear text")
    return found


def _patterns(value: Value) -> tuple[re.Pattern[str], ...]:
    return tuple(compile_pattern(text) for text in _list(value))


def _dictionary(value: Value) -> dict[str, str]:
    if isinstance(value, DictValue):
        return {key.text: word.text for key, word in value.items}
    if isinstance(value, ListValue):
        raise ValueError("a dictionary is expected: [ key = value ]")
    match = re.fullmatch(r"\s*\(?\s*([^=\s]+)\s*=\s*(.*?)\s*\)?\s*", value.text)
    if match is None:
        raise ValueError("a dictionary is expected: [ key = value ]")
    return {match[1]: match[2]}


def _pins(value: Value) -> tuple[str, ...]:
    """SHA-256 of public keys in hexadecimal digits, out of those or of Base64."""
    found = []
    for word in words(value):
        text = word.text.removeprefix("sha256/").replace(":", "")
        try:
            octets = bytes.fromhex(text) if len(text) == 64 else base64.b64decode(text, validate=True)
        except ValueError:
            octets = b""
        if len(octets) != 32:
            raise ValueError(f"{word.text!r} is no SHA-256 of a public key: write 64 hexadecimal digits, or Base64")
        found.append(octets.hex())
    return tuple(found)


SCALARS: dict[str, Callable[[str], Any]] = {
    "boolean": _boolean,
    "integer": _count,
    "limit": _limit,
    "port": _port,
    "retries": _retries,
    "line_length": _line_length,
    "source_address": _source,
    "ehlo_name": _ehlo_name,
    "banner": _banner,
    "seconds": _seconds,
    "mode": _mode,
    "string": str,
    "throttle": _throttle,
    "regex": compile_pattern,
    "domain": _domain,
    "gateway": _gateway,
    "address": parse_mailbox,
    "protocols": _protocols,
}
CONTAINERS: dict[str, Callable[[Value], Any]] = {
    "list": _list,
    "routes": _routes,
    "cidr_list": _cidr_list,
    "domain_list": _domain_list,
    "domain_filter": _domain_list,
    "dictionary": _dictionary,
    "extensions": _extensions,
    "mechanisms": _mechanisms,
    "patterns": _patterns,
    "pins": _pins,
}
