"""Character sets that mail may name (RFC 2046 4.1.2). Pure.

Python knows more codecs than those: some of them take time that grows with the square of the text, and what a sender
names must not choose among them.
"""

from __future__ import annotations

import encodings
import encodings.aliases
import pkgutil

_NO_CHARSETS = frozenset(
    {"aliases", "base64_codec", "bz2_codec", "charmap", "hex_codec", "idna", "mbcs", "oem", "palmos", "punycode"}
    | {"quopri_codec", "raw_unicode_escape", "rot_13", "undefined", "unicode_escape", "uu_codec", "zlib_codec"}
)
_CODECS = frozenset(module.name for module in pkgutil.iter_modules(encodings.__path__)) - _NO_CHARSETS


def codec_of(charset: str) -> str | None:
    """The codec of a charset, or None for what is none here."""
    if len(charset) > 64 or not charset.isascii():
        return None
    name = encodings.normalize_encoding(charset.strip()).lower()
    name = encodings.aliases.aliases.get(name, name)
    return name if name in _CODECS else None


def decoded(data: bytes, charset: str) -> str:
    """Octets as text. Those of an unknown charset are taken for latin-1, what cannot be read for a replacement."""
    return data.decode(codec_of(charset) or "latin-1", "replace")


def encoded(text: str, charset: str) -> bytes:
    """Text as octets. Raises ValueError for an unknown charset."""
    codec = codec_of(charset)
    if codec is None:
        raise ValueError(f"{charset[:80]!r} is no charset")
    return text.encode(codec, "replace")
