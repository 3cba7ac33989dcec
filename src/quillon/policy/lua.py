"""Lua policy scripts: LuaJIT 2.1 (the 5.1 dialect) through lupa, one runtime per worker.

`load_scripts` reads the scripts of the scriptlet stanza in the order of the file; each registers its callouts with
`msys.registerModule`. A script reaches what the manual's API gives it and nothing else: no files, no processes, no
foreign functions, no look into Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa

from quillon.config.settings import ScriptSettings
from quillon.policy.hook import Call, Hook, Phase, PolicyError, Verdict, set_reply, unknown_callout
from quillon.policy.msys.core import PRELUDE

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
COLLECT_AGAIN = 1.0  # seconds between attempts to make scripts that hold too much let go of some
_VERDICTS = {0: Verdict.CONT, 1: Verdict.DONE}


def load_scripts(
    settings: ScriptSettings, folders: Sequence[Path], now: Callable[[], float], report: Callable[[str], None]
) -> list[LuaModule]:
    """The modules that the scripts register. Raises PolicyError, which names script and line."""
    runtime = _Runtime(folders, now, report, settings)
    runtime.execute(f"collectgarbage('setpause', {settings.gc_pause})")
    runtime.execute(f"collectgarbage('setstepmul', {settings.gc_stepmul})")
    runtime.seal()
    for name, source in settings.scripts:
        if source == "msys.boot":
            continue  # the manual's own start script, which has nothing to start here
        before = len(runtime.modules)
        try:
            runtime.require(source)
            if len(runtime.modules) == before:
                raise PolicyError(f"scriptlet: {source} registers no module with msys.registerModule")
        except PolicyError as error:
            error.script = name
            raise
    for module in runtime.modules:
        module.init()
    return runtime.modules if settings.enabled else []


class LuaModule:
    """One table given to msys.registerModule."""

    def __init__(self, name: str, table: Any, runtime: _Runtime) -> None:
        self.name = name
        self._table = table
        self._runtime = runtime
        self._calls = runtime.calls

    def callout(self, phase: Phase) -> Callable[[Call], Verdict] | None:
        if self._table[phase.value] is None:
            return None
        enter, table, key = self._calls[phase.value], self._table, phase.value

        def run(call: Call) -> Verdict:
            result = self._runtime.limited(enter, table, call, call.text)
            if result not in _VERDICTS:
                raise PolicyError(f"{key} returned {result!r}, not VALIDATE_CONT or VALIDATE_DONE")
            return _VERDICTS[result]

        return run

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        if self._table[hook.value] is None:
            return None
        enter, table = self._calls[hook.value], self._table

        def run(call: Call, *arguments: object) -> Any:
            return self._runtime.limited(enter, table, call, *(_argument(value) for value in arguments))

        return run

    def init(self) -> None:
        """Call the module's own `init`, which has to return true. Raises PolicyError."""
        self._hook("init")

    def close(self) -> None:
        self._hook("deinit")

    def _hook(self, name: str) -> None:
        function = self._table[name]
        if function is None:
            return
        try:
            result = self._runtime.limited(function, self._table, armed=True)
        except (lupa.LuaError, PolicyError) as error:
            raise PolicyError(f"scriptlet: {name} of {self.name}: {error}") from None
        if result is not True:
            raise PolicyError(f"scriptlet: {name} of {self.name} did not return true")


