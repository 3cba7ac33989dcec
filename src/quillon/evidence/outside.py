"""A question to somebody outside who vouches for a log: an authority of time stamps, a witness. Shell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

PATIENCE = 30.0  # seconds for an answer
AGAIN = 300.0  # seconds until somebody who has failed is asked again
MOST_OCTETS = 65536  # of an answer


class OutsideError(Exception):
    """Nobody outside has vouched; the message says why."""


async def asked(url: str, question: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """The status of an answer, and its octets. Raises OutsideError."""
    body = bytearray()
    try:
        async with (
            asyncio.timeout(PATIENCE),
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
            client.stream("POST", url, content=question, headers=headers) as answer,
        ):
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MOST_OCTETS:
                    raise OutsideError(f"it answers more than {MOST_OCTETS} octets")
    except TimeoutError:
        raise OutsideError(f"no answer within {PATIENCE:.0f} seconds") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OutsideError(str(error) or type(error).__name__) from None
    return answer.status_code, bytes(body)
