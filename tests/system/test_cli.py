"""The command as a user runs it: check, explain, demo."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from quillon.cli.main import COMMANDS, main
from tests.support.peers import require, require_root
from tests.support.server import answers, until

TEXT = """Retry_Interval = 30
Domain bank.fi { TLS = required Retry_Interval = 60 }
Binding b1 { Retry_Interval = 90 }
ESMTP_Listener {
  Idle_Time = 100
  Listen ":2525" { Peer 10.0.0.0/8 { Idle_Time = 50 } }
}
"""


def _quillon(*arguments: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quillon", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ecelerity.conf").write_text(TEXT)
    return tmp_path


def test_check(folder: Path) -> None:
    done = _quillon("check", "-c", "ecelerity.conf", folder=folder)
    assert (done.returncode, done.stdout) == (0, "Configuration valid\n")
    (folder / "ecelerity.conf").write_text("Retry_Intervall = 3\nTLS = perhaps\n")
    done = _quillon("check", "-c", "ecelerity.conf", folder=folder)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0].endswith("ecelerity.conf:1:1: unknown option Retry_Intervall; did you mean retry_interval?")
    assert lines[1].endswith("ecelerity.conf:2:7: tls = 'perhaps': it is one of no, ifavailable, required")


def test_check_tries_scripts_and_resolvers(folder: Path) -> None:
    (folder / "bad.lua").write_text("local x = = 1")
    (folder / "ecelerity.conf").write_text(
        'scriptlet "s" { script "bad" { source = bad } }\nResolv_Conf = nothing.conf'
    )
    done = _quillon("check", folder=folder)
    assert done.returncode == 2
    assert f"{folder}/ecelerity.conf:1:32: scriptlet: " in done.stdout
    assert "bad.lua:1:" in done.stdout
    assert "Resolv_Conf: " in done.stdout


@pytest.mark.peer
def test_check_reads_it_once_more_as_the_servers_user() -> None:
    require_root()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "only.py").write_text("import os\nif os.geteuid(): os._exit(3)\ndef validate_connect(s): pass\n")
        (folder / "ecelerity.conf").write_text(
            'Security { User = nobody Group = nogroup }\npolicy "p" { module = only.py }'
        )
        done = _quillon("check", folder=folder)
        assert done.returncode == 2
        assert "does a policy crash while it loads? (as user nobody, whom Security names)\n" in done.stdout
        (folder / "only.py").write_text("def validate_connect(s): pass\n")
        assert _quillon("check", folder=folder).stdout == "Configuration valid\n"
        (folder / "only.py").chmod(0o600)
        done = _quillon("check", folder=folder)
        assert done.returncode == 2
        assert "only.py: Permission denied (as user nobody, whom Security names)\n" in done.stdout


def test_check_tells_addresses_that_cannot_be_bound(folder: Path) -> None:
    (folder / "ecelerity.conf").write_text('ESMTP_Listener { Listen "192.0.2.1:2599" {} Listen "/nowhere/x" {} }')
    done = _quillon("check", folder=folder)
    assert done.returncode == 2
    assert 'ecelerity.conf:1:18: Listen "192.0.2.1:2599": Cannot assign requested address\n' in done.stdout
    assert 'Listen "/nowhere/x": there is no folder for it\n' in done.stdout


def test_explain_outbound(folder: Path) -> None:
    done = _quillon("explain", "--domain", "bank.fi", "--binding", "b1", "--option", "retry_interval", folder=folder)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "direction outbound, binding group default, binding b1, domain bank.fi, routing domain bank.fi"
    assert f'retry_interval = 90    {folder}/ecelerity.conf:3:14 in Binding "b1"' in lines
    assert f'    beats 60    {folder}/ecelerity.conf:2:33 in Domain "bank.fi"' in lines
    assert f"    beats 30    {folder}/ecelerity.conf:1:1 in global" in lines


def test_explain_inbound_as_json(folder: Path) -> None:
    done = _quillon("explain", "--listen", ":2525", "--peer", "10.1.2.3", "--json", folder=folder)
    assert done.returncode == 0
    told = json.loads(done.stdout)
    row = next(row for row in told["options"] if row["option"] == "idle_time")
    assert row["value"] == "50"
    assert row["scope"] == 'ESMTP_Listener > Listen ":2525" > Peer "10.0.0.0/8"'
    assert [beaten["value"] for beaten in row["beaten"]] == ["100"]
    assert next(row for row in told["options"] if row["option"] == "require_ehlo")["set_at"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--domain", "x.test", "--binding", "nope"], "there is no binding 'nope'"),
        (["--listen", ":26"], "there is no Listen ':26'; there are :2525"),
        (["--listen", ":2525", "--peer", "x"], "does not appear to be an IPv4 or IPv6 address"),
        ([], "give either --domain"),
    ],
)
def test_explain_tells_what_there_is(folder: Path, arguments: list[str], words: str) -> None:
    done = _quillon("explain", *arguments, folder=folder)
    assert done.returncode == 1
    assert words in done.stderr


def test_serve_of_a_faulty_configuration_does_not_start(folder: Path) -> None:
    (folder / "ecelerity.conf").write_text("TLS = perhaps")
    done = _quillon("serve", folder=folder)
    assert done.returncode == 2
    assert "ecelerity.conf:1:7:" in done.stderr


def test_serve_with_a_policy_that_does_not_load_does_not_start(folder: Path) -> None:
    (folder / "p.py").write_text("def validate_rcptto(session): pas s\n")
    (folder / "ecelerity.conf").write_text('policy "p" { module = p.py }')
    done = _quillon("serve", folder=folder)
    assert done.returncode == 2
    assert f"{folder}/p.py:1" in done.stderr


@pytest.mark.parametrize("folder_name", ["enforced-partner"])
def test_the_examples_load(folder_name: str, pki: Path, tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "examples" / folder_name, tmp_path / "example")
    shutil.copytree(pki, tmp_path / "example/pki")
    for key in (tmp_path / "example/pki").glob("*.key"):
        key.chmod(0o600)  # others may have opened those of the whole run for a user of their own
    done = _quillon("check", folder=tmp_path / "example")
    assert (done.returncode, done.stdout) == (0, "Configuration valid\n")


@pytest.mark.parametrize("language", ["lua", "python"])
def test_a_slip_in_the_table_of_partners_is_told_by_check(pki: Path, tmp_path: Path, language: str) -> None:
    folder = tmp_path / "example"
    shutil.copytree(Path(__file__).parents[2] / "examples/enforced-partner", folder)
    (folder / "pki").symlink_to(pki)
    if language == "python":
        config = (folder / "ecelerity.conf").read_text()
        (folder / "ecelerity.conf").write_text(
            re.sub(r'scriptlet "scriptlet" \{.*?\n\}', 'policy "p" { module = "partners.py" }', config, flags=re.S)
        )
    with (folder / "partners").open("a") as table:
        table.write("slip.test pki/nosuch.pem *.slip.test\n")
    done = _quillon("check", folder=folder)
    assert done.returncode == 2
    assert "partners: slip.test" in done.stdout
    assert "nosuch.pem" in done.stdout


def test_the_demonstration(tmp_path: Path) -> None:
    if any(answers(port) for port in (2525, 2465, 2626)):
        pytest.skip("a port of the demonstration is in use")
    done = _quillon("demo", "--once", folder=tmp_path, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "delivery       delivered over TLSv1.3" in done.stdout
    assert "certificate verified=True /CN=mx.partner.test" in done.stdout
    assert "with ESMTPS" in done.stdout


@pytest.mark.peer
def test_the_command_that_the_demonstration_prints_works_verbatim(tmp_path: Path) -> None:
    if any(answers(port) for port in (2525, 2465, 2626)):
        pytest.skip("a port of the demonstration is in use")
    require("curl")
    command = [sys.executable, "-m", "quillon", "demo"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            assert demo.stdout is not None
            printed = ""
            for line in demo.stdout:
                printed += line
                if line.startswith("To stop:"):
                    break
            line = next(line for line in printed.splitlines() if "curl" in line)
            subprocess.run(["sh", "-c", line], check=True, timeout=30)
            log = tmp_path / "demo/log/events.json"
            until(lambda: log.read_text().count('"outcome":"delivered"') == 2, "the second delivery")
        finally:
            demo.terminate()
            demo.wait(60)
    assert demo.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_where_the_table_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: quillon {name}" in capsys.readouterr().out


def test_the_version_is_told_without_loading_the_server() -> None:
    program = "import sys; from quillon.cli.main import main\ntry: main(['--version'])\nfinally: print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = set(said.split())
    assert not loaded & {"quillon.app.supervisor", "quillon.tls.openssl", "cryptography", "OpenSSL", "dns", "lupa"}
