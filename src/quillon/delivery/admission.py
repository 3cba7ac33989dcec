"""Into which queue a message goes: whose stanza rules its TLS, what policy makes of it, and whether the demand that it
came under still holds.

A demand that can't be found any more is not replaced by a weaker one: the message waits (`override.Held`). What holds
for a message is found once for each configuration; messages that the same stanzas rule share the answer where no module
is asked about each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from quillon.config.contracts import Contract
from quillon.config.model import Config
from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery import override
from quillon.mail import reply as replies
from quillon.mail.event import Event, Panic
from quillon.mail.message import Message, TlsDemand
from quillon.mail.outcome import Stage, TransientFailure
from quillon.policy.hook import Hook
from quillon.policy.tls import TlsHooks
from quillon.queue.destination import Key, Rules
from quillon.queue.limit import Cap
from quillon.smtp.client import ClientLogin

_MOST = 65536  # answers that are kept


Caps = tuple[tuple[str, int], ...]


class _Place(NamedTuple):
    """What holds for messages of one recipient domain under one demand; `eased` are words where it is less than
    before."""

    via: str
    override: override.Held | None
    demand: TlsDemand
    eased: str


class Admission:
    """`connections` splits a limit of the node, as `limit.split` does; `suspended` tells whether an operator has
    suspended a domain; `log` takes events."""

    def __init__(
        self,
        config: Config,
        hooks: TlsHooks,
        connections: Callable[[int], tuple[int, int]],
        log: Callable[[Event], object],
        suspended: Callable[[str], bool] = lambda _: False,
    ):
        self._is_suspended = suspended
        self._connections = connections
        self._log = log
        self._changed: Counter[str] = Counter()  # messages of which something else is demanded, by words
        self.reconfigure(config, hooks)

    def reconfigure(self, config: Config, hooks: TlsHooks) -> None:
        """Another configuration rules from now on."""
        self.config = config
        self.hooks = hooks
        self._suspended = config.node().default_binding == "suspended"
        self._places: dict[tuple[str, str, str, str, TlsDemand | None], _Place] = {}
        self._rules: dict[tuple[int, int, bool, bool, Caps], Rules] = {}

    # rules of a destination -----------------------------------------------------------------------------------

    def settings(self, key: Key) -> tuple[DeliverySettings, OutboundTls]:
        """What holds for a destination; its messages may have TLS of their own."""
        settings, tls = self.config.outbound.delivery(key.binding_group, key.binding, key.domain, key.via)
        own = key.override.tls if isinstance(key.override, override.Override) else None
        return settings, own or tls

    def contract(self, key: Key) -> Contract | None:
        """What has been agreed on for a destination."""
        return self.config.outbound.contract(key.domain, key.via)

    def rules(self, key: Key) -> Rules:
        """As `settings`, in the shape that queues know: one object for all that the same stanzas rule."""
        settings, tls = self.settings(key)
        suspended = settings.suspend_delivery or (self._suspended and key.binding == "default")
        talks = fault_of(key) is None and not isinstance(key.override, override.Pending)
        limits = self.config.outbound.connection_caps(key.binding_group, key.binding, key.domain)
        name = (id(settings), id(tls), suspended, talks, limits)
        found = self._rules.get(name)
        if found is None or found.settings is not settings or found.tls is not tls:
            if len(self._rules) >= _MOST:
                self._rules.clear()
            own, spare = self._connections(settings.max_outbound_connections)
            caps = tuple(Cap(words, *self._connections(limit)) for words, limit in limits)
            found = self._rules[name] = Rules(settings, tls, own, suspended, spare, talks, caps)
        return found

    # the place of a message -----------------------------------------------------------------------------------

    def place(self, message: Message) -> None:
        """Set what decides the queue of a message: `via`, `override` and `demand`, by what runs now."""
        message.override = None
        if self._is_asked(message):
            message.via = self._via(message)
            key = Key(message.binding_group, message.binding, message.destination, message.via)
            message.override = override.of(message, *self.settings(key), self.hooks, self.contract(key))
            place = self._judge(message)
        else:
            name = (message.binding_group, message.binding, message.destination, message.wanted_domain, message.demand)
            known = self._places.get(name)
            if known is None:
                message.via = self._via(message)
                if len(self._places) >= _MOST:
                    self._places.clear()
                known = self._places[name] = self._judge(message)
            place = known
        message.via = place.via
        if place.override is not None:
            message.override = place.override
        elif not isinstance(message.override, (str, override.Pending)):
            if place.eased:
                self._changed[f"go with less: {place.eased}"] += 1
            message.demand = place.demand

    def _via(self, message: Message) -> str:
        """As `override.via_of`; what an operator has suspended of a gateway's mail has a queue of its own as well."""
        found = override.via_of(message, self.config)
        wanted = message.wanted_domain
        return wanted if wanted != message.destination and self._is_suspended(wanted) else found

    def suspensions_changed(self) -> None:
        """Other domains are suspended: where messages go is found anew."""
        self._places.clear()

    def _is_asked(self, message: Message) -> bool:
        """Whether something is to be found out about this message alone: by a module, or of what it authenticates
        with."""
        hooks = self.hooks
        if hooks.asks(Hook.OUTBOUND_AUTH) or hooks.asks(Hook.OUTBOUND_PARAMETERS):
            return True
        if override.AUTH_TYPE in message.context or override.AUTH_TYPE in message.batch.message_context:
            return True
        settings, _ = self.config.outbound.delivery(message.binding_group, message.binding, message.destination)
        return settings.outbound_smtp_auth_type != "false"

    def _judge(self, message: Message) -> _Place:
        demand = override.demand_of(message, self.config)
        by_policy = self.hooks.asks(Hook.OUTBOUND_PARAMETERS)
        held = override.lost(message, self.config, demand, by_policy=by_policy)
        return _Place(message.via, held, demand, "" if held is not None else override.eased(message, demand))

    # what changed ---------------------------------------------------------------------------------------------

    def held(self, message: Message) -> None:
        """Count a message that waits for a demand that is lost, for `tell`."""
        if isinstance(message.override, override.Held):
            self._changed[f"wait: {message.override.words}"] += 1

    def tell(self, now: float) -> Counter[str]:
        """A panic line for each demand that is lost, or weaker by the operator's word, with the number of messages
        since the last call."""
        if not self._changed:
            return self._changed.copy()
        found, self._changed = self._changed, Counter()
        for words, count in found.items():
            self._log(Panic(now, f"config: {count} messages {words}"))
        return found


def fault_of(key: Key) -> TransientFailure | None:
    """Why nothing of a destination may leave, whatever its hosts say."""
    if isinstance(key.override, override.Held):
        return TransientFailure(replies.DEMAND_LOST, Stage.NOT_CONNECTED, cause="demand_lost")
    if isinstance(key.override, str):
        return TransientFailure(replies.POLICY_FAILED, Stage.NOT_CONNECTED, cause="policy_failed")
    login: ClientLogin | None = key.override.login if isinstance(key.override, override.Override) else None
    if login is not None and not (login.user and login.password):
        return TransientFailure(replies.AUTH_INCOMPLETE, Stage.NOT_CONNECTED)
    return None
