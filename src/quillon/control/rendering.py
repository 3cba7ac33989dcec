"""How answers of the console read. `merge_*` puts the rows of all workers together into what `--json` prints, `text_*`
makes the manual's text of that. Pure.

Text is made for people and may change; the names in the merged values stay.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from quillon.log import metrics
from quillon.mail.shown import printable

ERROR = "error: "  # how a text begins that is no answer
CONFIRM = "with --yes it is done"  # how an order ends that was counted only
MAILQ = 20  # destinations that mailq lists unless it is told otherwise

_REQUESTS = {"requiretls": "REQUIRETLS", "no": "TLS-Required: No"}  # of senders (RFC 8689)

Rows = list[Any]
Row = dict[str, Any]


def printable_lines(text: str) -> str:
    """Text of which no line does anything to a terminal."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))


# counters and sizes -------------------------------------------------------------------------------------------------


def merge_metrics(rows: Rows) -> dict[str, float]:
    return metrics.merge((series, value) for series, value in rows)


def text_metrics(values: dict[str, float]) -> str:
    return metrics.render(values)


def merge_summary(rows: Rows) -> Row:
    """Sums of all workers; times are those of the longest."""
    times = ("seconds", "uptime")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: (max if name in times else sum)(row.get(name, 0) for row in rows) for name in names}


_SUMMARY = (
    ("Outbound Concurrency", "outbound"),
    ("Inbound Concurrency", "inbound"),
    ("Active Domains", "active_domains"),
    ("Active Queue Size", "active"),
    ("Delayed Queue Size", "delayed"),
    ("Successfully Delivered Messages", "delivered"),
    ("Failed Messages", "permanent_failure"),
    ("Transient Failures", "transient_failure"),
    ("Rejected Messages", "rejected"),
    ("Received Messages", "received"),
    ("DNS A Queries", "dns_a"),
    ("DNS MX Queries", "dns_mx"),
    ("Pending DNS Queries", "dns_pending"),
)


def text_summary(sums: Row) -> str:
    seconds = max(sums.get("seconds", 0.0), 1e-3)
    values = [(label, sums.get(name, 0)) for label, name in _SUMMARY]
    values.insert(5, ("Total Queue Size", sums.get("active", 0) + sums.get("delayed", 0)))
    values += _rates(sums, seconds)
    values.append(("Query Rate", f"{sums.get('dns_queries', 0) / seconds:.2f} queries/second"))
    values.append(("Statistics Last Reset", f"{seconds:.0f} seconds ago"))
    values.append(("Uptime", f"{sums.get('uptime', 0):.0f} seconds"))
    return "Summary Statistics\n" + "".join(f"        {label}: {value}\n" for label, value in values)


def _rates(sums: Mapping[str, float], seconds: float) -> list[tuple[str, str]]:
    """Messages a second, as the manual has them."""
    names = (("Delivery Rate", "delivered"), ("Reception Rate", "received"))
    return [(label, f"{sums.get(name, 0) / seconds:.2f} messages/second") for label, name in names]


def merge_bindings(rows: Rows) -> list[Row]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        sums = found.setdefault(row["binding"], Counter())
        sums.update({k: v for k, v in row.items() if k not in ("binding", "seconds")})
        sums["seconds"] = max(sums["seconds"], int(row["seconds"]))
    return [{"binding": name, **found[name]} for name in sorted(found)]


def text_bindings(found: list[Row]) -> str:
    out = []
    labels = (("Open Connections", "connections"), ("Domains", "domains"), ("Active Queue Size", "active"))
    for row in found:
        out.append(f"Summary Statistics For Binding {row['binding']}")
        out += [f"        {label}: {row.get(name, 0)}" for label, name in (*labels, ("Delayed Queue Size", "delayed"))]
        out.append(f"        Total Queue Size: {row.get('active', 0) + row.get('delayed', 0)}")
        counted = (("Successfully Delivered", "delivered"), ("Failed", "failed"), ("Received", "received"))
        out += [f"        {label} Messages: {row.get(name, 0)}" for label, name in counted]
        seconds = max(row.get("seconds", 0), 1)
        out += [f"        {label}: {rate}" for label, rate in _rates(row, seconds)]
        out.append(f"        Uptime: {row.get('seconds', 0)} seconds")
    return "\n".join(out or ["no mail waits in any binding"]) + "\n"


