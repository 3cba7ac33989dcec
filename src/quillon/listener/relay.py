"""Who may send where, by client, sender and recipient. Nobody may unless the configuration says so. Pure."""

from __future__ import annotations

from quillon.config.model import Config
from quillon.config.scope import IPAddress, glob_matches
from quillon.config.settings import ReceptionSettings
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.reply import Reply


def client_may(settings: ReceptionSettings, client: IPAddress, connection: dict[str, str]) -> bool:
    """Whether this client may send anywhere: by AUTH or policy, which have set `can_relay` in its connection context,
    by its address, or by its certificate; sets `can_relay` if so."""
    may = connection.get("can_relay") == "true" or needs_no_authentication(settings, client)
    if settings.tls_verified_peer_can_relay and connection.get("tls_client_verified") == "yes":
        may = True
    if may:
        connection["can_relay"] = "true"
    return may


def needs_no_authentication(settings: ReceptionSettings, client: IPAddress) -> bool:
    """Whether a client may relay by its address (manual, relay_hosts and open_relay)."""
    return settings.open_relay or any(
        client.version == block.version and client in block for block in settings.relay_hosts
    )


def depends(settings: ReceptionSettings, client: bool, sender: Mailbox | None) -> bool:
    """Whether it is the recipient's domain that decides; `client` is the answer of `client_may`."""
    return not client and not _sender_may(settings, sender)


def refusal(
    config: Config,
    settings: ReceptionSettings,
    client: bool,
    sender: Mailbox | None,
    recipient: Mailbox,
    said: bool | None = None,
) -> Reply | None:
    """The refusal of a recipient, or None. `said` is what policy says of its domain, None where the configuration
    decides."""
    if depends(settings, client, sender):
        may = said
        if may is None:
            may = glob_matches(settings.relay_domains + settings.bounce_domains, recipient.domain)
        if not may:
            return replies.RELAYING_DENIED
    if config.outbound.delivery("default", "default", recipient.domain)[0].blackhole in ("true", "inline"):
        return replies.BLACKHOLED_INLINE
    return None


def _sender_may(settings: ReceptionSettings, sender: Mailbox | None) -> bool:
    """relay_for_sending_domains; an empty list stands for all."""
    senders = settings.relay_for_sending_domains
    domain = sender.domain if sender else ""
    return senders is not None and bool(domain) and (not senders or glob_matches(senders, domain))
