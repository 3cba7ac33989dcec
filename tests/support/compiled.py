"""Whether Quillon is tested as its wheel has it, with modules compiled by mypyc."""

from __future__ import annotations

import os

import pytest

from quillon.mail import reply

COMPILED = not reply.__file__.endswith(".py")
# lest a wheel that was built without a compiler be tested twice
assert COMPILED or os.environ.get("QUILLON_COMPILED") != "1", f"{reply.__file__} is not compiled"

pure_only = pytest.mark.skipif(COMPILED, reason="puts something in the place of what is compiled here")