def merge_mailq(rows: Rows) -> Row:
    """The largest queues of all workers, and the totals. Rows are the binding with its group, the domain, active and
    delayed messages; one without a domain has a worker's totals, and how many it lists."""
    sizes: dict[tuple[str, str], list[int]] = {}
    total, most = [0, 0], MAILQ
    for binding, domain, active, delayed in rows:
        if not domain:
            total = [total[0] + active, total[1] + delayed]
            most = int(binding)
            continue
        found = sizes.setdefault((binding, domain), [0, 0])
        found[0] += active
        found[1] += delayed
    listed = sorted(sizes.items(), key=lambda item: (-sum(item[1]), item[0]))[:most]
    queues = [
        {"binding": binding, "domain": domain, "active": sums[0], "delayed": sums[1]}
        for (binding, domain), sums in listed
    ]
    return {"queues": queues, "active": total[0], "delayed": total[1]}


def text_mailq(found: Row) -> str:
    head = f"{'Group/Binding':<28}{'Domain':>30}{'AQ':>8}{'DQ':>8}"
    lines = [f"{row['binding']:<28}{row['domain']:>30}{row['active']:>8}{row['delayed']:>8}" for row in found["queues"]]
    total = f"{'Total':<58}{found['active']:>8}{found['delayed']:>8}"
    return "\n".join([head, "-" * len(head), *lines, total]) + "\n"


def merge_larger(rows: Rows) -> Row:
    """Domains of all workers, the largest first. A row without a domain has a worker's totals, the number that domains
    have to be over, and of which queue."""
    sizes: dict[str, Counter[str]] = {}
    merged: Row = {"active": 0, "delayed": 0}
    for row in rows:
        if "over" in row:
            merged |= {"over": row["over"], "which": row["which"]}
            merged |= {name: merged.get(name, 0) + row[name] for name in ("active", "delayed", "sent")}
        else:
            found = sizes.setdefault(row["domain"], Counter())
            found.update({k: v for k, v in row.items() if isinstance(v, int)})
    over, which = merged.get("over", 0), merged.get("which", "active")
    listed = sorted(sizes.items(), key=lambda item: (-item[1][which], item[0]))
    merged["domains"] = [{"domain": name, **size} for name, size in listed if size[which] > over]
    return merged


def text_larger(found: Row) -> str:
    """As the manual's `active` and `delayed`."""
    out = [
        f"Domain: {row['domain']:>40}  C: {row['connections']:>4}  A: {row['active']:>6}  D: {row['delayed']:>6}"
        f"  S: {row.get('sent', 0):>6}\n"
        for row in found["domains"]
    ]
    sums = f"A: {found['active']:>15}  D: {found['delayed']:>6}  S: {found.get('sent', 0):>6}"
    return "".join(out) + f"{'Total:':>48}  {sums}\n"


# destinations and messages ------------------------------------------------------------------------------------------


def text_domain(rows: list[Row]) -> str:
    """What each worker has for a domain, and why it waits."""
    if not rows:
        return "nothing is queued for this domain\n"
    now = time.time()
    out = []
    for row in rows:
        via = f" (mail for {row['via']})" if row["via"] else ""
        via += f" ({_REQUESTS[row['request']]})" if row["request"] else ""
        out.append(f"{row['binding']} {row['domain']}{via}, worker {row['worker']}: {row['state']}{_paused(row, now)}")
        next_at = f", the next in {span(row['next_at'] - now)}" if row["next_at"] else ""
        out.append(f"    messages: {row['active']} may leave, {row['delayed']} wait for their next attempt{next_at}")
        out.append(
            f"    connections: {row['busy']} busy, {row['idle']} idle, {row['connecting']} being opened;"
            f" {row['allowed']} are allowed now"
        )
        for name, (used, most) in row["shared_limits"].items():
            out.append(f"    {name}: {used} of {most} in use")
        out += [f"    demanded: {row['demand']}"] if row["demand"] else []
        out += [f"    last reply: {row['last_reply']}"] if row["last_reply"] else []
        out += [f"    why: {line}" for line in _reasons(row.get("reasons", []), now)]
    return "\n".join(out) + "\n"


