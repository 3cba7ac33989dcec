"""Octets of SMTP: mail data with its dots and its end, and the numbers that limit lines.

Mail data ends with CRLF.CRLF and with nothing else (RFC 5321 4.1.1.4). A CR or LF that stands alone is never a line
end: not here, and not in what is passed on, unless the configuration asks for it by name. That is what keeps one
message from being read as two by the next host.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_COMMAND_LINE = 4096  # octets; RFC 5321 4.5.3.1.4 asks for 512 and more with extensions
MAX_REPLY_LINE = 4096  # octets; RFC 5321 4.5.3.1.5 asks for 512
MAX_REPLY_LINES = 200
_FLUSH = 65536  # a line longer than this is handed on in pieces

_LONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
# the end of the header section, whatever ends its lines: which side of it a lone CR or LF stands on matters
_EMPTY_LINE = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_LINE_END = re.compile(rb"\r\n|\r(?!\n)|\n")
# a stuffed dot behind a line end that is mended: the client that wrote it stuffs its lines
_DOT = re.compile(rb"(?<=[\r\n])\.")
_LONE_STUFFED = re.compile(rb"((?:\r(?!\n)|(?<!\r)\n))\.(?=[^\r\n])")


LONE, NUL, DOT = 1, 2, 4
_NO_LINE_END = bytes(octet for octet in range(256) if octet not in b"\r\n")


def scan_purely(data: bytes) -> int:
    """What is to be known of some octets, which neither start nor end inside a CRLF, as flags: LONE, a CR or an LF
    stands alone; NUL, there is one; DOT, one stands behind a CR or an LF."""
    line_ends = len(data.translate(None, _NO_LINE_END))
    found = LONE if line_ends != 2 * data.count(b"\r\n") else 0
    if b"\0" in data:
        found |= NUL
    if b"\n." in data or b"\r." in data:
        found |= DOT
    return found


scan: Callable[[bytes], int]
try:
    from quillon.smtp._octets import scan
except ImportError:  # it was installed without a compiler
    scan = scan_purely


def has_lone(data: bytes) -> bool:
    """Whether a CR or an LF stands alone in `data`, which neither starts nor ends inside a CRLF."""
    return bool(scan(data) & LONE)


class MailDataReader:
    """Reads mail data: takes the dots away (RFC 5321 4.5.2), finds the end, notes lone CR and LF, and NUL.

    `feed` gives what has become certain; once `complete` is true, `rest` is what came behind the end mark.
    `repair` turns lone CR and LF into CRLF, and unstuffs the lines that this makes. The header section ends with the
    first empty line, whatever its lines end with; a lone CR or LF counts for the section that it ends a line of.
    """

    def __init__(self, *, repair_headers: bool = False, repair_body: bool = False) -> None:
        self.complete = False
        self.rest = b""
        self.lone_in_headers = False
        self.lone_in_body = False
        self.nul = False
        self._repair_headers, self._repair_body = repair_headers, repair_body
        self._carry = bytearray()
        self._mid_line = False
        self._last = b"\n"  # the octet in front: at the beginning we stand at the start of a line
        self._in_headers = True

    def feed(self, data: bytes) -> bytes:
        """Mail data without dot-stuffing out of the octets given so far; whole lines, but for very long ones."""
        carry = self._carry
        if not carry:
            return self._feed_first(data)
        searched = max(len(carry) - 4, 0)
        carry += data
        if not self._mid_line and carry.startswith(b".\r\n"):
            self.complete, self.rest, self._carry = True, bytes(carry[3:]), bytearray()
            return b""
        end = carry.find(b"\r\n.\r\n", searched) + 2
        if end >= 2:
            self.complete, self.rest, self._carry = True, bytes(carry[end + 3 :]), bytearray()
            return self._plain(bytes(carry[:end]))
        cut, mid_line = _cut(carry, searched)
        if not cut:
            return b""
        block = bytes(carry[:cut])
        del carry[:cut]
        return self._block(block, mid_line=mid_line)

    def _feed_first(self, data: bytes) -> bytes:
        """As `feed`, with nothing in front: most messages come in few pieces, which need not be copied together."""
        if not self._mid_line and data.startswith(b".\r\n"):
            self.complete, self.rest = True, data[3:]
            return b""
        if data.endswith(b"\r\n.\r\n"):
            block = data[:-3]
            found = scan(block)
            if not found & DOT:
                self.complete = True  # no other line of it begins with a dot
                return self._known(block, found)
        end = data.find(b"\r\n.\r\n") + 2
        if end >= 2:
            self.complete, self.rest = True, data[end + 3 :]
            return self._plain(data[:end])
        cut, mid_line = _cut(data, 0)
        self._carry += data[cut:]
        return self._block(data[:cut], mid_line=mid_line) if cut else b""

    def _block(self, block: bytes, *, mid_line: bool) -> bytes:
        out = self._plain(block)
        self._mid_line = mid_line
        return out

    def _plain(self, block: bytes) -> bytes:
        return self._known(block, scan(block))

    def _known(self, block: bytes, found: int) -> bytes:
        """Of octets of which `scan` tells what is to be known."""
        if found & NUL:
            self.nul = True
        if not self._mid_line and block.startswith(b"."):
            block = block[1:]
        if found & DOT:
            block = block.replace(b"\r\n.", b"\r\n")
        if not found & LONE:  # whether a stuffed dot is taken away or not makes no difference to that
            if self._in_headers:
                empty = b"\r\n\r\n" in block or (block.startswith(b"\r\n") and self._last in b"\r\n")
                self._in_headers = not empty
            self._last = block[-1:] or self._last
            return block
        head, body = self._split(block) if self._in_headers else (b"", block)
        if head and has_lone(head):
            self.lone_in_headers = True
            if self._repair_headers:
                head = _mended(head)
        if body and has_lone(body):
            self.lone_in_body = True
            if self._repair_body:
                body = _mended(body)
        self._last = block[-1:] or self._last
        return head + body

    def _split(self, block: bytes) -> tuple[bytes, bytes]:
        """A block that begins in the header section, cut behind the empty line that ends it."""
        first = _LINE_END.match(block) if self._last in b"\r\n" else None
        found = first or _EMPTY_LINE.search(block)
        if found is None:
            return block, b""
        self._in_headers = False
        return block[: found.end()], block[found.end() :]


def _cut(data: bytes | bytearray, searched: int) -> tuple[int, bool]:
    """How much of data without an end mark is certain, and whether that ends inside a line; `searched` octets hold no
    line end that is certain."""
    # the last line end may belong to the end mark, but its dot comes first in what is kept then
    cut = data.rfind(b"\r\n", max(searched - 1, 0)) + 2
    if cut >= 2:
        return cut, False
    if len(data) <= _FLUSH:
        return 0, False
    return len(data) - data.endswith(b"\r"), True


def _mended(data: bytes) -> bytes:
    """Lone CR and LF made line ends, and a stuffed dot behind one taken away; a line of one dot stays a line."""
    return _LONE.sub(b"\r\n", _LONE_STUFFED.sub(rb"\1", data))


class DotStuffer:
    """Mail data to octets for the wire: a dot before each line that begins with one (RFC 5321 4.5.2), and the end.

    A lone CR or LF counts as a line end here: what a host takes for one must not make `.` an end of data.
    """

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last two octets sent: at the beginning we stand at the start of a line

    def feed(self, data: bytes) -> bytes:
        if not data:
            return b""
        before = self._tail[-1:]
        self._tail = (self._tail + data[-2:])[-2:]
        if not scan(data) & DOT and not (data[:1] == b"." and before in b"\r\n"):
            return data
        # the seam is looked at together with the data, so that LF . split over two pieces is seen
        return _DOT.sub(b"..", before + data)[1:]

    def end(self) -> bytes:
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
