"""Mail data: dots, the end mark, lone CR and LF, at every possible cut; in both forms of what looks for them."""

import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quillon.smtp import wire as wire_module
from quillon.smtp.wire import DOT, LONE, NUL, DotStuffer, MailDataReader, scan_purely
from tests.support.peers import missing

try:
    from quillon.smtp import _octets
except ImportError:
    _octets = None  # type: ignore[assignment]


@pytest.fixture(autouse=True, scope="module", params=["pure", "compiled"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here is true of both forms."""
    if request.param == "compiled" and _octets is None:
        missing("Quillon is installed without its compiled parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire_module, "scan", scan_purely if request.param == "pure" else _octets.scan)
        yield


@given(st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"\0", b"\xff", b"x" * 239, b"\r\n" * 120])))
@example([])
@example([b"x" * 239, b"\r\n"])
@example([b"x" * 239, b"\r"])
@example([b"x" * 239, b"\n", b"."])
@example([b"\r\n" * 120, b".", b"\r\n" * 121, b"\n"])
def test_what_is_found_in_octets(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    lone = LONE if re.search(rb"\r(?!\n)|(?<!\r)\n", data) else 0
    dots = DOT if re.search(rb"[\r\n]\.", data) else 0
    assert wire_module.scan(data) == lone | dots | (NUL if b"\0" in data else 0)


_pieces = st.lists(
    st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"..", b"Subject: x", b"\r\n\r\n", b"\r\n.", b"\xff"]),
    max_size=12,
)


def _read(data: bytes, cuts: list[int]) -> tuple[bytes, MailDataReader]:
    reader = MailDataReader()
    out, last = b"", 0
    for cut in [*sorted(cuts), len(data)]:
        piece, last = data[last:cut], cut
        if reader.complete:
            reader.rest += piece
        elif piece:
            out += reader.feed(piece)
    return out, reader


@given(_pieces, st.lists(st.integers(0, 60), max_size=8))
@example([b".", b"\r\n"], [1])
def test_what_is_stuffed_comes_back_at_any_cut(pieces: list[bytes], cuts: list[int]) -> None:
    body = b"".join(pieces)
    stuffer = DotStuffer()
    half = len(body) // 2
    wire = stuffer.feed(body[:half]) + stuffer.feed(body[half:]) + stuffer.end() + b"QUIT\r\n"
    out, reader = _read(wire, [min(cut, len(wire)) for cut in cuts])
    assert reader.complete
    assert reader.rest == b"QUIT\r\n"
    expected = body if not body or body.endswith(b"\r\n") else body + b"\r\n"
    # a dot behind a lone CR or LF got one more: what takes that for a line end takes the dot away again
    assert out == re.sub(rb"((?<!\r)\n|\r)\.", rb"\1..", expected)
    lenient = re.split(rb"\r\n|\r|\n", wire[: -len(b".\r\nQUIT\r\n")])
    assert b"." not in lenient


@given(_pieces, st.lists(st.integers(0, 60), max_size=8))
def test_any_cut_gives_what_no_cut_gives(pieces: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(pieces) + b"\r\n.\r\nrest"
    whole, one = _read(wire, [])
    cut, other = _read(wire, [min(c, len(wire)) for c in cuts])
    assert (whole, one.rest) == (cut, other.rest)
    assert (one.lone_in_headers or one.lone_in_body) == (other.lone_in_headers or other.lone_in_body)


@pytest.mark.parametrize("end", [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r"])
def test_no_other_sequence_ends_mail_data(end: bytes) -> None:
    reader = MailDataReader()
    reader.feed(b"Subject: x\r\n\r\nhello" + end + b"MAIL FROM:<evil@x.test>\r\n")
    assert not reader.complete
    reader.feed(b"\r\n.\r\n")
    assert reader.complete
    assert reader.lone_in_body


def test_where_a_lone_line_feed_stands_is_told() -> None:
    reader = MailDataReader()
    reader.feed(b"Subject: x\ny: z\r\n\r\nbody\r\n.\r\n")
    assert reader.lone_in_headers
    assert not reader.lone_in_body


@pytest.mark.parametrize(
    ("data", "lone"),
    [
        (b"A: b\nC: d\n\nbody\nx\r\n", (True, True)),
        (b"A: b\r\n\nbody\r\n", (True, False)),
        (b"A: b\n\r\nx\ny\r\n", (True, True)),
        (b"A: b\r\n\r\nx\ny\r\n", (False, True)),
        (b"\nbody\r\n", (True, False)),
        (b"\r\nbo\ndy\r\n", (False, True)),
        (b"A: b\rC: d\r\rbody\r\n", (True, False)),
    ],
)
def test_the_header_ends_at_the_first_empty_line(data: bytes, lone: tuple[bool, bool]) -> None:
    """A repair of the header section mends no body, and the other way round."""
    for at in range(len(data)):
        reader = MailDataReader()
        reader.feed(data[:at])
        reader.feed(data[at:] + b".\r\n")
        assert (reader.lone_in_headers, reader.lone_in_body) == lone, at


@given(_pieces)
def test_what_is_repaired_is_sound(pieces: list[bytes]) -> None:
    reader = MailDataReader(repair_headers=True, repair_body=True)
    out = reader.feed(b"".join(pieces) + b"\r\n.\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", out)


def test_lines_of_a_client_that_ends_them_with_lf_alone() -> None:
    """As curl without --crlf sends them, stuffed: the header section ends, and the stuffing goes."""
    reader = MailDataReader(repair_headers=True, repair_body=True)
    assert reader.feed(b"A: b\n\none\n..two\n.\nthree\n\r\n.\r\n") == b"A: b\r\n\r\none\r\n.two\r\n.\r\nthree\r\n\r\n"


def test_mail_data_octet_by_octet_take_no_longer() -> None:
    def cost(size: int) -> float:
        reader, begun = MailDataReader(), time.process_time()
        for _ in range(size):
            reader.feed(b"x")
        return time.process_time() - begun

    cost(1000)
    assert cost(60_000) < 10 * max(cost(15_000), 0.01)  # it was the square: 16 times


def test_repair() -> None:
    reader = MailDataReader(repair_headers=True, repair_body=True)
    out = reader.feed(b"A: b\nC: d\r\n\r\none\ntwo\rthree\r\n.\r\n")
    assert out == b"A: b\r\nC: d\r\n\r\none\r\ntwo\r\nthree\r\n"


def test_a_very_long_line_is_handed_on_in_pieces() -> None:
    reader = MailDataReader()
    out = b"".join(reader.feed(b"x" * 50000) for _ in range(4)) + reader.feed(b"\r\n..end\r\n.\r\n")
    assert out == b"x" * 200000 + b"\r\n.end\r\n"
    assert reader.complete
