"""`msys.config`, and macros in text."""

from __future__ import annotations

import re

from quillon.policy.msys.api import Api

_MACRO = re.compile(r"%\{(vctx_conn|vctx_mess):([^}]*)\}")


def register(api: Api) -> None:
    @api.function("msys.config")
    def config(action: str, *path: str) -> tuple[str | None, str]:
        """("get", [scope, name,] option): its value, and what the console would say."""
        if action != "get":
            raise ValueError(f"config {action}: a running configuration is changed in its files, then reloaded")
        value, said = api.world.option([str(word) for word in path if word is not None])
        return value, said

    @api.function("msys.expandMacro")
    def expand(text: str) -> str:
        """Text with `%{vctx_conn:key}` and `%{vctx_mess:key}` replaced; a key that is not there is empty."""
        context = api.session_call().context
        sources = {"vctx_conn": context.connection, "vctx_mess": context.message}
        return _MACRO.sub(lambda match: sources[match[1]].get(match[2], ""), text)
