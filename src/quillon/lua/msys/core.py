"""`msys.core`: constants, time, and what belongs to no other namespace."""

from __future__ import annotations

import os

from quillon.lua.msys.api import Api, Library
from quillon.mail import header
from quillon.mail.address import AddressError, parse_domain
from quillon.policy.addresses import address_parts

# of msys.log, as those of syslog; what is a warning or worse goes to the paniclog
LEVELS = (("EMERG",), ("ALERT",), ("CRIT",), ("ERR", "ERROR"), ("WARNING",), ("NOTICE",), ("INFO",), ("DEBUG",))
CONSTANTS: dict[str, object] = {
    "VALIDATE_CONT": 0,
    "VALIDATE_DONE": 1,
    "VALIDATE_AGAIN": 2,
    "VCTX_CONN": 1,
    "VCTX_MESS": 2,
    "ECMESS_CTX_CONN": 1,
    "ECMESS_CTX_MESS": 2,
    "P_ESMTP": "esmtp",
    "EC_AUTH_OK": 1,
    "EC_AUTH_FAIL": 0,
    "EC_AUTH_ERROR": -2,
    "EC_MSG_ENV_FROM": 1,
    "EC_MSG_ENV_TO": 2,
    "EC_MSG_ENV_COMPLETE": 4,
    "EC_MIME_TE_7BIT": "7bit",
    "EC_MIME_TE_8BIT": "8bit",
    "EC_MIME_TE_BASE64": "base64",
    "EC_MIME_TE_QUOTED_PRINTABLE": "quoted-printable",
    "FAILED": 0,
    "DELAYED": 1,
    "DELIVERED": 2,
    "RELAYED": 3,
    "EXPANDED": 4,
    "ECTP_COMPLETE_CALLBACK": 0,
    "ECTP_COMPLETE_CALLBACK_SCHED": 1,
    "EC_HOOK_CONT": 0,
    "EC_HOOK_DONE": 1,
    "EC_HOOK_RETRY": 2,
    **{
        f"STANDARD_KEY_{name.upper()}": name
        for name in (
            "mailfrom_domain",
            "mailfrom_localpart",
            "mailfrom_string",
            "rcptto_domain",
            "rcptto_localpart",
            "rcptto_string",
            "ehlo_domain",
            "ehlo_string",
        )
    },
    **{f"LOG_{name}": number for number, names in enumerate(LEVELS) for name in names},
    "O_RDRW": os.O_RDWR,  # as a page of the manual has it
    "O_BINARY": 0,
    "O_RDONLY": os.O_RDONLY,
    "O_WRONLY": os.O_WRONLY,
    "O_RDWR": os.O_RDWR,
    "O_CREAT": os.O_CREAT,
    "O_APPEND": os.O_APPEND,
    "O_TRUNC": os.O_TRUNC,
}
library = Library(CONSTANTS)


@library.of_api("msys.log")
def log(api: Api, level: int, text: str) -> None:
    """A line with its level: msys.core.LOG_WARNING and worse ones go to the paniclog, others are not kept."""
    number = int(level) if isinstance(level, (int, float)) else -1
    if not 0 <= number < len(LEVELS):
        raise ValueError(f"{level!r} is no level: give msys.core.LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO, LOG_DEBUG")
    if number <= CONSTANTS["LOG_WARNING"]:  # type: ignore[operator]
        api.environment.report(f"scriptlet: {LEVELS[number][-1].lower()}: {text}")


def _numbers(api: Api) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(api.environment.bindings["binding"]))}


@library.of_api("msys.core.config_get_binding_id_from_name")
def binding_id(api: Api, name: str) -> int:
    """The number of a binding, -1 if there is none of the name."""
    return _numbers(api).get(name, -1)


@library.of_api("msys.core.config_get_binding_name_from_id")
def binding_name(api: Api, number: int) -> str | None:
    """The name of the binding with a number, or nil."""
    return next((name for name, n in _numbers(api).items() if n == number), None)


@library.of_api("msys.core.get_now_ts")
def now(api: Api) -> float:
    """Seconds since the epoch."""
    return api.environment.now()


@library.function("msys.core.dns_get_domain")
def dns_get_domain(name: str) -> str | None:
    """A domain for mail_queue_delay_domain; nil if it is none."""
    try:
        return parse_domain(name)
    except AddressError:
        return None


@library.of_api("msys.core.mail_queue_delay_domain")
def delay_domain(api: Api, domain: str, note: str = "") -> None:
    """Put the waiting messages of a domain off to their next retry, with a note as their last reply."""
    if api.environment.delay_domain is None:
        raise ValueError("there are no queues here")
    api.environment.delay_domain(domain, note)


@library.function("msys.parseRFC2822Addresses")
def parse_addresses(text: str, part: str = "all") -> list[str]:
    """A part (all, localpart, user, detail, domain) of each address of a header field's value as it stands; of one
    that has been decoded msg:address_header is the one to ask."""
    return address_parts([header.as_raw(text)], part)
