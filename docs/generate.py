"""Write docs/reference from the tables of the code: every option with its status, and every TLS cause."""

from __future__ import annotations

import sys
from pathlib import Path

from quillon.config.options import INBOUND, OUTBOUND, Option, table
from quillon.tls.verdict import CAUSES

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


ALERT = (
    "| `alert_<name>` | The other side ended the handshake with this TLS alert (RFC 8446 6)."
    " | See its log;"
    " `alert_unknown_ca` and `alert_certificate_required` speak of our certificate. |"
)
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
        "# When TLS fails: cause codes",
        "",
        "One code for each failure, the same in mainlog, JSON log, notifications and context variables.",
        "",
        "| Cause | What happened | What to do |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {what} | {todo} |" for name, (what, todo) in CAUSES.items()),
        ALERT,
        "",
    ]
    return "\n".join(out)


PAGES = {"options.md": options_page, "causes.md": causes_page}


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
