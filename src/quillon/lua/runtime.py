"""Lua policy scripts: LuaJIT 2.1 (the 5.1 dialect and the manual's operators) through lupa, one runtime per worker.

`load_scripts` reads the scripts of the scriptlet stanza in the order of the file; each registers its callouts with
`msys.registerModule`. A script reaches what the manual's API gives it and nothing else: no files but through the
documented functions, no processes, no foreign functions, no look into Python.

A callout runs in a coroutine. Where it has to wait, the coroutine yields to Python, which awaits what it asks for and
resumes it; other sessions go on meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import os
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa

from quillon.config.script_files import candidates
from quillon.config.settings import ScriptSettings
from quillon.lua import dialect, msys
from quillon.lua.msys.api import NO_MEMORY, Api, from_octets, size_of, to_octets, words_for_scripts
from quillon.lua.msys.json import NULL
from quillon.policy.environment import Environment
from quillon.policy.hook import (
    VOID,
    WITH_MESSAGE,
    Call,
    Callout,
    Hook,
    Phase,
    PolicyError,
    Verdict,
    may_wait,
    names_of,
    unknown_callout,
    words_of,
)

_REMOVED = (
    "os",
    "io",
    "debug",
    "package",
    "jit",
    "ffi",
    "dofile",
    "loadfile",
    "load",
    "loadstring",
    "module",
    "python",
)
PATTERN_STEPS = (1e5, 1e7)  # of a search: about half a millisecond and 50 of C; see pattern.lua
COLLECT_AGAIN = 1.0  # seconds between attempts to make scripts that hold too much let go of some
_CALLOUTS = [*(name for callout in (*Phase, *Hook) for name in names_of(callout)), "init", "deinit"]
_VERDICTS = {0: Verdict.CONT, 1: Verdict.DONE, 2: Verdict.AGAIN}


async def load_scripts(settings: ScriptSettings, folders: Sequence[Path], environment: Environment) -> list[LuaModule]:
    """The modules that the scripts register. Raises PolicyError, which names script and line."""
    runtime = _Runtime(folders, environment, settings)
    for name, source in settings.scripts:
        if source == "msys.boot":
            continue  # the manual's own start script, which has nothing to start here
        before = runtime.registered, len(environment.stops)
        try:
            await runtime.require(source)
            if (runtime.registered, len(environment.stops)) == before:  # not even a timer
                raise PolicyError(f"scriptlet: {source} registers no module with msys.registerModule")
        except PolicyError as error:
            error.script = name
            raise
    for module in runtime.modules:
        await module.init()
    return runtime.modules if settings.enabled else []


class _Current:
    """What `vctx` and `ac` of a session stand for: the callout that runs in it."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call


