"""A real Postfix that takes mail for any domain and discards it, with one smtpd per kind of certificate."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.peers import require, require_root
from tests.support.server import answers, free_port, until

KINDS = {
    "plain": "smtpd_tls_security_level=none",
    "good": "smtpd_tls_chain_files={pki}/good.key,{pki}/good.pem",
    "self-signed": "smtpd_tls_chain_files={pki}/self-signed.key,{pki}/self-signed.pem",
    "expired": "smtpd_tls_chain_files={pki}/expired.key,{pki}/expired.pem",
    "not-yet": "smtpd_tls_chain_files={pki}/not-yet.key,{pki}/not-yet.pem",
    "wrong-name": "smtpd_tls_chain_files={pki}/wrong-name.key,{pki}/wrong-name.pem",
    "wrong-ca": "smtpd_tls_chain_files={pki}/wrong-ca.key,{pki}/wrong-ca.pem",
    "chained": "smtpd_tls_chain_files={pki}/chained.key,{pki}/chained.pem",
    "no-chain": "smtpd_tls_chain_files={pki}/no-chain.key,{pki}/no-chain.pem",
    "tls12": "smtpd_tls_chain_files={pki}/good.key,{pki}/good.pem -o smtpd_tls_mandatory_protocols=TLSv1.2"
    " -o smtpd_tls_protocols=TLSv1.2",
    "client": "smtpd_tls_chain_files={pki}/good.key,{pki}/good.pem -o smtpd_tls_req_ccert=yes"
    " -o smtpd_tls_security_level=encrypt -o smtpd_tls_CAfile={pki}/ca.pem",
}


class Postfix:
    """`ports` maps kinds to ports."""

    def __init__(self, folder: Path, pki: Path) -> None:
        require_root()
        self._postfix = require("postfix")
        self.ports = {kind: free_port() for kind in KINDS}
        self.folder = folder
        etc, queue, data = folder / "etc", folder / "queue", folder / "data"
        for path in (etc, queue, data):
            path.mkdir()
        for path in (folder, *folder.parents):
            if path.stat().st_mode & 0o005 != 0o005 and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o055)
        shutil.chown(data, "postfix")
        services = [
            f"127.0.0.1:{self.ports[kind]} inet n - n - - smtpd -o smtpd_tls_security_level=may"
            f" -o {option.format(pki=pki)}"
            for kind, option in KINDS.items()
        ]
        inner = ["pickup unix n - n 60 1 pickup", "cleanup unix n - n - 0 cleanup", "qmgr unix n - n 300 1 qmgr"]
        inner += [f"{name} unix - - n - 0 bounce" for name in ("bounce", "defer", "trace")]
        inner += [f"{name} unix - - n - {limit} {name}" for name, limit in (("tlsmgr", "1"), ("rewrite", "-"))]
        inner = [line.replace("- rewrite", "- trivial-rewrite") for line in inner]
        inner += ["discard unix - - n - - discard", "anvil unix - - n - 1 anvil", "error unix - - n - - error"]
        inner += ["proxymap unix - - n - - proxymap", "postlog unix-dgram n - n - 1 postlogd"]
        (etc / "master.cf").write_text("\n".join(services + inner) + "\n")
        (etc / "main.cf").write_text(
            f"""compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.partner.test
mydestination =
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
default_transport = discard:
relay_transport = discard:
transport_maps =
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
smtpd_tls_loglevel = 1
smtpd_tls_received_header = yes
smtpd_peername_lookup = no
"""
        )

    def start(self) -> None:
        self._run("start")
        until(lambda: all(answers(port) for port in self.ports.values()), f"Postfix listens; {self.log()}")

    def stop(self) -> None:
        self._run("stop")

    def log(self) -> str:
        file = self.folder / "maillog"
        return file.read_text() if file.exists() else ""

    def _run(self, command: str) -> None:
        done = subprocess.run(
            [self._postfix, "-c", str(self.folder / "etc"), command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + self.log()
