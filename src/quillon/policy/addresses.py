"""Addresses as policies write them and as header fields hold them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from quillon.mail.address import NULL_PATH, AddressError, Mailbox, parse_mailbox
from quillon.mail.address_list import parse_address_list

PARTS = ("all", "localpart", "user", "detail", "domain")


def address_parts(values: Sequence[str], part: str) -> list[str]:
    """A part of each address in raw header field values (`header.raw_values`): what can be read of them.

    Raises ValueError for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"{part!r} is no part of an address: {', '.join(PARTS)}")
    found = []
    for value in values:
        for address in parse_address_list(value).addresses:
            user, _, detail = address.local.partition("+")
            parts = (str(address), address.local, user, detail, address.domain)
            found.append(parts[PARTS.index(part)])
    return found


def mailbox_of(address: str) -> Mailbox:
    """An address as policy wrote it, with or without angle brackets; empty is the null path. Raises ValueError."""
    bare = address.strip().removeprefix("<").removesuffix(">")
    if not bare:
        return NULL_PATH
    try:
        return parse_mailbox(bare)
    except AddressError as error:
        raise ValueError(f"{address!r} is no address: {error}") from None


def mailboxes_of(addresses: object) -> list[Mailbox]:
    """One address, several with commas between, or a list of them. Raises ValueError."""
    if isinstance(addresses, str):
        items = [item for item in addresses.split(",") if item.strip()]
    elif isinstance(addresses, list):
        items = [str(item) for item in addresses]
    elif isinstance(addresses, dict):
        items = [str(addresses[key]) for key in sorted(addresses, key=str)]
    else:
        raise ValueError("an address, or a table of addresses, is expected")
    found = [mailbox_of(item) for item in items]
    if not found or any(not mailbox.domain for mailbox in found):
        raise ValueError("a recipient needs a domain")
    return found
