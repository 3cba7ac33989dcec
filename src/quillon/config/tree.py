"""The scope tree as it was read, and how a value is found in it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from quillon.config.options import Option, OptionTable
from quillon.config.scope import Node, ancestors, resolve
from quillon.config.settings import build

T = TypeVar("T")


@dataclass(frozen=True)
class Tree:
    """`folder` is where relative paths start."""

    root: Node
    table: OptionTable
    folder: str

    def build(self, cls: type[T], chain: Iterable[Node]) -> T:
        """Settings out of the stanzas that rule them, the narrowest first."""
        nodes = list(chain)
        return build(cls, lambda name: resolve(self.table.options[name], nodes, self.folder).value)

    def listens(self, node: Node) -> bool:
        """Whether a Listen is switched on, by itself or by its listener; a listener is where one of its Listens is."""
        if bool(resolve(self.table.options["enable"], ancestors(node), self.folder).value):
            return True
        return any(self.listens(listen) for listen in node.of("listen"))


def for_every_tls(option: Option) -> bool:
    """Whether an option of the global scope alone rules TLS, as TLS_Engine does."""
    return option.chapter == "tls" and option.scopes == {"global"} and option.status == "honoured"
