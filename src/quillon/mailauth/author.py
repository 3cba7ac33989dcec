"""Who the From field says wrote a message (RFC 5322 3.6.2): what DMARC judges and a signer signs for."""

from __future__ import annotations

from dataclasses import dataclass

from quillon.mail import header
from quillon.mail.address import is_name
from quillon.mail.address_list import parse_address_list


@dataclass(frozen=True, slots=True)
class Author:
    """`domains` are those of the From field in order, in lower case, each once. `fault` says why the field names no
    author; the domains are not to be used then."""

    domains: tuple[str, ...] = ()
    fault: str = ""


def author_of(head: bytes) -> Author:
    """The author of a message, from the octets of its header section."""
    values = header.raw_values(head, "From")
    if len(values) != 1:
        return Author(fault="more than one From field" if values else "no From field")
    found = parse_address_list(values[0])
    if found.fault:
        return Author(fault=f"From holds {found.fault}")
    if not found.addresses:
        return Author(fault="From holds no address")
    domains = tuple(dict.fromkeys(address.domain.lower() for address in found.addresses))
    if not all(map(is_name, domains)):
        return Author(fault="From holds an address whose domain is none")
    return Author(domains)
