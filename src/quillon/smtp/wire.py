"""Octets of SMTP: mail data with its dots and its end, and the numbers that limit lines.

Mail data ends with CRLF.CRLF and with nothing else (RFC 5321 4.1.1.4). A CR or LF that stands alone is never a line
end: not here, and not in what is passed on, unless the configuration asks for it by name. That is what keeps one
message from being read as two by the next host.
"""

from __future__ import annotations

import re

MAX_COMMAND_LINE = 4096  # octets; RFC 5321 4.5.3.1.4 asks for 512 and more with extensions
MAX_REPLY_LINE = 4096  # octets; RFC 5321 4.5.3.1.5 asks for 512
MAX_REPLY_LINES = 200
_FLUSH = 65536  # a line longer than this is handed on in pieces

_LONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def has_lone(data: bytes) -> bool:
    """Whether a CR or an LF stands alone in `data`, which neither starts nor ends inside a CRLF."""
    pairs = data.count(b"\r\n")
    return data.count(b"\n") != pairs or data.count(b"\r") != pairs


class MailData:
    """Reads mail data: takes the dots away (RFC 5321 4.5.2), finds the end, notes lone CR and LF and long lines.

    `feed` gives what has become certain; once `complete` is true, `rest` is what came behind the end mark.
    `repair` turns lone CR and LF into CRLF.
    """

    def __init__(self, *, repair_headers: bool = False, repair_body: bool = False) -> None:
        self.complete = False
        self.rest = b""
        self.lone_in_headers = False
        self.lone_in_body = False
        self._repair = (repair_headers, repair_body)
        self._carry = b""
        self._mid_line = False
        self._in_headers = True

    def feed(self, data: bytes) -> bytes:
        """Mail data without dot-stuffing out of the octets given so far; whole lines, but for very long ones."""
        buf = self._carry + data if self._carry else data
        if not self._mid_line and buf.startswith(b".\r\n"):
            self.complete, self.rest, self._carry = True, buf[3:], b""
            return b""
        end = buf.find(b"\r\n.\r\n") + 2
        if end >= 2:
            self.complete, self.rest, self._carry = True, buf[end + 3 :], b""
            return self._plain(buf[:end])
        cut = buf.rfind(b"\r\n") + 2
        if cut >= 2:
            # the last line end may belong to the end mark, but its dot comes first in the carry then
            block, self._carry = buf[:cut], buf[cut:]
            out = self._plain(block)
            self._mid_line = False
            return out
        self._carry = buf
        if len(buf) <= _FLUSH:
            return b""
        keep = 1 if buf.endswith(b"\r") else 0
        block, self._carry = buf[: len(buf) - keep], buf[len(buf) - keep :]
        out = self._plain(block)
        self._mid_line = True
        return out

    def _plain(self, block: bytes) -> bytes:
        if not self._mid_line and block.startswith(b"."):
            block = block[1:]
        if b"\r\n." in block:
            block = block.replace(b"\r\n.", b"\r\n")
        if self._in_headers:
            block = self._headers(block)
        elif has_lone(block):
            self.lone_in_body = True
            if self._repair[1]:
                block = _LONE.sub(b"\r\n", block)
        return block

    def _headers(self, block: bytes) -> bytes:
        """A block that begins in the header section; sees where that ends."""
        end = 0 if block.startswith(b"\r\n") and not self._mid_line else block.find(b"\r\n\r\n")
        if end < 0:
            head, body = block, b""
        else:
            end += 2 if end == 0 else 4
            self._in_headers = False
            head, body = block[:end], block[end:]
        if has_lone(head):
            self.lone_in_headers = True
            if self._repair[0]:
                head = _LONE.sub(b"\r\n", head)
        if body and has_lone(body):
            self.lone_in_body = True
            if self._repair[1]:
                body = _LONE.sub(b"\r\n", body)
        return head + body


class DotStuffer:
    """Mail data to octets for the wire: a dot before each line that begins with one (RFC 5321 4.5.2), and the end."""

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last two octets sent: at the beginning we stand at the start of a line

    def feed(self, data: bytes) -> bytes:
        if not data:
            return b""
        # look at the seam together with the data, so that CR LF . split over two pieces is seen
        joined = self._tail + data
        self._tail = joined[-2:]
        if b"\r\n." in joined:
            joined = joined.replace(b"\r\n.", b"\r\n..")
        return joined[2:]

    def end(self) -> bytes:
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
