"""Compiles what is hot in Quillon, where there is a C compiler: small parts that are written in C, and, for a wheel,
modules of sessions, queues, delivery and spool by mypyc.

Without a compiler, or with QUILLON_PURE=1, Quillon is installed without that, and does the same in Python: what is
compiled has a pure twin, or is one. `quillon --version` tells which it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("src/quillon/smtp/_octets.c", "src/quillon/spool/_writer.c", "src/quillon/tls/_openssl.c")
FLAGS = ("-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror=implicit-function-declaration", "-pthread")
# by mypyc: what a message passes on its way, and what that calls. An editable installation has none of it, lest a
# file that is edited change nothing.
MODULES = {
    "config": "cache inbound outbound",
    "mail": "address event header message outcome reply shown",
    "smtp": "auth client command events server tables wire",
    "queue": "destination limit line ready retry suspension throttle trail window",
    "log": "lines metrics sink",
    "spool": "bodies committer log log_octets presence record room segment",
    "reception": "accept content mail_data validation",
    "delivery": "admission attempt connection demand dispatcher halts host_memory hosts opener places route settlement"
    " sorting throttles tls_policy",
    "listener": "esmtp login relay services session_tls transaction trusted",
    "policy": "context hook message tls",
    "net": "clock eager histogram stream turns",
    "tls": "engine openssl verdict",
}
MYPYC = ("mypy==2.4.1", "setuptools>=70")  # the mypy that the tests are run with
MYPY_INI = "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n"
_HEARD: dict[str, Any] = {"capture_output": True, "text": True}
_LOAD = """import importlib.util, sys
spec = importlib.util.spec_from_file_location(*sys.argv[1:])
spec.loader.exec_module(importlib.util.module_from_spec(spec))"""


class CompileError(Exception):
    """Something cannot be compiled; the message says why."""


def _compiler() -> list[str]:
    return (sysconfig.get_config_var("CC") or "cc").split()


def _why_not() -> str:
    """Why nothing is compiled; empty if it is tried."""
    if os.environ.get("QUILLON_PURE") == "1":
        return "QUILLON_PURE=1"
    compiler = _compiler()[0]
    return "" if shutil.which(compiler) else f"there is no {compiler}"


def _run(command: list[str]) -> None:
    """Raises CompileError."""
    done = subprocess.run(command, check=False, **_HEARD)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CompileError(said[-1] if said else f"{command[0]} failed")


class Compile(BuildHookInterface):  # type: ignore[type-arg]
    """For an editable installation beside its source, else into the wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs beside hatchling."""
        return [] if _why_not() else list(MYPYC)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        self._folder = Path(tempfile.mkdtemp())
        why_not = _why_not()
        made: dict[Path, str] = {}
        for source in SOURCES:
            name = Path(source).with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
            file = Path(self.root) / name if version == "editable" else self._folder / name.name
            try:
                file.unlink(missing_ok=True)  # of a build before, whose source was another
                if not why_not:
                    self._compile(Path(self.root) / source, file)
                    made[file] = str(name.relative_to("src"))
            except (OSError, CompileError) as error:
                self._without(str(error))
        if why_not:
            self._without(why_not)
        elif version != "editable":
            try:
                made |= self._modules()
            except (OSError, CompileError) as error:
                self._without(str(error))
        if version != "editable" and made:
            build_data["pure_python"], build_data["infer_tag"] = False, True
            build_data["force_include"].update({str(file): name for file, name in made.items()})

    def _compile(self, source: Path, made: Path) -> None:
        """One of the parts in C. Raises CompileError."""
        try:
            _run([*_compiler(), *FLAGS, f"-I{sysconfig.get_paths()['include']}", "-o", str(made), str(source)])
            self._loads(made)
        except CompileError:
            with contextlib.suppress(OSError):
                made.unlink(missing_ok=True)
            raise

    def _loads(self, made: Path) -> None:
        """That it is linked does not say that it can be loaded. Raises CompileError."""
        _run([sys.executable, "-c", _LOAD, made.name.partition(".")[0], str(made)])

    def _modules(self) -> dict[Path, str]:
        """The modules, as files and their names in the wheel. Raises CompileError, OSError."""
        from mypyc.build import mypycify  # noqa: PLC0415 - only where there is something to compile

        names = [f"quillon/{folder}/{name}.py" for folder, many in MODULES.items() for name in many.split()]
        ini = self._folder / "mypy.ini"
        ini.write_text(MYPY_INI)
        before = Path.cwd()
        os.chdir(Path(self.root) / "src")  # mypy takes modules by their place below the current folder
        try:
            options = [f"--config-file={ini}", f"--cache-dir={self._folder / 'cache'}"]
            target = str(self._folder / "c")
            extensions = mypycify(
                [*options, *names], opt_level="2", debug_level="0", multi_file=True, group_name="quillon",
                target_dir=target,
            )  # fmt: skip
        except SystemExit as error:  # its way to say that something is wrong, which it has printed
            raise CompileError(f"mypyc ended with {error.code}") from None
        finally:
            os.chdir(before)
        return dict(self._linked(extension) for extension in extensions)

    def _linked(self, extension: Any) -> tuple[Path, str]:
        """One extension of mypyc, compiled and linked: the file, and its name in the wheel. Raises CompileError."""
        folder = self._folder / "objects" / extension.name
        folder.mkdir(parents=True)
        include = [f"-I{path}" for path in (*extension.include_dirs, sysconfig.get_paths()["include"])]
        flags = ["-fPIC", "-fno-strict-aliasing", "-fwrapv", "-DNDEBUG", "-w", *extension.extra_compile_args, *include]
        objects = [str(folder / f"{number}.o") for number, _ in enumerate(extension.sources)]
        src = Path(self.root) / "src"

        def compiled(pair: tuple[str, str]) -> None:
            _run([*_compiler(), *flags, "-c", str(src / pair[0]), "-o", pair[1]])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compiled, zip(extension.sources, objects, strict=True)))
        name = extension.name.replace(".", "/") + sysconfig.get_config_var("EXT_SUFFIX")
        made = self._folder / "linked" / name
        made.parent.mkdir(parents=True, exist_ok=True)
        _run([*_compiler(), "-shared", "-pthread", *objects, "-o", str(made)])
        return made, name

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            shutil.rmtree(self._folder, ignore_errors=True)

    def _without(self, why: str) -> None:
        self.app.display_warning(f"Quillon is installed without compiled parts: {why}")
