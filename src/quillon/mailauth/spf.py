"""SPF (RFC 7208): whether a client may send for a domain. The evaluation as the RFC has it, with its limits."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from quillon.mail import header
from quillon.mailauth.lookup import Lookup, Records

MAX_LOOKUPS = 10  # RFC 7208 4.6.4
MAX_VOID_LOOKUPS = 2
MAX_NAMES = 10  # MX and PTR names that are looked at
MAX_ADDRESSES = 256  # of one name that are looked at

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class SpfResult:
    """`status` is none, neutral, pass, fail, softfail, temperror or permerror (RFC 7208 2.6)."""

    status: str
    domain: str
    reason: str = ""
    explanation: str = ""

    def text(self, sender: str, helo: str) -> str:
        """As in Authentication-Results (RFC 8601 2.7.2)."""
        prop = f"smtp.mailfrom={header.pvalue(sender)}" if sender else f"smtp.helo={header.pvalue(helo)}"
        note = f" ({re.sub(r'[^ -~]|[()]', '?', self.reason)})" if self.reason else ""
        return f"spf={self.status}{note} {prop}"


class _Stop(Exception):
    def __init__(self, status: str, reason: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


_QUALIFIERS = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
_TERM = re.compile(r"([+\-~?]?)([A-Za-z][A-Za-z0-9_.-]*)(?:(=)(.*)|(:.*?)?((?:/[0-9]+)?(?://[0-9]+)?))\Z")
# RFC 7208 7.1: macro-string; a domain-spec ends with a top label that is no number, or with a macro
_MACRO_STRING = re.compile(r"(?:[!-$&-~]|%\{[slodiphcrtvSLODIPHCRTV][0-9]*[rR]?[.\-+,/_=]*\}|%[%_-])*\Z")
_MACRO_END = re.compile(r"%(?:\{[^{}%]*\}|[%_-])\Z")
_TOP_LABEL = re.compile(r"(?![0-9]*\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)\Z")
MAX_RECORD = 4096  # characters
MAX_EXPANDED = 65536  # characters that macros may make of one term
MAX_EXPLANATION = 1024  # characters, of the record as of the text that comes of it
_MACRO = re.compile(r"%(?:\{([slodiphcrtvSLODIPHCRTV])([0-9]{0,3})([rR]?)([.\-+,/_=]*)\}|([%_-])|(.)|\Z)")


@dataclass
class _Check:
    """One evaluation with its counts. `sender` is local@domain."""

    ip: Address
    sender: str
    helo: str
    receiver: str
    lookup: Lookup
    lookups: int = 0
    voids: int = 0
    _names: list[str] | None = None

    async def host(self, domain: str, depth: int = 0, *, included: bool = False) -> SpfResult:
        """check_host (RFC 7208 4). Raises _Stop."""
        terms = await self._record(domain)
        if terms is None:
            return SpfResult("none", domain, "no SPF record")
        mechanisms, redirect, explanation = _sorted(terms)
        for qualifier, name, argument, mask in mechanisms:
            if await self._matches(name, argument, mask, domain, depth):
                status = _QUALIFIERS[qualifier]
                said = ""
                if status == "fail" and explanation and not included:
                    said = await self._explanation(explanation, domain)
                return SpfResult(status, domain, f"matched {name}", said)
        if redirect:
            self._count()
            target = await self._expanded(redirect, domain)
            if depth >= MAX_LOOKUPS:
                raise _Stop("permerror", "too many redirects")
            found = await self.host(target, depth + 1, included=included)
            if found.status == "none":
                raise _Stop("permerror", f"no SPF record at {target}")
            return found
        return SpfResult("neutral", domain, "nothing matched")

    async def _record(self, domain: str) -> list[str] | None:
        """The terms of a domain's record (RFC 7208 4.4 to 4.6). Raises _Stop."""
        if not _possible(domain) or "." not in domain.rstrip("."):
            return None
        found = await self.lookup(domain, "TXT")
        if found.status == "failed":
            raise _Stop("temperror", f"the record of {domain} cannot be looked up")
        records = [text for text in found.records if re.match(r"v=spf1(?: |\Z)", text, re.IGNORECASE)]
        if len(records) > 1:
            raise _Stop("permerror", f"{domain} has more than one SPF record")
        if records and len(records[0]) > MAX_RECORD:
            raise _Stop("permerror", f"the SPF record of {domain} is too long")
        if records and not (records[0].isascii() and records[0].isprintable()):
            raise _Stop("permerror", f"the SPF record of {domain} is not printable ASCII")
        return records[0].split()[1:] if records else None

    def _count(self) -> None:
        self.lookups += 1
        if self.lookups > MAX_LOOKUPS:
            raise _Stop("permerror", f"more than {MAX_LOOKUPS} DNS lookups")

    async def _query(self, name: str, kind: str) -> Records:
        """One question to DNS; a name that cannot exist is not found (RFC 7208 4.3), whoever has made it up."""
        if not _possible(name):
            return Records("nxdomain")
        return await self.lookup(name, kind)

    async def _ask(self, name: str, kind: str, *, void: bool = True) -> Sequence[str]:
        found = await self._query(name, kind)
        if found.status == "failed":
            raise _Stop("temperror", f"{kind} of {name} cannot be looked up")
        if not found.records and void:
            self.voids += 1
            if self.voids > MAX_VOID_LOOKUPS:
                raise _Stop("permerror", f"more than {MAX_VOID_LOOKUPS} lookups without an answer")
        return found.records

    # mechanisms -----------------------------------------------------------------------------------------------

    async def _matches(self, name: str, argument: str, mask: str, domain: str, depth: int) -> bool:
        if name == "all":
            return True
        if name in ("ip4", "ip6"):
            return _in_block(self.ip, argument + mask, 4 if name == "ip4" else 6)
        self._count()
        if name == "ptr":
            return await self._ptr(await self._expanded(argument or domain, domain))
        target = await self._expanded(argument, domain) if argument else domain
        if name == "include":
            return await self._include(target, depth)
        if name == "exists":
            return bool(await self._ask(target, "A"))
        lengths = _masks(mask)
        if name == "a":
            return await self._address(target, lengths)
        hosts = await self._ask(target, "MX")
        if len(hosts) > MAX_NAMES:
            raise _Stop("permerror", f"{target} has more than {MAX_NAMES} MX records")
        for host in hosts:
            if host and await self._address(host, lengths, void=False):
                return True
        return False

    async def _include(self, target: str, depth: int) -> bool:
        if depth >= MAX_LOOKUPS:
            raise _Stop("permerror", "too many includes")
        found = await self.host(target, depth + 1, included=True)
        if found.status == "none":
            raise _Stop("permerror", f"no SPF record at {target}, which is included")
        return found.status == "pass"

    async def _address(self, name: str, lengths: tuple[int, int], *, void: bool = True) -> bool:
        kind, length = ("A", lengths[0]) if self.ip.version == 4 else ("AAAA", lengths[1])
        records = await self._ask(name, kind, void=void)
        for record in records[:MAX_ADDRESSES]:
            try:
                block = ipaddress.ip_network(f"{record}/{length}", strict=False)
            except ValueError:
                continue
            if self.ip in block:
                return True
        return False

    async def _ptr(self, target: str) -> bool:
        target = target.lower()
        return any(n == target or n.endswith("." + target) for n in await self._validated())

    async def _validated(self) -> list[str]:
        """Names of the client whose address records lead back to it (RFC 7208 5.5); looked up once a check."""
        if self._names is not None:
            return self._names
        found = await self.lookup(self.ip.reverse_pointer, "PTR")
        names = []
        for name in found.records[:MAX_NAMES]:
            kind = "A" if self.ip.version == 4 else "AAAA"
            back = await self._query(name, kind)
            if any(ipaddress.ip_address(record) == self.ip for record in back.records):
                names.append(name.lower().rstrip("."))
        self._names = names
        return names

    # macros ---------------------------------------------------------------------------------------------------

    async def _expanded(self, text: str, domain: str, *, explaining: bool = False) -> str:
        """A domain-spec with its macros (RFC 7208 7). Raises _Stop."""
        out, at, length = [], 0, 0
        for match in _MACRO.finditer(text):
            out.append(text[at : match.start()])
            at = match.end()
            length += sum(map(len, out[-2:]))
            if length > MAX_EXPANDED:
                raise _Stop("permerror", "macros make too long a text")
            letter, digits, reverse, delimiters, escape, _ = match.groups()
            if escape:
                out.append({"%": "%", "_": " ", "-": "%20"}[escape])
            elif letter:
                if letter.lower() in "crt" and not explaining:
                    raise _Stop("permerror", f"%{{{letter}}} stands in explanations only")
                value = await self._macro(letter.lower(), domain)
                out.append(_transformed(value, digits, bool(reverse), delimiters, letter.isupper()))
            else:
                raise _Stop("permerror", "malformed macro")
        out.append(text[at:])
        whole = "".join(out)
        if explaining:
            return whole
        if len(whole) > 253:  # RFC 7208 7.3: labels go from the left
            whole = whole[-253:] if whole[-254] == "." else whole[-253:].partition(".")[2]
        return whole.rstrip(".")

    async def _macro(self, letter: str, domain: str) -> str:
        local, _, sender_domain = self.sender.rpartition("@")
        if letter == "p":
            if self._names is None:
                self._count()  # RFC 7208 4.6.4: it is among what is counted
            names = await self._validated()
            best = [n for n in names if n == domain.lower()] or [n for n in names if n.endswith("." + domain.lower())]
            return (best or names or ["unknown"])[0]
        if letter == "i" and self.ip.version == 6:
            return ".".join(self.ip.exploded.replace(":", "")).upper()
        return {
            "s": self.sender,
            "l": local,
            "o": sender_domain,
            "d": domain,
            "i": str(self.ip),
            "h": self.helo,
            "c": str(self.ip),
            "r": self.receiver,
            "t": "0",
            "v": "in-addr" if self.ip.version == 4 else "ip6",
        }[letter]

    async def _explanation(self, spec: str, domain: str) -> str:
        """The text that a domain gives for its refusal; empty where anything is wrong with it (RFC 7208 6.2)."""
        try:
            found = await self._query(await self._expanded(spec, domain), "TXT")
            if found.status != "ok" or len(found.records) != 1 or len(found.records[0]) > MAX_EXPLANATION:
                return ""
            text = await self._expanded(found.records[0], domain, explaining=True)
        except _Stop:
            return ""
        return text[:MAX_EXPLANATION] if text.isascii() and text.isprintable() else ""


