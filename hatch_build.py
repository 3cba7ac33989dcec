"""Compiles the small parts of Quillon that are written in C, where there is a C compiler.

Without one, or with QUILLON_PURE=1, Quillon is installed without them, and does the same in Python: what is compiled
has a pure twin. `quillon --version` tells which it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("src/quillon/smtp/_octets.c", "src/quillon/spool/_writer.c")
FLAGS = ("-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror=implicit-function-declaration", "-pthread")
_HEARD: dict[str, Any] = {"capture_output": True, "text": True}
_LOAD = """import importlib.util, sys
spec = importlib.util.spec_from_file_location(*sys.argv[1:])
spec.loader.exec_module(importlib.util.module_from_spec(spec))"""


class Compile(BuildHookInterface):  # type: ignore[type-arg]
    """For an editable installation beside its source, else into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        self._folder = tempfile.mkdtemp()
        compiler = (sysconfig.get_config_var("CC") or "cc").split()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for source in SOURCES:
            name = Path(source).with_suffix(suffix)
            made = Path(self.root) / name if version == "editable" else Path(self._folder) / name.name
            try:
                made.unlink(missing_ok=True)  # of a build before, whose source was another
            except OSError as error:
                self._without(str(error))
                continue
            if os.environ.get("QUILLON_PURE") == "1" or not shutil.which(compiler[0]):
                self._without("QUILLON_PURE=1" if shutil.which(compiler[0]) else f"there is no {compiler[0]}")
                continue
            include = f"-I{sysconfig.get_paths()['include']}"
            command = [*compiler, *FLAGS, include, "-o", str(made), str(Path(self.root) / source)]
            done = subprocess.run(command, check=False, **_HEARD)
            if done.returncode == 0:  # that it is linked does not say that it can be loaded
                done = subprocess.run(
                    [sys.executable, "-c", _LOAD, made.stem.partition(".")[0], str(made)], check=False, **_HEARD
                )
            if done.returncode:
                with contextlib.suppress(OSError):
                    made.unlink(missing_ok=True)
                said = done.stderr.strip().splitlines()
                self._without(said[-1] if said else "the compiler failed")
                continue
            if version != "editable":
                build_data["pure_python"], build_data["infer_tag"] = False, True
                build_data["force_include"][str(made)] = str(name.relative_to("src"))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            shutil.rmtree(self._folder, ignore_errors=True)

    def _without(self, why: str) -> None:
        self.app.display_warning(f"Quillon is installed without its compiled parts: {why}")
