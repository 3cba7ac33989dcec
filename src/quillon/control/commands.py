"""The console's commands, one row each: what it is called, what it is for, who may give it, who answers it, and how the
answer reads.

What is no command of this table may be one that a script has registered (`control`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from quillon.config import changes
from quillon.config.options import table
from quillon.control import configuration, demands, partners, tracing
from quillon.control import rendering as show
from quillon.queue.selection import WORDS

Merge = Callable[[list[Any]], Any]
Render = Callable[[Any], str]


class By(Enum):
    """Who answers a command."""

    CONSOLE = "the console itself"
    SUPERVISOR = "the supervisor"
    WORKERS = "all workers"


class Role(IntEnum):
    """Who may give a command; whoever has a role has those below it."""

    VIEW = 1
    OPERATE = 2
    ADMIN = 3


class Command(NamedTuple):
    """`words` are the arguments as help shows them. `merge` puts the rows of all workers together, which is what
    `--json` prints; `render` makes text of it."""

    name: str
    words: str
    help: str
    role: Role = Role.VIEW
    render: Render = str
    merge: Merge = list
    by: By = By.WORKERS


_V, _O, _A = Role
_SELECTION = WORDS
COMMANDS = (
    Command("help", "[COMMAND]", "what can be asked", by=By.CONSOLE),
    Command("version", "", "the version of Quillon", by=By.CONSOLE),
    Command("pid", "", "process id of the supervisor", by=By.CONSOLE),
    Command("whoami", "", "as whom this console is known, and what that one may do", by=By.CONSOLE),
    # what waits
    Command("summary", "", "sizes, rates and totals of all workers", _V, show.text_summary, show.merge_summary),
    Command("summary reset", "", "count from now on", _O, lambda _: "statistics cleared.\n"),
    Command("mailq", "[N]", "the N largest queues (20)", _V, show.text_mailq, show.merge_mailq),
    Command("active", "[N]", "domains with over N messages that may leave", _V, show.text_larger, show.merge_larger),
    Command("delayed", "[N]", "domains with over N that are delayed", _V, show.text_larger, show.merge_larger),
    Command("binding summary", "[B]", "what each binding has", _V, show.text_bindings, show.merge_bindings),
    Command("domain", "NAME", "queues, connections and limits of a domain, and why it waits", _V, show.text_domain),
    Command(
        "showqueue", "[binding B] NAME [limit,offset]", "messages for a domain", _V,
        show.text_showqueue, show.merge_listed,
    ),
    Command("find", f"[--limit N] {_SELECTION}", "messages that wait", _V, show.text_find, show.merge_listed),
    Command("message details", "[full|body] ID", "all about a message", _V, show.text_message, show.merge_message),
    Command("message why", "ID", "why it waits, and which option says so", _V, show.text_message, show.merge_message),
    Command("message export", "ID [FILE]", "all of a message, into a file (quillon console), or as it is", _O,
        show.text_exported, show.merge_exported,
    ),
    # orders about what waits
    Command("flush", f"{_SELECTION} [--yes]", "try messages now", _O, show.text_order, show.merge_order),
    Command("flush domain", "NAME|all", "try all of a domain now", _O, show.text_flushed, show.merge_order),
    Command(
        "fail", f"{_SELECTION} [--note TEXT] [--quiet] [--yes]", "give up; senders are told, but with --quiet", _O,
        show.text_order, show.merge_order,
    ),
    Command("fail domain", "NAME|all [TEXT] [--yes]", "give up a domain", _O, show.text_purged, show.merge_order),
    Command(
        "fail domain quiet", "NAME|all [TEXT] [--yes]", "the same, and no sender is told", _O,
        show.text_purged, show.merge_order,
    ),
    Command("fail all", "[TEXT] [--yes]", "give up everything", _O, show.text_purged, show.merge_order),
    Command("fail all quiet", "[TEXT] [--yes]", "the same, and no sender is told", _O,
        show.text_purged, show.merge_order,
    ),
    Command("binding flush domain", "B NAME|all", "try a domain of a binding now", _O,
        show.text_flushed, show.merge_order,
    ),
    Command("binding fail domain", "B NAME|all [TEXT] [--yes]", "give up a domain of a binding", _O,
        show.text_purged, show.merge_order,
    ),
    Command("binding fail domain quiet", "B NAME|all [TEXT] [--yes]", "the same, and no sender is told", _O,
        show.text_purged, show.merge_order,
    ),
    Command("delay", f"TIME {_SELECTION} [--yes]", "put off what may leave", _O, show.text_order, show.merge_order),
    Command("discard", f"{_SELECTION} [--yes]", "drop; no sender is told", _O, show.text_order, show.merge_order),
    Command(
        "rebind", "BINDING|all [DOMAIN] [--to BINDING] [--yes]", "send from another binding, by another gateway", _O,
        show.text_rebound, show.merge_order,
    ),
    Command(
        "reroute queue", "FROM|all TO [--yes]", "send to another domain's hosts", _O,
        show.text_order, show.merge_order,
    ),
    Command("message retry", "ID", "try it now", _O, show.text_retried, show.merge_one),
    Command("message fail", "ID", "give it up", _O, show.text_failed, show.merge_one),
    Command("message fail quiet", "ID", "give it up; its sender is not told", _O, show.text_failed, show.merge_one),
    Command("message discard", "ID", "drop it; its sender is not told", _O, show.text_failed, show.merge_one),
    Command(
        "suspend", "NAME|--binding B|--all [--for TIME] [--reason TEXT]", "let nothing leave", _O,
        show.text_suspend, show.merge_suspensions,
    ),
    Command(
        "resume", "NAME|--binding B|--all", "let it leave again", _O, show.text_resumed, show.merge_resumed
    ),
    Command("suspended", "", "what is suspended, by whom and why", _V, show.text_suspended, show.merge_suspensions),
    # connections, names, TLS
    Command("show inbound", "", "clients that are connected", _V, show.text_inbound, show.merge_listed),
    Command("show outbound", "", "connections to hosts", _V, show.text_outbound, show.merge_listed),
    Command("dns_cache lookup", "NAME TYPE", "what a worker knows", _V, show.text_cached, show.merge_cached),
    Command("dns_cache stats", "", "what workers have asked, and know", _V,
        show.text_cache_stats, show.merge_cache_stats,
    ),
    Command("dns_cache submit", "NAME TYPE", "look it up, for the cache", _O, show.text_said, show.merge_said),
    Command("count", "SMTP BLOCK", "open sessions of an address block", _V, show.text_count, show.merge_summary),
    Command("counter list", "[PREFIX]", "counters of scripts, all workers together", _V,
        show.text_counters, show.merge_counters,
    ),
    Command("counter add", "PATH NUMBER", "add to a counter, which is made if it is not there", _O,
        show.text_counters, show.merge_added,
    ),
    Command("counter increment", "PATH", "add one", _O, show.text_counters, show.merge_added),
    Command("counter reset", "PATH", "set to 0", _O, show.text_counters, show.merge_counters),
    Command("counter unlink", "PATH", "forget it", _O, show.text_unlinked, show.merge_counters),
    Command("module list", "", "policy modules, and what they are asked", _V, show.text_modules, list),
    Command("refresh domain", "NAME", "look it up anew", _O, show.text_said, show.merge_said),
    Command("tls demand", "[binding B] NAME", "what its hosts have to prove, and who says so", _V,
        demands.text_demand, show.merge_cached,
    ),
    Command("mta_sts list all", "", "domains whose MTA-STS policy is kept", _V,
        demands.text_policies, demands.merge_policies,
    ),
    Command("mta_sts show domain", "NAME", "its MTA-STS policy", _V, demands.text_policy, show.merge_cached),
    Command("mta_sts refresh policy", "NAME", "fetch it now", _O, show.text_said, show.merge_said),
    Command("posture", "NAME|all [DAYS]", "what partners' hosts did with TLS, day by day (30)", _V,
        partners.text_posture, partners.merge_posture,
    ),
    Command("tls show cache", "", "the TLS contexts of all workers", _V, show.text_contexts, show.merge_contexts),
    Command(
        "tls flush cache", "", "load them anew; sessions that stand go on", _O,
        lambda _: "Cache flush request submitted.\n",
    ),
    Command(
        "tls rekey", "", "new keys for session tickets; a session made before is not resumed", _A,
        lambda _: "Rekey request submitted.\n",
    ),
    # the server
    Command("metrics", "", "counters, in the text format of Prometheus", _V, show.text_metrics, show.merge_metrics),
    Command("alerts", "", "what is wrong now, and what to do (stanza alerts)", by=By.SUPERVISOR),
    Command("spool show", "", "room on the spool's disk, and what waits to be written", _V, show.text_spool),
    Command("config explain", "DOMAIN [OPTION]", "what holds for a domain, where it is written, and what it beat", _V,
        show.text_explained, show.merge_explained,
    ),
    Command("reopen logs", "", "open the log files anew, as after a rotation", _O, by=By.SUPERVISOR),
    Command("config get", "[SCOPE [NAME]]... OPTION", "what is written in that scope", _V,
        configuration.text_got, configuration.merge_got,
    ),
    Command("config eval", "[SCOPE [NAME]]... OPTION", "what holds there, with fallback and defaults", _V,
        configuration.text_evaluated, configuration.merge_got,
    ),
    Command("config show", "[SCOPE [NAME]]...", "what is written in a scope, scopes in it by name", _V,
        configuration.text_lines, configuration.merge_lines,
    ),
    Command("config showrecurse", "[SCOPE [NAME]]...", "the same, and all scopes in it", _V,
        configuration.text_lines, configuration.merge_lines,
    ),
    Command("config changes", "", "what the console has set and unset since the last reload", _V,
        configuration.text_changes, configuration.merge_changes,
    ),
    Command(
        "config set", "[SCOPE [NAME]]... OPTION [=] VALUE", "set it, until the next reload", _A, by=By.SUPERVISOR
    ),
    Command("config unset", "[SCOPE [NAME]]... [OPTION]", "take it away, until the next reload", _A, by=By.SUPERVISOR),
    Command("config reload", "", "read the configuration again, as SIGHUP does", _A, by=By.SUPERVISOR),
    Command(
        "record start", "NAME [bodies]", "write sessions to a file of Record_Folder", _A,
        show.text_said, show.merge_said,
    ),
    Command(
        "trace smtp add", "[--in|--out] [--peer IP] [--domain D] [--address A] [--binding B] [--message ID]"
        " [--for TIME] [--file NAME]", "trace sessions that begin now, handshakes too (1h)", _O,
        tracing.text_registered, tracing.merge_registered,
    ),
    Command("trace smtp list", "", "what is being traced", _V, tracing.text_tracers, tracing.merge_tracers),
    Command("trace smtp show", "N [AFTER]", "the lines of a trace", _V, tracing.text_lines, tracing.merge_lines),
    Command("trace smtp follow", "[as add]", "add one, see its lines as they come, and remove it", _O,
        by=By.CONSOLE,
    ),
    Command("trace smtp remove", "N", "end a trace", _O, tracing.text_removed, tracing.merge_removed),
    Command("record stop", "", "write no more", _A, show.text_said, show.merge_said),
)  # fmt: skip
CONTROL = Command(
    "control", "", "what scripts have registered with msys.registerControl", _A, show.text_said, show.merge_said
)
_LONGEST = max(len(command.name.split()) for command in COMMANDS)
_BY_NAME = {tuple(command.name.split()): command for command in COMMANDS}


def find(words: list[str]) -> tuple[Command, list[str]]:
    """The command that words name, the longest that fits, and its arguments; `CONTROL` with all of them for what is
    none of this table."""
    for length in range(min(_LONGEST, len(words)), 0, -1):
        command = _BY_NAME.get(tuple(word.lower() for word in words[:length]))
        if command is not None and (command.words or len(words) == length):
            return command, words[length:]
    return CONTROL, words


def loggable(words: list[str]) -> str:
    """A command as logs have it: without secrets."""
    begin = [word.lower() for word in words[:2]]
    if begin[:1] == ["config"] and begin[1:] in (["set"], ["unset"]):
        return " ".join([*begin, changes.loggable(begin[1], words[2:], table())])
    return " ".join(words)


def help_text(name: str = "") -> str:
    """What `help` prints, of all commands or of those that begin so."""
    rows: Iterable[Command] = [command for command in COMMANDS if command.name.startswith(name)]
    lines = [f"{f'{row.name} {row.words}'.strip():<40} {row.help}" for row in rows]
    return "\n".join([*(lines or [f"{name}: no command begins so"]), *([] if name else [f"and {CONTROL.help}"])]) + "\n"