class LuaModule:
    """One table given to msys.registerModule."""

    facility = "scriptlet"

    def __init__(self, name: str, table: Any, functions: Any, runtime: _Runtime) -> None:
        self.name = name
        self._table = table
        self._functions = functions  # of its callouts, by name
        self._runtime = runtime

    def _function(self, callout: Phase | Hook) -> Any:
        found = (self._functions[name] for name in names_of(callout))
        return next((f for f in found if f is not None), None)

    def _bound(self, callout: Phase | Hook) -> Any:
        """The module's function for a callout, with what calls it; None if it has none."""
        function = self._function(callout)
        if function is None:
            return None
        return self._runtime.bind(callout.value, function, self._table, may_wait(callout))

    def callout(self, phase: Phase) -> Callout | None:
        enter = self._bound(phase)
        if enter is None:
            return None
        runtime = self._runtime
        with_message = phase in WITH_MESSAGE or phase is Phase.SET_BINDING
        with_text = phase in (Phase.EHLO, Phase.MAILFROM)

        def run(call: Call) -> Verdict | Awaitable[Verdict]:
            given: tuple[Any, ...] = ()
            if with_message:
                given = (call, to_octets(call.text)) if call.text else (call,)
            elif with_text:
                given = (to_octets(call.text),)
            elif call.auth is not None:
                given = (to_octets(call.auth.user), call.auth.mechanism, call.auth.status)
            result = runtime.enter(enter, call, given)
            if result[0] is True:
                return self._verdict(phase, call, result)
            return self._waited(phase, call, result)

        return run

    async def _waited(self, phase: Phase, call: Call, result: tuple[Any, ...]) -> Verdict:
        return self._verdict(phase, call, await self._runtime.waited(call, result))

    def _verdict(self, phase: Phase, call: Call, result: tuple[Any, ...]) -> Verdict:
        said = result[1] if len(result) > 1 else None
        if phase in VOID:
            return Verdict.CONT
        if type(said) is int and said in _VERDICTS:
            return _VERDICTS[said]
        place = self._runtime.defined(self._function(phase))
        view = call.message
        said_so = (call.context.reply, view.reply if view is not None else None)
        refused = any(reply is not None and reply.code >= 400 for reply in said_so)
        if len(result) == 1:
            # one that comes to its end has decided nothing, which the manual has logged; to return what is no
            # verdict, such as a constant that does not exist, is a decision that nobody can carry out
            if not refused:
                self._runtime.report(f"{phase.value} error in {self.name}: {place}: it returned nothing")
            return Verdict.CONT
        words = f"{place}: it returned {_shown(said)}, not VALIDATE_CONT, VALIDATE_DONE or VALIDATE_AGAIN"
        if not refused:
            raise PolicyError(words)
        self._runtime.report(f"{phase.value} error in {self.name}: {words}")
        return Verdict.DONE

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        enter = self._bound(hook)
        if enter is None:
            return None

        def run(call: Call, *arguments: object) -> Any:
            given = (call, *(to_octets(value) if isinstance(value, str) else value for value in arguments))
            result = self._runtime.enter(enter, call, given)
            return _answer(result) if result[0] is True else self._waited_answer(call, result)

        return run

    async def _waited_answer(self, call: Call, result: tuple[Any, ...]) -> Any:
        return _answer(await self._runtime.waited(call, result))

    async def init(self) -> None:
        """Call the module's own `init`, which has to return true. Raises PolicyError."""
        function = self._functions["init"]
        if function is None:
            return
        try:
            result = await self._runtime.run_waiting(function, self._table)
        except (lupa.LuaError, PolicyError) as error:
            raise PolicyError(f"scriptlet: init of {self.name}: {error}") from None
        if result is not True:
            raise PolicyError(f"scriptlet: init of {self.name} did not return true")

    def close(self) -> None:
        function = self._functions["deinit"]
        try:
            if function is not None and self._runtime.run(function, self._table) is not True:
                raise PolicyError(f"scriptlet: deinit of {self.name} did not return true")
        except lupa.LuaError as error:
            raise PolicyError(f"scriptlet: deinit of {self.name}: {error}") from None


