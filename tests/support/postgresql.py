"""A real PostgreSQL on a port of its own, with the test CA's certificate: user quillon, "open sesame", only over TLS."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.support.peers import require
from tests.support.server import free_port, until

ACCESS = "hostssl all all 127.0.0.1/32 scram-sha-256\nlocal all all trust\n"


class Postgresql:
    def __init__(self, folder: Path, pki: Path) -> None:
        self._initdb, self._postgres, self._psql = require("initdb"), require("postgres"), require("psql")
        # it refuses to run as root
        self._user = "postgres" if os.geteuid() == 0 else None
        self.port = free_port()
        self._folder, self._data = folder, folder / "data"
        folder.mkdir()
        for path in (folder, *folder.parents):
            if path != Path("/"):
                path.chmod(path.stat().st_mode | 0o055)
        for name in ("server.pem", "server.key"):
            shutil.copy(pki / name, folder / name)
            (folder / name).chmod(0o600)
        if self._user:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, self._user)
        self._run(self._initdb, "-D", str(self._data), "-U", "admin", "-A", "trust", "-E", "UTF8", "--no-sync")
        (self._data / "pg_hba.conf").write_text(ACCESS)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Postgresql:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "ssl": "on",
            "ssl_cert_file": self._folder / "server.pem",
            "ssl_key_file": self._folder / "server.key",
            "fsync": "off",
        }
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._postgres, "-D", str(self._data), *arguments],
                user=self._user,
                cwd=self._folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        until(lambda: self._ask("SELECT 1").returncode == 0, "PostgreSQL answers")
        return self

    def sql(self, text: str) -> str:
        """What it says to a statement of its administrator."""
        done = self._ask(text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast: sessions end
            self._process.wait(20)
            self._process = None

    def _ask(self, text: str) -> subprocess.CompletedProcess[str]:
        command = [
            self._psql,
            "-h",
            str(self._folder),
            "-p",
            str(self.port),
            "-U",
            "admin",
            "-XAtq",
            "-c",
            text,
            "postgres",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, user=self._user, cwd=self._folder, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