def _possible(name: str) -> bool:
    """Whether DNS can hold a name: labels of 1 to 63 octets, 253 in all, nothing that is not printed."""
    name = name.removesuffix(".")
    return name.isprintable() and re.fullmatch(r"(?=.{1,253}\Z)[^.\[\]]{1,63}(?:\.[^.\[\]]{1,63})*", name) is not None


def _transformed(value: str, digits: str, reverse: bool, delimiters: str, escape: bool) -> str:
    if digits and int(digits) == 0:
        raise _Stop("permerror", "a macro keeps no part")
    parts = re.split("[" + re.escape(delimiters or ".") + "]", value)
    if reverse:
        parts.reverse()
    if digits:
        parts = parts[-int(digits) :]
    text = ".".join(parts)
    return quote(text, safe="-._~") if escape else text


def _sorted(terms: list[str]) -> tuple[list[tuple[str, str, str, str]], str, str]:
    """Mechanisms as (qualifier, name, argument, mask), and the redirect and exp modifiers. Raises _Stop."""
    mechanisms: list[tuple[str, str, str, str]] = []
    modifiers: dict[str, str] = {}
    for term in terms:
        match = _TERM.match(term)
        if match is None:
            raise _Stop("permerror", f"malformed term {term[:60]!r}")
        qualifier, name, equals, value, argument, mask = match.groups()
        name = name.lower()
        if equals:
            if qualifier or (name in modifiers and name in ("redirect", "exp")):
                raise _Stop("permerror", f"malformed modifier {term[:60]!r}")
            modifiers[name] = value
            continue
        _check_mechanism(term, name, argument or "", mask or "")
        mechanisms.append((qualifier or "+", name, (argument or "")[1:], mask or ""))
    for name, value in modifiers.items():
        if name in ("redirect", "exp"):
            _check_domain_spec(value)
        elif not _MACRO_STRING.match(value):
            raise _Stop("permerror", f"malformed modifier {name[:40]}=")
    redirect = "" if any(name == "all" for _, name, _, _ in mechanisms) else modifiers.get("redirect", "")
    return mechanisms, redirect, modifiers.get("exp", "")