class _Runtime:
    """LuaJIT with the tables of the manual, sealed."""

    def __init__(self, folders: Sequence[Path], environment: Environment, settings: ScriptSettings) -> None:
        self.modules: list[LuaModule] = []
        self._noted: list[tuple[str, int, int]] = []
        self._say: ContextVar[Callable[[str], None] | None] = ContextVar("say", default=None)
        self.registered = 0  # modules, schemes and commands
        self._memory = settings.memory_limit * 2**20
        self._too_much = f"the scripts hold more than {settings.memory_limit} MiB (Memory_Limit)"
        self._environment = environment
        self._collect_at = 0.0
        self._folders = folders
        self._lua = lupa.LuaRuntime(
            unpack_returned_tuples=True,
            register_eval=False,
            register_builtins=False,
            attribute_filter=_refuse_attribute,
            encoding="latin-1",
            # far above the limit: what Python hands over must never meet this ceiling, where Lua knows no way back
            max_memory=self._memory * 2 or None,
        )
        # what lies between is for what scripts make by themselves, which does know a way
        self._room = self._memory + self._memory // 2
        self.api = Api(environment)
        msys.give(self.api)
        self._build(settings)
        self._seal(settings)

    def _build(self, settings: ScriptSettings) -> None:
        lua, api = self._lua, self.api
        self._loadstring = lua.eval("loadstring")
        given = lua.table_from(
            {
                "now": self._environment.now,
                "null": NULL,
                "functions": lua.table_from(api.functions),
                "waits": lua.table_from(dict.fromkeys(api.waits, True)),
                "constants": lua.table_from(api.constants),
                "left_out": lua.table_from(api.left_out),
                "callouts": lua.table_from(_CALLOUTS),
                "token": api.token,
                "fault": api.fault,
                "no_memory": NO_MEMORY,
                "register": api.guarded(self._register),
                "register_auth": api.guarded(self._register_auth),
                "register_control": api.guarded(self._register_control),
                "later": api.guarded(self._later),
                "print": api.guarded(self._print),
                "spoke": api.guarded(self._spoke),
                "source": api.guarded(self._source),
                "translate": api.guarded(self._translate),
            }
        )
        runtime = self._chunk("runtime.lua")(given, settings.cpu_limit)
        if settings.cpu_limit:
            self._chunk("limits.lua")(runtime)
        self._chunk("pattern.lua")(runtime, *(PATTERN_STEPS if settings.cpu_limit else ()))
        self._chunk("operators.lua")(runtime)
        tables = self._chunk("msys.lua")(given, runtime)
        self._load = self._chunk("scripts.lua")(given, runtime, tables)
        callouts = self._chunk("callouts.lua")(runtime)
        self.bind, self._session, self._run = callouts["bind"], callouts["session"], callouts["run"]
        self._authenticate, self._command = callouts["authenticate"], callouts["command"]
        self._continue, self._cancel = runtime["continue"], runtime["cancel"]
        self._disarm, self._state = runtime["disarm"], runtime["state"]
        self.defined = runtime["defined"]
        self._kept, self._forget = runtime["kept"], runtime["drop"]
        self._collect = lua.eval("collectgarbage")
        if self._memory:
            api.used, api.room = lua.get_memory_used, self._room
        api.drop_kept = self._forget
        api.run_kept = lambda number: self.run_waiting(self._kept(number))

    def _chunk(self, name: str) -> Any:
        text = importlib.resources.files("quillon.lua.msys").joinpath(name).read_text(encoding="utf-8")
        return self._loadstring(text, "=msys")

    def _seal(self, settings: ScriptSettings) -> None:
        """Take away what reaches beyond the manual's API."""
        self._collect("setpause", settings.gc_pause)
        self._collect("setstepmul", settings.gc_stepmul)
        names = self._lua.globals()
        for name in _REMOVED:
            names[name] = None
        names["string"]["dump"] = None
        names["collectgarbage"] = None
        names["newproxy"] = None
        names["getfenv"] = None
        names["setfenv"] = None

    # calling --------------------------------------------------------------------------------------------------

    def enter(self, bound: Any, call: Call, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Run a callout: True and its results, or what it waits for. Raises PolicyError, lupa.LuaError."""
        if self._memory and self._lua.get_memory_used() > self._memory:
            self.check_memory()
        known = call.session.stores.get(id(self))
        if known is None:
            known = self._new_session(call)
        current, table = known
        current.call = call
        api = self.api
        before, api.call = api.call, call
        try:
            result: tuple[Any, ...] = bound(table, *given)
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            api.call = before
        return result if type(result) is tuple else (result,)

    def _new_session(self, call: Call) -> tuple[_Current, Any]:
        """What stands for a session in Lua."""
        current = _Current(call)
        found = call.session.stores[id(self)] = (current, self._session(current))
        return found

    async def waited(self, call: Call | None, result: tuple[Any, ...]) -> tuple[Any, ...]:
        """Do what a script waits for until it has come to its end."""
        table = None if call is None else call.session.stores[id(self)][1]
        while result[0] is not True:
            _, coroutine, name, *arguments = result
            given: tuple[Any, ...]
            # a task of its own: what it uses may want to know which task it runs in
            inner = asyncio.ensure_future(self.api.waits[name](call, *arguments))
            try:
                found = await inner
                given = (True, *found) if isinstance(found, tuple) else (True, found)
            except Exception as error:
                given = (False, to_octets(words_for_scripts(error)))
            except BaseException:
                inner.cancel()
                self._cancel(coroutine)
                raise
            if self.api.full(size_of(given)):
                self._cancel(coroutine)
                raise PolicyError(self._too_much)
            result = self._limited(call, self._continue, coroutine, table, *given)
        return result

    def run(self, function: Any, *arguments: Any) -> Any:
        """Call a function of a script outside of any session; its first result. Raises PolicyError, lupa.LuaError."""
        result = self._limited(None, self._run, False, function, *arguments)
        return result[1] if len(result) > 1 else None

    async def run_waiting(self, function: Any, *arguments: Any) -> Any:
        """As `run`, for a function that may wait."""
        result = self._limited(None, self._run, True, function, *arguments)
        result = await self.waited(None, result)
        return result[1] if len(result) > 1 else None

    def _limited(self, call: Call | None, function: Any, *arguments: Any) -> tuple[Any, ...]:
        """Call into Lua within the limits."""
        self.check_memory()
        before, self.api.call = self.api.call, call
        try:
            result = function(*arguments)
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self.api.call = before
        return result if isinstance(result, tuple) else (result,)

    def _failed(self, error: BaseException) -> None:
        """Make Lua fit for the next call. Raises PolicyError in place of Lua's own words on memory."""
        self._release()
        if isinstance(error, lupa.LuaMemoryError):
            self._collect()
            raise PolicyError(self._too_much) from None

    def check_memory(self) -> None:
        """Raise PolicyError where the scripts hold more than their limit, whatever is collected."""
        limit = self._memory
        if not limit or self._lua.get_memory_used() <= limit:
            return
        now = self._environment.now()
        if now >= self._collect_at:
            self._collect()
            self._collect_at = self._environment.now() + COLLECT_AGAIN
        if self._lua.get_memory_used() > limit:
            raise PolicyError(self._too_much)

    def _release(self) -> None:
        """Lift the CPU limit; set from outside, for each instruction of Lua would fail once it is over."""
        self._state["deadline"] = False
        self._disarm()

    # loading --------------------------------------------------------------------------------------------------

    async def require(self, source: str) -> None:
        try:
            await self.run_waiting(self._load, source)
            self._take_up()
        except (lupa.LuaError, PolicyError) as error:
            raise PolicyError(f"scriptlet: {error}") from None

    def _register(self, name: str, table: int, functions: int, names: str, usable: bool) -> None:
        """Note a module; its table is taken up once the script has run: see codec.py for why not now."""
        found = [from_octets(word) for word in names.split()]
        unknown = unknown_callout(found)
        if unknown is not None:
            raise PolicyError(f"{name}: {unknown}")
        if not usable:
            names = ", ".join(sorted(found)) or "nothing"
            raise PolicyError(f"no usable methods found for module {name} in registerModule call; it has {names}")
        self._noted.append((from_octets(name), table, functions))
        self.registered += 1

    def _take_up(self) -> None:
        noted, self._noted = self._noted, []
        kept = self._kept
        self.modules += [LuaModule(name, kept(table), kept(functions), self) for name, table, functions in noted]

    def _register_auth(self, scheme: str, number: int) -> None:
        async def authenticate(path: str, parameters: Mapping[str, str], user: str, password: str) -> Any:
            given = self.api.out((path, dict(parameters), user, password))
            return await self.run_waiting(self._authenticate, number, *given)

        self._environment.auth[from_octets(str(scheme)).lower()] = authenticate
        self.registered += 1

    def _register_control(self, prefix: str, number: int) -> None:
        async def control(arguments: Sequence[str]) -> str:
            said: list[str] = []
            given = self.api.out(({"argc": len(arguments), "argv": dict(enumerate(arguments))},))
            before = self._say.set(said.append)
            try:
                await self.run_waiting(self._command, number, *given)
            finally:
                self._say.reset(before)
            return "\n".join(said)

        self._environment.control[from_octets(str(prefix))] = control
        self.registered += 1

    def _print(self, text: str) -> None:
        """To the console command that is running, or to the paniclog."""
        say = self._say.get()
        if say is not None and self.api.call is None:
            say(from_octets(text))
        else:
            self._environment.report(f"scriptlet: {from_octets(text)}")

    def _spoke(self, place: str) -> None:
        if self.api.call is not None:
            self.api.call.context.place = from_octets(place)

    def report(self, text: str) -> None:
        """One panic line."""
        self._environment.report(f"scriptlet: {text}")

    def _later(self, number: int) -> None:
        if self._environment.later is None:
            raise PolicyError("nothing can run later here")
        self._environment.later(lambda: self.api.aside(self._run_aside(number)))

    async def _run_aside(self, number: int) -> None:
        """Run a function of a script that nobody waits for."""
        try:
            await self.run_waiting(self._kept(number))
        except (lupa.LuaError, PolicyError) as error:
            self._environment.report(f"scriptlet: runInPool error: {words_of(error)}")
        finally:
            self._forget(number)

    def _text_of(self, path: Path) -> tuple[str | None, str]:
        text = path.read_text(encoding="latin-1")
        if text.startswith("\x1b"):
            return None, f"{path} is bytecode, which is not loaded"
        return text, str(path)

    def _translate(self, text: str, path: str) -> Any:
        """A script of the manual's dialect in Lua 5.1, or nil and words."""
        try:
            return dialect.translate(text, path)
        except dialect.DialectError as error:
            return None, to_octets(str(error))

    def _source(self, name: str) -> tuple[str | None, str]:
        """The text of a module and its path, or None and why it is not found.

        An absolute path is taken where nobody but the server's user and root could have written the file.
        """
        absolute = name.startswith("/")
        if not absolute and (".." in name or name.startswith(".")):
            return None, f"{name!r} leaves the configuration's folders"
        path = next((file for file in candidates(name, self._folders) if file.is_file()), None)
        if path is None:
            looked = ", ".join(str(folder) for folder in self._folders)
            return None, f"there is no {name}" if absolute else f"there is no {name.replace('.', '/')}.lua in {looked}"
        fault = untrusted(path) if absolute else ""
        return (None, fault) if fault else self._text_of(path)


def untrusted(path: Path) -> str:
    """Why a file or a folder that holds it may have been written by somebody else; empty if it may not."""
    path = path.resolve()
    for place in (path, *path.parents):
        state = place.stat()
        sticky = place != path and state.st_mode & stat.S_ISVTX
        if state.st_uid not in (0, os.geteuid()) or (state.st_mode & 0o022 and not sticky):
            return f"{path} is not loaded: {place} can be written by others than root and this server's user"
    return ""


def _answer(result: tuple[Any, ...]) -> Any:
    """What a hook has returned: nothing, a value, or several. Raises PolicyError for what is no plain value."""
    if len(result) <= 2:
        return _plain(result[1]) if len(result) == 2 else None
    return tuple(_plain(value) for value in result[1:])


def _shown(value: Any) -> str:
    """A value of a script, for an error."""
    if value is None or isinstance(value, bool):
        return {None: "nil", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, (str, int, float)) else f"a {lupa.lua_type(value)}"


def _plain(value: Any) -> Any:
    """A value of a script. No other may leave: to make text of an object would run its script, without any limit."""
    if isinstance(value, str):
        return from_octets(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise PolicyError(f"it returned a {lupa.lua_type(value)}")


def _refuse_attribute(_object: object, _name: object, _setting: bool) -> str:
    raise AttributeError("a script cannot look into the server's objects")
