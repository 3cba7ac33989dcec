"""Write docs/reference: options and TLS causes from the tables of the code, and what broken hosts lead to by trying."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quillon.config.options import INBOUND, OUTBOUND, Option, table
from quillon.config.scope import resolve
from quillon.config.settings import DeliverySettings, OutboundTls, build
from quillon.delivery.probe import VALUES
from quillon.lab import selftest
from quillon.lab.faults import FAULTS
from quillon.lab.trial import Result
from quillon.tls.causes import ALERT, CAUSES

FOLDER = Path(__file__).parent / "reference"
CHAPTERS = {
    "tls": "TLS",
    "reception": "Reception",
    "routing": "Routing and connections",
    "retry": "Timeouts, retry, expiry",
    "dns": "DNS",
    "bounces": "Bounces",
    "spool": "Spool, queues, memory",
    "process": "Process",
    "own": "Quillon's own",
}


def scopes(option: Option) -> str:
    """Scopes in short."""
    left, words = set(option.scopes), []
    for name, group in (("outbound", OUTBOUND), ("inbound", INBOUND)):
        if set(group) <= left:
            left -= set(group)
            words.append(name)
    return ", ".join(words + sorted(left))


def row(option: Option) -> str:
    values = ", ".join(option.values) if option.values else option.type.replace("_", " ")
    default = option.default if option.default is not None else ""
    restart = " Restart." if option.restart else ""
    doc = option.doc.replace("|", "\\|")
    cells = (f"`{option.name}`", values, default, scopes(option), option.status, doc + restart)
    return "| " + " | ".join(cells) + " |"


HEAD = "| Option | Values | Default | Scopes | Status | |\n| --- | --- | --- | --- | --- | --- |"


def options_page() -> str:
    rows = table().options.values()
    counts = {status: sum(o.status == status for o in rows) for status in ("honoured", "accepted", "refused")}
    out = [
        "# Options",
        "",
        f"{counts['honoured']} options are honoured,",
        f"{counts['accepted']} accepted (read without effect, with a warning),",
        f"{counts['refused']} refused unless they say what happens anyway. Names know no case.",
        "*inbound* is esmtp_listener, listen, peer, pathway and pathway_group;",
        "*outbound* is binding, binding_group, domain and global. Times are whole seconds, sizes octets.",
    ]
    for chapter, title in CHAPTERS.items():
        out += ["", f"## {title}", "", HEAD]
        out += [row(option) for option in rows if option.chapter == chapter]
    for module in table().modules.values():
        out += ["", f"## Module `{module.name}`", "", module.doc, "", HEAD]
        out += [row(option) for option in module.options.values()]
    inert = ", ".join(f"`{name}`" for name in sorted(table().inert))
    out += ["", "## Stanzas read without effect", "", f"{inert}.", ""]
    return "\n".join(out)


def causes_page() -> str:
    out = [
        "# Cause codes",
        "",
        "One code for each failure of TLS: the same in mainlog's text, the JSON log, notifications, context",
        "variables, metrics and `quillon tls-probe`. [When TLS fails](../when-tls-fails.md) tells how to use them.",
        "In the commands, HOST, PORT, CA.pem and NAME stand for the host, its port, the file of `TLS_CA` and the",
        "name wanted.",
    ]
    for name, cause in CAUSES.items():
        out += ["", f"## `{name}`", "", f"{cause.meaning} {cause.remedy}", "", "```", cause.command, "```"]
        if cause.says:
            out += ["", f"Among what it then says: `{cause.says}`."]
    out += [
        "",
        "## `alert_<name>`",
        "",
        ALERT,
        "",
        "```",
        "openssl s_client -starttls smtp -connect HOST:PORT -cert CERT.pem -key KEY.pem -msg",
        "```",
        "",
    ]
    return "\n".join(out)


def farm_page(found: Mapping[tuple[str, str], Mapping[str, Result]]) -> str:
    """What happens with each peer of the fault farm, from the results of trials by (TLS, TLS_Verify) and peer."""
    verifies = ("no", "optional", "ca", "host")
    out = [
        "# What happens with broken hosts",
        "",
        "`quillon fault-farm` runs these peers, each broken in one way. The tables were made by delivering a message",
        "to each of them under each setting, with `TLS_Ifavailable_Fallback = true` and no client certificate;",
        "`quillon selftest` does the same under yours. With `TLS = no` all of them get the message in clear.",
        "*held* is a message that stays in the queue to be tried again, with its [cause](causes.md).",
    ]
    for tls in ("required", "ifavailable"):
        out += ["", f"## TLS = {tls}", "", "| Peer | | " + " | ".join(f"`{v}`" for v in verifies) + " |"]
        out.append("|" + " --- |" * (len(verifies) + 2))
        for fault in FAULTS:
            cells = [str(found[tls, verify][fault.name]) for verify in verifies]
            out.append(f"| `{fault.name}` | {fault.about} | " + " | ".join(cells) + " |")
    return "\n".join([*out, ""])


def try_farm() -> dict[tuple[str, str], dict[str, Result]]:
    """Deliver to every peer under every setting."""
    options = table().options
    tls = build(OutboundTls, lambda name: resolve(options[name], [], "/").value)
    settings = build(DeliverySettings, lambda name: resolve(options[name], [], "/").value)
    columns = [replace(tls, tls=value, tls_verify=verify, tls_ca="the farm's") for value, verify in VALUES]
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(selftest.run(Path(folder), settings, columns))
    return {
        column: {fault.name: result for fault, result in rows} for column, rows in zip(VALUES, results, strict=True)
    }


PAGES = {"options.md": options_page, "causes.md": causes_page}


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
    (FOLDER / "farm.md").write_text(farm_page(try_farm()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
