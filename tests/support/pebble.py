"""An ACME server (pebble) and a DNS that says what it is told (pebble-challtestsrv)."""

from __future__ import annotations

import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx

from quillon.lab.pki import Authority
from tests.support.peers import require
from tests.support.server import free_port, until


class Pebble:
    """Fetches http-01 from 127.0.0.1 at `http_port`, whatever the name. `ca` is who vouches for it."""

    def __init__(self, folder: Path, http_port: int, **more: Any) -> None:
        folder.mkdir()
        program, dns = require("pebble"), require("pebble-challtestsrv")
        authority = Authority(folder, "Of pebble")
        self.ca = authority.write("pebble-ca.pem")
        issued = authority.issue("pebble", ["localhost"])
        port, dns_port, self._told_at = free_port(), free_port(), free_port()
        self.url = f"https://localhost:{port}/dir"
        config = {
            "listenAddress": f"127.0.0.1:{port}",
            "managementListenAddress": f"127.0.0.1:{free_port()}",
            "certificate": str(issued.certificate),
            "privateKey": str(issued.key),
            "httpPort": http_port,
            "tlsPort": free_port(),
            **more,
        }
        (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
        off = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
        given = ["-dns01", f"127.0.0.1:{dns_port}", "-management", f"127.0.0.1:{self._told_at}"]
        quick = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
        with (folder / "log").open("wb") as log:
            self._processes = [
                subprocess.Popen([dns, *off, *given], stdout=log, stderr=log),
                subprocess.Popen(
                    [program, "-config", str(folder / "pebble.json"), "-dnsserver", f"127.0.0.1:{dns_port}"],
                    stdout=log,
                    stderr=log,
                    env=quick,
                ),
            ]
        until(self._is_up, "pebble answers")

    def _is_up(self) -> bool:
        try:
            trust = ssl.create_default_context(cafile=str(self.ca))
            return httpx.get(self.url, verify=trust, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def hook(self, folder: Path) -> Path:
        """A hook that publishes what it is told, and writes it down in `told`."""
        file = folder / "hook"
        file.write_text(
            f"""#!/bin/sh
echo "$@" >> {folder}/told
case $1 in
publish) curl -sf -d '{{"host": "'"$2"'.", "value": "'"$3"'"}}' http://127.0.0.1:{self._told_at}/set-txt ;;
remove) curl -sf -d '{{"host": "'"$2"'."}}' http://127.0.0.1:{self._told_at}/clear-txt ;;
esac
"""
        )
        file.chmod(0o755)
        return file

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(20)
