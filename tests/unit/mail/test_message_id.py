"""The printed form of message ids, by the samples of the manual."""

from hypothesis import given
from hypothesis import strategies as st

from quillon.mail.message import IdSource, MessageId


def test_samples_of_the_manual() -> None:
    assert str(MessageId(1356769421, 10012, 1)) == "10/00-10012-D88AED05"
    assert str(MessageId(1254219116, 2001, 0)) == "00/00-02001-C6DD1CA4"


@given(st.integers(0, 2**31 - 1), st.integers(0, 65535), st.integers(0, 65535))
def test_number_and_back(slot: int, pid: int, counter: int) -> None:
    one = MessageId(slot, pid, counter)
    assert MessageId.from_number(one.number) == one
    assert 0 <= one.number < 2**63


def test_no_id_comes_twice_even_when_a_second_is_used_up() -> None:
    source = IdSource(70000)
    ids = [source.next(1000.0) for _ in range(140000)]
    assert len(set(ids)) == len(ids)
    assert ids[0].pid == 70000 & 0xFFFF
