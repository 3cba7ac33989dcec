"""Reports of others as they really look, and what is none."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.mail import tls_report
from quillon.standards import report_store
from quillon.standards.report_store import ReportStore
from quillon.standards.tlsrpt_received import Failure, ReportError, of_row, parse

NOW = 1_796_000_000.0  # 2026-11-29
TIMES = (NOW - 400 * 86400, NOW + 86400)


def report(**changes: Any) -> dict[str, Any]:
    policy = {"policy-type": "sts", "policy-string": ["version: STSv1"], "policy-domain": "own.test"}
    summary = {"total-successful-session-count": 5, "total-failure-session-count": 0}
    return {
        "organization-name": "Large Mail Inc.",
        "date-range": {"start-datetime": "2026-11-28T00:00:00Z", "end-datetime": "2026-11-28T23:59:59Z"},
        "contact-info": "smtp-tls-reporting@large.test",
        "report-id": "2026-11-28T00:00:00Z_own.test",
        "policies": [{"policy": policy, "summary": summary}],
        **changes,
    }


def test_what_is_below_a_domain_of_ours_is_ours() -> None:
    (known,) = report()["policies"]
    names = ["mx.own.test", "own.test", "notown.test", "test", ""]
    told = [{**known, "policy": {**known["policy"], "policy-domain": name}} for name in names]
    assert [one.domain for one in of(policies=told).policies] == ["mx.own.test", "own.test"]


def of(**changes: Any) -> Any:
    return parse(json.dumps(report(**changes)).encode(), "large.test", ["own.test"], *TIMES)


def policies(**changes: Any) -> Any:
    (known,) = report()["policies"]
    return of(policies=[{**known, **changes}]).policies


def test_a_report_without_failures() -> None:
    found = of()
    assert (found.submitter, found.day, found.end - found.begin) == ("large.test", "2026-11-28", 86399)
    assert found.policies == (("sts", "own.test", 5, 0, ()),)


@pytest.mark.parametrize(
    "changes",
    [
        {"contact-info": None},
        {"contact-info": {"mail": "x"}},
        {"organization-name": None},
        {"report-id": 4711},
        {"date-range": {"start-datetime": "2026-11-28T00:00:00.000+00:00", "end-datetime": "2026-11-28"}},
        {"policies": report()["policies"][0]},
    ],
)
def test_what_is_odd_is_taken(changes: dict[str, Any]) -> None:
    assert of(**changes).policies[0].good == 5


FAILED = {"result-type": "certificate-expired", "failed-session-count": 2, "receiving-mx-hostname": "MX.own.test."}


@pytest.mark.parametrize(
    ("details", "failures"),
    [
        (None, ()),
        ([], ()),
        (FAILED, (Failure("certificate-expired", 2, mx="mx.own.test"),)),
        ([FAILED, "x", None], (Failure("certificate-expired", 2, mx="mx.own.test"),)),
        ([{"failed-session-count": "3"}], (Failure("unknown", 3),)),
        ([{"result-type": "x\x1b[1m", "failed-session-count": -3}], (Failure("x?[1m", 0),)),
        ([{"result-type": "x", "additional-information": "why"}], (Failure("x", 0, reason="why"),)),
    ],
)
def test_failures(details: Any, failures: tuple[Failure, ...]) -> None:
    (found,) = policies(**{"failure-details": details})
    assert found.failures == failures


def test_numbers_that_are_text_or_beyond_measure() -> None:
    told = {"total-successful-session-count": "12", "total-failure-session-count": 10**40}
    (found,) = policies(summary=told)
    assert (found.good, found.bad) == (12, 10**12)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"date-range": None}, "no date-range"),
        ({"date-range": {"start-datetime": "yesterday"}}, "yesterday is no date"),
        ({"date-range": {"start-datetime": "0001-01-01T00:00:00+23:00", "end-datetime": ""}}, "is no date"),
        ({"policies": []}, "no policy"),
        ({"policies": [{"policy": {"policy-domain": ""}, "summary": {}}]}, "no policy"),
        ({"policies": [None, 4, {"policy": "sts"}]}, "no policy"),
    ],
)
def test_what_is_none(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ReportError, match=why):
        of(**changes)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*report(), "policy"]), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(list(report())), _JSON) | _JSON)
def test_whatever_comes_is_a_report_or_none(changes: Any) -> None:
    row = {**report(), **changes} if isinstance(changes, dict) else changes
    try:
        found = parse(json.dumps(row).encode(), "large.test", ["own.test"], *TIMES)
    except ReportError:
        return
    assert of_row(json.loads(json.dumps(found.row()))) == found


@given(st.binary(max_size=200), st.sampled_from(["name*0*=x", 'name="=?x?b?=', "charset=rot13", "boundary=q", ""]))
def test_a_mail_of_any_kind_is_looked_at(octets: bytes, more: str) -> None:
    for kind in ("application/tlsrpt+gzip", "multipart/report", "message/rfc822"):
        head = f"Content-Type: {kind}; {more}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode()
        for body in (octets, b"--q\r\n" + head + octets, b"--q\r\n" * 3 + octets):
            try:
                assert isinstance(tls_report.extract(head, body), bytes)
            except ValueError:
                continue


NAMED = "Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=a!b!1!2.json{}\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "body", "found"),
    [
        (NAMED.format(""), b"{}", b"{}"),
        (NAMED.format(".gz"), gzip.compress(b"{}", mtime=0), b"{}"),
        (
            'Content-Type: multipart/report; boundary="a b"\r\n\r\n',
            b"--a b\r\n\r\nx\r\n--a b\r\n%s[]\r\n--a b--",
            b"[]",
        ),
    ],
)
def test_a_report_known_by_its_name_alone(head: str, body: bytes, found: bytes) -> None:
    body = body.replace(b"%s", NAMED.format("").encode())
    assert tls_report.extract(head.encode(), body) == found


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Type: text/plain\r\n\r\n", b"{}"),
        ("Content-Type: multipart/report; boundary=q\r\n\r\n", b"hello\r\n--q\r\n" + NAMED.format("").encode() + b"{}"),
        ("Content-Type: multipart/report\r\n\r\n", b"--\r\n" + NAMED.format("").encode() + b"{}"),
        (NAMED.format("").replace("\r\n\r\n", "\r\nContent-Type: text/plain\r\n\r\n"), b"{}"),
    ],
)
def test_a_report_that_whoever_sent_it_again_put_there(head: str, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"no report|no boundary|does not begin|several fields"):
        tls_report.extract(head.encode(), body)


def test_a_store_keeps_each_report_once(tmp_path: Path) -> None:
    store, folder = ReportStore(tmp_path / "received"), tmp_path / "received"
    assert list(store.of("all")) == []
    older = of(**{"date-range": {"start-datetime": "2026-10-01", "end-datetime": "2026-10-02"}})
    assert [store.put(one, NOW) for one in (of(), of(), older)] == [True, False, True]
    assert len(list(folder.iterdir())) == 2
    (folder / "2026-11-27.0123456789abcdef0123456789abcdef.json").write_text("{")
    assert list(store.of("own.test")) == [older, of()]
    assert list(store.of("all", since="2026-11-01")) == [of()]
    assert list(store.of("other.test")) == []
    (folder / "left.new").write_text("")
    for file in folder.iterdir():
        os.utime(file, (NOW, NOW if "2026-11-28" in file.name else NOW - 100))
    assert store.remove_before(NOW - 1) == 3
    assert list(store.of("all")) == [of()]


def test_a_store_is_full_at_some_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_store, "MOST_OCTETS", 500)
    store = ReportStore(tmp_path)
    with pytest.raises(OSError, match="no more are kept"):
        for number in range(5):
            store.put(of(**{"report-id": str(number)}), NOW + 61 * number)
    assert 1 <= len(list(tmp_path.iterdir())) < 5
    assert not list(tmp_path.glob("*.new"))


def test_many_at_once_keep_a_report_once(tmp_path: Path) -> None:
    store = ReportStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: store.put(of(), NOW), range(50))) == 1
    assert len(list(tmp_path.iterdir())) == 1
