"""Time stamps: a response of any kind is put into order, or left alone."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from quillon.evidence.stamp import in_order


def der(tag: int, *contents: bytes) -> bytes:
    body = b"".join(contents)
    size = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2)
    return bytes([tag]) + size + body


def response(*certificates: bytes) -> bytes:
    signed = der(0x30, der(0x02, b"\3"), der(0x31), der(0x30), der(0xA0, *certificates), der(0x31, b"..."))
    return der(0x30, der(0x30, der(0x02, b"\0")), der(0x30, der(0x06, b"\x2a"), der(0xA0, signed)))


def test_certificates_come_into_order() -> None:
    one, other = der(0x30, b"a" * 200), der(0x30, b"b" * 10)
    assert in_order(response(one, other)) == in_order(response(other, one)) == response(other, one)
    assert in_order(response(one)) == response(one)


@given(st.binary(max_size=100) | st.integers(0, 200).map(lambda size: response(der(0x30, b"a" * 40))[:size]))
@example(der(0x30, der(0x30)))
@example(b"0\x85")
def test_what_is_no_response_is_left_alone(octets: bytes) -> None:
    assert in_order(octets) == octets