def _paused(row: Row, now: float) -> str:
    return f" for {span(row['paused_until'] - now)}: {row['why']}" if row["paused_until"] > now else ""


def _reasons(found: list[Row], now: float) -> list[str]:
    lines = []
    for reason in found:
        until = f", for {span(reason['until'] - now)}" if reason["until"] > now else ""
        place = f" in {reason['place']}" if reason["place"] else " by default"
        ruled = f" ({reason['option']}{place})" if reason["option"] else ""
        lines.append(f"{reason['words']}{until}{ruled}")
    return lines


def span(seconds: float) -> str:
    """A time to go, as people say it."""
    if seconds > 10 * 365 * 86400:
        return "as long as nobody ends it"
    seconds = max(seconds, 0)
    if seconds < 7200:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def merge_listed(rows: Rows) -> Row:
    """Items of all workers, oldest first, and how many there are in all. A row with `total` tells how many a worker
    has, and which of all are wanted: so many, from an offset on."""
    items = [row for row in rows if "total" not in row]
    items.sort(key=lambda row: row.get("created", row.get("since", 0.0)))
    totals = [row for row in rows if "total" in row]
    limit, offset = max((tuple(row["window"]) for row in totals), default=(0, 0))
    return {"items": items[offset : offset + limit], "offset": offset, "total": sum(row["total"] for row in totals)}


def text_showqueue(found: Row) -> str:
    """As the manual's showqueue."""
    out = []
    for row in found["items"]:
        out.append(f"[{row['state']}/{row['binding']}] {row['id']} Created: {row['created']:.0f}")
        out.append(f"  From: <{row['sender']}> To: <{row['recipient']}>")
    return "".join(f"{line}\n" for line in [*out, *_rest(found)]) or "nothing is queued\n"


def text_find(found: Row) -> str:
    now = time.time()
    out = []
    for row in found["items"]:
        due = f"next in {span(row['next_at'] - now)}" if row["next_at"] > now else row["state"]
        age = span(now - row["created"])
        out.append(f"{row['id']}  {age} old, {row['tries']} tries, {due}  <{row['sender']}> -> <{row['recipient']}>")
        out += [f"    {row['last_reply']}"] if row["last_reply"] else []
    return "".join(f"{line}\n" for line in [*out, *_rest(found)]) or "no message that waits is meant by this\n"


def _rest(found: Row) -> list[str]:
    more = found["total"] - found["offset"] - len(found["items"])
    return [f"{more} more are not listed"] if more > 0 else []


def merge_message(rows: Rows) -> Row:
    """What the worker that has it says: the message, reasons, and its octets as text."""
    merged: Row = {}
    for row in rows:
        if "body" in row:
            merged["body"] = merged.get("body", "") + row["body"]
        else:
            merged |= row
    return merged or {"error": "no message of this id waits here or is being delivered"}


def text_message(found: Row) -> str:
    out = [_message(found["message"])] if "message" in found else []
    out += [f"{'why':>22}: {line}\n" for line in _reasons(found.get("reasons", []), time.time())]
    if "body" in found:
        out.append("\n" * bool(out) + found["body"].replace("\r\n", "\n"))
    if "cut" in found:
        out.append(f"\n... cut here: the message has {found['cut']} octets; `quillon spool export` writes all of it\n")
    return "".join(out)


