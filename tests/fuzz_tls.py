"""A fuzzer for the TLS engines and for certificate names: `make fuzz`, or `python -m tests.fuzz_tls --seconds 600`.

It mutates what two engines say to each other, at any step, and the certificates that are looked at. What it finds is an
exception out of an engine, which it prints with the seed that leads there; exit status 1.
"""

from __future__ import annotations

import argparse
import random
import ssl
import sys
import tempfile
import time
import traceback
from pathlib import Path

from quillon.lab.pki import Authority
from quillon.tls import identity
from quillon.tls.certificate import Certificate
from tests.unit.tls.test_engines import ENGINES, VERSIONS, Pair


def mutated(octets: bytes, chance: random.Random) -> bytes:
    """The octets with something flipped, cut, doubled, put in, or split off."""
    data = bytearray(octets)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= chance.randrange(1, 256)
        elif kind == 1:
            del data[at : at + chance.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = data[at : at + chance.randrange(1, 200)]
        elif kind == 3:
            data[at:at] = chance.randbytes(chance.randrange(1, 20))
        else:
            del data[at:]
    return bytes(data)


def session(pki: Path, chance: random.Random) -> None:
    """One handshake and some data, with mutations from a random step on."""
    names = [chance.choice(ENGINES) for _ in range(2)]
    certificate = chance.choice(("client", ""))
    pair = Pair(
        pki,
        *names,
        version=chance.choice(VERSIONS),
        certificate=certificate,
        tls_session_resumption=chance.random() < 0.5,
    )
    server, client = pair.contexts.server(pair.inbound), pair.contexts.client(pair.outbound, "mx.partner.test", "a")
    first = chance.randrange(8)
    client.start()
    for step in range(10):
        one, other = (client, server) if step % 2 == 0 else (server, client)
        if one.established and chance.random() < 0.7:
            one.send(chance.randbytes(chance.choice((1, 100, 20000))))
        data = one.data_to_send()
        if data and step >= first:
            data = mutated(data, chance)
        cut = chance.randrange(len(data) + 1)
        for part in (data[:cut], data[cut:]):
            if part:
                other.receive(part)
        for engine in (one, other):
            if engine.established:
                engine.verdict()
                engine.chain()
    for engine in (server, client):
        engine.eof()
        engine.close()


def names(der: bytes, chance: random.Random) -> None:
    """A mutated certificate, and a random name."""
    found = Certificate(mutated(der, chance))
    _ = (found.subject, found.issuer, found.subject_cn, found.issuer_cn, found.alternative_names, found.spki_sha256)
    host = "".join(chance.choice("ab.*-\0ä1[]:") for _ in range(chance.randrange(12)))
    identity.matches(found, [host])
    identity.name_matches(host, "a.b")
    assert not (identity.name_matches(host, "a.b.c") and host.count("*") and host != "*.b.c"), host


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="run this one only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pki = Path(folder)
        authority = Authority(pki)
        authority.write()
        for name in ("server", "client"):
            authority.issue(name, ["mx.partner.test", "192.0.2.1"])
        der = ssl.PEM_cert_to_DER_cert((pki / "server.pem").read_text())
        end = time.monotonic() + given.seconds
        seed, count = given.seed if given.seed is not None else time.time_ns() % 2**40, 0
        while count == 0 or (given.seed is None and time.monotonic() < end):
            chance = random.Random(seed)
            try:
                session(pki, chance)
                for _ in range(5):
                    names(der, chance)
            except Exception:
                traceback.print_exc()
                print(f"found with --seed {seed}")
                return 1
            seed, count = seed + 1, count + 1
    print(f"{count} sessions, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
