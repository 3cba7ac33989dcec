"""Asks the responders of certificates whether they were revoked (OCSP over HTTP, RFC 6960 A.1), and keeps what they
answer. Shell.

Only a certificate that has verified is asked about, and by the URL that its authority put into it: whoever shows one of
his own making leads nobody anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from quillon.tls.anchors import issuer_of
from quillon.tls.revocation import said

PATIENCE = 5.0  # seconds for an answer
AGAIN = 60.0  # seconds until a responder that gave none which holds is asked again about the same certificate
LONGEST = 3600.0  # seconds that an answer is kept, however long it holds
MOST = 10_000  # certificates whose answers are kept
MOST_AT_ONCE = 100
MOST_OCTETS = 65536  # of an answer

Said = tuple[str, str]


class _Kept(NamedTuple):
    said: Said
    until: float


class _Question(NamedTuple):
    certificate: bytes
    issuer: bytes
    url: str


class Responders:
    """`clock` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[_Question, _Kept] = {}
        self._asking: dict[_Question, asyncio.Task[Said]] = {}

    async def ask(
        self, chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], url: str | None
    ) -> Said:
        """The cause why the responder does not say that the first certificate of a chain is good, and words; empty if
        it does. Without `url` the responder is the one that the certificate names."""
        own = chain[0]
        if own in anchors:
            return "", ""
        issuer = issuer_of(own, [*chain[1:], *anchors])
        where = url or named_by(own)
        if issuer is None or not where:
            return "ocsp_missing", "the certificate names no responder that could be asked"
        question = _Question(own.fingerprint(hashes.SHA256()), issuer.fingerprint(hashes.SHA256()), where)
        known = self._kept.get(question)
        if known is not None and known.until > self._clock():
            return known.said
        task = self._asking.get(question)
        if task is None:
            if len(self._asking) >= MOST_AT_ONCE:
                return "ocsp_missing", "too many responders are being asked at this moment"
            task = asyncio.get_running_loop().create_task(self._ask(question, own, issuer))
            self._asking[question] = task
            task.add_done_callback(lambda _: self._asking.pop(question))
        return await asyncio.shield(task)  # others may wait for it as well

    async def _ask(self, question: _Question, own: x509.Certificate, issuer: x509.Certificate) -> Said:
        try:
            octets = await _fetched(question.url, own, issuer)
        except Exception as error:  # somebody else's server
            words = str(error) or type(error).__name__
            found, holds = ("ocsp_missing", f"{question.url} does not answer: {words}"), AGAIN
        else:
            found = said(octets, own, issuer, self._clock(), f"the answer of {question.url}")
            settled = found[0] in ("", "revoked")
            holds = min(_ends(octets) - self._clock(), LONGEST) if settled else AGAIN
        if len(self._kept) >= MOST:
            self._kept.clear()
        self._kept[question] = _Kept(found, self._clock() + max(holds, AGAIN))
        return found


def named_by(certificate: x509.Certificate) -> str:
    """The first responder that a certificate names and that speaks HTTP; empty for none."""
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        urls = [
            one.access_location.value
            for one in access
            if one.access_method == AuthorityInformationAccessOID.OCSP
            and isinstance(one.access_location, x509.UniformResourceIdentifier)
        ]
    except Exception:
        return ""  # it has no such extension, or none that can be read
    return next((url for url in urls if url.startswith(("http://", "https://"))), "")


def _ends(octets: bytes) -> float:
    """Until when an answer that has been looked at holds, in seconds since the epoch; 0 where it does not say."""
    ends = next(iter(ocsp.load_der_ocsp_response(octets).responses)).next_update_utc
    return ends.timestamp() if ends is not None else 0.0


async def _fetched(url: str, own: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """What a responder answers. Raises OSError, httpx.HTTPError and what else comes of somebody else's server."""
    import httpx  # noqa: PLC0415 - what nobody asks for, nobody waits for

    # responders know certificates by SHA-1 of their issuer (RFC 5019 2.1.1), which protects nothing here
    request = ocsp.OCSPRequestBuilder().add_certificate(own, issuer, hashes.SHA1()).build()  # noqa: S303
    body = bytearray()
    try:
        async with (
            asyncio.timeout(PATIENCE),
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
            client.stream(
                "POST",
                url,
                content=request.public_bytes(serialization.Encoding.DER),
                headers={"Content-Type": "application/ocsp-request", "Accept": "application/ocsp-response"},
            ) as answer,
        ):
            if answer.status_code != 200:
                raise OSError(f"status {answer.status_code}")
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > MOST_OCTETS:
                    raise OSError(f"more than {MOST_OCTETS} octets")
    except TimeoutError:
        raise OSError(f"nothing within {PATIENCE:.0f} seconds") from None
    return bytes(body)
