"""`msys.base64`, `msys.qp`, `msys.idn`."""

from __future__ import annotations

import base64
import quopri

from quillon.lua.msys.api import Library
from quillon.mail import charset as charsets

library = Library()

LONGEST_DOMAIN = 1000  # octets; preparing one takes time that grows with the square of its length
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NO_BASE64 = bytes(set(range(256)) - set(_ALPHABET))


@library.function("msys.base64.encode", octets=True)
def base64_encode(text: bytes) -> bytes:
    """Base64 in one line."""
    return base64.b64encode(text)


@library.function("msys.base64.decode", octets=True)
def base64_decode(text: bytes) -> bytes:
    """What base64 stands for; white space and what is no base64 is left out."""
    data = text.translate(None, _NO_BASE64)
    return base64.b64decode(data + b"=" * (-len(data) % 4))


@library.function("msys.qp.encode", octets=True)
def qp_encode(text: bytes, charset: bytes | None = None, dotstuffing: bool = False) -> bytes:
    """Quoted-printable; with a charset the text is converted from UTF-8 before."""
    if charset:
        text = charsets.encoded(text.decode("utf-8", "replace"), charset.decode("latin-1"))
    out = quopri.encodestring(text.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
    if dotstuffing:
        out = out.replace(b"\r\n.", b"\r\n..")
        out = b"." + out if out.startswith(b".") else out
    return out


@library.function("msys.qp.decode", octets=True)
def qp_decode(text: bytes, charset: bytes | None = None) -> bytes:
    """What quoted-printable stands for; with a charset converted to UTF-8."""
    data = quopri.decodestring(text)
    if charset is None:
        return data
    name = charset.decode("latin-1")
    if charsets.codec_of(name) is None:
        raise ValueError(f"{name[:80]!r} is no charset")
    return charsets.decoded(data, name).encode()


def short(name: str) -> None:
    if len(name) > LONGEST_DOMAIN:
        raise ValueError(f"a domain has {LONGEST_DOMAIN} octets at most")


@library.function("msys.idn.to_idn")
def to_idn(name: str) -> str:
    """A domain in A-labels."""
    short(name)
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"{name!r} has no A-labels: {error}") from None


@library.function("msys.idn.to_utf8")
def to_utf8(name: str) -> str:
    """A domain in U-labels."""
    short(name)
    try:
        return name.encode("ascii").decode("idna")
    except UnicodeError as error:
        raise ValueError(f"{name!r} has no U-labels: {error}") from None
