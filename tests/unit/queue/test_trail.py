"""What is told of an attempt that several hosts have failed."""

from __future__ import annotations

import pytest

from quillon.mail import reply as replies
from quillon.mail.outcome import PermanentFailure, Stage, TransientFailure
from quillon.queue.trail import Failed, Trail

UNREACHABLE = Failed(TransientFailure(replies.CONNECT_TIMED_OUT, Stage.NOT_CONNECTED))
NO_REQUIRETLS = Failed(PermanentFailure(replies.REQUIRETLS_NEEDED, Stage.AFTER_EHLO, cause="no_requiretls"))
EXPIRED = Failed(TransientFailure(replies.CERT_EXPIRED, Stage.HANDSHAKING_TLS, cause="expired"))


@pytest.mark.parametrize("failures", [[NO_REQUIRETLS, UNREACHABLE], [UNREACHABLE, NO_REQUIRETLS]])
def test_nothing_is_over_as_long_as_one_host_may_take_it_later(failures: list[Failed]) -> None:
    trail = Trail()
    for number, failed in enumerate(failures):
        trail = trail.after(f"192.0.2.{number} 25", failed, session=True)
    assert trail.failed is UNREACHABLE


def test_a_cause_tells_more_than_none() -> None:
    trail = Trail().after("a", EXPIRED, session=True).after("b", UNREACHABLE, session=False)
    assert trail.failed is EXPIRED
    assert Trail().after("a", NO_REQUIRETLS, session=True).failed is NO_REQUIRETLS
