"""The manual's Lua API, one file per namespace; each has a library of functions, or makes those that share
something of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quillon.lua.msys import (
    audit,
    bounce,
    cidr,
    config,
    core,
    counter,
    db,
    dns,
    encodings,
    files,
    gauge_cache,
    http,
    json,
    left_out,
    message,
    mime,
    opendkim,
    pcre,
    rfc3464,
    timer,
    tls,
    vctx,
    xml,
)
from quillon.lua.msys.api import Api, Library

LIBRARIES: Sequence[Library | Callable[[Api], None]] = (
    core.library,
    vctx.library,
    message.library,
    mime.library,
    config.library,
    dns.library,
    timer.register,
    files.library,
    pcre.library,
    encodings.library,
    json.library,
    xml.library,
    counter.register,
    gauge_cache.register,
    audit.register,
    cidr.register,
    db.register,
    http.library,
    bounce.library,
    rfc3464.library,
    opendkim.library,
    tls.library,
    left_out.register,
)


def give(api: Api) -> None:
    """Give a runtime all of them."""
    for library in LIBRARIES:
        if isinstance(library, Library):
            api.use(library)
        else:
            library(api)
