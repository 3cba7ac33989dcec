"""The supervisor: binds, drops privileges, keeps the workers running, carries reload and drain.

It serves no mail itself. Order of a start: read the configuration, bind every socket, write the PID file, make the
folders, become Security { User, Group }, try the parts out as that user, fork. A worker that dies is replaced; one that
cannot start ends the whole, since trying again would not help.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from quillon.app import compose, worker
from quillon.app.alerts import Alerts
from quillon.app.child import forked
from quillon.app.config_trial import ConfigTrial
from quillon.app.control import Control
from quillon.app.leases import Leases, LeaseWord
from quillon.app.notify import notify, reloading
from quillon.app.privileges import Identity, PrivilegeError, become, identity, make_folder
from quillon.app.reload_outcome import ReloadOutcome
from quillon.config.changes import ConfigChange
from quillon.config.model import Config
from quillon.config.scope import resolve
from quillon.config.settings import ListenSettings
from quillon.control.commands import Role, find, loggable
from quillon.control.messages import HttpSettings
from quillon.control.rendering import ERROR
from quillon.listener.sockets import BindError, bind, is_free
from quillon.log.sink import Loggers
from quillon.mail.alert import Alert
from quillon.mail.event import Authorized, Notice, Panic
from quillon.mail.shown import line
from quillon.net.channel import Channel
from quillon.net.clock import SystemClock
from quillon.standards.setup import policy_text

RESTART_DELAY = 1.0  # seconds before a worker that died soon after its start is replaced; twice as long each time
ALERT_SECONDS = 3600.0
MOST_NEWS = 100  # alerts that wait for a worker to send them
MOST_DELAY = 30.0  # seconds
ROOM = 16384  # octets of an order to reload beside what the console has changed
RELOAD_PATIENCE = 60.0  # seconds for workers to say what came of a reload
GRACE = 15.0  # seconds beyond drain_timeout before a worker is killed; more than the spool takes to close


Told = Callable[[ReloadOutcome], None]
"""Hears what came of a configuration that was to be used."""

Answer = Callable[[str], None]
"""Takes what came of a console's order."""


class StartError(Exception):
    """Quillon cannot start; the message says why."""


class FaultyError(StartError):
    """What the configuration names does not load: a script, a key, a certificate."""


@dataclass
class _Child:
    number: int
    pid: int
    channel: Channel
    started: float
    ready: bool = False


@dataclass
class _Round:
    """A reload that workers have been told of: the process ids of those that have not said what came of it, until when
    they may, what those said that refused it, what is to be told of it, how many changes of the console it drops, and
    what is demanded otherwise of how many messages."""

    number: int = 0
    until: float = 0.0
    owing: set[int] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    gone: int = 0
    changed: Counter[str] = field(default_factory=Counter)


