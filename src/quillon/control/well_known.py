"""What everybody may ask: MTA-STS policies of our domains (RFC 8461 3.2), and answers to an ACME server (RFC 8555 8.3).

An ASGI application that knows nothing else, for a Listen that the world reaches.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

CHALLENGES = "acme/challenges"  # in the folder of the spool: a file for each token
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


def application(policies: Mapping[str, str], base: Path) -> Starlette:
    """`policies` are texts by domain, `base` is the folder of the spool."""

    async def policy(request: Request) -> Response:
        host = request.headers.get("host", "").rpartition("]")[2].partition(":")[0].lower().removesuffix(".")
        text = policies.get(host.removeprefix("mta-sts.")) if host.startswith("mta-sts.") else None
        return PlainTextResponse(text) if text is not None else _missing()

    async def challenge(request: Request) -> Response:
        token = request.path_params["token"]
        if not _TOKEN.fullmatch(token):
            return _missing()
        try:
            text = await asyncio.to_thread((base / CHALLENGES / token).read_text, encoding="ascii")
        except (OSError, ValueError):
            return _missing()
        return PlainTextResponse(text, media_type="application/octet-stream")

    return Starlette(
        routes=[
            Route("/.well-known/mta-sts.txt", policy),
            Route("/.well-known/acme-challenge/{token}", challenge),
        ]
    )


def _missing() -> Response:
    return PlainTextResponse("there is nothing here\n", 404)
