"""What the command line writes for others: a first configuration, completions, the manual page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quillon.cli.init import ROLES
from quillon.cli.main import COMMANDS
from tests.support.server import free_port


def quillon(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "quillon", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_first_configuration_is_valid_and_serves(tmp_path: Path, role: str) -> None:
    file = tmp_path / "q.conf"
    done = quillon("init", role, "-o", str(file), "--base", str(tmp_path / "var"), "--port", str(free_port()))
    assert (done.returncode, done.stderr) == (0, "")
    file.write_text(file.read_text().replace("127.0.0.1:8025", f"127.0.0.1:{free_port()}"))
    checked = quillon("check", "-c", str(file))
    assert (checked.returncode, checked.stdout) == (0, "Configuration valid\n"), checked
    serving = subprocess.Popen(
        [sys.executable, "-m", "quillon", "serve", "-c", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert serving.stdout is not None
        assert any("ready" in line for line in serving.stdout)
        assert quillon("console", "-c", str(file), "suspended").stdout == "nothing is suspended\n"
    finally:
        serving.terminate()
        assert serving.wait(30) == 0
        assert serving.stdout is not None
        serving.stdout.close()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "q.conf"
    file.write_text("mine")
    done = quillon("init", "relay", "-o", str(file))
    assert done.returncode == 1
    assert "it is there already, and was left as it is" in done.stderr
    assert file.read_text() == "mine"
    assert quillon("init", "relay", "-o", str(tmp_path / "no" / "q.conf")).returncode == 1
    assert quillon("init", "host").returncode == 2


def test_bash_completes_commands_options_and_the_consoles_words(tmp_path: Path) -> None:
    script = tmp_path / "quillon.bash"
    script.write_text(quillon("completion", "bash").stdout)

    def completed(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        text = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _quillon; echo ${{COMPREPLY[@]}}"
        return set(subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout.split())

    assert completed("quillon", "") == set(COMMANDS)
    assert completed("quillon", "tls-p") == {"tls-probe"}
    assert "--config" in completed("quillon", "check", "--")
    assert completed("quillon", "console", "susp") == {"suspend", "suspended"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_name_every_command(shell: str) -> None:
    text = quillon("completion", shell).stdout
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_the_manual_page_names_everything_and_is_clean_roff() -> None:
    text = quillon("man").stdout
    for name in COMMANDS:
        assert f".SS {name}".replace("-", "\\-") in text
    assert ".B message why ID" in text
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-ww", "-z"], input=text, capture_output=True, text=True, check=True)
        assert done.stderr == ""
