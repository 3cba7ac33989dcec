"""TLSA records: which are usable, which count, and what they match (RFC 6698, 7671)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from quillon.lab.pki import Authority
from quillon.tls.openssl_extra import chain_error
from quillon.tls.tlsa import Tlsa, match, public_key, tlsa, usable
from quillon.tls.verdict import chain_cause


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Leaf and root in DER."""
    root = Authority(tmp_path_factory.mktemp("tlsa"))
    issued = root.issue("mx", ["mx.bank.test"])
    leaf = x509.load_pem_x509_certificates(issued.certificate.read_bytes())[0]
    return [one.public_bytes(Encoding.DER) for one in (leaf, root.certificate)]


def errors(leaf: bytes, above: Sequence[bytes], anchor: bytes) -> str:
    return chain_cause(chain_error(leaf, above, [anchor]))


@pytest.mark.parametrize(
    ("record", "fit"),
    [
        (Tlsa(3, 1, 1, b"x" * 32), True),
        (Tlsa(2, 0, 2, b"x" * 64), True),
        (Tlsa(3, 1, 1, b"x" * 31), False),
        (Tlsa(3, 1, 2, b"x" * 32), False),
        (Tlsa(3, 2, 1, b"x" * 32), False),
        (Tlsa(3, 1, 3, b"x" * 32), False),
        (Tlsa(1, 1, 1, b"x" * 32), False),
        (Tlsa(0, 0, 1, b"x" * 32), False),
        (Tlsa(255, 1, 1, b"x" * 32), False),
        (Tlsa(3, 0, 0, b"no certificate"), False),
        (Tlsa(3, 1, 0, b"no key"), False),
        (tlsa(b""), False),
        (tlsa(b"\3\1"), False),
    ],
)
def test_usable(record: Tlsa, fit: bool) -> None:
    assert record.usable is fit


def test_a_whole_certificate_or_key_is_usable(chain: list[bytes]) -> None:
    key = public_key(chain[0])
    assert key is not None
    assert Tlsa(3, 0, 0, chain[0]).usable
    assert Tlsa(2, 1, 0, key).usable


def test_only_the_strongest_digest_of_a_usage_and_selector_counts() -> None:
    weak, strong = Tlsa(3, 1, 1, b"x" * 32), Tlsa(3, 1, 2, b"x" * 64)
    other = Tlsa(3, 0, 1, b"x" * 32)
    assert usable([weak, strong, other, weak]) == (other, strong)
    assert usable([weak, Tlsa(3, 1, 9, b"x" * 99)]) == (weak,)


def test_what_matches(chain: list[bytes]) -> None:
    leaf, root = chain
    key = public_key(leaf)
    assert key is not None
    good = Tlsa(3, 1, 1, hashlib.sha256(key).digest())
    assert match([good], [leaf], ["elsewhere.test"], errors).record == good
    anchor = Tlsa(2, 0, 1, hashlib.sha256(root).digest())
    found = match([anchor], [leaf, root], ["x.test", "mx.bank.test"], errors)
    assert (found.record, found.name) == (anchor, "mx.bank.test")
    assert match([anchor], [leaf, root], ["x.test"], errors).cause == "name_mismatch"
    assert match([anchor], [leaf], ["mx.bank.test"], errors).cause == "tlsa_mismatch"
    assert match([good], [], ["mx.bank.test"], errors).cause == "no_certificate"
    wrong = match([Tlsa(3, 1, 1, b"x" * 32)], [leaf], [], errors)
    assert hashlib.sha256(key).hexdigest() in wrong.detail


def test_certificates_that_cannot_be_read_match_nothing(chain: list[bytes]) -> None:
    records = [Tlsa(2, 0, 0, chain[1]), Tlsa(3, 1, 1, b"x" * 32)]
    assert match(records, [b"\x30\x00", b""], ["mx.bank.test"], errors).record is None


@given(st.binary(max_size=80))
def test_whatever_stands_in_dns_is_a_record(data: bytes) -> None:
    record = tlsa(data)
    assert isinstance(record.usable, bool)
    assert str(record)
