"""Time stamps on checkpoints (RFC 3161): somebody outside says that a log was there, as it is, by that time. Shell.

LOG/stamps/SIZE.note   the checkpoint that was stamped, octet by octet
LOG/stamps/SIZE.tsr    what the authority has answered; openssl ts reads it
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import rfc3161_client as tsp
from cryptography import x509

from quillon.config.settings import StampSettings
from quillon.evidence.files import replace_file
from quillon.evidence.note import NoteError, size_of
from quillon.evidence.outside import AGAIN, OutsideError, asked
from quillon.net.clock import Clock

SKEW = 600.0  # seconds by which its clock may differ from ours
_HEADERS = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}  # RFC 3161 3.4
_CERTIFICATES = 0xA0  # tag of them in SignedData (RFC 5652 5.1)
_FILE = re.compile(r"(\d{1,19})\.tsr")


class StampError(OutsideError):
    """There is no time stamp to be had, or it is none of what it should be of."""


class Stamp(NamedTuple):
    """A checkpoint of so many records, as a note, and the response of the authority."""

    size: int
    note: str
    response: bytes


class _Field(NamedTuple):
    """Where the contents of a value of DER begin and end, and where its tag stands."""

    begin: int
    end: int
    tag_at: int


def sizes(log: Path) -> list[int]:
    """How many records each checkpoint of a log has that was stamped, the smallest first."""
    try:
        return sorted(int(found[1]) for name in os.listdir(log / "stamps") if (found := _FILE.fullmatch(name)))
    except FileNotFoundError:
        return []


def load(log: Path, size: int) -> Stamp:
    """Raises OSError, ValueError."""
    folder = log / "stamps"
    note = (folder / f"{size}.note").read_text(encoding="utf-8")
    return Stamp(size, note, (folder / f"{size}.tsr").read_bytes())


def first_over(log: Path, place: int) -> Stamp | None:
    """The first stamp that covers a record and is one; None where there is none. Whose it is is not verified."""
    for size in sizes(log):
        if size <= place:
            continue
        try:
            found = load(log, size)
            _fits(tsp.decode_timestamp_response(in_order(found.response)), found)
            return found
        except Exception:  # noqa: S112 - the audit tells of it
            continue
    return None


def _fits(response: tsp.TimeStampResponse, stamp: Stamp) -> None:
    """That a response is about a checkpoint. Raises StampError."""
    if response.status not in (tsp.PKIStatus.GRANTED, tsp.PKIStatus.GRANTED_WITH_MODS):
        raise StampError(f"the authority has refused: {' '.join(response.status_string) or response.status}")
    imprint = response.tst_info.message_imprint
    if imprint.message != hashlib.sha256(stamp.note.encode()).digest():
        raise StampError("the time stamp is of something else")


def trust(file: str) -> list[x509.Certificate]:
    """The authority's certificates. Raises StampError."""
    try:
        return x509.load_pem_x509_certificates(Path(file).read_bytes())
    except OSError as error:
        raise StampError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise StampError(f"{file} holds no certificate in PEM") from None


def verified(stamp: Stamp, roots: list[x509.Certificate], nonce: int | None = None) -> datetime:
    """When the authority had a checkpoint before it. Raises StampError."""
    try:
        response = tsp.decode_timestamp_response(in_order(stamp.response))
        _fits(response, stamp)
        builder = tsp.VerifierBuilder(roots=roots, nonce=nonce)
        builder.build().verify_message(response, stamp.note.encode())
        return response.tst_info.gen_time
    except StampError:
        raise
    except Exception as error:  # somebody else's octets, and a library that has an exception for each way to be wrong
        raise StampError(f"the time stamp does not verify: {error}") from None


