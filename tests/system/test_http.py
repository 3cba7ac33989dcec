"""HTTP of a running server: metrics and health, pages, orders, and mail in."""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from quillon.lab.pki import Authority
from quillon.log import metrics
from tests.support.clients import MESSAGE
from tests.support.peers import require
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

ROOT = Path(__file__).parents[2]
ANN = ("ann", "secret")
ONE = {"sender": "a@shop.test", "recipients": ["b@other.test"], "subject": "Hello", "text": "Some text\n"}


class Served:
    """Two workers; mail for other.test goes to a sink, mail for held.test waits. Users are in a file."""

    def __init__(self, folder: Path, make: Callable[..., Server], http: str = "", more: str = "") -> None:
        self.folder = folder
        self.port, self.smtp = free_port(), free_port()
        self.other = SinkThread()
        (folder / "users").write_text("ann:secret\nbob:other\n")
        self.http = http or f'AuthPlainParameters = [ uri = "file://{folder}/users" ]'
        self.server = make(self.text(more), workers=2).start()
        self.url = f"http://127.0.0.1:{self.port}"

    def text(self, more: str = "") -> str:
        return f"""
        HTTP_Listener {{ Listen "127.0.0.1:{self.port}" {{ }} {self.http} }}
        Control_Listener {{ Listen "{self.folder}/console" {{ }} }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{self.smtp}" {{ }} }}
        Domain "other.test" {{ Gateway = "127.0.0.1:{self.other.port}" }}
        Domain "held.test" {{ Suspend_Delivery = true }}
        {more}"""

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, **{"auth": ANN, "timeout": 60, **more})

    def post(self, path: str, given: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=given, **{"auth": ANN, "timeout": 60, **more})

    def received(self, count: int = 1) -> list[EmailMessage]:
        until(lambda: len(self.other.messages) >= count, f"{count} messages")
        parsed = [email.message_from_bytes(m.data, policy=email.policy.default) for m in self.other.messages]
        assert all(isinstance(message, EmailMessage) for message in parsed)
        return parsed


@pytest.fixture
def served(tmp_path: Path, server: Callable[..., Server]) -> Iterator[Served]:
    made = Served(tmp_path, server)
    yield made
    made.other.stop()


def series(text: str) -> dict[str, float]:
    """Prometheus' text format, read strictly."""
    found, typed = dict[str, float](), set[str]()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("counter", "gauge", "histogram")
            typed |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
        elif not line.startswith("# HELP "):
            match = re.fullmatch(r'([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*\})? (-?[0-9.e+]+)', line)
            assert match is not None, line
            assert match[1] in typed
            found[f"{match[1]}{match[2] or ''}"] = float(match[3])
    return found


def test_metrics_tell_what_waits(served: Served) -> None:
    before = series(served.get("/metrics").text)
    assert before["quillon_workers"] == 2
    assert served.post("/api/v1/messages", {**ONE, "recipients": ["b@held.test", "c@held.test"]}).status_code == 202
    found = series(served.get("/metrics").text)
    assert found['quillon_queue_messages{state="active"}'] == 2
    assert found['quillon_receptions_total{version="none",verified="none",level="none"}'] == 2
    assert found["quillon_spool_free_bytes"] > 1 << 20
    assert found["quillon_spool_refusing"] == 0
    assert found['quillon_queue_destinations{state="suspended"}'] == 1
    assert found['quillon_binding_receptions_total{binding="default/default"}'] == 2
    assert found['quillon_commit_seconds_count{what="spool log"}'] >= 1
    assert found['quillon_commit_seconds_bucket{what="spool log",le="+Inf"}'] >= 1


