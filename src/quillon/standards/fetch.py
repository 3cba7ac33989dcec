"""A policy of MTA-STS over HTTPS (RFC 8461 3.3), by httpx. Shell.

The host is found by our own resolver, and its certificate is compared with `mta-sts.DOMAIN` by DNS names alone.
Redirects are not followed, and no proxy is used: whoever can redirect could answer.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache

import httpx

from quillon.net.resolver import Resolver
from quillon.standards.mta_sts import MOST_OCTETS

PATIENCE = 20.0  # seconds for all of it; a message waits for the first answer
PORT = 443
MOST_ADDRESSES = 4  # of a policy host that are tried
_TRUST_LIFE = 3600.0  # seconds


class FetchError(Exception):
    """There is no policy to be had. `result` is the result type of RFC 8460 4.3: sts-policy-fetch-error, or
    sts-webpki-invalid where the certificate is to blame."""

    def __init__(self, text: str, result: str = "sts-policy-fetch-error") -> None:
        super().__init__(text)
        self.result = result


async def fetch(resolver: Resolver, domain: str, *, use_ipv6: bool = False, port: int = PORT) -> bytes:
    """The octets of a domain's policy. Raises FetchError."""
    host = f"mta-sts.{domain}"
    failed: FetchError | None = None
    try:
        async with asyncio.timeout(PATIENCE):
            addresses = (await _addresses(resolver, host, use_ipv6=use_ipv6))[:MOST_ADDRESSES]
            context = await asyncio.to_thread(_context, int(asyncio.get_running_loop().time() / _TRUST_LIFE))
            for address in addresses:
                try:
                    return await _get(host, address, port, context)
                except FetchError as error:
                    failed = failed or error
    except TimeoutError:
        raise FetchError(f"{host}: no answer within {PATIENCE:.0f} seconds") from None
    raise failed or FetchError(f"{host} has no address")


async def _addresses(resolver: Resolver, host: str, *, use_ipv6: bool) -> list[str]:
    found: list[str] = []
    for kind in ("AAAA", "A") if use_ipv6 else ("A",):
        answer = await resolver.lookup(host, kind)
        found += [ip for _, ip in answer.records]
    return found


@lru_cache(maxsize=1)
def _context(_hour: int) -> ssl.SSLContext:
    """Trust of the system, read each hour; SSL_CERT_FILE and SSL_CERT_DIR of the environment go before it."""
    context = ssl.create_default_context()
    context.hostname_checks_common_name = False
    return context


async def _get(host: str, address: str, port: int, context: ssl.SSLContext) -> bytes:
    literal = f"[{address}]" if ":" in address else address
    url = f"https://{literal}:{port}/.well-known/mta-sts.txt"
    headers = {
        "Host": host if port == PORT else f"{host}:{port}",
        "User-Agent": "Quillon",
        "Accept-Encoding": "identity",
    }
    body = bytearray()
    try:
        async with (
            httpx.AsyncClient(verify=context, trust_env=False, timeout=PATIENCE) as client,
            client.stream("GET", url, headers=headers, extensions={"sni_hostname": host}) as answer,
        ):
            if answer.status_code != 200:
                raise FetchError(f"{host} answers with the status {answer.status_code}")
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind != "text/plain":
                raise FetchError(f"{host} sends {kind or 'no Content-Type'}, and not text/plain")
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise FetchError(f"{host} sends it in {answer.headers['Content-Encoding']}, which was not asked for")
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > MOST_OCTETS:
                    raise FetchError(f"{host} sends more than {MOST_OCTETS} octets", "sts-policy-invalid")
    except FetchError:
        raise
    except Exception as error:  # a stranger's octets: the library has an exception for each way to be wrong
        words = str(error) or type(error).__name__
        wrong = isinstance(error.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in words
        result = "sts-webpki-invalid" if wrong else "sts-policy-fetch-error"
        raise FetchError(f"{host} [{address}]: {words}", result) from None
    return bytes(body)