class Supervisor:
    """`say` prints a line for whoever watches the terminal or the service manager's journal."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._clock = SystemClock()
        self._count = compose.workers(config.node())
        self._sockets: list[dict[str, socket.socket]] = [{} for _ in range(self._count)]
        self._children: dict[int, _Child] = {}
        self._due: dict[int, float] = {}
        self._selector = selectors.DefaultSelector()
        self._pidfile = -1
        self._stopping = 0.0
        self._trial: ConfigTrial | None = None  # a configuration that is tried out before it is used
        self._changing = False  # what is tried is a change from the console
        self._told: list[Told] = []  # who is to hear what comes of it
        self._asked: list[Told] = []  # who has asked for a reload since it began
        self._round = _Round()
        self._leases = Leases()
        self._news: deque[Alert] = deque(maxlen=MOST_NEWS)
        self._alerts = Alerts(_alerts_again(config))
        self._deaths: dict[int, int] = {}  # of a worker in a row, soon after its start
        self._status = 0
        self._signals: list[int] = []
        self._announced = False
        self._control = Control(
            self._selector, lambda ours: self._let_go(ours, control=True), self._control_said, self._panic
        )
        self._orders: dict[str, Callable[[list[str], str, Answer], None]] = {
            "reopen logs": self._order_reopen,
            "config reload": self._order_reload,
            "config set": partial(self._order_change, "set"),
            "config unset": partial(self._order_change, "unset"),
            "alerts": self._order_alerts,
        }

    # start ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until told to end; gives the exit status. Raises StartError."""
        try:
            who = identity(self._config.security())
            self._bind(self._config.inbound.listens(), fresh=True)
            self._bind_console(self._config)
            self._write_pidfile(who)
            self._make_folders(who)
            become(who)
            if os.geteuid() == 0:
                self._say("warning: this runs as root; name a user with Security { User = ... }")
        except (BindError, PrivilegeError) as error:
            raise StartError(str(error)) from None
        self._loggers = Loggers(self._config.stanzas.loggers(), lambda flush: flush())
        problems = compose.try_out(self._config, self._clock)
        kind = FaultyError if problems else StartError
        try:
            self._loggers.open()
        except OSError as error:
            problems.append(f"cannot open log {error.filename}: {error.strerror}")
        if problems:
            self._remove_pidfile()
            if who.uid is not None:
                problems.append(f"these were tried as user {self._config.security().user}, whom Security names")
            raise kind("\n".join(problems))
        self._catch_signals()
        self._control.start()
        for number in range(self._count):
            self._fork(number)
        while self._children or self._due:
            self._turn()
        self._finish()
        return self._status

    def _bind(self, listens: list[ListenSettings], *, fresh: bool) -> dict[str, list[socket.socket]]:
        """Bind what is not bound yet, one socket per worker; all or nothing."""
        new = [listen for listen in listens if listen.name not in self._sockets[0]]
        made: dict[str, list[socket.socket]] = {}
        try:
            for listen in new:
                is_free(listen)
                if listen.path:
                    one = bind(listen)
                    made[listen.name] = [one] + [one.dup() for _ in range(self._count - 1)]
                else:
                    made[listen.name] = []
                    for _ in range(self._count):
                        made[listen.name].append(bind(listen))
        except BindError:
            for sockets in made.values():
                for sock in sockets:
                    sock.close()
            raise
        if fresh:
            self._keep(made)
        return made

    def _bind_console(self, config: Config) -> None:
        """Bind the sockets of console and HTTP that are not bound yet. Raises BindError."""
        http = {one.listen.name: one for one in config.inbound.http_listens()}
        wanted = {listen.name: listen for listen in config.stanzas.control_sockets()}
        wanted |= {name: one.listen for name, one in http.items()}
        for listen in wanted.values():
            try:
                if listen.path:
                    make_folder(Path(listen.path).parent, identity(config.security()), 0o755)
            except OSError as error:
                raise BindError(f'Listen "{listen.name}": cannot make its folder: {error.strerror}') from None
        new: dict[str, socket.socket] = {}
        try:
            for name in wanted.keys() - self._control.names:
                is_free(wanted[name])
                new[name] = bind(wanted[name])
        except BindError:
            for name, sock in new.items():
                sock.close()
                if wanted[name].path:
                    os.unlink(name)
            raise
        rights = {name: (given.groups, given.allowed) for name, given in config.stanzas.console_rights().items()}
        policies = {
            domain: policy_text(one.mode, one.mx, one.max_age) for domain, one in config.stanzas.own_policies().items()
        }
        settings: dict[str, HttpSettings] = {
            name: {
                "certificate": one.certificate,
                "key": one.key,
                "client_ca": one.client_ca,
                "by_certificate": one.by_certificate,
                "users": one.users,
                "oidc": one.oidc._asdict() if one.oidc is not None else None,
                "policies": policies if one.well_known else None,
                "rights": rights.get(name),
            }
            for name, one in http.items()
        }
        self._control.listen(new, set(wanted), rights, settings, Path(config.node().spoolbase))

    def _control_said(self, message: dict[str, Any]) -> None:
        """A question of the console's to all workers that are ready, or an order to the supervisor."""
        if message["event"] == "trouble":
            self._panic(message["text"])
            return
        if message["event"] == "authorized":
            told = {name: message[name] for name in ("listen", "peer", "user", "result", "command", "role")}
            self._loggers.log(Authorized(self._clock.now(), **told))
            return
        number, command = message["id"], message["command"]
        if message["event"] == "order":
            words, who = message["words"], message["who"]
            if find(command.split())[0].role > Role.VIEW:
                text = f"console: {who}: {loggable([*command.split(), *words])}"
                self._loggers.log(Notice(self._clock.now(), line(text)))

            def answer(text: str) -> None:
                self._control.tell({"do": "said", "id": number, "text": text})

            self._orders[command](words, who, answer)
            return
        ready = [child for child in self._children.values() if child.ready]
        request = {"do": "console", "id": number, "command": command, "words": message["words"]}
        request["who"] = message["who"]
        for child in ready:
            child.channel.send(request, wait=False)  # one that does not read will not answer, which is then told
        self._control.tell({"do": "asked", "id": number, "pids": [child.pid for child in ready]})

    def _order_reopen(self, _words: list[str], _who: str, answer: Answer) -> None:
        for child in self._children.values():
            child.channel.send({"do": "reopen"}, wait=False)
        self._reopen_logs()
        answer("logs reopened")

    def _order_reload(self, _words: list[str], _who: str, answer: Answer) -> None:
        self._reload(lambda outcome: answer(outcome.to_reload()))

    def _order_change(self, do: str, words: list[str], who: str, answer: Answer) -> None:
        """Set or unset what a console has asked for, until the next reload."""
        if self._busy():
            answer(f"{ERROR}another change or a reload is under way: again in a moment")
            return
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self._clock.now()))
        number = len(self._config.changes) + 1
        change = ConfigChange(do, tuple(words), f"console ({who}, {at} UTC, change {number})")
        try:
            made = change.makes(self._config.root, self._config.table)
        except ValueError as error:
            answer(f"{ERROR}{error}")
            return
        changes = (*self._config.changes, change)
        if not Channel.fits({"changed": changes, "room": "." * ROOM}):
            answer(f"{ERROR}that is too much to be told to workers: write what `config changes` has into the file")
            return

        def ended(outcome: ReloadOutcome) -> None:
            news = [f"there was no {made}: it is new"] if made else []
            answer(outcome._replace(warnings=[*news, *outcome.warnings]).to_change())

        self._told.append(ended)
        self._try_out(changes, self._config.files_digest)

    def _keep(self, made: dict[str, list[socket.socket]]) -> None:
        for name, sockets in made.items():
            for number, sock in enumerate(sockets):
                self._sockets[number][name] = sock

    def _write_pidfile(self, who: Identity) -> None:
        path = Path(self._config.node().pidfile)
        try:
            make_folder(path.parent, who, 0o755)
            self._pidfile = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._pidfile, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._pidfile, 0)
            os.write(self._pidfile, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            raise StartError(f"PidFile {path} is held by another Quillon that runs") from None
        except OSError as error:
            raise StartError(f"PidFile {path}: {error.strerror}; set PidFile to a path that can be written") from None

    def _make_folders(self, who: Identity) -> None:
        base = Path(self._config.node().spoolbase)
        try:
            make_folder(base, who)
            for custom in self._config.stanzas.custom_loggers():
                for log in custom.logs:
                    make_folder(Path(log.path).parent, who, 0o755)
            for logger in self._config.stanzas.loggers():
                for path in (logger.mainlog, logger.rejectlog, logger.paniclog, logger.jsonlog):
                    if path:
                        make_folder(Path(path).parent, who, 0o755)
        except OSError as error:
            raise StartError(f"cannot make folder {error.filename}: {error.strerror}") from None

    def _catch_signals(self) -> None:
        wake, woken = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        self._wake = (wake, woken)
        signal.set_wakeup_fd(wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda caught, _frame: self._signals.append(caught))
        self._selector.register(woken, selectors.EVENT_READ, None)

    def _fork(self, number: int) -> None:
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            self._cannot_start(number, error)
            return

        def work() -> int:
            self._let_go(ours, number)
            return worker.main(self._config, number, self._count, self._sockets[number], theirs)

        try:
            pid = forked(f"quillon:w{number}", work)
        except OSError as error:
            ours.close()
            self._cannot_start(number, error)
            return
        finally:
            theirs.close()
        self._children[pid] = _Child(number, pid, ours, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, pid)

    def _cannot_start(self, number: int, error: OSError) -> None:
        """No descriptors, no memory: the others serve on, and it is tried again."""
        self._panic(f"worker {number} cannot be started: {error.strerror}; it is tried again")
        self._again(number)

    def _again(self, number: int) -> None:
        """Start a worker anew, later each time."""
        deaths = self._deaths[number] = self._deaths.get(number, 0) + 1
        self._due[number] = time.monotonic() + min(RESTART_DELAY * 2 ** (deaths - 1), MOST_DELAY)

    def _let_go(self, ours: Channel, number: int = -1, *, control: bool = False) -> None:
        """In a child: let go of what belongs to the supervisor and to others, but for the sockets of worker `number`,
        or those of the control process."""
        signal.set_wakeup_fd(-1)
        for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(caught, signal.SIG_DFL)
        self._selector.close()
        ours.close()
        self._control.close_inherited(sockets=not control)
        for child in self._children.values():
            child.channel.close()
        if self._trial is not None:
            self._trial.channel.close()
        for sock in self._wake:
            sock.close()
        self._loggers.close()
        if self._pidfile >= 0:
            os.close(self._pidfile)
        for other, sockets in enumerate(self._sockets):
            if other != number:
                for sock in sockets.values():
                    sock.close()

    # one turn -------------------------------------------------------------------------------------------------

    def _next_time(self) -> float:
        """Monotonic time of the next thing to do."""
        times = [time.monotonic() + 60.0, *self._due.values()]
        times += [at for at in (self._stopping, self._control.starts_at) if at]
        times += [self._trial.ends_at] if self._trial is not None else []
        times += [self._round.until] if self._round.owing else []
        return min(times)

    def _turn(self) -> None:
        self._hear(self._selector.select(max(self._next_time() - time.monotonic(), 0.0)))
        caught, self._signals = self._signals, []
        self._reap()
        if signal.SIGHUP in caught and not self._stopping:
            self._reload(_heard_by_nobody)
        if self._trial is not None and time.monotonic() >= self._trial.ends_at:
            self._rehearsed(late=True)
        if self._round.owing and time.monotonic() >= self._round.until:
            self._round.refused.append(f"{len(self._round.owing)} workers have not answered")
            self._round.owing.clear()
            self._reloaded(self._round.refused, used=True)
        if {signal.SIGTERM, signal.SIGINT} & set(caught):
            self._stop()
        if self._stopping and time.monotonic() >= self._stopping:
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)
            self._stopping = time.monotonic() + GRACE
        if not self._stopping:
            self._control.start_if_due()
        for number, at in list(self._due.items()):
            if at <= time.monotonic():
                del self._due[number]
                self._fork(number)

    def _hear(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, _ in ready:
            if key.data is None:
                self._wake[1].recv(4096)
                continue
            try:
                if callable(key.data):
                    key.data(key.fileobj)
                elif key.data in self._children:
                    self._heard(self._children[key.data])
            except Exception as error:
                # one message, one client of the console: the server is not to end for it
                traceback.print_exc()
                self._panic(f"supervisor: unexpected {error!r}")

    def _heard(self, child: _Child) -> None:
        got = child.channel.receive()
        if got is None:
            self._selector.unregister(child.channel)
            return
        self._take(child, got[0])

    def _take(self, child: _Child, message: dict[str, Any]) -> None:
        if message["event"] == "ready":
            child.ready = True
            self._alert(0, Alert(f"worker {child.number}", False, f"worker {child.number} serves again"))
            self._announce()
            if (
                not self._announced
                and len(self._children) == self._count
                and all(other.ready for other in self._children.values())
            ):
                self._announced = True
                names = ", ".join(sorted(self._sockets[0])) or "no address"
                self._say(f"ready: {self._count} workers on {names}")
                notify("READY=1", f"STATUS={self._count} workers")
        elif message["event"] == "answer":
            rows, last = message["rows"], message["last"]
            self._control.tell({"do": "part", "id": message["id"], "pid": child.pid, "rows": rows, "last": last})
        elif message["event"] == "guessed":
            for other in self._children.values():
                if other is not child:
                    other.channel.send({"do": "guessed", "client": message["client"]}, wait=False)
        elif message["event"] == "lease":
            self._lend(self._leases.ask(child.pid, message["name"], message["most"]))
        elif message["event"] == "lease back":
            self._lend(self._leases.give_back(child.pid, message["name"]))
        elif message["event"] in ("refused", "reloaded"):
            self._answered(child, message)
        elif message["event"] == "alert":
            self._alert(child.pid, Alert(*message["alert"]))
        elif message["event"] == "failed":
            self._panic(f"worker {child.number}: {message['text']}")
            if not self._announced and not message["waits"]:
                self._status = 1
                self._stop()

    def _alert(self, worker: int, alert: Alert) -> None:
        """A condition holds, or is over: what is news goes to the paniclog, and to whom the alerts stanza names by way
        of a worker."""
        news = self._alerts.heard(worker, alert, time.monotonic())
        if news is None:
            return
        self._panic(f"alert: {news.text}" if news.on else f"alert is over: {news.text}")
        self._news.append(news)
        self._announce()

    def _announce(self) -> None:
        """Have a worker send what is news; without one it waits."""
        ready = next((child for child in self._children.values() if child.ready), None)
        while ready is not None and self._news:
            if not ready.channel.send({"do": "announce", "alert": list(self._news[0])}, wait=False):
                return
            self._news.popleft()

    def _order_alerts(self, _words: list[str], _who: str, answer: Answer) -> None:
        lines = [f"{alert.text}\n    {alert.action}" for alert in self._alerts.current()]
        answer("\n".join(lines) or "nothing is wrong that alerts are about")

    def _lend(self, words: list[LeaseWord]) -> None:
        """Tell workers of leases. One that cannot be told does not have it."""
        for pid, do, name in words:
            child = self._children.get(pid)
            told = child is not None and child.channel.send({"do": do, "name": name}, wait=False)
            if not told and do == "leased":
                self._lend(self._leases.give_back(pid, name))

    def _answered(self, child: _Child, message: dict[str, Any]) -> None:
        """A worker says what came of a reload."""
        if message["event"] == "refused":
            self._say(f"worker {child.number}: reload refused: {message['text']}")
        if message["round"] != self._round.number or child.pid not in self._round.owing:
            return
        if message["event"] == "refused":
            self._round.refused.append(f"worker {child.number} keeps the old one: {message['text']}")
        for words, count in message.get("changed", ()):
            self._round.changed[words] += count
        self._has_answered(child.pid)

    def _has_answered(self, pid: int) -> None:
        if pid in self._round.owing:
            self._round.owing.discard(pid)
            if not self._round.owing:
                self._reloaded(self._round.refused, used=True)

    def _reap(self) -> None:
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._control.pid:
                self._control.ended(_status_words(os.waitstatus_to_exitcode(raw)))
                continue
            child = self._children.pop(pid, None)
            if child is None:
                continue
            if child.channel in self._selector.get_map():
                self._heard_last(child)
            child.channel.close()
            self._control.tell({"do": "gone", "pid": pid})
            self._lend(self._leases.gone(pid))
            self._alerts.gone(pid)
            if self._stopping:
                continue
            code = os.waitstatus_to_exitcode(raw)
            if pid in self._round.owing:
                self._round.refused.append(f"worker {child.number} ended meanwhile, and is started anew with it")
                self._has_answered(pid)
            if code == worker.FAULTY and not self._announced:
                self._status = 1
                self._stop()
                continue
            # once mail is served, the trouble of one worker is not that of the others
            ended = f"worker {child.number} (pid {pid}) ended with {_status_words(code)}; it is started again"
            self._panic(ended)
            if self._config.stanzas.alerts() is not None:
                self._alert(0, Alert(f"worker {child.number}", True, ended, "See the paniclog and the journal."))
            if time.monotonic() - child.started < RESTART_DELAY * 5:
                self._again(child.number)
            else:
                self._deaths.pop(child.number, None)
                self._due[child.number] = time.monotonic()

    def _heard_last(self, child: _Child) -> None:
        """What it said before it ended. It does not wait: a process that it has left may hold the other end."""
        while (got := child.channel.receive(wait=False)) is not None:
            self._take(child, got[0])
        self._selector.unregister(child.channel)

    # reload and end -------------------------------------------------------------------------------------------

    def _reload(self, *told: Told) -> None:
        """Use a new configuration everywhere, or keep the running one and say why."""
        if self._busy():
            self._asked += told  # files may have changed since: they are read again
            return
        self._told += told
        self._try_out()

    def _busy(self) -> bool:
        """Whether a configuration is on its way to be used."""
        return self._trial is not None or bool(self._round.owing)

    def _try_out(self, changed: tuple[ConfigChange, ...] = (), digest: str = "") -> None:
        """Begin with what the file says now, and with what the console has changed in files of a digest."""
        reloading()
        self._changing = bool(changed)
        try:
            self._trial = ConfigTrial(self._config.files[0], self._clock, self._let_go, changed, digest)
        except OSError as error:
            self._reloaded([f"the configuration cannot be tried out: {error.strerror}"])
            return
        self._selector.register(self._trial, selectors.EVENT_READ, lambda _: self._rehearsed(late=False))

    def _rehearsed(self, *, late: bool) -> None:
        """A configuration has been tried out."""
        trial = self._trial
        if trial is None:
            return
        self._selector.unregister(trial)
        self._trial = None
        problems = trial.late() if late else trial.problems()
        if problems:
            self._reloaded(problems)
            return
        loaded = trial.read()
        origin = loaded.config.changes[-1].origin if loaded.config is not None and loaded.config.changes else ""
        warnings = [str(fault) for fault in loaded.faults if fault.warning and origin in ("", fault.position.file)]
        for warning in warnings:
            self._say(warning)
        if loaded.config is None:  # it was another one when it was tried
            self._reloaded([str(fault) for fault in loaded.errors])
            return
        try:
            changed = _needs_restart(self._config, loaded.config)
            problems = [f"{name} has changed, which needs a restart" for name in changed]
            problems = problems or self._use(loaded.config, warnings if origin else [])
        except Exception as error:
            traceback.print_exc()
            problems = [f"unexpected {error!r}"]
        if problems or not self._round.owing:
            self._round.owing.clear()
            self._reloaded(problems, used=self._config is loaded.config)

    def _reloaded(self, problems: list[str], *, used: bool = False) -> None:
        outcome = ReloadOutcome(problems, used)
        if used:
            demands = [f"{count} messages {words}" for words, count in self._round.changed.items()]
            outcome = outcome._replace(warnings=self._round.warnings, gone=self._round.gone, demands=demands)
        if self._changing:
            self._say("change refused" if problems else "configuration changed from the console")  # who asked is told
        elif problems:
            self._panic(f"config: {outcome.to_reload().removeprefix(ERROR)}")
        else:
            self._say(outcome.to_reload())
        notify("READY=1")
        told, self._told = self._told, []
        for tell in told:
            tell(outcome)
        asked, self._asked = self._asked, []
        if asked:
            self._reload(*asked)

    def _use(self, config: Config, warnings: list[str]) -> list[str]:
        """Let a configuration be in force; gives what prevents that."""
        made: dict[str, list[socket.socket]] = {}
        try:
            made = self._bind(config.inbound.listens(), fresh=False)
            self._bind_console(config)
        except (BindError, PrivilegeError, OSError) as error:
            for unused in made.values():
                for sock in unused:
                    sock.close()
            return [str(error)]
        gone = 0 if config.changes else len(self._config.changes)
        self._config = config
        self._alerts.every = _alerts_again(config)
        self._keep(made)
        wanted = {listen.name for listen in config.inbound.listens()}
        for sockets in self._sockets:
            for name in sockets.keys() - wanted:
                sockets.pop(name).close()
        until = time.monotonic() + RELOAD_PATIENCE
        self._round = _Round(self._round.number + 1, until, warnings=warnings, gone=gone)
        for child in self._children.values():
            new = {name: self._sockets[child.number][name] for name in made}
            told = {"do": "reload", "new": list(new), "round": self._round.number, "digest": config.digest}
            told["changed"] = config.changes
            if child.channel.send(told, [sock.fileno() for sock in new.values()], wait=False):
                self._round.owing.add(child.pid)
            else:
                self._panic(f"worker {child.number} (pid {child.pid}) does not take the reload: restart Quillon")
        self._reopen_logs()
        return []

    def _reopen_logs(self) -> None:
        loggers = Loggers(self._config.stanzas.loggers(), lambda flush: flush())
        try:
            loggers.open()
        except OSError as error:
            self._panic(f"cannot open log {error.filename}: {error.strerror}")
            return
        self._loggers.close()
        self._loggers = loggers

    def _stop(self) -> None:
        if self._stopping:
            return
        notify("STOPPING=1")
        self._say("draining")
        if self._trial is not None:
            self._selector.unregister(self._trial)
            self._trial.end()
            self._trial = None
        self._control.stop()
        self._due.clear()
        self._stopping = time.monotonic() + self._config.node().drain_timeout + GRACE
        for sockets in self._sockets:
            for sock in sockets.values():
                sock.close()
            sockets.clear()
        for child in self._children.values():
            child.channel.send({"do": "drain"}, wait=False)

    def _remove_pidfile(self) -> None:
        try:
            Path(self._config.node().pidfile).unlink(missing_ok=True)
        except OSError:
            os.ftruncate(self._pidfile, 0)  # the folder is not ours any more; an empty file names nobody

    def _finish(self) -> None:
        self._remove_pidfile()
        for listen in self._config.inbound.listens():
            if listen.path and os.path.exists(listen.path):
                os.unlink(listen.path)
        self._loggers.log(Notice(self._clock.now(), "stopped"))
        self._loggers.close()
        self._say("stopped")

    def _panic(self, text: str) -> None:
        self._loggers.log(Panic(self._clock.now(), text))


def _heard_by_nobody(_outcome: ReloadOutcome) -> None:
    """SIGHUP waits for no answer; the paniclog has it."""


def _alerts_again(config: Config) -> float:
    """Seconds after which an alert that holds is told again."""
    alerts = config.stanzas.alerts()
    return alerts.every if alerts is not None else ALERT_SECONDS


def _status_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


def _identity(config: Config) -> tuple[str, str, str] | None:
    """Of the log of evidence, if one is kept."""
    evidence = config.stanzas.evidence("", "")
    return evidence.identity if evidence is not None else None


def _needs_restart(old: Config, new: Config) -> list[str]:
    """Options marked so in the table whose global value has changed."""
    found = []
    for option in old.table.options.values():
        if option.restart and "global" in option.scopes:
            before = resolve(option, [old.root], old.folder).value
            if before != resolve(option, [new.root], new.folder).value:
                found.append(option.name)
    if _identity(old) != _identity(new):
        found.append("evidence")
    return found