@pytest.mark.peer
def test_prometheus_takes_the_metrics_and_its_rules_hold(served: Served, tmp_path: Path) -> None:
    served.post("/api/v1/messages", {**ONE, "recipients": ["b@other.test", "c@held.test"]})
    served.received()
    text = served.get("/metrics").text
    checked = subprocess.run(
        [require("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rules = ROOT / "examples/monitoring/rules.yml"
    subprocess.run([require("promtool"), "check", "rules", rules], check=True, capture_output=True)
    port = free_port()
    user, password = ANN
    (tmp_path / "prometheus.yml").write_text(
        f"""global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [ "{rules}" ]
scrape_configs:
  - job_name: quillon
    basic_auth: {{ username: {user}, password: {password} }}
    static_configs: [ {{ targets: [ "127.0.0.1:{served.port}" ] }} ]
"""
    )
    command = [
        require("prometheus"),
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
    ]
    command.append(f"--web.listen-address=127.0.0.1:{port}")

    def ask(path: str, **words: str) -> Any:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/{path}", params=words, timeout=10)
            return answer.json().get("data") if answer.status_code == 200 else None

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as prometheus:
        try:
            query = 'quillon_domain_attempts_total{domain="other.test",outcome="delivered"}'
            found = until(lambda: (ask("query", query=query) or {}).get("result"), "a scrape")
            assert found[0]["value"][1] == "1"
            asked = until(lambda: (ask("rules") or {}).get("groups"), "rules")[0]["rules"]
            until(lambda: all(rule["health"] == "ok" for rule in ask("rules")["groups"][0]["rules"]), "rules that hold")
            assert len(asked) == len(yaml.safe_load(rules.read_text())["groups"][0]["rules"])
            dashboard = json.loads((ROOT / "examples/monitoring/dashboard.json").read_text())
            for target in (target for panel in dashboard["panels"] for target in panel["targets"]):
                assert ask("query", query=target["expr"]) is not None, target
        finally:
            prometheus.terminate()


def test_health_is_told_to_everybody_and_readiness_knows_the_disk(served: Served) -> None:
    for path in ("/healthz", "/readyz"):
        answer = httpx.get(served.url + path)
        assert (answer.status_code, answer.text) == (200, "ok\n")
    served.server.configure(served.text("Spool_Minimum_Free_Space = 900000000000"), workers=2)
    assert served.post("/api/v1/commands", {"command": "config reload"}).json() == {
        "result": "configuration reloaded\n"
    }
    assert httpx.get(served.url + "/healthz").status_code == 200
    assert httpx.get(served.url + "/readyz").status_code == 503
    refused = served.post("/api/v1/messages", ONE)
    assert refused.status_code == 503
    assert refused.json()["results"][0]["code"] == 452


def test_a_message_comes_in_as_json(served: Served) -> None:
    picture = base64.b64encode(bytes(range(256))).decode()
    given = {
        **ONE,
        "from": "Anna Müller <a@shop.test>",
        "to": ["Bärbel <b@other.test>"],
        "cc": ["c@other.test"],
        "reply_to": "office@shop.test",
        "text": "Grüße\n.\nein Punkt\n",
        "html": "<p>Grüße</p>",
        "headers": {"X-Campaign": "spring"},
        "attachments": [{"name": "ä.bin", "type": "application/octet-stream", "data": picture}],
    }
    answer = served.post("/api/v1/messages", given)
    assert answer.status_code == 202
    (result,) = answer.json()["results"]
    assert (result["code"], result["recipients"]) == (250, ["b@other.test"])
    (message,) = served.received()
    assert message["Subject"] == "Hello"
    assert message["From"].addresses[0].display_name == "Anna Müller"
    assert message["X-Campaign"] == "spring"
    assert message["Received"].split("with ")[1].startswith("HTTP")
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content() == "Grüße\r\n.\r\nein Punkt\r\n"
    (attached,) = message.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == ("ä.bin", bytes(range(256)))
    assert message["Message-ID"]
    (reception,) = served.server.events("reception")
    assert (reception["batch_id"], reception["protocol"]) == (result["id"], "http")


def test_recipients_get_their_own_words(served: Served) -> None:
    recipients = [
        {"address": "b@other.test", "substitutions": {"name": "Bob"}},
        {"address": "c@other.test", "substitutions": {"name": "Carol"}},
        "d@other.test",
        "e@other.test",
    ]
    answer = served.post("/api/v1/messages", {**ONE, "recipients": recipients, "text": "Dear {{name}}"})
    assert [result["recipients"] for result in answer.json()["results"]] == [
        ["b@other.test"], ["c@other.test"], ["d@other.test", "e@other.test"],
    ]  # fmt: skip
    texts = sorted(message.get_content().strip() for message in served.received(3))
    assert texts == ["Dear Bob", "Dear Carol", "Dear {{name}}"]


def test_a_message_comes_in_as_it_is(served: Served) -> None:
    query = {"sender": "a@shop.test", "recipient": ["b@other.test", "c@other.test"]}
    data = MESSAGE.replace("\r\n", "\n").encode() + b"8 bit: \xc3\xa4\n.\n..\n\n\n"
    answer = httpx.post(
        f"{served.url}/api/v1/messages", params=query, content=data, auth=ANN,
        headers={"Content-Type": "message/rfc822"},
    )  # fmt: skip
    assert answer.status_code == 202, answer.text
    until(lambda: served.other.messages, "the message")
    (caught,) = served.other.messages
    assert [str(one) for one in caught.recipients] == query["recipient"]
    assert caught.data.endswith(b"8 bit: \xc3\xa4\r\n.\r\n..\r\n")


def test_a_large_message_goes_through_a_file(served: Served) -> None:
    text = ("x" * 70 + "\n") * 60000
    assert served.post("/api/v1/messages", {**ONE, "text": text}).status_code == 202
    (message,) = served.received()
    assert message.get_content() == text.replace("\n", "\r\n")


NO_MESSAGE: list[tuple[Any, int, str]] = [
    ([], 202, ""),
    ("text", 400, "an object is expected"),
    ({**ONE, "recipients": []}, 400, "recipients: a list"),
    ({**ONE, "recipients": "b@other.test"}, 400, "recipients: a list"),
    ({**ONE, "recipients": [7]}, 400, "recipients: an address, or"),
    ({**ONE, "recipients": [{"address": "b@x.test", "substitutions": 1}]}, 400, "substitutions: an object"),
    ({**ONE, "bcc": ["x@y.test"]}, 400, "unknown: bcc; known: "),
    ({**ONE, "subject": "a\r\nBcc: x@y.test"}, 400, "Header values may not contain linefeed"),
    ({**ONE, "headers": {"X-A": "a\nB: c"}}, 400, "Header values may not contain linefeed"),
    ({**ONE, "headers": {"X A": "a"}}, 400, "headers: 'X A' is no name"),
    ({**ONE, "headers": {"Content-Type": "a"}}, 400, "not for you to set"),
    ({**ONE, "headers": ["X"]}, 400, "headers: an object"),
    ({**ONE, "text": 7}, 400, "text: a text is expected"),
    ({**ONE, "attachments": [{"name": "x"}]}, 400, "attachments: "),
    ({**ONE, "attachments": [{"name": "x", "type": "a/b", "data": "!"}]}, 400, "not base64"),
    ({**ONE, "attachments": [{"name": "x", "type": "pdf", "data": ""}]}, 400, "no media type"),
    ({**ONE, "recipients": ["no address"]}, 422, "not an address"),
    ({**ONE, "sender": "a b@x.test", "from": "a@x.test"}, 422, "not an address"),
]


def test_what_is_no_message_is_refused_in_words(served: Served) -> None:
    for given, status, words in NO_MESSAGE:
        answer = served.post("/api/v1/messages", given)
        assert answer.status_code == status, (given, answer.text)
        assert words in answer.text.replace('\\"', '"')
        if status == 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 400
    assert httpx.get(served.url + "/healthz").status_code == 200


INJECTION = "=?utf-8?q?Hi=0D=0ABcc:_evil@x.test=0D=0A=0D=0Abody?="


def test_no_value_becomes_a_field_or_a_body_of_its_own(served: Served) -> None:
    named = {"address": "b@other.test", "substitutions": {"n": INJECTION}}
    for given in (
        {**ONE, "subject": INJECTION},
        {**ONE, "headers": {"X-A": INJECTION}},
        {**ONE, "headers": {"List-Unsubscribe": INJECTION}},
        {**ONE, "headers": {"Message-ID": INJECTION}},
        {**ONE, "from": f"{INJECTION} <a@x.test>"},
        {**ONE, "reply_to": f"{INJECTION} <a@x.test>"},
        {**ONE, "to": [f"{INJECTION} <a@x.test>"]},
        {**ONE, "subject": "Hello {{n}}", "recipients": [named]},
        *(
            {**ONE, "attachments": [{"name": name, "type": kind, "data": "aGk="}]}
            for name, kind in (
                (INJECTION, "text/plain"),
                ("a\r\nX: y", "text/plain"),
                ("a\u2028b", "text/plain"),
                ("a" * 300, "text/plain"),
                ("a", f"text/{INJECTION}"),
                ("a", "text/plain; name=b"),
                ("a", "multipart/mixed"),
                ("a", "message/rfc822"),
            )
        ),
        {**ONE, "subject": "a\u2028b"},
        {**ONE, "subject": "{{n}}", "recipients": [{"address": "b@x.test", "substitutions": {"n": "é" * 16000}}]},
        {**ONE, "subject": "a\x1b[31m"},
        {**ONE, "subject": "x" * 3000},
        {**ONE, "headers": {"X-A": "x" * 3000}},
        {**ONE, "to": [f"b{n}@x.test" for n in range(60)]},
        {**ONE, "recipients": [f"{'b' * 60}{n}@other.test" for n in range(9000)]},
    ):
        answer = served.post("/api/v1/messages", given)
        assert answer.status_code == 400, (given, answer.text)
    text = {**ONE, "text": "{{a}}" * 2, "recipients": [{**named, "substitutions": {"a": "{{b}}", "b": "secret"}}]}
    assert served.post("/api/v1/messages", text).status_code == 202
    assert served.received()[0].get_content().strip() == "{{b}}{{b}}"
    bomb = {f"k{n}": f"{{{{k{n + 1}}}}}" * 4 for n in range(14)}
    assert served.post("/api/v1/messages", {**ONE, "text": "{{k0}}", "recipients": [
        {"address": "b@other.test", "substitutions": bomb}]}).status_code == 202  # fmt: skip


def test_many_recipients_are_not_shown_to_each_other(served: Served) -> None:
    many = {**ONE, "recipients": [f"b{n}@other.test" for n in range(60)]}
    assert served.post("/api/v1/messages", many).status_code == 202
    assert served.received()[0]["To"] == "undisclosed-recipients:;"


def test_other_contents_and_sizes_are_refused(served: Served) -> None:
    url = f"{served.url}/api/v1/messages"
    assert httpx.post(url, content=b"{", auth=ANN, headers={"Content-Type": "application/json"}).status_code == 400
    assert httpx.post(url, content=b"x", auth=ANN, headers={"Content-Type": "text/plain"}).status_code == 415
    raw = {"Content-Type": "message/rfc822"}
    assert httpx.post(f"{url}?sender=a@x.test", content=b"x", auth=ANN, headers=raw).status_code == 400
    query = "?sender=a@x.test&recipient=b@other.test"
    assert httpx.post(url + query, content=b"a: b\r\n\r\n\0", auth=ANN, headers=raw).status_code == 400
    assert httpx.post(url + query, content=b"x" * (65 << 20), auth=ANN, headers=raw, timeout=60).status_code == 413
    assert served.get("/api/v1/nothing").status_code == 404
    assert httpx.put(url, auth=ANN).status_code == 405


RULES = """
def validate_mailfrom(session):
    if session.message_context["mailfrom_domain"] == "spam.test":
        session.reject(550, "5.7.1 not from there")

def validate_rcptto(session, message):
    if session.message_context["rcptto_localpart"] == "nobody":
        session.reject(550, "5.1.1 no such user")

def validate_data(session, message):
    if session.message_context.get("mailfrom_localpart") == "data":
        session.reject(550, "5.7.1 not by us")
"""


def test_policy_rules_mail_that_comes_by_http(tmp_path: Path, server: Callable[..., Server]) -> None:
    (tmp_path / "rules.py").write_text(RULES)
    made = Served(tmp_path, server, more=f'policy "rules" {{ module = "{tmp_path}/rules.py" }}')
    try:
        for sender, recipients, status, code in (
            ("a@spam.test", ["b@other.test"], 422, 550),
            ("a@x.test", ["nobody@other.test"], 422, 550),
            ("data@x.test", ["b@other.test"], 422, 550),
            ("a@x.test", ["nobody@other.test", "b@other.test"], 202, 250),
        ):
            answer = made.post("/api/v1/messages", {**ONE, "sender": sender, "recipients": recipients})
            result = answer.json()["results"][0]
            assert (answer.status_code, result["code"]) == (status, code), (sender, recipients, answer.text)
        assert result["refused"] == {"nobody@other.test": "550 5.1.1 no such user"}
        made.received()
        assert [str(one) for one in made.other.messages[0].recipients] == ["b@other.test"]
    finally:
        made.other.stop()


def test_limits_rule_mail_that_comes_by_http(served: Served) -> None:
    served.http += " Max_Message_Size = 10000 Max_Recipients_Per_Message = 3"
    served.server.configure(served.text(), workers=2)
    assert served.post("/api/v1/commands", {"command": "config reload"}).status_code == 200
    large = served.post("/api/v1/messages", {**ONE, "text": "x" * 20000})
    assert (large.status_code, large.json()["results"][0]["code"]) == (422, 552)
    many = served.post("/api/v1/messages", {**ONE, "recipients": [f"b{n}@other.test" for n in range(4)]})
    assert (many.status_code, many.json()["results"][0]["code"]) == (503, 452)
    assert served.post("/api/v1/messages", ONE).status_code == 202


def test_the_same_key_is_the_same_message(served: Served) -> None:
    answers = [
        served.post("/api/v1/messages", ONE, headers={"Idempotency-Key": key}, auth=auth).json()["results"][0]["id"]
        for key, auth in (("one", ANN), ("one", ANN), ("two", ANN), ("one", ("bob", "other")))
    ]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3
    served.received(3)
    time.sleep(0.5)
    assert len(served.other.messages) == 3


def test_a_key_is_that_of_one_request_and_what_was_not_taken_is_tried_again(served: Served) -> None:
    key = {"Idempotency-Key": "k"}
    batch = [ONE, {**ONE, "recipients": ["no address"]}]
    first = served.post("/api/v1/messages", batch, headers=key)
    assert [one["code"] for one in first.json()["results"]] == [250, 553]
    again = served.post("/api/v1/messages", batch, headers=key)
    assert again.json() == first.json()
    other = served.post("/api/v1/messages", ONE, headers=key)
    assert other.status_code == 400
    assert "was that of another request" in other.text
    with ThreadPoolExecutor(4) as pool:
        together = [
            pool.submit(served.post, "/api/v1/messages", ONE, headers={"Idempotency-Key": "t"}) for _ in range(4)
        ]
        assert len({one.result().json()["results"][0]["id"] for one in together}) == 1
    served.received(2)
    time.sleep(0.5)
    assert len(served.other.messages) == 2


def test_what_was_refused_for_now_is_tried_again_by_its_key(served: Served) -> None:
    key = {"Idempotency-Key": "k"}
    served.server.configure(served.text("Spool_Minimum_Free_Space = 900000000000"), workers=2)
    served.server.reload()
    until(lambda: httpx.get(served.url + "/readyz").status_code == 503, "no room")
    assert served.post("/api/v1/messages", ONE, headers=key).status_code == 503
    served.server.configure(served.text(), workers=2)
    served.server.reload()
    until(lambda: httpx.get(served.url + "/readyz").status_code == 200, "room")
    assert served.post("/api/v1/messages", ONE, headers=key).status_code == 202


def test_a_reload_leaves_connections_alone(served: Served) -> None:
    with httpx.Client(auth=ANN, timeout=30) as client, client.stream("GET", f"{served.url}/events") as events:
        lines = events.iter_lines()
        assert next(lines).startswith("data: ")
        served.server.reload()
        until(lambda: any(e["text"] == "configuration reloaded" for e in served.server.events("notice")), "a reload")
        for _ in range(4):
            next(lines)


def test_nobody_says_for_others_where_he_comes_from(served: Served) -> None:
    for forged in ("203.0.113.9", "evil"):
        answer = served.post("/api/v1/messages", ONE, headers={"X-Forwarded-For": forged})
        assert answer.status_code == 202
    assert all("[127.0.0.1]" in message["Received"] for message in served.received(2))


def test_requests_that_are_no_commands_of_ours_are_cheap(served: Served) -> None:
    begun = time.monotonic()
    url = f"{served.url}/api/v1/commands"
    assert served.post("/api/v1/commands", {"command": "find --sender " + "x" * 6000}).status_code == 400
    assert served.post("/api/v1/commands", {"command": "x " * 500_000}).status_code == 413
    nested = b"[" * 10000
    assert httpx.post(url, content=nested, auth=ANN).status_code == 400
    assert served.post(
        "/api/v1/messages", {**ONE, "text": "x"}, headers={"Content-Type": "application/json"}
    ).is_success
    raw = {"Content-Type": "application/json"}
    assert (
        httpx.post(f"{served.url}/api/v1/messages", content=b"[" * 2_000_000, auth=ANN, headers=raw).status_code == 400
    )
    fields = {f"f{n}": "x" for n in range(30)}
    assert httpx.post(f"{served.url}/order", data=fields, auth=ANN).status_code == 400
    assert httpx.post(f"{served.url}/order", data={"token": "ü"}, auth=ANN).status_code == 403
    assert time.monotonic() - begun < 20


def test_silent_connections_keep_nobody_out(served: Served) -> None:
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(300)]
    try:
        console = [sys.executable, "-m", "quillon", "console", "--socket", f"{served.folder}/console", "pid"]
        assert subprocess.run(console, capture_output=True, text=True, check=True).stdout.strip().isdigit()
        until(lambda: _answers(f"{served.url}/healthz"), "HTTP again", 40)
    finally:
        for sock in silent:
            sock.close()


def test_what_a_message_holds_does_nothing_to_a_terminal(served: Served) -> None:
    given = {**ONE, "recipients": ["b@held.test"], "text": "red \x1b[31m"}
    number = served.post("/api/v1/messages", given).json()["results"][0]["id"]
    row = served.get(f"/api/v1/messages/{number}").json()["items"][0]
    answer = served.post(
        "/api/v1/commands", {"command": f"message details body {row['id']}"}, headers={"Accept": "text/plain"}
    )
    assert "red" in answer.text
    assert "\x1b" not in answer.text


def test_what_was_answered_outlives_the_workers(served: Served) -> None:
    ids = [
        served.post("/api/v1/messages", {**ONE, "recipients": [f"b{n}@held.test"]}).json()["results"][0]["id"]
        for n in range(20)
    ]
    for pid in served.server.workers():
        os.kill(pid, signal.SIGKILL)
    until(lambda: httpx.get(served.url + "/healthz", timeout=30).status_code == 200, "workers")

    def all_there() -> bool:
        found = served.get("/api/v1/messages", params={"all": ""}).json()
        return {row["batch"] for row in found["items"]} == set(ids)

    until(all_there, "all messages")
    state = served.get(f"/api/v1/messages/{ids[0]}").json()
    assert state["total"] == 1
    assert "suspended by the configuration" in state["reasons"][0]["words"]
    assert state["reasons"][0]["place"]
    assert served.get("/api/v1/messages/53/6B-18426-1AAEACF3").status_code == 404
    assert served.get("/api/v1/queues").json()["active"] == 20


def test_who_does_not_say_who_he_is_gets_nothing(served: Served) -> None:
    for auth in (None, ("ann", "wrong"), ("eve", "secret"), ("", "")):
        for path in ("/", "/metrics", "/queues", "/events", "/api/v1/queues", "/api/v1/openapi.json"):
            answer = httpx.get(served.url + path, auth=auth)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")
        assert served.post("/api/v1/messages", ONE, auth=auth).status_code == 401
    assert httpx.get(served.url + "/", headers={"Authorization": "Basic !"}).status_code == 400
    assert httpx.get(served.url + "/", headers={"Authorization": "Bearer x"}).status_code == 401
    (served.folder / "users").write_text("ann:new\n")
    until(lambda: served.get("/").status_code == 401, "the old password is none")
    assert served.get("/", auth=("ann", "new")).status_code == 200
    (served.folder / "users").unlink()
    until(lambda: served.get("/", auth=("ann", "new")).status_code == 503, "nobody can be looked up")


def test_other_pages_cannot_send_orders(served: Served) -> None:
    order = {"command": "suspend --all"}
    for headers in ({"Origin": "https://evil.test"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert served.post("/api/v1/commands", order, headers=headers).status_code == 403
        assert served.post("/api/v1/messages", ONE, headers=headers).status_code == 403
    assert httpx.post(f"{served.url}/order", data=order, auth=ANN).status_code == 403
    token = re.search(r'name="token" value="([0-9a-f]+)"', served.get("/domain/held.test").text)
    assert token is not None
    assert (
        httpx.post(f"{served.url}/order", data={**order, "token": token[1]}, auth=("bob", "other")).status_code == 403
    )
    assert httpx.post(f"{served.url}/order", data={**order, "token": token[1]}, auth=ANN).status_code == 200
    assert "ann" in served.get("/").text
    for path in ("/", "/static/app.js"):
        assert "frame-ancestors 'none'" in served.get(path).headers["content-security-policy"]


def test_pages_show_what_waits_and_orders_ask_first(served: Served) -> None:
    served.post("/api/v1/messages", {**ONE, "recipients": ["b@held.test"], "sender": "<script>@x.test"})
    served.post("/api/v1/messages", {**ONE, "recipients": ["b@held.test"]})
    assert '<dd id="figure-active">1</dd>' in served.get("/").text
    assert '<a href="/domain/held.test">held.test</a>' in served.get("/queues").text
    assert served.get("/queues", params={"domain": "held.test"}, follow_redirects=False).headers["location"] == (
        "/domain/held.test"
    )
    page = served.get("/domain/held.test").text
    assert "delivery is suspended by the configuration" in page
    assert "ecelerity.conf:" in page
    link = re.search(r'href="(/message/[^"]+)"', page)
    assert link is not None
    assert "b@held.test" in served.get(link[1]).text
    assert served.get("/message/53/6B-18426-1AAEACF3").status_code == 400

    def form(page: str, label: str) -> dict[str, str]:
        (found,) = [f for f in re.findall(r"(?s)<form method=.*?</form>", page) if label in f]
        return {name: value.replace("&#39;", "'") for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', found)}

    asked = httpx.post(f"{served.url}/order", data=form(page, "Fail all"), auth=ANN)
    assert "<strong>1</strong> messages would be failed" in asked.text
    assert served.get("/api/v1/queues").json()["active"] == 1
    done = httpx.post(f"{served.url}/order", data=form(asked.text, "Yes, do it"), auth=ANN)
    assert "1 messages failed." in done.text
    assert "Nothing is queued" in served.get("/domain/held.test").text
    noted = [event["text"] for event in served.server.events("notice")]
    assert any(text.startswith("console: ann: fail --domain held.test --yes: 1 messages") for text in noted)


def test_the_configuration_is_explained_with_places(served: Served) -> None:
    page = served.get("/configuration", params={"domain": "held.test"}).text
    assert "suspend_delivery" in page
    assert re.search(r'class="place">[^<]*ecelerity.conf:\d+:\d+</span> Domain &#34;held.test&#34;', page), page
    page = served.get("/configuration", params={"domain": "other.test", "option": "nothing_of_this_name"}).text
    assert "no option matches" in page
    found = served.post("/api/v1/commands", {"command": "config explain other.test"}).json()["result"]
    assert found["goes_to"] == f"127.0.0.1:{served.other.port}"
    said = served.post("/api/v1/commands", {"command": "config explain held.test tls_verify"}).json()["result"]
    assert said["options"][0]["value"] == "no"
    assert said["options"][0]["set_at"] is None


def test_a_listener_that_asks_nobody_lets_people_look(tmp_path: Path, server: Callable[..., Server]) -> None:
    made = Served(tmp_path, server, http="Idle_Time = 300")
    try:
        for path in ("/", "/metrics", "/queues", "/configuration", "/certificates", "/api/v1/queues"):
            assert made.get(path, auth=None).status_code == 200
        assert made.post("/api/v1/messages", ONE, auth=None).status_code == 403
        for command in ("flush domain x.test", "config reload", "suspend --all"):
            assert made.post("/api/v1/commands", {"command": command}, auth=None).status_code == 403
        assert made.get("/", auth=None, headers={"Host": "rebound.evil.test"}).status_code == 421
        assert made.get("/", auth=None, headers={"Host": "localhost"}).status_code == 200
    finally:
        made.other.stop()


def test_certificates_say_who_it_is_and_the_console_comes_over_tls(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    authority = Authority(tmp_path / "pki")
    authority.write()
    authority.issue("mx", ["127.0.0.1"])
    authority.issue("carol", ["carol"])
    pki = tmp_path / "pki"
    both = pki / "both.pem"
    both.write_bytes((pki / "carol.pem").read_bytes() + (pki / "carol.key").read_bytes())
    groups = tmp_path / "groups"
    groups.write_text("operate:carol\n")
    made = Served(
        tmp_path,
        server,
        http=f"""TLS_Certificate = {pki}/mx.pem TLS_Key = {pki}/mx.key TLS_Client_CA = {pki}/ca.pem
        TLS_Verified_Peer_Is_Authorized = true
        Enable_Authorization = true AuthorizationParameters = [ uri = "groups://{groups}" ]""",
    )
    try:
        trust = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        url = f"https://127.0.0.1:{made.port}"
        with httpx.Client(verify=trust) as client:
            assert client.get(f"{url}/healthz").status_code == 200
            assert client.get(f"{url}/").status_code == 401
        trust.load_cert_chain(both)
        with httpx.Client(verify=trust) as client:
            assert "carol, " in client.get(f"{url}/").text
            assert client.post(f"{url}/api/v1/messages", json=ONE).status_code == 202
        made.received()
        command = [
            sys.executable,
            "-m",
            "quillon",
            "console",
            "--url",
            url,
            "--cert",
            str(both),
            "--ca",
            f"{pki}/ca.pem",
        ]

        def say(*words: str) -> str:
            done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
            return done.stdout + done.stderr

        assert say("whoami") == "carol, with the roles carol, operate\n"
        assert say("flush", "domain", "all") == "All domains flushed.  0 messages requeued.\n"
        assert say("config", "reload") == "quillon console: Not Authorized for this command\n"
        assert json.loads(say("--json", "mailq"))["result"]["active"] == 0
        assert "CERTIFICATE_VERIFY_FAILED" in say("--ca", "/etc/ssl/certs/ca-certificates.crt", "pid")
        before = ssl.get_server_certificate(("127.0.0.1", made.port))
        authority.issue("mx", ["127.0.0.1"])
        made.server.reload()
        until(lambda: ssl.get_server_certificate(("127.0.0.1", made.port)) != before, "the new certificate")
    finally:
        made.other.stop()


@pytest.mark.parametrize(
    ("stanza", "words"),
    [
        ('Listen ":8080" { }', "it needs TLS_Certificate, or an address such as 127.0.0.1"),
        ('Listen "192.0.2.1:8080" { TLS_Certificate = PKI/mx.pem TLS_Key = PKI/mx.key }', "say who may use it with"),
        ('Listen "127.0.0.1:8080" { AuthPlainParameters = [ uri = "sql://x" ] }', "cannot be used over HTTP"),
    ],
)
def test_what_others_can_reach_has_to_ask(tmp_path: Path, stanza: str, words: str) -> None:
    authority = Authority(tmp_path / "pki")
    authority.write()
    authority.issue("mx", ["127.0.0.1"])
    file = tmp_path / "q.conf"
    file.write_text(f"HTTP_Listener {{ {stanza.replace('PKI', str(tmp_path / 'pki'))} }}")
    done = subprocess.run(
        [sys.executable, "-m", "quillon", "check", "-c", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert words in done.stdout + done.stderr


def test_a_listener_comes_and_goes_with_a_reload(served: Served) -> None:
    second = free_port()
    console = [sys.executable, "-m", "quillon", "console", "--socket", f"{served.folder}/console"]

    def reload(text: str) -> None:
        served.server.configure(text, workers=2)
        done = subprocess.run([*console, "config", "reload"], capture_output=True, text=True, check=False)
        assert done.stdout == "configuration reloaded\n", done

    reload(served.text(f'HTTP_Listener {{ Listen "127.0.0.1:{second}" {{ }} }}'))
    for port in (served.port, second):
        until(lambda port=port: _answers(f"http://127.0.0.1:{port}/healthz"), "both answer")  # type: ignore[misc]
    reload(
        served.text()
        .replace("HTTP_Listener", "HTTP_Listener")
        .replace(f'"127.0.0.1:{served.port}"', f'"127.0.0.1:{second}"')
    )
    until(lambda: not _answers(f"{served.url}/healthz"), "the first is gone")
    assert httpx.get(f"http://127.0.0.1:{second}/", auth=ANN).status_code == 200


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_page_lives_in_a_browser(tmp_path: Path, server: Callable[..., Server]) -> None:
    made = Served(tmp_path, server, http="Idle_Time = 300")
    try:
        command = [
            require("chromium"),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/chromium",
        ]
        done = subprocess.run(
            [*command, "--enable-logging=stderr", "--timeout=7000", f"--screenshot={tmp_path}/now.png", f"{made.url}/"],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert (tmp_path / "now.png").stat().st_size > 10000, done.stderr
        assert "Content Security Policy" not in done.stderr
        assert "Uncaught" not in done.stderr
    finally:
        made.other.stop()


def test_the_client_of_the_examples_sends(served: Served) -> None:
    file = ROOT / "examples" / "http-client" / "quillon_client.py"
    spec = importlib.util.spec_from_file_location("quillon_client", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = module.Client(served.url, user="ann", password="secret")
    (result,) = client.send("a@shop.test", ["b@other.test"], subject="Hello", text="x")
    assert result["code"] == 250
    served.received()
    with pytest.raises(module.Refused) as refused:
        client.send("a@shop.test", ["nobody"], text="x")
    assert refused.value.results[0]["code"] == 501
    with pytest.raises(module.Refused, match="wrong user or password"):
        module.Client(served.url, user="ann", password="wrong").send("a@shop.test", ["b@other.test"])
    with pytest.raises(OSError, match="refused"):
        module.Client(f"http://127.0.0.1:{free_port()}", attempts=2).send("a@shop.test", ["b@other.test"])


def test_rules_and_dashboard_ask_for_what_there_is() -> None:
    folder = ROOT / "examples" / "monitoring"
    (group,) = yaml.safe_load((folder / "rules.yml").read_text())["groups"]
    panels = json.loads((folder / "dashboard.json").read_text())["panels"]
    asked = [rule["expr"] for rule in group["rules"]] + [t["expr"] for panel in panels for t in panel["targets"]]
    for text in asked:
        for name in re.findall(r"quillon_\w+", text):
            known = metrics.HELP.keys() | metrics.GAUGES.keys() | metrics.HISTOGRAMS.keys()
            assert name in known or name.removesuffix("_bucket") in metrics.HISTOGRAMS, name
    assert all(rule["annotations"]["action"] for rule in group["rules"])
