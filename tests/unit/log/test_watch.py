"""What an operator is told of partners' TLS, and how often."""

from __future__ import annotations

from quillon.app.alerts import Alerts
from quillon.log.watch import MOST, TlsWatch
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.alert import Alert
from quillon.mail.event import Attempted, Panic, TlsFacts
from quillon.mail.message import NULL_ID, Batch, Message, Origin, TlsDemand
from quillon.mail.outcome import Delivered, Stage, TransientFailure

BATCH = Batch(NULL_ID, Mailbox("a", "x.test"), Origin("192.0.2.9", "esmtp", NULL_ID), 0.0, 5, None)
OVER_TLS = TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, verified=True)


def attempt(
    domain: str, cause: str = "", tls: TlsFacts | None = None, *, delivered: bool = True, demand: str = "no"
) -> Attempted:
    outcome = Delivered(replies.OK) if delivered else TransientFailure(replies.TLS_FAILED, Stage.IDLE, cause=cause)
    if tls is None and delivered and cause:
        tls = TlsFacts(cause=cause)
    message = Message(NULL_ID, BATCH, Mailbox("b", domain))
    return Attempted(1.0, message, outcome, TlsDemand(demand, "no", True, ""), tls)


def seen(watch: TlsWatch, *events: Attempted) -> list[tuple[str, bool]]:
    return [(alert.key, alert.on) for event in events for alert in watch.see(event)]


def test_what_never_had_tls_is_no_news() -> None:
    watch = TlsWatch()
    assert not seen(watch, attempt("y.test"), attempt("y.test", "no_starttls"))
    assert not seen(watch, attempt("y.test", "handshake_failed", delivered=False, demand="ifavailable"))
    assert not list(watch.see(Panic(1.0, "x")))


def test_a_demand_that_fails_is_told_until_mail_goes_over_tls() -> None:
    watch = TlsWatch()
    failing = attempt("y.test", "expired", delivered=False, demand="required")
    assert seen(watch, failing, failing) == [("tls y.test expired", True)] * 2
    assert not seen(watch, attempt("y.test")), "in clear proves nothing"
    assert seen(watch, attempt("y.test", tls=OVER_TLS)) == [("tls y.test expired", False)]
    assert not seen(watch, attempt("y.test", tls=OVER_TLS))


def test_starttls_that_was_there_and_is_gone_is_news_without_a_demand() -> None:
    watch = TlsWatch()
    assert not seen(watch, attempt("y.test", tls=OVER_TLS))
    assert seen(watch, attempt("y.test")) == [("tls y.test lost", True)]
    assert seen(watch, attempt("y.test", "handshake_failed")) == [("tls y.test handshake_failed", True)]
    (alert,) = watch.see(attempt("y.test"))
    assert "went over TLSv1.3 before" in alert.text
    assert "quillon tls-probe --domain y.test" in alert.action
    assert seen(watch, attempt("y.test", tls=OVER_TLS)) == [
        ("tls y.test handshake_failed", False), ("tls y.test lost", False),
    ]  # fmt: skip


def test_an_alert_of_the_other_side_has_advice_too() -> None:
    watch = TlsWatch()
    (alert,) = watch.see(attempt("y.test", "alert_unknown_ca", delivered=False, demand="required"))
    assert "alert" in alert.action


def test_partners_are_forgotten_in_the_end() -> None:
    watch = TlsWatch()
    for number in range(MOST + 5):
        assert not seen(watch, attempt(f"y{number}.test", tls=OVER_TLS))
    assert not seen(watch, attempt("y0.test"))
    assert seen(watch, attempt(f"y{MOST}.test"))


ALERT = Alert("disk", True, "little room", "make some")
OVER = ALERT._replace(on=False)


def test_a_condition_is_told_once_again_each_hour_and_when_it_is_over() -> None:
    alerts = Alerts(3600.0)
    assert alerts.heard(1, OVER, 0) is None
    assert alerts.heard(1, ALERT, 0) == ALERT
    assert alerts.heard(2, ALERT, 1) is None
    assert alerts.heard(1, ALERT, 3599) is None
    assert alerts.heard(1, ALERT, 3600) == ALERT
    assert alerts.heard(1, ALERT, 3601) is None
    assert alerts.heard(1, OVER, 4000) is None, "another worker still sees it"
    assert alerts.current() == [ALERT]
    assert alerts.heard(2, OVER, 4000) == OVER
    assert alerts.current() == []
    assert alerts.heard(2, OVER, 4001) is None


def test_one_delivery_says_for_all_workers_that_tls_works_again() -> None:
    alerts = Alerts(3600.0)
    lost = Alert("tls y.test lost", True, "")
    alerts.heard(1, lost, 0)
    alerts.heard(2, lost, 0)
    assert alerts.heard(1, lost._replace(on=False), 1) == lost._replace(on=False)


def test_what_only_a_worker_saw_that_has_ended_is_forgotten() -> None:
    alerts = Alerts(3600.0)
    alerts.heard(1, ALERT, 0)
    alerts.heard(2, ALERT, 0)
    alerts.gone(1)
    assert alerts.current() == [ALERT]
    alerts.gone(2)
    assert alerts.current() == []
    assert alerts.heard(3, ALERT, 1) == ALERT