def _check_mechanism(term: str, name: str, argument: str, mask: str) -> None:
    if name not in ("all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists"):
        raise _Stop("permerror", f"unknown mechanism {term[:60]!r}")
    wrong = (
        (name == "all" and (argument or mask))
        or (name in ("include", "exists", "ip4", "ip6") and not argument)
        or (name in ("include", "exists", "ptr") and mask)
    )
    if wrong:
        raise _Stop("permerror", f"malformed mechanism {term[:60]!r}")
    if name in ("a", "mx"):
        _masks(mask)
    if argument and name not in ("ip4", "ip6"):
        _check_domain_spec(argument[1:])
    if name in ("ip4", "ip6"):
        _in_block(ipaddress.ip_address("192.0.2.1"), (argument + mask)[1:], 4 if name == "ip4" else 6)


def _check_domain_spec(text: str) -> None:
    """Raises _Stop for what is no domain-spec."""
    _, dot, top = text.removesuffix(".").rpartition(".")
    ended = _MACRO_END.search(text[-64:]) or (dot and _TOP_LABEL.match(top))
    if not ended or not _MACRO_STRING.match(text) or re.search(r"%\{[crtCRT]", text):
        raise _Stop("permerror", f"malformed domain {text[:60]!r}")


def _masks(mask: str) -> tuple[int, int]:
    """`/24//64` as prefix lengths for both families. Raises _Stop."""
    match = re.fullmatch(r"(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?", mask)
    if match is None:
        raise _Stop("permerror", f"malformed prefix length {mask[:20]!r}")
    four, six = int(match[1] or 32), int(match[2] or 128)
    if match[1] == "0":
        four = 0
    if match[2] == "0":
        six = 0
    if four > 32 or six > 128:
        raise _Stop("permerror", f"prefix length {mask} is too long")
    return four, six


def _in_block(ip: Address, text: str, version: int) -> bool:
    _, slash, length = text.partition("/")
    try:
        if slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
            raise ValueError(length)
        block = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _Stop("permerror", f"malformed address {text[:60]!r}") from None
    if block.version != version:
        raise _Stop("permerror", f"{text[:60]!r} is of the other family")
    return ip.version == version and ip in block


async def check(ip: str, sender: str, helo: str, receiver: str, lookup: Lookup) -> SpfResult:
    """The result for a client. `sender` is the reverse-path; a null one stands for postmaster at the EHLO name."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return SpfResult("none", "", "the client has no IP address")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not sender:
        sender = f"postmaster@{helo}"
    elif "@" not in sender or sender.startswith("@"):
        sender = f"postmaster@{sender.lstrip('@')}"
    domain = sender.rpartition("@")[2].lower()
    try:
        return await _Check(address, sender, helo, receiver, lookup).host(domain)
    except _Stop as stop:
        return SpfResult(stop.status, domain, stop.reason)
