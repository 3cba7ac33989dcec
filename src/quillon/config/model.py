"""A loaded configuration: the scope tree behind questions. Pure; `load` makes it from files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from quillon.config.changes import ConfigChange
from quillon.config.contracts import Contracts
from quillon.config.inbound import Inbound
from quillon.config.options import OptionTable
from quillon.config.outbound import Outbound
from quillon.config.scope import Node
from quillon.config.settings import NodeSettings, SecuritySettings
from quillon.config.stanzas import Stanzas
from quillon.config.tree import Tree


@dataclass
class Config:
    """`files` are all files read, the main one first; `folder` is where relative paths start; `digest` is the SHA-256
    over the files as they were read and what the console has changed, by which two processes know that they have the
    same, `files_digest` that over the files; `changes` are those of the console."""

    root: Node
    table: OptionTable
    folder: str
    files: tuple[str, ...]
    digest: str = ""
    changes: tuple[ConfigChange, ...] = ()
    files_digest: str = ""

    @cached_property
    def _tree(self) -> Tree:
        return Tree(self.root, self.table, self.folder)

    @cached_property
    def inbound(self) -> Inbound:
        """What holds for sessions that clients open."""
        return Inbound(self._tree)

    @cached_property
    def outbound(self) -> Outbound:
        """What holds for mail that leaves."""
        return Outbound(self._tree, self.contracts)

    @cached_property
    def contracts(self) -> Contracts:
        """TLS agreed on with partners."""
        return Contracts(self._tree)

    @cached_property
    def stanzas(self) -> Stanzas:
        """Stanzas that stand for themselves."""
        return Stanzas(self._tree)

    def node(self) -> NodeSettings:
        """Options of the global scope, for the whole node."""
        return self._tree.build(NodeSettings, [self.root])

    def security(self) -> SecuritySettings:
        """The Security stanza."""
        node = self.root.get("security")
        return self._tree.build(SecuritySettings, [node] if node else [])
