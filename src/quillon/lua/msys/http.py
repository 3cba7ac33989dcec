"""`msys.http.client`: requests to web services, by httpx. Certificates are verified; redirects are not followed."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx

from quillon.lua.msys.api import Library, Object
from quillon.policy.hook import words_of

library = Library()

METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH")
DEFAULT_TIMEOUT = 30.0  # seconds
LARGEST_BODY = 8 * 2**20  # octets


@dataclass
class HttpClient:
    headers: list[tuple[str, str]] = field(default_factory=list)
    timeout: float = DEFAULT_TIMEOUT
    status: int = 0
    reason: str = ""
    answer_headers: list[str] = field(default_factory=list)
    body: bytes = b""


async def request(client: HttpClient, method: str, url: str, data: bytes | None) -> None:
    """Raises ValueError where there is no answer, or too large a one."""
    body = bytearray()
    try:
        async with (
            httpx.AsyncClient(timeout=client.timeout, trust_env=False) as session,
            session.stream(method, url, content=data, headers=client.headers) as answer,
        ):
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > LARGEST_BODY:
                    raise ValueError(f"{url}: the answer is larger than {LARGEST_BODY} octets")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"{url}: {type(error).__name__}: {words_of(error)}") from None
    client.status, client.reason = answer.status_code, answer.reason_phrase
    client.answer_headers = [f"{name}: {value}" for name, value in answer.headers.multi_items()]
    client.body = bytes(body)


@library.function("http.new")
def new() -> Object:
    """A client."""
    return Object("http", HttpClient())


@library.function("http:set_header")
def set_header(client: HttpClient, header: str | None = None) -> None:
    """Add a field to requests; without arguments, drop them all."""
    if header is None:
        client.headers.clear()
        return
    name, colon, value = header.partition(":")
    if not colon or "\r" in header or "\n" in header:
        raise ValueError(f"{header!r} is no header field")
    client.headers.append((name.strip(), value.strip()))


@library.function("http:set_timeout")
def set_timeout(client: HttpClient, seconds: float | None = None) -> None:
    """Seconds that a request may take."""
    client.timeout = DEFAULT_TIMEOUT if seconds is None else min(max(float(seconds), 0.001), 300.0)


@library.function("http:do_request")
async def do_request(client: HttpClient, method: str, url: str, data: str | None = None) -> bool | tuple[None, str]:
    """Ask; true, or nil and words where there is no answer."""
    if method.upper() not in METHODS:
        raise ValueError(f"{method!r} is no method: {', '.join(METHODS)}")
    try:
        await request(client, method.upper(), url, data.encode() if data is not None else None)
    except ValueError as error:
        return None, str(error)
    return True


@library.function("http:get_status")
def get_status(client: HttpClient) -> tuple[int, str]:
    """Code and phrase of the answer."""
    return client.status, client.reason


@library.function("http:get_body")
def get_body(client: HttpClient) -> bytes:
    """The body of the answer."""
    return client.body


@library.function("http:get_headers")
def get_headers(client: HttpClient) -> list[str]:
    """The header lines of the answer."""
    return client.answer_headers


@library.function("http:parse_headers")
def parse_headers(client: HttpClient, lines: list[str]) -> dict[str, str]:
    """Header lines as a table by name."""
    found = {}
    for line in lines:
        name, _, value = str(line).partition(":")
        found[name.strip()] = value.strip()
    return found
