"""What goes over the wire in a TLS handshake, in words: for whoever traces a session. Pure.

It reads along and decides nothing. What is encrypted (all of TLS 1.3 behind the ServerHello) it counts.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from functools import cache

MOST = 65536  # octets of a handshake message that are kept
_LISTED = 12  # items of a list that are named
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")  # RFC 8446 4.1.3

# the registries "TLS Parameters" and "TLS ExtensionType Values" of IANA, as far as mail servers use them
_VERSIONS = {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
_GROUPS = {
    23: "secp256r1", 24: "secp384r1", 25: "secp521r1", 29: "x25519", 30: "x448", 256: "ffdhe2048", 257: "ffdhe3072",
    258: "ffdhe4096", 259: "ffdhe6144", 260: "ffdhe8192", 4587: "SecP256r1MLKEM768", 4588: "X25519MLKEM768",
    4589: "SecP384r1MLKEM1024",
}  # fmt: skip
_SIGNATURES = {
    0x0201: "rsa_pkcs1_sha1", 0x0203: "ecdsa_sha1", 0x0401: "rsa_pkcs1_sha256", 0x0501: "rsa_pkcs1_sha384",
    0x0601: "rsa_pkcs1_sha512", 0x0403: "ecdsa_secp256r1_sha256", 0x0503: "ecdsa_secp384r1_sha384",
    0x0603: "ecdsa_secp521r1_sha512", 0x0804: "rsa_pss_rsae_sha256", 0x0805: "rsa_pss_rsae_sha384",
    0x0806: "rsa_pss_rsae_sha512", 0x0807: "ed25519", 0x0808: "ed448", 0x0809: "rsa_pss_pss_sha256",
    0x080A: "rsa_pss_pss_sha384", 0x080B: "rsa_pss_pss_sha512", 0x0904: "mldsa44", 0x0905: "mldsa65", 0x0906: "mldsa87",
}  # fmt: skip
_ALERTS = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow", 40: "handshake_failure",
    42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired",
    46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error",
    51: "decrypt_error", 70: "protocol_version", 71: "insufficient_security", 80: "internal_error",
    86: "inappropriate_fallback", 90: "user_canceled", 100: "no_renegotiation", 109: "missing_extension",
    110: "unsupported_extension", 112: "unrecognized_name", 113: "bad_certificate_status_response",
    115: "unknown_psk_identity", 116: "certificate_required", 120: "no_application_protocol",
}  # fmt: skip
_MESSAGES = {
    0: "HelloRequest", 4: "NewSessionTicket", 11: "Certificate", 12: "ServerKeyExchange", 13: "CertificateRequest",
    14: "ServerHelloDone", 15: "CertificateVerify", 16: "ClientKeyExchange", 20: "Finished", 22: "CertificateStatus",
}  # fmt: skip


class _MalformedError(Exception):
    """Octets are not what they should be."""


class Side:
    """One side's part of a handshake, record by record."""

    def __init__(self) -> None:
        self._octets = b""
        self._message = b""
        self._encrypted = 0  # octets since the last word of them
        self._changed = False  # ChangeCipherSpec was sent
        self._lost = False

    def feed(self, octets: bytes) -> Iterator[str]:
        """What further octets tell, a line each."""
        if self._lost:
            return
        self._octets += octets
        try:
            while len(self._octets) >= 5:
                kind, major = self._octets[0], self._octets[1]
                if not 20 <= kind <= 24 or major != 3:
                    raise _MalformedError("it is no TLS")
                end = 5 + int.from_bytes(self._octets[3:5])
                if len(self._octets) < end:
                    break
                record, self._octets = self._octets[5:end], self._octets[end:]
                yield from self._record(kind, record)
        except _MalformedError as error:
            self._lost = True
            yield f"cannot be read any more: {error}"
        if self._encrypted:
            yield f"encrypted, {self._encrypted} octets"
            self._encrypted = 0

    def _record(self, kind: int, record: bytes) -> Iterator[str]:
        if kind == 23 or (self._changed and not _in_clear(kind, record)):
            self._encrypted += len(record)
        elif kind == 20:
            self._changed = True
            yield "ChangeCipherSpec"
        elif kind == 21 and len(record) == 2:
            level = "fatal" if record[0] == 2 else "warning"
            yield f"Alert, {level}: {_ALERTS.get(record[1], record[1])}"
        elif kind == 22:
            yield from self._handshake(record)
        else:
            yield f"record of type {kind}, {len(record)} octets"

    def _handshake(self, record: bytes) -> Iterator[str]:
        """Messages may be longer than a record, and there may be several in one."""
        self._message += record
        while len(self._message) >= 4:
            size = int.from_bytes(self._message[1:4])
            if size > MOST:
                raise _MalformedError(f"a message of {size} octets")
            if len(self._message) < 4 + size:
                return
            kind, body = self._message[0], self._message[4 : 4 + size]
            self._message = self._message[4 + size :]
            yield _described(kind, body)


def _in_clear(kind: int, record: bytes) -> bool:
    """Whether a record behind ChangeCipherSpec is in clear all the same: TLS 1.3 has that for show (RFC 8446 D.4), in
    front of a second hello as well."""
    hello = kind == 22 and record[:1] in (b"\1", b"\2") and int.from_bytes(record[1:4]) == len(record) - 4
    return hello or kind == 20 or (kind == 21 and len(record) == 2)


