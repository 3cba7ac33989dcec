"""A real Exim: takes mail for any domain into a file, knows one user (quillon, "open sesame"), and sends what it is given to one port over TLS only."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.peers import require, require_root
from tests.support.server import answers, free_port, until

CONFIGURATION = """
exim_path = {exim}
keep_environment =
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
primary_hostname = mx.exim.test
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
pid_file_path = {folder}/exim.pid
tls_advertise_hosts = *
tls_certificate = {pki}/good.pem
tls_privatekey = {pki}/good.key
tls_verify_certificates = {pki}/ca.pem
tls_try_verify_hosts = *
acl_smtp_rcpt = accept_all
acl_smtp_data = accept_all
host_lookup =
log_selector = +tls_peerdn +tls_certificate_verified +tls_cipher
queue_only = false
begin acl
accept_all:
  accept
begin routers
out:
  driver = manualroute
  condition = ${{if eq{{$sender_host_address}}{{}}}}
  route_list = * 127.0.0.1::{target} byname
  self = send
  transport = remote
here:
  driver = accept
  transport = keep
begin transports
remote:
  driver = smtp
  hosts_require_tls = *
  tls_certificate = {pki}/client.pem
  tls_privatekey = {pki}/client.key
  tls_verify_certificates = {pki}/ca.pem
  tls_verify_hosts = *
  allow_localhost
keep:
  driver = appendfile
  file = {folder}/spool/mbox
  user = Debian-exim
  no_mode_fail_narrower
begin retry
* * F,1h,1m
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{quillon}}}}{{eq{{$auth3}}{{open sesame}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{quillon}}}}{{eq{{$auth2}}{{open sesame}}}}}}}}
  server_set_id = $auth1
"""


class Exim:
    """`port` is where it listens, `target` where it delivers to."""

    def __init__(self, folder: Path, pki: Path, target: int) -> None:
        require_root()
        self._exim = require("exim4")
        self.port = free_port()
        self.folder = folder
        (folder / "spool").mkdir(parents=True)
        for path in (folder, *folder.parents):
            if path != Path("/"):
                path.chmod(path.stat().st_mode | 0o055)
        for path in (folder, folder / "spool"):
            shutil.chown(path, "Debian-exim", "Debian-exim")
        for key in pki.glob("*.key"):
            key.chmod(0o644)  # keys of a test CA: Exim reads them as its own user
        self._file = folder / "exim.conf"
        self._file.write_text(
            CONFIGURATION.format(exim=self._exim, folder=folder, pki=pki, port=self.port, target=target)
        )
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> Exim:
        self._daemon = subprocess.Popen([self._exim, "-C", str(self._file), "-bdf"])
        until(lambda: answers(self.port), f"Exim listens; {self.log()}")
        return self

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(10)

    def send(self, sender: str, recipient: str, message: str) -> None:
        """Deliver a message to the target at once."""
        done = subprocess.run(
            [self._exim, "-C", str(self._file), "-odf", "-f", sender, recipient],
            input=message,
            text=True,
            capture_output=True,
            check=False,
            env=os.environ,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr + self.log()

    def log(self) -> str:
        file = self.folder / "mainlog"
        return file.read_text() if file.exists() else ""