def in_order(response: bytes) -> bytes:
    """A response with its certificates in the order that DER has for sets (X.690 11.6), which openssl does not keep and
    the verifier insists on. No signature covers that order. What is no response comes back as it is."""
    octets = bytearray(response)
    try:
        (whole,) = _fields(octets, 0, len(octets))
        token = _within(octets, whole)[1]
        (signed,) = _within(octets, _within(octets, token)[1])
        certificates = next(one for one in _within(octets, signed) if octets[one.tag_at] == _CERTIFICATES)
        found = sorted(bytes(octets[one.tag_at : one.end]) for one in _within(octets, certificates))
        octets[certificates.begin : certificates.end] = b"".join(found)
    except (IndexError, ValueError, StopIteration):
        return response
    return bytes(octets)


def _within(octets: bytearray, field: _Field) -> list[_Field]:
    return _fields(octets, field.begin, field.end)


def _fields(octets: bytearray, begin: int, end: int) -> list[_Field]:
    """The values of DER between two places. Raises IndexError where they are cut."""
    found = []
    while begin < end:
        length, at = octets[begin + 1], begin + 2
        if length & 0x80:
            at += length & 0x7F
            length = int.from_bytes(octets[begin + 2 : at])
        if at + length > end:
            raise IndexError
        found.append(_Field(at, at + length, begin))
        begin = at + length
    return found


class TimeStamps:
    """Has the checkpoints of one log stamped. `report` takes lines for the paniclog."""

    def __init__(self, settings: StampSettings, log: Path, clock: Clock, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._log = log
        self._clock = clock
        self._report = report
        self._asks_at = 0.0
        self._asking = False
        self._failed = ""

    @property
    def settings(self) -> StampSettings:
        """By which it asks."""
        return self._settings

    async def look_after(self) -> None:
        """Ask for a time stamp if it is time for one, and there is more to stamp than the last time."""
        now = self._clock.now()
        if self._asking or now < self._asks_at:
            return
        self._asking = True
        self._asks_at = now + min(AGAIN, self._settings.interval)
        try:
            had = await self._stamp()
            self._asks_at = now + self._settings.interval if had else 0.0
        except OutsideError as error:
            if not self._failed:
                self._report(f"evidence: {self._settings.url}: {error}")
            self._failed = str(error)
        finally:
            self._asking = False

    async def _stamp(self) -> bool:
        """Whether one was had. Raises OutsideError."""
        note = await asyncio.to_thread(self._unstamped)
        if note is None:
            return False
        request = tsp.TimestampRequestBuilder().data(note.encode()).hash_algorithm(tsp.HashAlgorithm.SHA256)
        query = request.cert_request(cert_request=True).build()
        status, response = await asked(self._settings.url, query.as_bytes(), _HEADERS)
        if status != 200:
            raise StampError(f"status {status}")
        stamp = Stamp(size_of(note), note, response)
        await asyncio.to_thread(self._keep, stamp, query.nonce)
        if self._failed:
            self._failed = ""
            self._report(f"evidence: {self._settings.url} gives time stamps again")
        return True

    def _unstamped(self) -> str | None:
        """The last checkpoint, if it has no stamp yet. Raises StampError."""
        try:
            note = (self._log / "checkpoint").read_text(encoding="utf-8")
            return note if size_of(note) not in sizes(self._log) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, NoteError) as error:
            raise StampError(f"{self._log}/checkpoint: {error}") from None

    def _keep(self, stamp: Stamp, nonce: int | None) -> None:
        """Put a stamp on disk that is what it should be. Raises StampError."""
        at = verified(stamp, trust(self._settings.ca), nonce).timestamp()
        if abs(at - self._clock.now()) > SKEW:
            raise StampError(f"its clock and ours differ by {abs(at - self._clock.now()):.0f} seconds")
        folder = self._log / "stamps"
        try:
            folder.mkdir(exist_ok=True)
            for name, octets in ((f"{stamp.size}.note", stamp.note.encode()), (f"{stamp.size}.tsr", stamp.response)):
                replace_file(folder / name, octets)
        except OSError as error:
            raise StampError(f"{error.filename or folder}: {error.strerror}") from None
