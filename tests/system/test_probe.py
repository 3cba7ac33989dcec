"""tls-probe, selftest and fault-farm as an operator calls them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.lab.farm import Farm
from tests.support.server import Server, free_port

QUILLON = [sys.executable, "-m", "quillon"]


def run(*words: str) -> tuple[int, str]:
    done = subprocess.run([*QUILLON, *words], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_probing_a_host(farm: Farm, tmp_path: Path) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(f'Domain "good.farm.test" {{ TLS = required TLS_Verify = host TLS_CA = {farm.ca} }}')
    place = f"127.0.0.1:{farm.ports['good']}"
    status, said = run("tls-probe", place, "-c", str(file), "--domain", "good.farm.test")
    assert status == 0, said
    assert "verified: the chain is trusted and names " in said
    assert "  names      good.farm.test" in said
    assert "now        TLS = required, TLS_Verify = host: TLS, verified" in said
    status, said = run("tls-probe", place, "--ca", str(farm.ca), "--domain", "good.farm.test", "--json")
    (row,) = json.loads(said)
    assert (status, row["verified"], row["protocol"], len(row["chain"])) == (0, True, "TLSv1.3", 1)
    assert row["outcomes"]["required"] == {
        "no": "TLS, not checked", "optional": "TLS, verified", "ca": "TLS, verified", "host": "TLS, verified"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        ("expired", "expired: A certificate of the chain has expired. Have it renewed."),
        ("no-starttls", "no_starttls: The host did not offer STARTTLS."),
        ("alert", "alert_handshake_failure: The other side ended the handshake with this TLS alert"),
        ("nul-in-name", "the certificate names nul-in-name.farm.test?.evil.test"),
    ],
)
def test_probing_a_broken_host(farm: Farm, peer: str, words: str) -> None:
    domain = f"{peer}.farm.test"
    status, said = run("tls-probe", f"127.0.0.1:{farm.ports[peer]}", "--ca", str(farm.ca), "--domain", domain)
    assert status == 1
    assert words in said
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["127.0.0.1:99999"], "'99999' is no port"),
        (["127.0.0.1:abc"], "'abc' is no port"),
        (["127.0.0.1:1"], "Connection refused"),
        (["[::1]:1"], "::1"),
        ([], "give a host, --domain or --listen"),
        (["x", "--binding", "b9"], "there is no binding 'b9'"),
        (["--listen", ":25"], "there is no Listen ':25'"),
    ],
)
def test_what_cannot_be_probed(words: list[str], answer: str) -> None:
    status, said = run("tls-probe", *words)
    assert status == 1
    assert answer in said
    assert "Traceback" not in said


def test_a_port_that_does_not_greet_has_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def close_at_once() -> None:
            listening.accept()[0].close()

        threading.Thread(target=close_at_once, daemon=True).start()
        status, said = run("tls-probe", f"127.0.0.1:{listening.getsockname()[1]}")
    assert status == 1
    assert "A port with TLS from the first octet (465) does not greet" in said


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
def test_probing_a_listener(server: Callable[..., Server], pki: Path, engine: str) -> None:
    ports = [free_port(), free_port(), free_port()]
    running = server(
        f"""TLS_Engine = {engine}
        ESMTP_Listener {{
          TLS_Certificate = {pki}/server.pem TLS_Key = {pki}/server.key TLS_Client_CA = {pki}/ca.pem
          Listen "127.0.0.1:{ports[0]}" {{ SMTP_Extensions = ( "STARTTLS" ) TLS_Protocols = "+TLSv1.3" }}
          Listen "127.0.0.1:{ports[1]}" {{ Use_SSL = true TLS_Verify_Mode = require }}
          Listen "127.0.0.1:{ports[2]}" {{ }}
        }}"""
    ).start()
    file = str(running.file)
    status, said = run("tls-probe", "--listen", f"127.0.0.1:{ports[0]}", "-c", file, "--json")
    row = json.loads(said)
    assert (status, row["accepted"]) == (0, ["TLSv1.3"])
    assert set(row["protocols"]["TLSv1.3"]) >= {"TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"}
    assert row["configured"]["client_certificates"] == "asked for, optional"
    status, said = run("tls-probe", "--listen", f"127.0.0.1:{ports[1]}", "-c", file)
    assert "certificate required" in said
    status, said = run("tls-probe", "--listen", f"127.0.0.1:{ports[2]}", "-c", file)
    assert (status, "STARTTLS is not offered" in said) == (1, True)


def test_selftest(farm: Farm, pki: Path, tmp_path: Path) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(f"""
    TLS = ifavailable
    Domain "bank.fi" {{
      TLS = required TLS_Verify = host TLS_CA = {pki}/ca.pem TLS_Certificate = {pki}/client.pem TLS_Key = {pki}/client.key
    }}""")
    status, said = run("selftest", "-c", str(file), "--domain", "bank.fi")
    assert "bank.fi: mail went to 0 of " in said
    assert status == 0
    status, said = run("selftest", "-c", str(file), "--domain", "other.fi", "--json")
    rows = {row["peer"]: row for row in json.loads(said)["other.fi"]}
    assert status == 3
    assert rows["no-starttls"] == {
        "peer": "no-starttls", "about": "Does not offer STARTTLS.", "delivered": True, "way": "clear", "verified": None,
        "cause": "", "let_through": True,
    }  # fmt: skip
    assert not rows["good"]["let_through"]
    file.write_text("TLS = perhaps")
    status, said = run("selftest", "-c", str(file), "--domain", "other.fi")
    assert (status, "ecelerity.conf:1:" in said) == (2, True)


def test_the_farm_runs_until_it_is_told(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*QUILLON, "fault-farm", "--json", "--folder", str(tmp_path / "farm")], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        row = json.loads(running.stdout.readline())
        assert Path(row["ca"]).exists()
        with socket.create_connection((row["address"], row["peers"][0]["port"]), 10) as sock:
            assert sock.recv(100).startswith(b"220 ")
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
    assert "no-starttls" in run("fault-farm", "--list")[1]


def test_policies_are_listed_with_what_they_are_asked(tmp_path: Path) -> None:
    (tmp_path / "a.lua").write_text(
        "local m = {} function m:validate_ehlo(s, ac, vctx) return 0 end function m:init() return true end"
        " function m:validate_connect(ac, vctx) return 0 end msys.registerModule('first', m)"
    )
    (tmp_path / "b.py").write_text(
        "def validate_mailfrom(session): pass\ndef get_outbound_tls_parameters(message, parameters): pass\n"
    )
    file = tmp_path / "ecelerity.conf"
    file.write_text('scriptlet "scriptlet" { script "a" { source = a } }\npolicy "second" { module = b.py }\n')
    assert run("policy", "check", "-c", str(file)) == (
        0,
        "first: validate_connect, validate_ehlo\nsecond: validate_mailfrom, get_outbound_tls_parameters\n",
    )
    status, said = run("policy", "check", "-c", str(file), "--json")
    assert (status, json.loads(said)[0]["module"]) == (0, "first")
    (tmp_path / "b.py").write_text("def validate_mailfrm(session): pass\n")
    status, said = run("policy", "check", "-c", str(file))
    assert status == 2
    assert "ecelerity.conf:2:19: policy second:" in said
    assert "did you mean validate_mailfrom?" in said
    file.write_text("Hostname = mx.test")
    assert run("policy", "check", "-c", str(file)) == (0, "no policy is configured\n")
