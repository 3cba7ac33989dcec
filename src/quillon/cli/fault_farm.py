"""`quillon fault-farm`: run the peers that are broken in one way each, for tests of any MTA."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from quillon.lab.farm import Farm
from quillon.lab.faults import FAULTS


def add(commands: Any) -> None:
    parser = commands.add_parser("fault-farm")
    parser.add_argument("--list", action="store_true", help="list the peers and end")
    parser.add_argument("--host", default="127.0.0.1", metavar="IP", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="first port; by default any free ones")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the certificates are, or are to be written")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.list:
        for fault in FAULTS:
            print(f"{fault.name:25} {fault.about}")
        return 0
    if given.folder is not None:
        return asyncio.run(_serve(given, given.folder))
    with tempfile.TemporaryDirectory(prefix="quillon-farm-") as folder:
        return asyncio.run(_serve(given, Path(folder)))


async def _serve(given: argparse.Namespace, folder: Path) -> int:
    try:
        farm = Farm(folder)
        await farm.start(given.host, given.port)
    except (OSError, OverflowError) as error:
        print(f"quillon fault-farm: {error}", file=sys.stderr)
        return 1
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if given.json:
        rows = [{"name": f.name, "host": f.host, "port": farm.ports[f.name], "about": f.about} for f in farm.faults]
        print(json.dumps({"ca": str(farm.ca), "address": given.host, "peers": rows}), flush=True)
    else:
        print(f"certificates of the farm: {farm.ca}")
        for fault in farm.faults:
            print(f"{given.host}:{farm.ports[fault.name]:<6} {fault.host:35} {fault.about}")
        print("Ctrl-C ends it.", flush=True)
    await ended.wait()
    farm.stop()
    return 0