class _Reader:
    """Takes octets from the front. Raises _MalformedError where there are too few."""

    def __init__(self, octets: bytes) -> None:
        self.left = octets

    def take(self, count: int) -> bytes:
        if count > len(self.left):
            raise _MalformedError("a message is too short")
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """Octets that stand behind their number, of `size` octets."""
        return self.take(self.number(size))

    def numbers(self, size: int) -> list[int]:
        """A vector of numbers of two octets."""
        inner = _Reader(self.vector(size))
        found = []
        while inner.left:
            found.append(inner.number(2))
        return found


def _described(kind: int, body: bytes) -> str:
    if kind == 1:
        return _client_hello(_Reader(body))
    if kind == 2:
        return _server_hello(_Reader(body))
    if kind == 11:
        return f"Certificate, {_certificates(_Reader(body))} of them, {len(body)} octets"
    return f"{_MESSAGES.get(kind, f'message of type {kind}')}, {len(body)} octets"


def _client_hello(reader: _Reader) -> str:
    version = reader.number(2)
    reader.take(32)
    session = reader.vector(1)
    ciphers = reader.numbers(2)
    reader.vector(1)
    given = _extensions(reader)
    versions = _Reader(given[43]).take(len(given[43]))[1:] if 43 in given else version.to_bytes(2)
    offered = [int.from_bytes(versions[at : at + 2]) for at in range(0, len(versions), 2)]
    said = [f"versions {_named(offered, _version)}", f"server name {_server_name(given.get(0, b''))}"]
    said.append(f"ciphers {_named(ciphers, _cipher)}")
    if 10 in given:
        said.append(f"groups {_named(_Reader(given[10]).numbers(2), _group)}")
    if 51 in given:
        said.append(f"key shares {_named(list(_key_shares(_Reader(given[51]))), _group)}")
    if 13 in given:
        said.append(f"signatures {_named(_Reader(given[13]).numbers(2), _signature)}")
    if 16 in given:
        said.append(f"ALPN {_protocols(_Reader(given[16]))}")
    said += ["asks for a stapled OCSP answer"] if 5 in given else []
    resumes = 41 in given or (session and 43 not in given) or bool(given.get(35))
    said += ["wants to resume a session"] if resumes else []
    return "ClientHello: " + "; ".join(said)


def _server_hello(reader: _Reader) -> str:
    version = reader.number(2)
    retry = reader.take(32) == _RETRY
    reader.vector(1)
    cipher = reader.number(2)
    reader.take(1)
    given = _extensions(reader)
    if 43 in given:
        version = _Reader(given[43]).number(2)
    said = [_version(version), _cipher(cipher)]
    if 51 in given:
        said.append(f"group {_group(_Reader(given[51]).number(2))}")
    said += ["resumes the session"] if 41 in given else []
    return f"{'HelloRetryRequest' if retry else 'ServerHello'}: {', '.join(said)}"


def _extensions(reader: _Reader) -> dict[int, bytes]:
    """By their numbers; there may be none at all."""
    found: dict[int, bytes] = {}
    if not reader.left:
        return found
    inner = _Reader(reader.vector(2))
    while inner.left:
        number = inner.number(2)
        found.setdefault(number, inner.vector(2))
    return found


def _server_name(extension: bytes) -> str:
    if not extension:
        return "none"
    inner = _Reader(_Reader(extension).vector(2))
    inner.take(1)
    return inner.vector(2).decode("latin-1")


def _key_shares(reader: _Reader) -> Iterator[int]:
    inner = _Reader(reader.vector(2))
    while inner.left:
        yield inner.number(2)
        inner.vector(2)


def _protocols(reader: _Reader) -> str:
    inner, found = _Reader(reader.vector(2)), []
    while inner.left:
        found.append(inner.vector(1).decode("latin-1"))
    return ", ".join(found[:_LISTED])


def _certificates(reader: _Reader) -> int:
    """How many there are, as TLS 1.2 has them (RFC 5246 7.4.2): those of TLS 1.3 are encrypted."""
    inner, count = _Reader(reader.vector(3)), 0
    while inner.left:
        inner.vector(3)
        count += 1
    return count


def _named(numbers: list[int], name: Callable[[int], str]) -> str:
    """A list in words, without what is there for show (RFC 8701)."""
    real = [number for number in numbers if number & 0x0F0F != 0x0A0A or number >> 8 != number & 0xFF]
    more = f" and {len(real) - _LISTED} more" if len(real) > _LISTED else ""
    return ", ".join(map(name, real[:_LISTED])) + more if real else "none"


def _version(number: int) -> str:
    return _VERSIONS.get(number, f"0x{number:04x}")


def _group(number: int) -> str:
    return _GROUPS.get(number, f"0x{number:04x}")


def _signature(number: int) -> str:
    return _SIGNATURES.get(number, f"0x{number:04x}")


def _cipher(number: int) -> str:
    return _ciphers().get(number, f"0x{number:04x}")


@cache
def _ciphers() -> dict[int, str]:
    """Names by number, of all that this machine's OpenSSL knows, and of what stands among ciphers and is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    known = {int(row["id"]) & 0xFFFF: str(row["name"]) for row in context.get_ciphers()}
    return known | {0x00FF: "renegotiation_info", 0x5600: "fallback"}
