"""Files and includes to a `Config`, or every fault at once.

Rules: an include is looked for beside the including file, then along the search path; a directory stands for its
files that are not hidden, in byte order; a missing include is a fault. Repeated scopes merge, a repeated option is
replaced by the later one. A configuration with a fault that is no warning is not handed out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quillon.config.changes import ConfigChange
from quillon.config.check import check
from quillon.config.contracts import KIND as CONTRACT
from quillon.config.labels import canonical
from quillon.config.model import Config
from quillon.config.nearest import did_you_mean
from quillon.config.options import ModuleRow, Option, OptionTable, convert, table
from quillon.config.scope import CHILDREN, NAMED, Entry, Node, nested, spelled
from quillon.config.syntax import (
    DictValue,
    Fault,
    Include,
    Item,
    Position,
    Scope,
    Setting,
    Value,
    Word,
    parse,
)
from quillon.config.written import in_quotes, quoted

DEFAULT_SEARCH_PATH = (
    ".",
    "/opt/msys/ecelerity/etc",
    "/opt/msys/ecelerity/etc/conf/global",
    "/opt/msys/ecelerity/etc/conf/default",
)


@dataclass
class Loaded:
    """`config` is None if there is a fault that is no warning. Faults are sorted by place.

    `tree` is what could be read whatever its faults: good for looking up a name, never for running.
    """

    config: Config | None
    faults: list[Fault]
    tree: Config

    @property
    def errors(self) -> list[Fault]:
        return [fault for fault in self.faults if not fault.warning]


def load(path: str | Path, search_path: str | None = None, changed: Sequence[ConfigChange] = ()) -> Loaded:
    """Read a configuration file with all that it includes and check it, files that it names included, with what the
    console has changed.

    `search_path` is colon separated, by default that of the environment variable EC_CONF_SEARCH_PATH. No exception:
    what is wrong is in `faults`.
    """
    main = Path(path).absolute()
    builder = _Builder(table(), str(main.parent), _search_path(search_path or os.environ.get("EC_CONF_SEARCH_PATH")))
    faults = builder.faults
    config = Config(builder.root, builder.table, builder.folder, (str(main),))
    try:
        builder.read(main, None)
        of_files, files = builder.digest.hexdigest(), tuple(builder.files) or (str(main),)
        for change in changed:
            builder.change(change)
        digest = builder.digest.hexdigest()
        config = Config(builder.root, builder.table, builder.folder, files, digest, tuple(changed), of_files)
        faulty = any(not fault.warning for fault in faults)
        faults += check(config, files_only=faulty)
    except Exception as error:
        # a defect of ours must not take a server down that is told to reload
        text = f"unexpected {type(error).__name__} while this was read: {error}; please report it"
        faults.append(Fault(builder.at, text))
    order = {name: n for n, name in enumerate(builder.files)}
    faults.sort(key=lambda f: (order.get(f.position.file, len(order)), f.position.line, f.position.column))
    return Loaded(None if any(not f.warning for f in faults) else config, faults, config)


def empty() -> Config:
    """A configuration that sets nothing."""
    return Config(Node("global", "", Position("default", 0, 0)), table(), os.getcwd(), ())


def _search_path(text: str | None) -> tuple[str, ...]:
    return tuple(part for part in text.split(":") if part) if text else DEFAULT_SEARCH_PATH


@dataclass
class _Builder:
    table: OptionTable
    folder: str
    search_path: tuple[str, ...]
    root: Node = field(init=False)
    faults: list[Fault] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _open: list[Path] = field(default_factory=list)
    _warned: set[str] = field(default_factory=set)
    at: Position = field(default_factory=lambda: Position("default", 0, 0))  # what is being read
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.root = Node("global", "", Position("default", 0, 0))

    def fault(self, position: Position, message: str, warning: bool = False) -> None:
        self.faults.append(Fault(position, message, warning))

    # files ----------------------------------------------------------------------------------------------------

    def read(self, path: Path, at: Word | None, node: Node | None = None) -> None:
        """Read one file into a scope; `at` is the include that asked for it."""
        where = at.position if at else Position(str(path), 0, 0)
        if path.resolve() in self._open:
            self.fault(where, f"{path} includes itself")
            return
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            self.fault(where, f"cannot read {path}: {error.strerror}")
            return
        except UnicodeDecodeError as error:
            self.fault(where, f"cannot read {path}: it is not UTF-8 at octet {error.start}")
            return
        self.digest.update(text.encode("utf-8", "replace") + b"\0")
        if str(path) not in self.files:
            self.files.append(str(path))
        items, faults = parse(text, str(path))
        self.faults += faults
        self._open.append(path.resolve())
        if not items and not faults:
            empty = f"{path} is empty" if at else f"{path} is empty: no configuration found"
            self.fault(where, empty, warning=at is not None)
        self.fill(node or self.root, items)
        self._open.pop()

    def include(self, node: Node, include: Include) -> None:
        found = self._find(include.path.text)
        if found is None:
            looked = ", ".join(str(folder) for folder in self._folders())
            self.fault(include.path.position, f"cannot find {include.path.text!r} to include; looked in {looked}")
        elif found.is_dir():
            try:
                names = sorted(
                    (p for p in found.iterdir() if not p.name.startswith(".")),
                    key=lambda p: os.fsencode(p.name),
                )
            except OSError as error:
                self.fault(include.path.position, f"cannot read folder {found}: {error.strerror}")
                return
            for path in names:
                if path.is_file():
                    self.read(path, include.path, node)
        else:
            self.read(found, include.path, node)

    def _folders(self) -> list[Path]:
        here = self._open[-1].parent
        return [here, *(Path(self.folder) / folder for folder in self.search_path)]

    def _find(self, name: str) -> Path | None:
        if name.startswith("file://"):
            name = name.removeprefix("file://")
        candidates = [Path(name)] if name.startswith("/") else [folder / name for folder in self._folders()]
        try:
            return next((path.absolute() for path in candidates if path.exists()), None)
        except (OSError, ValueError):
            return None  # a name that no file can have

    def change(self, change: ConfigChange) -> None:
        """What the console has set or unset."""
        self.at = Position(change.origin, 0, 0)
        self.digest.update("\0".join((change.do, *change.words, "\0")).encode("utf-8", "replace"))
        try:
            if change.do == "set":
                self.fill(self.root, change.items(self.root, self.table))
            else:
                change.take_away(self.root, self.table)
        except ValueError as error:
            self.fault(self.at, str(error))

    # scopes ---------------------------------------------------------------------------------------------------

    def fill(self, node: Node, items: Iterable[Item]) -> None:
        seen: dict[str, Setting] = {}
        for item in items:
            self.at = item.path.position if isinstance(item, Include) else item.name.position
            if isinstance(item, Include):
                self.include(node, item)
            elif isinstance(item, Scope):
                self.scope(node, item)
            else:
                first = seen.setdefault(item.name.text.lower(), item)
                if first is not item:
                    text = (
                        f"{item.name.text} is set twice here: this takes the place of line {first.name.position.line}"
                    )
                    self.fault(item.name.position, text, warning=True)
                self.setting(node, item)

    def scope(self, parent: Node, scope: Scope) -> None:
        name = scope.name.text.lower()
        position = scope.name.position
        kind = nested(parent.kind, self.table).get(name)
        if kind is not None and kind in CHILDREN.get(parent.kind, ()):
            label = self._label(kind, scope)
            if label is not None:
                self.fill(parent.child(kind, label, position), scope.items)
        elif kind is not None:
            self.fill(self._instance(parent, kind, scope), scope.items)
        elif parent.kind == "global" and name in self.table.inert:
            self.fault(
                position,
                f"{scope.name.text}: this version does not have it; the stanza is without effect",
                warning=True,
            )
        else:
            self._unknown_scope(parent, scope)

    def _instance(self, parent: Node, kind: str, scope: Scope) -> Node:
        if kind == CONTRACT:
            name = self._label(kind, scope) or ""
            known = parent.get(kind, name)
            if known is not None:
                text = f'TLS_Contract "{name}" stands at {known.position} already: one stanza has what was agreed on'
                self.fault(scope.name.position, text)
            return parent.child(kind, name, scope.name.position)
        label = scope.label.text if scope.label else kind
        others = [node.label for node in parent.of(kind) if node.label != label]
        if kind == "scriptlet" and others:
            self.fault(scope.name.position, f'there is one scriptlet only, and it is called "{others[0]}" already')
        return parent.child(kind, label, scope.name.position)

    def _label(self, kind: str, scope: Scope) -> str | None:
        """The checked instance name; None if the scope has to be left out."""
        label = scope.label
        if kind not in NAMED:
            if label is not None:
                self.fault(label.position, f"{scope.name.text} takes no name")
            return ""
        if label is None:
            self.fault(scope.name.position, f'{scope.name.text} needs a name: {scope.name.text} "..." {{ }}')
            return None
        try:
            return canonical(kind, label.text)
        except ValueError as error:
            self.fault(label.position, str(error))
            return None

    def _unknown_scope(self, parent: Node, scope: Scope) -> None:
        name = scope.name.text
        kind = name.lower()
        allowed_in = [outer for outer, inner in CHILDREN.items() if kind in inner]
        if allowed_in:
            self.fault(
                scope.name.position,
                f"{name} cannot stand {_here(parent)}; it belongs in {', '.join(map(spelled, allowed_in))}",
            )
            return
        known = [*CHILDREN.get(parent.kind, ()), *(self.table.modules if parent.kind == "global" else ())]
        if parent.kind == "global":
            known += self.table.inert
        self.fault(scope.name.position, f"unknown stanza {name}{_within(parent)}{did_you_mean(kind, known)}")

    # options --------------------------------------------------------------------------------------------------

    def setting(self, node: Node, setting: Setting) -> None:
        name = setting.name.text.lower()
        module = self.table.modules.get(node.kind)
        option = module.options.get(name) if module else self.table.options.get(name)
        if option is None or (module is None and node.kind not in option.scopes):
            self._misplaced(node, setting, option, module)
            return
        try:
            value = convert(option, setting.value, self.folder)
        except ValueError as error:
            text = str(error)
            self.fault(setting.value.position, text if text.startswith(option.name) else f"{option.name}: {text}")
            return
        node.settings[name] = Entry(value, _text(setting.value), setting.name.position, isinstance(setting.value, Word))
        self._judge(node, option, setting, value)

    def _judge(self, node: Node, option: Option, setting: Setting, value: object) -> None:
        """Refuse or warn about what is not honoured."""
        position = setting.name.position
        as_default = option.default is not None and _text(setting.value).lower() == option.default.lower()
        as_default = as_default or (option.default is None and value == ())
        if option.default in ("true", "false") and isinstance(value, bool):
            as_default = value == (option.default == "true")
        if option.status == "refused" and not as_default:
            self.fault(position, f"{setting.name.text} cannot be honoured by this version: {option.doc}")
        elif option.status == "accepted" and not as_default and option.name not in self._warned:
            self._warned.add(option.name)
            self.fault(position, f"{setting.name.text} is without effect in this version: {option.doc}", warning=True)
        if (option.name, node.kind) in _WITHOUT_EFFECT_IN:
            self.fault(position, f"{setting.name.text} is without effect in {node.kind}", warning=True)
        reason = _REFUSED_VALUES.get((option.name, str(value).lower()))
        if reason:
            self.fault(setting.value.position, f"{setting.name.text} = {value}: {reason}")
        if (
            option.name == "scope_max_outbound_connections"
            and node.kind == "host"
            and node.label.startswith(("/", "*"))
        ):
            text = f"{setting.name.text} cannot be honoured for several hosts as one; name the host, or use a Domain"
            self.fault(position, text)
        if option.name == "force_fsync" and value is False:
            self.fault(
                position,
                "Force_Fsync = false changes nothing: every message is synced before it is acknowledged",
                True,
            )

    def _misplaced(self, node: Node, setting: Setting, option: Option | None, module: ModuleRow | None) -> None:
        name = setting.name.text
        if option is not None:
            scopes = ", ".join(sorted(map(spelled, option.scopes)))
            self.fault(setting.name.position, f"{name} cannot stand {_here(node)}; it belongs in {scopes}")
            return
        names = (
            list(module.options) if module else [o.name for o in self.table.options.values() if node.kind in o.scopes]
        )
        self.fault(
            setting.name.position,
            f"unknown option {name}{_within(node)}{did_you_mean(name.lower(), names)}",
        )


_WITHOUT_EFFECT_IN = {
    (option, scope)
    for option in ("max_resident_messages", "max_recipients_per_connection")
    for scope in ("binding", "binding_group", "domain")
}
_REFUSED_VALUES = {
    ("delivery_method", value): "this version delivers by ESMTP and SMTP only"
    for value in ("lmtp", "ecstream", "apn", "gcm", "mm7")
} | {
    ("transform_8bitmime_content", "strip"): "a relayed message is never rewritten; use strict, ifneeded or no",
    ("rfc2822_max_line_length_policy", "fix"): "a relayed message is never rewritten; use none or reject",
    (
        "rfc2822_max_line_length",
        "fix",
    ): "a relayed message is never rewritten; use ignore, pedantic or a number",
}


def _within(node: Node) -> str:
    return "" if node.kind == "global" else f" in {spelled(node.kind)}"


def _here(node: Node) -> str:
    return "at the top of the file" if node.kind == "global" else f"in {spelled(node.kind)}"


def _text(value: Value) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, DictValue):
        return "[ " + " ".join(f"{quoted(key.text)} = {quoted(word.text)}" for key, word in value.items) + " ]"
    return "( " + " ".join(in_quotes(word.text) for word in value.items) + " )"
