"""How it reads what hosts have to prove, and who says so: rows of `delivery/survey.py` as text. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

Row = dict[str, Any]


def lines(row: Row) -> list[str]:
    """The answer of `tls demand`, and the end of that of `explain`."""
    out = [f"{row['domain']}: {row['problem']}"] if row["problem"] else []
    if "mta_sts" in row:
        out += policy_lines(row["domain"], row["mta_sts"])
    for host in row["hosts"]:
        secure = " +dnssec" if host["dnssec"] else ""
        out.append(f"{host['host']} [{host['ip']}]:{host['port']}{secure}: {_words(host)}")
        out += [f"    {'by ' if n == 0 else 'and'} {reason}" for n, reason in enumerate(host["reasons"])]
    return out


def _words(host: Row) -> str:
    if host["refused"]:
        return f"gets nothing: {host['refused']}"
    if host["tlsa"]:
        also = f", and TLS_Verify = {host['tls_verify']}" if host["tls_verify"] != "no" else ""
        return f"TLS is required, with a certificate that a TLSA record names{also}"
    names = f", for {' or '.join(host['names'])}" if host["tls_verify"] in ("host", "optional") else ""
    return f"TLS = {host['tls']}, TLS_Verify = {host['tls_verify']}{names}"


def policy_lines(domain: str, found: Row) -> list[str]:
    """A policy of MTA-STS, or that there is none."""
    problem = [f"    {found['result']}: {found['detail']}"] if found["result"] else []
    policy = found["policy"]
    if policy is None:
        return [f"MTA-STS: {domain} has no policy in force", *problem]
    head = f"MTA-STS: {domain}, mode {policy['mode']}, id {policy['id']}"
    times = f"fetched {_date(policy['fetched'])}, holds until {_date(policy['expires'])}"
    return [head, f"    mx {', '.join(policy['mx']) or 'none'}", f"    {times}", *problem]


def _date(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M UTC")


def text_demand(found: Row) -> str:
    """`tls demand`."""
    return _text(lines(found)) if found else "no worker has answered\n"


def merge_policies(rows: list[Any]) -> Row:
    """`mta_sts list all`: all workers have one folder."""
    return {"domains": sorted({row["domain"] for row in rows})}


def text_policies(found: Row) -> str:
    """`mta_sts list all`."""
    return _text([*found["domains"], f"Total domains: {len(found['domains'])}"])


def text_policy(found: Row) -> str:
    """`mta_sts show domain`."""
    return _text(policy_lines(found["domain"], found)) if found else "no worker has answered\n"


def _text(rows: list[str]) -> str:
    return "".join(f"{row}\n" for row in rows)