def merge_exported(rows: Rows) -> Row:
    """The message, and its octets in base64."""
    found = next((row["message"] for row in rows if "message" in row), None)
    if found is None:
        return {"error": "no message of this id waits here or is being delivered"}
    octets = "".join(row["piece"] for row in rows if "piece" in row)
    whole = next(row["whole"] for row in rows if "whole" in row)
    if len(octets) != -(-whole // 3) * 4:
        return {"error": "a part of it is missing: the worker that has it did not answer to the end"}
    return {**found, "octets": octets}


def text_exported(found: Row) -> str:
    return f"{found['id']} has {found['size']} octets; `quillon console message export` writes them to a file\n"


def _message(row: Row) -> str:
    """The manual's fields of `message details`, and what Quillon knows beyond."""
    group, binding = row["binding_group"], row["binding"]
    fields = (
        ("Created", date(row["created"])),
        ("Next Attempt", date(row["next_at"]) if row["next_at"] else "as soon as possible"),
        ("Retries", row["tries"]),
        ("Received Via", row["received_via"]),
        ("Sender", row["sender"]),
        ("Recipient", row["recipient"]),
        ("Domain", row["domain"]),
        ("Binding", binding if group == "default" else f"{group}/{binding}"),
        ("State", row["state"]),
        ("Demanded", row["demand"]),
        ("Sender Wants", _REQUESTS.get(row["request"], "")),
        ("Code", row["last_reply"] or "none yet"),
        ("Size", row["size"]),
    )
    return f"Message: {row['id']}\n" + "".join(f"{label:>22}: {value}\n" for label, value in fields if value != "")


def date(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


# orders -------------------------------------------------------------------------------------------------------------


def merge_order(rows: Rows) -> Row:
    """How many messages an order concerned, or would."""
    first = rows[0] if rows else {"done": True, "what": "changed"}
    merged = {"count": sum(row["count"] for row in rows), "done": first["done"], "what": first["what"]}
    if "domain" in first:
        merged["domain"] = first["domain"]
    if any(row.get("busy") for row in rows):
        merged["busy"] = True
    if not merged["done"]:
        merged["error"] = f"{merged['count']} messages would be {merged['what']}; {CONFIRM}"
    return merged


def merge_one(rows: Rows) -> Row:
    """As `merge_order`, of an order about one message."""
    merged = merge_order(rows)
    if merged.get("busy"):
        merged["error"] = "the message is being delivered: see what comes of it, and say it again"
    elif not merged["count"]:
        merged["error"] = "no message of this id waits here"
    return merged


def text_order(found: Row) -> str:
    return f"{found['count']} messages {found['what']}.\n"


def text_flushed(found: Row) -> str:
    name = "All domains" if found.get("domain") == "all" else found.get("domain", "")
    return f"{name} flushed.  {found['count']} messages requeued.\n"


def text_purged(found: Row) -> str:
    name = "All domains" if found.get("domain") == "all" else found.get("domain", "")
    return f"{name} purged, {found['count']} messages failed.\n"


def text_rebound(found: Row) -> str:
    return f"Rebound {found['count']} messages.\n"


def text_retried(_found: Row) -> str:
    return "Message requeued for delivery\n"


def text_failed(_found: Row) -> str:
    return "Message failed\n"


def merge_suspensions(rows: Rows) -> list[Row]:
    """Each once, whatever the number of workers, with the messages that it holds."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        known = found.setdefault((row["domain"], row["binding"]), {**row, "count": 0})
        known["count"] += row["count"]
    return [{k: v for k, v in one.items() if k not in ("done", "noted")} for one in found.values()]


def text_suspended(found: list[Row]) -> str:
    now = time.time()
    out = []
    for row in found:
        until = f"for {span(row['until'] - now)}" if row["until"] is not None else "until it is resumed"
        reason = f": {row['reason']}" if row["reason"] else ""
        out.append(f"{_place(row)} is suspended {until}, by {row['by']} since {date(row['since'])}{reason}")
    return "".join(f"{line}\n" for line in out) or "nothing is suspended\n"


def text_suspend(found: list[Row]) -> str:
    held = sum(row["count"] for row in found)
    return text_suspended(found) + f"{held} messages wait under what is suspended.\n"


def merge_resumed(rows: Rows) -> Row:
    found = merge_suspensions(rows)
    return (
        {"resumed": found} if found else {"error": "nothing of this domain and binding is suspended; see `suspended`"}
    )


def text_resumed(found: Row) -> str:
    return "".join(f"{_place(row)} is resumed\n" for row in found["resumed"])


def _place(row: Row) -> str:
    parts = [f"domain {row['domain']}"] if row["domain"] else []
    parts += [f"binding {row['binding']}"] if row["binding"] else []
    return " of ".join(parts) or "everything"


# connections, TLS, spool --------------------------------------------------------------------------------------------


def text_inbound(found: Row) -> str:
    now = time.time()
    out = [
        f"{row['client']} on {row['listen']} {row['state']}{_over(row['tls'])} (for {span(now - row['since'])})"
        for row in found["items"]
    ]
    return "".join(f"{line}\n" for line in [*out, *_rest(found)]) or "no client is connected\n"


def text_outbound(found: Row) -> str:
    now = time.time()
    out = []
    for row in found["items"]:
        what = f"delivering {row['messages']}" if row["messages"] else row["state"]
        out.append(
            f"{row['binding']} {row['domain']} {row['host']} {row['peer']} from {row['local']}{_over(row['tls'])}"
            f" {what}, {row['delivered']} transactions done (for {span(now - row['since'])})"
        )
    return "".join(f"{line}\n" for line in [*out, *_rest(found)]) or "no connection stands\n"


def _over(protocol: str) -> str:
    return f" {protocol}" if protocol else " in clear"


def merge_contexts(rows: Rows) -> list[Row]:
    """TLS contexts, those of all workers with equal settings as one."""
    merged: dict[str, Row] = {}
    for row in rows:
        key = repr((row["kind"], sorted(row["settings"].items())))
        found = merged.setdefault(key, {**row, "in_use": 0})
        found["in_use"] += row["in_use"]
        found["age"] = max(found["age"], row["age"])
    return list(merged.values())


def text_contexts(found: list[Row]) -> str:
    """`tls show cache` as the manual prints it."""
    out = []
    for number, row in enumerate(found, 1):
        lines = [("age", f"{int(row['age'])} seconds old"), ("in use by", f"{row['in_use']} sessions")]
        lines += list(row["settings"].items())
        out.append(f"{number:4}) {row['kind']} context")
        out += [f"{label:>18}: {value}" for label, value in lines]
    return "\n".join(out or ["no context is cached"]) + "\n"


def text_spool(rows: list[Row]) -> str:
    out = []
    for row in sorted(rows, key=lambda row: int(row["worker"])):
        state = f"no new mail is taken: {row['refused']}" if row["refused"] else "mail is taken"
        free = f"{row['free'] >> 20} MiB free, {row['waiting']} changes wait to be written"
        out.append(f"worker {row['worker']}: {row['folder']}: {free}; {state}\n")
    return "".join(out)


def merge_cached(rows: Rows) -> Row:
    """One of the workers' answers: each has a cache of its own."""
    return dict(rows[0]) if rows else {}


def text_cached(found: Row) -> str:
    if not found:
        return "Cached result not found: no worker has asked for it.\n"
    records = [f"    {preference} {name}" for preference, name in found["records"]]
    secure = ", validated" if found["secure"] else ""
    detail = f": {found['detail']}" if found["detail"] else ""
    head = f"{found['status']}{detail}{secure}, for {found['ttl']:.0f} s"
    return "\n".join([head, *records]) + "\n"


def merge_cache_stats(rows: Rows) -> Row:
    asked: Counter[str] = Counter()
    for row in rows:
        asked.update(row["asked"])
    sums = {name: sum(row[name] for row in rows) for name in ("entries", "pending", "hits")}
    return {**sums, "asked": dict(sorted(asked.items()))}


def text_cache_stats(found: Row) -> str:
    asked = ", ".join(f"{kind} {count}" for kind, count in found["asked"].items()) or "none"
    total = found["hits"] + sum(found["asked"].values())
    share = f" ({100 * found['hits'] / total:.0f} %)" if total else ""
    lines = [f"Entries: {found['entries']}", f"Answered by the cache: {found['hits']}{share}", f"Asked: {asked}"]
    return "".join(f"{line}\n" for line in [*lines, f"Pending: {found['pending']}"])


def text_count(found: Row) -> str:
    return f"{found.get('sessions', 0)} sessions\n"


def text_modules(rows: list[Row]) -> str:
    """All workers have the same."""
    named = {row["module"]: ", ".join(row["asked"]) for row in rows}
    return "".join(f"Module: {name}\n    {asked or 'nothing'}\n" for name, asked in named.items()) or "no module\n"


def merge_explained(rows: Rows) -> Row:
    """The answer of one worker: all have the same configuration."""
    options: dict[str, Row] = {}
    merged: Row = {"goes_to": ""}
    for row in rows:
        if "option" in row:
            options.setdefault(row["option"], row)
        else:
            merged["goes_to"] = row["goes_to"]
    return {**merged, "options": list(options.values())}


def text_explained(found: Row) -> str:
    out = [f"its mail goes to {found['goes_to']}"] if found["goes_to"] else []
    for row in found["options"]:
        where = f"{row['set_at']} in {row['scope']}" if row["set_at"] else "default"
        value = "(not set)" if row["value"] is None else row["value"] or '""'
        out.append(f"{row['option']} = {value}    {where}")
        out += [f"    beats {one['value']}    {one['set_at']} in {one['scope']}" for one in row["beaten"]]
    return "".join(f"{line}\n" for line in out)


# counters of scripts ------------------------------------------------------------------------------------------------


def merge_counters(rows: Rows) -> list[Row] | Row:
    """Sums of all workers, by path; `reset` is the earliest time."""
    found: dict[str, Row] = {}
    for row in rows:
        known = found.setdefault(row["counter"], {**row, "value": 0})
        known["value"] += row.get("value", 0)
        known["reset"] = min(known.get("reset", 0), row.get("reset", 0))
    return [found[path] for path in sorted(found)]


def merge_added(rows: Rows) -> list[Row] | Row:
    """One worker adds; without that one nothing is added."""
    if not any(row.pop("added") for row in rows):
        return {"error": "nothing was added: the worker that counts for the console is not there; again in a moment"}
    return merge_counters(rows)


def text_counters(found: list[Row]) -> str:
    """As the manual has it."""
    out = [f"{'VALUE':<10} {'RESET_TIME':<20} {'SEMANTICS':<9} COUNTER\n"]
    for row in found:
        when = time.strftime("%Y-%m-%d@%H:%M:%S", time.localtime(row["reset"]))
        out.append(f"{row['value']:<10} {when:<20} {'relaxed' if row['relaxed'] else 'strict':<9} {row['counter']}\n")
    return "".join([*out, f"{len(found)} counters listed.\n"])


def text_unlinked(found: list[Row]) -> str:
    return "".join(f"{row['counter']} is forgotten\n" for row in found) or "there is no such counter\n"


# words --------------------------------------------------------------------------------------------------------------


def merge_said(rows: Rows) -> Row:
    """What workers said, each text once; errors of all of them where none has done anything."""
    good = list(dict.fromkeys(row["said"] for row in rows if "said" in row))
    if good:
        return {"said": [text for text in good if text]}
    return {"error": "; ".join(dict.fromkeys(row["error"] for row in rows))}


def text_said(found: Row) -> str:
    return "".join(text.rstrip("\n") + "\n" for text in found["said"])