class _Runtime:
    def __init__(
        self, folders: Sequence[Path], now: Callable[[], float], report: Callable[[str], None], settings: ScriptSettings
    ) -> None:
        self._memory = settings.memory_limit
        self._too_much = f"the scripts hold more than {settings.memory_limit} MiB (Memory_Limit)"
        self._now = now
        self._collect_at = 0.0
        self.modules: list[LuaModule] = []
        self._folders = folders
        self._report = report
        self._lua = lupa.LuaRuntime(
            unpack_returned_tuples=True,
            register_eval=False,
            register_builtins=False,
            attribute_filter=_refuse_attribute,
            encoding="latin-1",
            # far above the limit: what Python hands over must never meet this ceiling, where Lua knows no way back
            max_memory=settings.memory_limit * 2**20 * 2 or None,
        )
        self._loadstring = self._lua.eval("loadstring")
        functions = {
            "now": now,
            "context_get": _context_get,
            "context_set": _context_set,
            "context_delete": _context_delete,
            "set_code": _set_code,
            "session": _session,
            "message": _message,
            "headers": lambda call, name: self._lua.table_from(_values(call, name)),
            "binding": _binding,
            "register": self._register,
            "print": lambda text: report(f"scriptlet: {text}"),
            "source": self._source,
            "loadstring": self._loadstring,
        }
        prelude = self._loadstring(PRELUDE, "=msys")
        self.calls, self._arm, self._disarm, self._state = prelude(self._lua.table_from(functions), settings.cpu_limit)
        self._collect = self._lua.eval("collectgarbage")
        self._require = self._lua.globals()["require"]

    def execute(self, code: str) -> None:
        self._lua.execute(code)

    def seal(self) -> None:
        """Take away what reaches beyond the manual's API."""
        names = self._lua.globals()
        for name in _REMOVED:
            names[name] = None
        names["string"]["dump"] = None
        names["collectgarbage"] = None
        names["newproxy"] = None
        names["getfenv"] = None
        names["setfenv"] = None

    def require(self, source: str) -> None:
        try:
            self.limited(self._require, source, armed=True)
        except (lupa.LuaError, PolicyError) as error:
            raise PolicyError(f"scriptlet: {error}") from None

    def limited(self, function: Any, *arguments: object, armed: bool = False) -> Any:
        """Call into Lua within the limits; `armed` where the function does not see to its CPU limit itself."""
        self._check_memory()
        try:
            if armed:
                self._arm()
            result = function(*arguments)
        except lupa.LuaMemoryError:
            self._collect()
            self._release()
            raise PolicyError(self._too_much) from None
        except BaseException:
            self._release()
            raise
        if armed:
            self._disarm()
        return result

    def _check_memory(self) -> None:
        """Raise PolicyError where the scripts hold more than their limit, whatever is collected."""
        limit = self._memory * 2**20
        if not limit or self._lua.get_memory_used() <= limit:
            return
        now = self._now()
        if now >= self._collect_at:
            self._collect()
            self._collect_at = self._now() + COLLECT_AGAIN
        if self._lua.get_memory_used() > limit:
            raise PolicyError(self._too_much)

    def _release(self) -> None:
        """Lift the CPU limit; set from outside, for each instruction of Lua would fail once it is over."""
        self._state["over"] = False
        self._state["deadline"] = float("inf")
        self._disarm()

    def _register(self, name: str, table: Any) -> None:
        callouts = {phase.value for phase in Phase} | {hook.value for hook in Hook} | {"init", "deinit"}
        if not any(table[key] is not None for key in callouts):
            raise PolicyError(f"no usable methods found for module {name} in registerModule call")
        unknown = unknown_callout(str(key) for key in table if callable(table[key]))
        if unknown is not None:
            raise PolicyError(f"{name}: {unknown}")
        self.modules.append(LuaModule(str(name), table, self))

    def _source(self, name: str) -> tuple[str | None, str]:
        """The text of a module and its path, or None and why it is not found."""
        relative = name.replace(".", "/")
        if ".." in name or relative.startswith("/"):
            return None, f"{name!r} leaves the configuration's folders"
        for folder in self._folders:
            path = folder / f"{relative}.lua"
            if path.is_file():
                text = path.read_text(encoding="latin-1")
                if text.startswith("\x1b"):
                    return None, f"{path} is bytecode, which is not loaded"
                return text, str(path)
        looked = ", ".join(str(folder) for folder in self._folders)
        return None, f"there is no {relative}.lua in {looked}"


def _refuse_attribute(_object: object, _name: object, _setting: bool) -> str:
    raise AttributeError("a script cannot look into the server's objects")


def _dictionary(call: Call, kind: object) -> dict[str, str]:
    if kind in (1, "VCTX_CONN", "ECMESS_CTX_CONN"):
        return call.context.connection
    if kind in (2, "VCTX_MESS", "ECMESS_CTX_MESS"):
        return call.context.message
    raise ValueError("the first argument is msys.core.VCTX_CONN or msys.core.VCTX_MESS")


def _context_get(call: Call, kind: object, key: object) -> str | None:
    value = _dictionary(call, kind).get(_from_lua(str(key)))
    return None if value is None else _to_lua(value)


def _context_set(call: Call, kind: object, key: object, value: object) -> None:
    _dictionary(call, kind)[_from_lua(str(key))] = _from_lua(_text(value))


def _context_delete(call: Call, kind: object, key: object) -> int:
    return 1 if _dictionary(call, kind).pop(_from_lua(str(key)), None) is not None else 0


def _to_lua(text: str) -> str:
    """Text as the octets of its UTF-8 form, one character each, which is what Lua strings are made of."""
    return text.encode("utf-8", "replace").decode("latin-1")


def _from_lua(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")


def _argument(value: object) -> object:
    return _to_lua(value) if isinstance(value, str) else value


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _set_code(call: Call, code: object, text: object, disconnect: bool) -> None:
    set_reply(call.context, int(str(_text(code))), _text(text), disconnect=disconnect)


def _session(call: Call, name: str) -> str:
    if name not in ("remote", "connection_id", "protocol"):
        raise ValueError(name)
    return _to_lua(str(getattr(call.session, name)))


def _message(call: Call, name: str) -> object:
    if name not in ("sender", "recipient", "size", "message_id", "batch_id", "connection_id"):
        raise ValueError(name)
    value = getattr(call.view, name)
    return _to_lua(value) if isinstance(value, str) else value


def _values(call: Call, name: object) -> list[str]:
    """Unfolded values of a header field."""
    return call.view.header(str(name))


def _binding(call: Call, field: str, name: object) -> str | None:
    if field not in ("binding", "binding_group", "routing_domain"):
        raise ValueError(field)
    view = call.view
    if name is not None:
        value = _text(name)
        setattr(view, field, value.lower() if field == "routing_domain" else value)
    return getattr(view, field) or None
