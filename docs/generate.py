"""Write docs/reference: options and TLS causes from the tables of the code, and what broken hosts lead to by trying."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quillon.config.options import INBOUND, OUTBOUND, Option, table
from quillon.config.scope import resolve
from quillon.config.settings import DeliverySettings, OutboundTls, build
from quillon.control.commands import COMMANDS, CONTROL
from quillon.delivery.probe import VALUES
from quillon.lab import selftest
from quillon.lab.faults import FAULTS
from quillon.lab.trial import TrialResult
from quillon.lua import msys
from quillon.lua.msys.api import Api
from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.policy import python, python_module
from quillon.policy.environment import Environment
from quillon.policy.hook import NOT_HERE, Hook, Phase, names_of
from quillon.smtp.tables import KEYWORDS, VERBS, State
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


ARGUMENTS = {
    "validate_connect": "(ac, vctx)",
    "inbound_smtp_tls_post_accept": "(mc, vctx)",
    "validate_ehlo": "(str, ac, vctx)",
    "core_validate_auth_hook": "(vctx, auth_info, auth_status)",
    "validate_mailfrom": "(str, ac, vctx)",
    "validate_rcptto": "(msg, str, ac, vctx)",
    "validate_rcptto_list": "(list, vctx)",
    "validate_rcptto_list_final": "(list, vctx)",
    "validate_data": "(msg, ac, vctx)",
    "validate_data_spool": "(msg, ac, vctx)",
    "core_pre_msg_each_rcpt": "(msg, ac, vctx)",
    "validate_data_spool_each_rcpt": "(msg, ac, vctx)",
    "core_post_msg_each_rcpt": "(msg, ac, vctx)",
    "validate_set_binding": "(msg)",
    "core_final_validation": "(msg, ac, vctx)",
    "core_post_final_validation": "(msg, ac, vctx)",
    "validate_dealloc": "()",
    "get_inbound_tls_parameters": "(ac, vctx, params)",
    "inbound_smtp_tls_verify_callback": "(mc, ssl_ctx, preverify_ok, subject, issuer, cert)",
    "get_outbound_tls_parameters": "(msg, params)",
    "outbound_smtp_tls_verify_callback": "(dc, ssl_ctx, preverify_ok, subject, issuer, cert)",
    "pre_esmtp_auth": "(ac, auth, vctx): 1 pass, 0 fail, -1 as usual",
    "ac_auth_perform_auth": "(user, password, ac, response)",
    "ac_auth_log_auth_failure": "(user, ac, response)",
    "pre_ec_can_relay_to": "(domain, ac, vctx): true, false, nil as usual",
    "config_get_domain_relay": "(domain, ac, vctx): true, false, nil as usual",
    "core_config_get_message_routing_domain": "(scope, msg, buff)",
    "binding_group_choose_binding": "(msg, group)",
    "get_received_header_text": "(ac, vctx, buff)",
    "ec_message_set_next_attempt": "(msg, next, tries)",
    "get_msg_expiration_params": "(msg, params)",
    "outbound_smtp_auth_config": "(msg, ac, vctx)",
    "generate_bounces": "(msg, reply)",
    "generate_rfc3464_message_preamble": "(msg, reply, buff)",
    "core_log_delivery_v1": "(msg, domain_record, now, note, note_len)",
    "core_log_transient_failure_v1": "(msg, domain_record, now, note, note_len)",
    "core_log_permanent_failure_v1": "(msg, domain_record, now, note, note_len)",
    "core_pre_mailq_message_requeue": "(msg, now)",
    "core_smtp_tls_reporting": "(json)",
}


def policy_page() -> str:
    """Callouts, the functions of Lua, and what Python has, from the code."""
    api = Api(Environment(lambda: 0.0, print))
    msys.give(api)
    out = [
        "# Callouts and functions",
        "",
        "[Writing policy](../policy.md) tells how they are used. Other names of a callout, as the manual registers C",
        "hooks, stand behind a stroke.",
    ]
    for title, callouts in (("Phases, in their order", Phase), ("Questions", Hook)):
        out += ["", f"## {title}", "", "| Callout | Lua | Python |", "| --- | --- | --- |"]
        for callout in callouts:
            in_lua, in_python = ARGUMENTS[callout.value], f"({', '.join(python_module.takes(callout))})"
            names = " / ".join(f"`{name}`" for name in names_of(callout))
            out.append(f"| {names} | `{in_lua}` | `{in_python}` |")
    out += [
        "",
        "## Never called here",
        "",
        "A module that has one of these does not load.",
        "",
        "| | |",
        "| --- | --- |",
    ]
    out += [f"| `{name}` | {reason} |" for name, reason in sorted(NOT_HERE.items())]
    out += [
        "",
        "## Functions of Lua",
        "",
        "*waits*: suspends the script and its session.",
        "",
        "| | |",
        "| --- | --- |",
    ]
    for name in sorted(api.documented, key=lambda n: (re.split(r"[.:]", n)[0] == "msys", n.lower())):
        if name in INNER:
            continue
        words = " ".join(api.documented[name].split()).replace("|", "\\|")
        out.append(f"| `{name}` | {words}{' *waits*' if name in api.waits else ''} |")
    out += [f"| `{name}` | {words} |" for name, words in WRITTEN_IN_LUA.items()]
    out += ["", "## Constants of msys.core", "", ", ".join(f"`{name}`" for name in sorted(api.constants)) + "."]
    out += ["", "## Left out", "", "Calling one of these is an error that says so.", "", *TABLE]
    out += [f"| `{name}` | {reason} |" for name, reason in sorted(api.left_out.items())]
    for kind in (python.Session, python.Message):
        out += ["", f"## Python: {kind.__name__}", "", *TABLE]
        for name, member in vars(kind).items():
            if not name.startswith("_"):
                signature = "" if isinstance(member, property) else str(inspect.signature(member)).replace("self, ", "")
                signature = re.sub(r"'", "", signature).replace("(self)", "()").replace("|", "\\|")
                words = " ".join((inspect.getdoc(member) or "").split())
                out.append(f"| `{name}{signature}` | {words} |")
    return "\n".join([*out, ""])


TABLE = ("| | |", "| --- | --- |")
INNER = {"msys.cidr.find", "msys.cidr.lookup", "msys.cidr.ready", "json.parse", "json.text", "db.rows", "http.new"}
INNER |= {"msys.trylock", "msys.waitlock", "mutex:waitlock", "msg:envelope"}
WRITTEN_IN_LUA = {
    "msys.registerModule(name, table)": "Register callouts.",
    "msys.registerAuth(scheme, table)": "Register `table:authenticate(path, parameters, user, password)`"
    " for a uri's scheme; it returns EC_AUTH_OK, EC_AUTH_FAIL or EC_AUTH_ERROR of msys.core.",
    "msys.registerControl(prefix, function)": "Register a console command: `cc.argc`, `cc.argv[0]`; `print` answers.",
    "msys.cidr.query(name[, ip])": "The value of the longest block that holds an address.",
    "msys.db.query(cache, sql[, parameters][, options])": "An iterator over rows. *waits*",
    "msys.http.client.new()": "An HTTP client.",
    "msys.lock(name), mutex:lock()": "Take a lock, or wait for it. *waits*",
    "msys.runInPool(pool, function[, true or function])": "Run now as pcall does, or when the phase is over.",
    "msys.asyncOk()": "Whether the callout may wait.",
    "msys.type(value), msys.cast(object, class)": "As the manual has them.",
    "msys.getClassMetaTable(class), msys.dumper.Dumper(value)": "As the manual has them.",
    "msg:get_envelope2(flags, localpart, domain)": "Fill two buffers of msys.core.string_new().",
    "msys.core.string_new()": "A buffer with set, get, append, write, a length and a text.",
    "json.new(), json.decode(text), json.encode(value), json.null": "Tables that print as JSON.",
    "msys.tls_params.set(parameters, name, value)": "Set a TLS parameter; in the hooks of TLS parameters.",
}


def smtp_page() -> str:
    """Verbs, the machine that they make up, keywords of the EHLO reply, and replies."""
    out = [
        "# SMTP",
        "",
        "Generated from `smtp/tables.py` and `mail/reply.py`. What the receiving role does with each verb, what it",
        "offers, and every reply that Quillon itself sends or makes up.",
        "",
        "## States",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {_node(State.AWAITING_HELLO)}: banner",
    ]
    for state in (State.AWAITING_HELLO, State.AWAITING_MAIL, State.AWAITING_RCPT):
        for leads_to in (State.AWAITING_HELLO, State.AWAITING_MAIL, State.AWAITING_RCPT, State.READING_BODY):
            verbs = [v.name for v in VERBS.values() if state not in v.refused and v.leads_to is leads_to]
            if verbs:
                out.append(f"    {_node(state)} --> {_node(leads_to)}: {', '.join(verbs)}")
    reading, answering, mail = map(_node, (State.READING_BODY, State.ANSWERING_BODY, State.AWAITING_MAIL))
    rcpt = _node(State.AWAITING_RCPT)
    out += [
        f"    {rcpt} --> {mail}: RSET",
        f"    {reading} --> {answering}: the last dot",
        f"    {answering} --> {mail}: 250, or why not",
        "```",
        "",
        "A negative reply leaves the state as it is. QUIT, and any 421, ends the session.",
        "",
        "## Verbs",
        "",
        "| Verb | Cannot come | Argument it must not have | Asked before the answer | Then | Source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for verb in VERBS.values():
        refused = "; ".join(f"{state.value}: `{reply}`" for state, reply in verb.refused.items())
        refused += " (unless Require_EHLO = false)" if verb.hello_optional else ""
        argument = f"`{verb.argument}`" if verb.argument else ""
        leads_to = verb.leads_to.value if verb.leads_to else ""
        out.append(f"| {verb.name} | {refused} | {argument} | {verb.asks} | {leads_to} | {verb.rfc} |")
    out += ["", "## Keywords of the EHLO reply", "", "| Keyword | Offered | Source |", "| --- | --- | --- |"]
    for keyword in KEYWORDS:
        words = f"{keyword.name} {keyword.arguments}".strip()
        out.append(f"| {words} | {keyword.when.value} | {keyword.rfc} |")
    out += ["| AUTH | where Auth stanzas or options name mechanisms that can be used | RFC 4954 |"]
    out += ["", "## Replies", "", "| Reply | Name |", "| --- | --- |"]
    found = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}
    for name, reply in sorted(found.items(), key=lambda pair: (pair[1].code, pair[1].enhanced, pair[0])):
        text = str(reply).replace("|", "\\|")
        out.append(f"| `{text}` | {name} |")
    return "\n".join([*out, ""])


def _node(state: State) -> str:
    return state.value.title().replace(" ", "").replace("/", "")


def farm_page(found: Mapping[tuple[str, str], Mapping[str, TrialResult]]) -> str:
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


def try_farm() -> dict[tuple[str, str], dict[str, TrialResult]]:
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


def console_page() -> str:
    """Commands as `help` has them, with the role of each."""
    out = [
        "# Console commands",
        "",
        "Everything may be asked with `--json`. What is meant and how: [The queue](../console.md).",
        "",
        "| Command | Role | |",
        "| --- | --- | --- |",
    ]
    for command in COMMANDS:
        words = f"{command.name} {command.words}".strip().replace("|", "\\|")
        out.append(f"| `{words}` | {command.role.name.lower()} | {command.help} |")
    return "\n".join([*out, "", f"And {CONTROL.help} (admin)."]) + "\n"


PAGES = {
    "options.md": options_page,
    "causes.md": causes_page,
    "policy.md": policy_page,
    "smtp.md": smtp_page,
    "console.md": console_page,
}


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
    (FOLDER / "farm.md").write_text(farm_page(try_farm()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
