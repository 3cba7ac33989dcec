"""Names of scopes: what may be one, and how the tree spells it. Pure."""

from __future__ import annotations

import ipaddress
import re

from quillon.config.contracts import KIND as CONTRACT
from quillon.config.endpoint import parse_endpoint
from quillon.config.outbound import lookup_name
from quillon.config.values import compile_pattern
from quillon.mail.address import AddressError, is_domain, is_routing_name, parse_domain


def canonical(kind: str, label: str) -> str:
    """The instance name of a scope as the tree has it. Raises ValueError for what is none."""
    if kind == "listen":
        parse_endpoint(label)
    elif kind == "peer":
        try:
            return str(ipaddress.ip_network(label.strip("[]")))
        except ValueError as error:
            raise ValueError(f"Peer {label!r} is no IP address or CIDR block: {error}") from None
    elif kind in ("domain", "host", CONTRACT):
        if label.startswith("/"):
            if len(label) < 3 or not label.endswith("/"):
                raise ValueError(f"{label!r}: a pattern stands between two slashes")
            compile_pattern(label[1:-1])
        elif label.startswith("*"):
            label = label.removesuffix(".")
            if not is_domain(label.lstrip("*").lstrip(".")):
                raise ValueError(f"{label!r} is no *suffix of a domain")
        else:
            return lookup_name(_domain_label(label))
    elif kind == "tls_identity":
        return _identity_label(label)
    elif not label or re.search(r"\s", label) or (kind == "binding" and ":" in label):
        raise ValueError(f"{label!r} is no {kind} name: it holds a space or a colon, or nothing")
    return label


def _identity_label(label: str) -> str:
    """The server name of a TLS_Identity as A-labels: a host name, `*.domain`, or `*`. Raises ValueError."""
    star = "*." if label.startswith("*.") else ""
    try:
        name = label if label == "*" else star + parse_domain(label.removeprefix("*."))
    except AddressError:
        name = "["
    if name.startswith("["):
        raise ValueError(f'{label!r} is no server name: write a host name, "*.domain", or "*" for any other')
    return name if name.isascii() else name.encode("idna").decode("ascii")


def _domain_label(label: str) -> str:
    """A Domain's name in its canonical form: a domain, an address literal, a bare IP address, or a routing name such as
    `#gold`. Raises ValueError."""
    if is_routing_name(label):
        return label.lower()
    try:
        return parse_domain(label)
    except AddressError:
        try:
            return str(ipaddress.ip_address(label))
        except ValueError:
            raise ValueError(f"{label!r} is no domain, IP address, /pattern/ or *suffix") from None
