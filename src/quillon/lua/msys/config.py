"""`msys.config`, and macros in text."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from quillon.lua.msys.api import Api, Library

library = Library()

_MACRO = re.compile(r"%\{(vctx_conn|vctx_mess|spfv1):([^}]*)\}")


@library.of_api("msys.config")
def config(api: Api, action: str, *path: str) -> tuple[str | None, str]:
    """("get", [scope, name,] option): its value, and what the console would say."""
    if action != "get":
        raise ValueError(f"config {action}: a running configuration is changed in its files, then reloaded")
    value, said = api.environment.option([str(word) for word in path if word is not None])
    return value, said


@library.of_api("msys.expandMacro")
def expand(api: Api, text: str) -> str:
    """Text with `%{vctx_conn:key}`, `%{vctx_mess:key}` and `%{spfv1:i}` replaced, this one for the letters of RFC
    7208 7.2 without transformers; a key that is not there is empty."""
    call = api.session_call()
    context = call.context
    local = context.message.get("mailfrom_localpart", "") or "postmaster"
    helo = context.connection.get("ehlo_domain", "")
    domain = context.message.get("mailfrom_domain", "") or helo
    ip = ipaddress.ip_address(call.session.remote.rpartition(":")[0].strip("[]"))
    letters = {"s": f"{local}@{domain}", "l": local, "o": domain, "d": domain, "h": helo, "c": str(ip)}
    letters["i"] = str(ip) if ip.version == 4 else ".".join(ip.exploded.replace(":", ""))
    letters["v"] = "in-addr" if ip.version == 4 else "ip6"
    sources: dict[str, Mapping[str, str]]
    sources = {"vctx_conn": context.connection, "vctx_mess": context.message, "spfv1": letters}
    return _MACRO.sub(lambda match: sources[match[1]].get(match[2], ""), text)
