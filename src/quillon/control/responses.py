"""What all answers over HTTP have in common. Pure."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from quillon.control.guard import HEADERS


def with_headers(response: Response) -> Response:
    """With those that every answer has."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def problem(status: int, words: str) -> Response:
    """An answer after RFC 9457."""
    told = {"type": "about:blank", "title": words, "status": status}
    return JSONResponse(told, status, media_type="application/problem+json")
