"""`quillon tls-setup DOMAIN`: what a domain of ours should publish of its TLS, and what is wrong with what it does."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.app import compose
from quillon.cli.configuration import DEFAULT, FAULTY, read
from quillon.config.model import Config
from quillon.config.settings import StsPolicySettings
from quillon.modules.load import LoadError
from quillon.net.clock import SystemClock
from quillon.net.resolver import Answer, Resolver
from quillon.standards import fetch
from quillon.standards.setup import DomainRecords, ListenCertificate, LookedUp, setup


def add(commands: Any) -> None:
    parser = commands.add_parser("tls-setup")
    parser.add_argument("domain", help="a domain whose mail comes here")
    parser.add_argument("-c", "--config", default=DEFAULT, metavar="FILE", help="the configuration file")
    parser.add_argument(
        "--mode", choices=("testing", "enforce", "none"), help="of the MTA-STS policy; mta_sts_policy's, or testing"
    )
    parser.add_argument(
        "--rua", default="", metavar="URI", help="where reports go; mailto:tls-reports@DOMAIN by default"
    )
    parser.add_argument("--next", action="append", default=[], metavar="FILE", help="a certificate that comes next")
    parser.add_argument("--policy", action="store_true", help="print the policy alone, for the web server")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Exit status 0 if all that matters is published and right, 1 if not; 2 for a faulty configuration."""
    config = read(given.config)
    if config is None:
        return FAULTY
    domain = given.domain.lower().removesuffix(".")
    try:
        identities = _identities(config) + [ListenCertificate(name, _load(name), True) for name in given.next]
        published = asyncio.run(_published(config, domain))
    except (OSError, ValueError, LoadError) as error:
        print(f"quillon tls-setup: {error}", file=sys.stderr)
        return 1
    rua = given.rua or f"mailto:tls-reports@{domain}"
    own = config.stanzas.own_policies().get(domain) or StsPolicySettings(domain, "testing", (), 604800)
    policy = replace(own, mode=given.mode) if given.mode else own
    found = setup(domain, identities, published, policy, rua, datetime.now(UTC))
    if given.policy:
        print(found.policy, end="")
    elif given.json:
        print(json.dumps(vars(found), indent=2))
    else:
        print(f"; records for {domain}, by the certificates of {given.config}")
        print("\n".join(found.zone))
        print(f"\n; https://mta-sts.{domain}/.well-known/mta-sts.txt\n{found.policy}")
        print(
            "; a new key: publish its record beside the old one (--next FILE), wait two TTLs, use it, drop the old one"
        )
        print("".join(f"PROBLEM  {text}\n" for text in found.problems), end="")
        print("".join(f"note     {text}\n" for text in found.notes), end="")
    return 1 if found.problems else 0


def _identities(config: Config) -> list[ListenCertificate]:
    """The certificates that clients are shown. Raises OSError, ValueError."""
    files: dict[str, None] = {}
    for _, tls in config.inbound.stanzas():
        if tls.tls_certificate:
            files[tls.tls_certificate] = None
        for one in tls.tls_identities:
            files.update(dict.fromkeys(certificate for certificate, _ in one.pairs))
    if not files:
        raise ValueError(
            "the configuration has no certificate for clients (TLS_Certificate): there is nothing to publish"
        )
    return [ListenCertificate(name, _load(name)) for name in files]


def _load(name: str) -> bytes:
    """The first certificate of a PEM file, in DER. Raises OSError, ValueError."""
    return x509.load_pem_x509_certificates(Path(name).read_bytes())[0].public_bytes(Encoding.DER)


async def _published(config: Config, domain: str) -> DomainRecords:
    """What there is of a domain now. Raises LoadError."""
    clock, node = SystemClock(), config.node()
    resolver = compose.resolver(node, clock)
    mx = await resolver.lookup(domain, "MX")
    hosts = [host for _, host in mx.records] or [domain]
    tlsa = {host: _found(await resolver.lookup(f"_25._tcp.{host}", "TLSA")) for host in hosts}
    return DomainRecords(
        mx.records,
        mx.secure,
        tlsa,
        _found(await resolver.lookup(f"_mta-sts.{domain}", "TXT")),
        await _policy(resolver, domain, use_ipv6=node.use_ipv6),
        _found(await resolver.lookup(f"_smtp._tls.{domain}", "TXT")),
    )


def _found(answer: Answer) -> LookedUp:
    problem = f"the lookup failed ({answer.detail})" if answer.status == "failed" else ""
    return LookedUp(tuple(text for _, text in answer.records), answer.secure, problem)


async def _policy(resolver: Resolver, domain: str, *, use_ipv6: bool) -> LookedUp:
    try:
        body = await fetch.fetch(resolver, domain, use_ipv6=use_ipv6)
    except fetch.FetchError as error:
        return LookedUp(problem=str(error))
    return LookedUp(tuple(body.decode("utf-8", "replace").splitlines()))
