"""`msys.db` with a real PostgreSQL."""

from __future__ import annotations

import smtplib
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quillon.config import datasource
from quillon.lua.msys import db
from quillon.policy.environment import Datasource
from quillon.policy.hook import Phase
from tests.support.postgresql import Postgresql
from tests.support.scripts import Stage
from tests.support.server import Server, free_port

pytestmark = pytest.mark.peer

TABLE = """
CREATE ROLE quillon LOGIN PASSWORD 'open sesame';
CREATE TABLE partners (domain text PRIMARY KEY, level int, share numeric, strict bool, since timestamptz, note jsonb, mark bytea);
INSERT INTO partners VALUES ('bank.fi', 3, 0.25, true, '2026-01-02 03:04:05+00', '{"a": 1}', '\\x00ff'), ('b\u00fccher.example', NULL, 2, false, NULL, NULL, NULL);
GRANT ALL ON partners TO quillon;
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Postgresql]:
    found = Postgresql(tmp_path_factory.mktemp("postgresql") / "pg", pki).start()
    found.sql(TABLE)
    yield found
    found.stop()


def _uri(database: Postgresql, pki: Path, **more: object) -> str:
    words = {
        "host": "127.0.0.1",
        "port": database.port,
        "dbname": "postgres",
        "user": "quillon",
        "password": "'open sesame'",
    }
    words |= {"sslmode": "verify-full", "sslrootcert": pki / "ca.pem"} | more
    return "pgsql:" + ";".join(f"{name}={value}" for name, value in words.items())


@pytest.fixture
def stage(tmp_path: Path, database: Postgresql, pki: Path) -> Stage:
    found = Stage(tmp_path)
    _sources(found, c=Datasource((_uri(database, pki),), no_cache=True))
    return found


def _sources(stage: Stage, **more: Datasource) -> None:
    stage.environment.datasources = {**stage.environment.datasources, **more}


def _said(stage: Stage, body: str) -> list[str]:
    assert stage.run(body, Phase.DATA_SPOOL) is None, stage.reports
    return stage.said


def test_values_of_each_kind(stage: Stage) -> None:
    code = """
    for row in msys.db.query("c", "SELECT * FROM partners ORDER BY domain") do
      out(row.domain, row.level, row.share, row.strict, row.since, row.note, row.mark and #row.mark)
    end
    local row = msys.db.fetch_row("c", "SELECT count(*), avg(level), now() > '2026-01-01' AS late FROM partners")
    out(row.count + 1, row[2], row.late)"""
    said = _said(stage, code)
    assert said[0].startswith("bank.fi|3|0.25|true|2026-01-02")
    assert said[0].endswith('|{"a": 1}|2')
    assert said[1:] == ["b\u00fccher.example|nil|2|false|nil|nil|nil", "3|3|true"]


@pytest.mark.parametrize(
    "question",
    [
        "WHERE domain = ? AND level = ?', {'bank.fi', 3}",
        "WHERE domain = :d AND level = :l', {d = 'bank.fi', l = '3'}",
        "WHERE domain = $1 AND level = $2', {'bank.fi', 3}",
        "WHERE strict = ? AND share < ? AND since < ?', {true, 0.5, '2026-06-01'}",
        "WHERE note->>\\'a\\' = ? AND level::text = ?', {1, 3}",
        "WHERE domain LIKE ? AND \\'?\\' = \\'?\\'', {'bank%'}",
    ],
)
def test_parameters_are_bound(stage: Stage, question: str) -> None:
    code = f"local row = msys.db.fetch_row('c', 'SELECT domain FROM partners {question}) out(row and row.domain)"
    assert _said(stage, code) == ["bank.fi"]


def test_statements_rows_and_faults(stage: Stage, database: Postgresql) -> None:
    database.sql("CREATE TABLE IF NOT EXISTS seen (name text, n int); TRUNCATE seen; GRANT ALL ON seen TO quillon")
    _sources(stage, few=Datasource(stage.environment.datasources["c"].uris, max_rows=2))
    code = """
    out(msys.db.execute("c", "INSERT INTO seen VALUES (?, ?)", {"x'; DROP TABLE seen; --", 5}))
    out(msys.db.fetch_row("c", "INSERT INTO seen VALUES ('y', 6) RETURNING n")[1])
    out(msys.db.fetch_row("c", "SELECT count(*) AS n FROM seen").n)
    local n = 0 for _ in msys.db.query("few", "SELECT * FROM generate_series(1, 100000)") do n = n + 1 end out(n)
    out(msys.db.execute("c", "NONSENSE", nil, {raise_error = false}))
    out(pcall(msys.db.query, "c", "SELECT * FROM nowhere"))
    out(msys.db.execute("c", "INSERT INTO seen VALUES ('z', ?)", {"no number"}, {raise_error = false}))
    out(msys.db.fetch_row("c", "SELECT 1 AS one").one)"""
    said = _said(stage, code)
    assert said[:4] == ["true", "6", "2", "2"]
    assert said[4].startswith('false|c: syntax error at or near "NONSENSE"')
    assert 'relation "nowhere" does not exist' in said[5]
    assert said[6].startswith("false|c: ")
    assert said[7] == "1"


def test_one_that_is_down_is_skipped_and_all_down_is_said(stage: Stage, database: Postgresql, pki: Path) -> None:
    down = _uri(database, pki, port=free_port())
    _sources(stage, two=Datasource((down, _uri(database, pki)), no_cache=True), none=Datasource((down, down)))
    code = """
    for _ = 1, 3 do out(msys.db.fetch_row("two", "SELECT 1 AS one").one) end
    out(msys.db.fetch_row("none", "SELECT 1", nil, {raise_error = false}))"""
    said = _said(stage, code)
    assert said[:3] == ["1", "1", "1"]
    assert said[3].startswith("nil|none: ")
    assert "refused" in said[3] or "Connect call failed" in said[3]


def test_one_that_takes_connections_and_says_nothing_is_asked_last_for_a_while(
    stage: Stage, database: Postgresql, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = _uri(database, pki, port=silent.getsockname()[1])
        _sources(stage, two=Datasource((dead, _uri(database, pki)), no_cache=True))
        begun = time.monotonic()
        code = "for _ = 1, 20 do out(msys.db.fetch_row('two', 'SELECT 1 AS one').one) end"
        assert _said(stage, code) == ["1"] * 20
        assert time.monotonic() - begun < 3


def test_a_role_without_connections_left_is_skipped(stage: Stage, database: Postgresql, pki: Path) -> None:
    database.sql("CREATE ROLE crowded LOGIN PASSWORD 'open sesame' CONNECTION LIMIT 0")
    full = _uri(database, pki, user="crowded")
    _sources(stage, two=Datasource((full, _uri(database, pki)), no_cache=True))
    assert _said(stage, "for _ = 1, 3 do out(msys.db.fetch_row('two', 'SELECT 1 AS one').one) end") == ["1"] * 3


def test_a_query_of_sqlite_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "TIMEOUT", 0.5)
    stage = Stage(tmp_path)
    _sources(stage, c=Datasource(("sqlite:d.db",)))
    endless = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"
    begun = time.monotonic()
    said = _said(stage, f"out(msys.db.fetch_row('c', '{endless}', nil, {{raise_error = false}}))")
    assert said[0].startswith("nil|c: ")
    assert time.monotonic() - begun < 5


def test_what_is_cached_belongs_to_a_database(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with sqlite3.connect(tmp_path / f"{name}.db") as database:
            database.executescript(f"CREATE TABLE t (n TEXT); INSERT INTO t VALUES ('{name}')")
        database.close()
    stage = Stage(tmp_path)
    for name in ("a", "b"):
        _sources(stage, c=Datasource((f"sqlite:{name}.db",)))
        _said(stage, "out(msys.db.fetch_row('c', 'SELECT n FROM t').n)")
    _said(stage, "out(msys.db.fetch_row('c', 'SELECT :x AS x', {[1] = 1, x = 2}).x)")
    assert stage.said == ["a", "b", "2"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"sslrootcert": "{pki}/other-ca.pem"}, "certificate verify failed"),
        ({"sslmode": "disable"}, "no pg_hba.conf entry"),
        ({"dbname": "none"}, 'database "none" does not exist'),
    ],
)
def test_a_connection_that_cannot_be_made_says_why(
    stage: Stage, database: Postgresql, pki: Path, changed: dict[str, str], words: str
) -> None:
    changed = {name: value.format(pki=pki) for name, value in changed.items()}
    _sources(stage, c=Datasource((_uri(database, pki, **changed),)))
    said = _said(stage, 'out(msys.db.fetch_row("c", "SELECT 1", nil, {raise_error = false}))')
    assert words in said[0]


def test_a_server_asks_it_for_each_session_and_survives_its_restart(
    server: Callable[..., Server], tmp_path: Path, pki: Path
) -> None:
    database = Postgresql(tmp_path / "pg", pki).start()
    database.sql(TABLE)
    try:
        (tmp_path / "q").mkdir(exist_ok=True)
        (tmp_path / "q/lookup.lua").write_text(
            """local m = {}
            function m:validate_mailfrom(str, ac, vctx)
              local domain = vctx:get(msys.core.VCTX_MESS, "mailfrom_domain")
              local row = msys.db.fetch_row("partners", "SELECT strict FROM partners WHERE domain = ?", {domain})
              if row and row.strict then vctx:set_code(550, "5.7.1 only over TLS") end
              return msys.core.VALIDATE_CONT
            end
            msys.registerModule("lookup", m)"""
        )
        port = free_port()
        running = server(
            f'''datasource "partners" {{ uri = ( "{_uri(database, pki)}" ) no_cache = true }}
            scriptlet "scriptlet" {{ script "lookup" {{ source = lookup }} }}
            ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}'''
        ).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            assert client.mail("a@bank.fi") == (550, b"5.7.1 only over TLS")
            assert client.mail("a@other.example")[0] == 250
            client.rset()
            database.stop()
            assert client.mail("a@bank.fi")[0] == 451
            database.start()
            assert client.mail("a@bank.fi")[0] == 550
        assert any("lookup.lua:" in line and "partners" in line for line in running.log("paniclog.ec"))
    finally:
        database.stop()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pgsql:host=a;dbnam=b", "a word is none of a PostgreSQL connection, after host=; there are host,"),
        ("pgsql:host=a;nonsense", "what follows host= is not name=value"),
        ("pgsql:nonsense", "what follows pgsql: is not name=value"),
        ("pgsql:host=a password=my secret", "what follows password= is not name=value"),
        ("pgsql:password=my;secret=x", "after password=; there are"),
        ("pgsql:password='secret", "what follows pgsql: is not name=value"),
        ("pgsql:host=1:secret", "host= has a colon and is no IPv6 address"),
        ("pgsql:host=a port=secret", "port= is no number"),
        ("pgsql:host=a;sslmode=perhaps;password=secret", "'perhaps' is no sslmode: disable,"),
        ("pgsql://a/b?sslmode=perhaps", "'perhaps' is no sslmode"),
        ("pgsql://u:secret\u2100x@h/db", "the URL cannot be read"),
        ("pgsql://u:sec/ret@h/db", "has a / in front of its @"),
        ("odbc:DSN=a;PWD=secret", "'odbc' is no driver that is here"),
        ("sqlite:", "sqlite: needs a path"),
    ],
)
def test_a_wrong_uri_is_refused_without_its_password(uri: str, words: str) -> None:
    found = datasource.fault(uri)
    assert found is not None
    assert words in found
    assert "secret" not in found


def test_words_become_a_url() -> None:
    assert datasource.postgresql_url("host=a ; password='x;\\'y z' ;dbname=b;") == (
        "postgresql://?host=a&password=x%3B%27y+z&dbname=b"
    )
    assert datasource.fault("pgsql://quillon@one:1,two:2/mail?sslmode=verify-full") is None
    assert (
        datasource.postgresql_url("host=2001:db8::5 port=5432\n")
        == "postgresql://?host=%5B2001%3Adb8%3A%3A5%5D&port=5432"
    )
    assert datasource.postgresql_url(r"host=/run/postgresql password=a\ b\;c") == (
        "postgresql://?host=%2Frun%2Fpostgresql&password=a+b%3Bc"
    )
    assert datasource.fault("sqlite:/var/lib/x.db") is None
