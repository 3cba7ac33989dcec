"""The manual's Lua API, one file per namespace; each registers its functions with an `Api`."""

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
from quillon.lua.msys.api import Api

LIBRARIES: Sequence[Callable[[Api], None]] = (
    core.register,
    vctx.register,
    message.register,
    mime.register,
    config.register,
    dns.register,
    timer.register,
    files.register,
    pcre.register,
    encodings.register,
    json.register,
    xml.register,
    counter.register,
    gauge_cache.register,
    audit.register,
    cidr.register,
    db.register,
    http.register,
    bounce.register,
    rfc3464.register,
    opendkim.register,
    tls.register,
    left_out.register,
)
