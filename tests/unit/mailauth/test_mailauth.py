"""DKIM, ARC, SPF and DMARC: against other implementations of them, and against the suite of RFC 7208."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path
from typing import Any

import dkim as dkimpy  # type: ignore[import-not-found,import-untyped,unused-ignore]
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from quillon.config.load import load as load_config
from quillon.mail import header
from quillon.mail.address_list import parse_address_list
from quillon.mailauth import arc, dkim, dmarc, spf
from quillon.mailauth.author import Author, author_of
from quillon.mailauth.dkim import DkimError, DkimSigner, PrivateKey
from quillon.mailauth.lookup import Records
from quillon.net.eager import at_once
from quillon.net.resolver import dns_name
from quillon.policy.context import Context
from quillon.policy.message import Content
from quillon.reception import content

NOW = 1_700_000_000.0
HEAD = b"From: A <a@bank.fi>\r\nTo: b@example.com\r\nSubject:  folded\r\n\ttext \r\nX-Other: 1\r\nDate: now\r\n\r\n"
BODY = b"Hello  there \r\n\r\n.dots\r\n\ttabs\t \r\n\r\n\r\n"
RSA = rsa.generate_private_key(65537, 2048)
RSA_OTHER = rsa.generate_private_key(65537, 2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()


def _record(key: PrivateKey) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        raw = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return "v=DKIM1; k=rsa; p=" + base64.b64encode(raw).decode()
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return "v=DKIM1; k=ed25519; p=" + base64.b64encode(raw).decode()


ZONE = {"r._domainkey.bank.fi": _record(RSA), "e._domainkey.bank.fi": _record(ED25519)}


async def _texts(name: str, kind: str) -> Records:
    found = ZONE.get(name)
    return Records("ok", [found]) if found else Records("nxdomain")


def _theirs(name: bytes, timeout: int = 5) -> bytes:
    return ZONE[name.decode().rstrip(".")].encode()


def _verify(message: bytes) -> list[dkim.DkimResult]:
    end = message.index(b"\r\n\r\n") + 4
    return at_once(dkim.verify(message[:end], message[end:], _texts, NOW))


@pytest.mark.parametrize("canon", ["simple", "relaxed"])
@pytest.mark.parametrize("body_canon", ["simple", "relaxed"])
@pytest.mark.parametrize(("selector", "key"), [("r", RSA), ("e", ED25519)])
@pytest.mark.parametrize("body", [BODY, b"", b"\r\n", b"one line without an end"])
def test_another_implementation_takes_our_signatures(
    canon: str, body_canon: str, selector: str, key: PrivateKey, body: bytes
) -> None:
    signer = DkimSigner("bank.fi", selector, key, canon, body_canon)
    signed = dkim.sign(HEAD, body, signer, NOW) + HEAD + body
    assert [result.status for result in _verify(signed)] == ["pass"]
    assert dkimpy.verify(signed, dnsfunc=_theirs)
    assert all(len(line) <= 78 for line in signed.split(b"\r\n"))


@pytest.mark.parametrize("canon", [b"simple", b"relaxed"])
def test_we_take_the_signatures_of_another_implementation(canon: bytes) -> None:
    pem = RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    field = dkimpy.sign(HEAD + BODY, b"r", b"bank.fi", pem, canonicalize=(canon, canon))
    found = _verify(field + HEAD + BODY)
    assert [result.status for result in found] == ["pass"]
    assert found[0].text() == f'dkim=pass header.d=bank.fi header.s=r header.b="{found[0].signature[:8]}"'
    assert found[0].key_bits == 2048


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Hello", b"Hallo", "fail"),
        (b"To: b@", b"To: c@", "fail"),
        (b"X-Other: 1", b"X-Other: 2", "pass"),  # not signed
        (b"\r\nTo:", b"\r\nFrom: x@evil.test\r\nTo:", "fail"),
        (b"s=r;", b"s=none;", "permerror"),
        (b"a=rsa-sha256", b"a=rsa-sha1", "permerror"),
        (b"v=1;", b"v=2;", "permerror"),
        (b"d=bank.fi", b"d=bank.fi; i=@other.fi", "permerror"),
        (b"bh=", b"l=3; bh=", "fail"),
        (b"t=1700000000;", b"t=1600000000; x=1600000001;", "permerror"),
        (b"t=1700000000;", b"t=1700000000; t=1;", "permerror"),
    ],
)
def test_what_is_wrong_with_a_signature(old: bytes, new: bytes, status: str) -> None:
    signed = dkim.sign(HEAD, BODY, DkimSigner("bank.fi", "r", RSA), NOW) + HEAD + BODY
    assert old in signed
    assert [result.status for result in _verify(signed.replace(old, new, 1))] == [status]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("v=DKIM1; p=", "revoked"),
        ("v=DKIM2; p=x", "another version"),
        ("v=DKIM1; k=ed25519; p=AAAA", "the key is ed25519"),
        ("v=DKIM1; h=sha1; p=AAAA", "not for sha256"),
        ("v=DKIM1; s=tlsrpt; p=AAAA", "not for mail"),
        ("v=DKIM1; p=!!!", "cannot be read"),
        ("nonsense", "malformed"),
    ],
)
def test_keys_that_cannot_be_used(record: str, words: str) -> None:
    with pytest.raises(DkimError, match=words):
        dkim.public_key(record, "rsa-sha256", "bank.fi", "@bank.fi")


def test_lists_of_a_key_record() -> None:
    """White space around the words (RFC 6376 3.2), however much: a pattern for it took the square of that."""
    key, wide = _record(RSA).partition("p=")[2], " " * 100_000
    record = f"v=DKIM1; h=sha1{wide}: sha256 ; s={wide}x:email; p={key}"
    assert dkim.public_key(record, "rsa-sha256", "bank.fi", "@bank.fi") == RSA.public_key()
    with pytest.raises(DkimError, match="own domain only"):
        dkim.public_key(f"{record}; t=y{wide}:{wide}s", "rsa-sha256", "bank.fi", "@other.test")


def test_small_keys_and_other_things_sign_nothing() -> None:
    small = rsa.generate_private_key(65537, 1024)
    assert dkim.load_private_key(
        small.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    for data in (b"", b"-----BEGIN NOTHING-----\n-----END NOTHING-----\n", b"AAAA"):
        with pytest.raises(DkimError):
            dkim.load_private_key(data)
    with pytest.raises(DkimError, match="without From"):
        dkim.sign(b"To: x\r\n\r\n", b"", DkimSigner("bank.fi", "r", RSA), NOW)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_octets_bring_verification_down(head: bytes, body: bytes) -> None:
    signature = dkim.sign(HEAD, BODY, DkimSigner("bank.fi", "r", RSA), NOW)
    for text in (head, signature[:40] + head + signature[40:], b"DKIM-Signature: " + head, b"ARC-Seal: i=1;" + head):
        at_once(dkim.verify(text, body, _texts, NOW))
        at_once(arc.validate(text, body, _texts, NOW))


def _sealed(head: bytes, signer: DkimSigner) -> bytes:
    chain = at_once(arc.validate(head, BODY, _texts, NOW))
    return arc.seal(head, BODY, signer, chain, "mx.bank.fi", "spf=pass", NOW) + head


def test_a_chain_of_arc_and_what_breaks_it() -> None:
    assert at_once(arc.validate(HEAD, BODY, _texts, NOW)).status == "none"
    head = _sealed(_sealed(HEAD, DkimSigner("bank.fi", "r", RSA)), DkimSigner("bank.fi", "r", RSA))
    found = at_once(arc.validate(head, BODY, _texts, NOW))
    assert (found.status, found.instance, found.sealer) == ("pass", 2, "bank.fi")
    cv, _, _ = dkimpy.arc_verify(head + BODY, dnsfunc=_theirs)
    assert cv == b"pass"
    for old, new in (
        (b"Hello", b"Hallo"),
        (b"cv=pass", b"cv=none"),
        (b"spf=pass", b"spf=fail"),
        (b"i=2;", b"i=3;"),
        (b"ARC-Seal: i=1", b"X-Seal: i=1"),
    ):
        changed = (head + BODY).replace(old, new, 1)
        end = changed.index(b"\r\n\r\n") + 4
        assert at_once(arc.validate(changed[:end], changed[end:], _texts, NOW)).status == "fail", old
    broken = head.replace(b"spf=pass", b"spf=fail", 1)
    with pytest.raises(DkimError, match="has failed"):
        _sealed(broken, DkimSigner("bank.fi", "r", RSA))


def _suite() -> list[Any]:
    text = (Path(__file__).parents[2] / "data/rfc7208-tests.yml").read_text(encoding="utf-8")
    return [
        pytest.param(_zone(scenario["zonedata"]), case, id=name)
        for scenario in yaml.safe_load_all(text)
        for name, case in scenario["tests"].items()
    ]


def _zone(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Names to records by type; "failed" for what times out. A TXT record goes before the old type SPF."""
    zone: dict[str, dict[str, Any]] = {}
    for name, rows in data.items():
        found: dict[str, Any] = {"failed": "TIMEOUT" in rows}
        for row in rows:
            for kind, value in row.items() if isinstance(row, dict) else ():
                found.setdefault(kind, []).append("".join(value) if kind in ("TXT", "SPF") else value)
        found["TXT"] = [text for text in found.get("TXT", found.get("SPF", [])) if text != "NONE"]
        zone[name.lower()] = found
    return zone


@pytest.mark.parametrize(("zone", "case"), _suite())
def test_the_suite_of_rfc_7208(zone: dict[str, dict[str, Any]], case: dict[str, Any]) -> None:
    async def lookup(name: str, kind: str) -> Records:
        found = zone.get(name.lower().rstrip("."))
        while found is not None and "CNAME" in found:
            found = zone.get(found["CNAME"][0].lower())
        if found is None:
            return Records("nxdomain")
        records = found.get(kind)
        if not records:
            return Records("failed" if found["failed"] else "nodata")
        if "TIMEOUT" in records:
            return Records("failed")
        return Records("ok", [host.lower() for _, host in sorted(records)] if kind == "MX" else records)

    found = at_once(spf.check(case["host"], case.get("mailfrom", ""), case["helo"], "receiver.test", lookup))
    wanted = case["result"]
    assert found.status in ([wanted] if isinstance(wanted, str) else wanted), found
    if found.status == "fail" and case.get("explanation", "DEFAULT") != "DEFAULT":
        assert found.explanation == case["explanation"]


def _evaluate(
    zone: dict[str, list[str]], author: str, by_spf: tuple[str, str] = ("none", ""), *signed: str, status: str = "pass"
) -> dmarc.DmarcVerdict:
    """`signed` are domains with a signature of that status; a zone's `None` stands for a failure of DNS."""

    async def lookup(name: str, kind: str) -> Records:
        if name.startswith("_dmarc.down") or name == "down.test":
            return Records("failed")
        found = zone.get(name) if kind == "TXT" else (["192.0.2.1"] if name in zone.get("exist", ()) else None)
        return Records("ok", found) if found else Records("nodata" if name in zone.get("exist", ()) else "nxdomain")

    results = [dkim.DkimResult(status, "", name) for name in signed]
    return at_once(dmarc.evaluate(Author((author,)), by_spf, results, lookup))


def test_dmarc() -> None:
    zone = {
        "_dmarc.bank.fi": ["v=DMARC1; p=reject; sp=quarantine; adkim=s"],
        "_dmarc.two.test": ["v=DMARC1; p=none", "v=DMARC1; p=reject"],
        "_dmarc.broken.test": ["v=DMARC1 p=reject", "other"],
    }

    def evaluate(domain: str, by_spf: tuple[str, str] = ("none", ""), *signed: str) -> tuple[str, str]:
        found = _evaluate(zone, domain, by_spf, *signed)
        return found.status, found.policy

    assert evaluate("bank.fi", ("pass", "bounce.bank.fi")) == ("pass", "reject")  # relaxed
    assert evaluate("bank.fi", ("fail", "bank.fi")) == ("fail", "reject")
    assert evaluate("bank.fi", ("none", ""), "mail.bank.fi") == ("fail", "reject")  # adkim is strict
    assert evaluate("bank.fi", ("none", ""), "bank.fi") == ("pass", "reject")
    assert evaluate("www.bank.fi", ("pass", "evil.test")) == ("fail", "quarantine")
    assert evaluate("two.test") == ("none", "")
    assert evaluate("broken.test") == ("none", "")
    assert evaluate("down.test") == ("temperror", "")


@pytest.mark.parametrize(
    ("record", "policy"),
    [
        ("p=reject;;", "reject"),
        ("p=reject;; rua=mailto:a@b.test", "reject"),
        ("p=reject; rua", "reject"),
        ("p=reject; p=none", "reject"),
        ("p=reject; =x; a-b=c", "reject"),
        ("P=Reject", "reject"),
        ("p=reject; pct=0", "reject"),  # RFC 9989 knows no pct any more
        ("p=reject; t=y", "quarantine"),
        ("p=quarantine; t=y", "none"),
        ("p=reject; sp=bogus; rua=mailto:a@b.test", "none"),
        ("p=reject; sp=bogus", ""),
        ("rua=mailto:a@b.test", "none"),
        ("p=bogus", ""),
    ],
)
def test_what_a_faulty_dmarc_record_asks_for(record: str, policy: str) -> None:
    """RFC 9989 4.7, 4.8 and 4.10.1: the faulty part is ignored, and no more than that."""
    found = _evaluate({"_dmarc.bank.fi": ["v=DMARC1; " + record]}, "bank.fi")
    assert (found.status, found.policy) == (("fail", policy) if policy else ("none", ""))


def test_the_walk_up_the_tree() -> None:
    """RFC 9989 4.10 and its examples B.4."""
    zone = {
        "_dmarc.example.com": ["v=DMARC1; p=quarantine; sp=reject; np=none"],
        "_dmarc.signing.example.com": ["v=DMARC1; p=none"],
        "_dmarc.own.example.com": ["v=DMARC1; p=reject; psd=n"],
        "_dmarc.bank.example": ["v=DMARC1; p=reject; psd=y"],
        "exist": ["a.example.com"],
    }
    assert _evaluate(zone, "a.example.com").policy == "reject"  # sp of the organization
    assert _evaluate(zone, "b.example.com").policy == "none"  # there is no such domain: np
    assert _evaluate(zone, "example.com", ("none", ""), "signing.example.com").status == "pass"
    assert _evaluate(zone, "own.example.com", ("pass", "example.com")).status == "fail"  # psd=n: its own organization
    assert _evaluate(zone, "own.example.com", ("pass", "x.own.example.com")).status == "pass"
    assert _evaluate(zone, "giant.bank.example", ("none", ""), "mail.giant.bank.example").status == "pass"
    assert _evaluate(zone, "giant.bank.example", ("none", ""), "mail.mega.bank.example").status == "fail"
    assert dmarc._names("a.b.c.d.e.f.g.h.i.j.mail.example.com")[1] == "g.h.i.j.mail.example.com"
    assert len(dmarc._names("a.b.c.d.e.f.g.h.i.j.mail.example.com")) == dmarc.MAX_QUERIES


def test_dns_that_fails_is_no_failure_of_mail() -> None:
    """RFC 9989 5.3.6, but only of what would have spoken for the author."""
    zone = {"_dmarc.bank.fi": ["v=DMARC1; p=reject"]}
    assert _evaluate(zone, "bank.fi", ("temperror", "bank.fi")).status == "temperror"
    assert _evaluate(zone, "bank.fi", ("none", ""), "bank.fi", status="temperror").status == "temperror"
    assert _evaluate(zone, "bank.fi", ("none", ""), "evil.test", status="temperror").status == "fail"
    assert _evaluate(zone, "bank.fi", ("temperror", "bank.fi"), "bank.fi").status == "pass"


_LETTERS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(_LETTERS, st.sampled_from("bq"))
def test_an_encoded_name_is_never_an_address(name: str, encoding: str) -> None:
    """RFC 2047 6.1: whatever letters a display name has, the author stays who stands in angle brackets."""
    octets = name.encode()
    text = base64.b64encode(octets).decode() if encoding == "b" else "".join(f"={octet:02X}" for octet in octets)
    head = f"From: =?utf-8?{encoding}?{text}?= <ceo@bank.example> (=?utf-8?q?=29?=)\r\n\r\n".encode()
    assert author_of(head).domains == ("bank.example",)
    found = parse_address_list(header.raw_values(head, "From")[0])
    assert [address.domain for address in found.addresses] == ["bank.example"]
    if name.strip():
        assert found.addresses[0].name == name.strip()


@pytest.mark.parametrize(
    "field",
    [
        "a@bank\0.fi", "a@bank\x01.fi", "a@bank.fi\u00a0", "a@ba\u200bnk.fi", "a@bank\\.fi", "a@bank.fi/", "a@bank-.fi",
        "a@-bank.fi", "a@bank..fi", "a@" + "x" * 64 + ".fi", "a@[192.0.2.1]", "a@bank.fi b@evil.test", "a@b@bank.fi",
        "<a@evil.test> <b@bank.fi>", "a@evil.test, b@bank.fi", "Name", "", "(((", '"a@bank.fi', "x <>", "Group:;",
    ],
)  # fmt: skip
def test_a_from_field_without_one_author(field: str) -> None:
    head = f"From: {field}\r\n\r\n".encode()
    zone = {"_dmarc.bank.fi": ["v=DMARC1; p=reject"]}

    async def lookup(name: str, kind: str) -> Records:
        return Records("ok", zone[name]) if name in zone else Records("nxdomain")

    assert at_once(dmarc.evaluate(author_of(head), ("pass", "bank.fi"), [], lookup)).status == "permerror"
    twice = b"From: a@bank.fi\r\n" + head
    assert at_once(dmarc.evaluate(author_of(twice), ("pass", "bank.fi"), [], lookup)).status == "permerror"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-8?q?a?= =?utf-8?q?b?=", "ab"),
        ("=?utf-8?b?w6Q=?= x =?utf-8?q?y?=", "\u00e4 x y"),
        ("=?utf-8?b?w?= =?utf-8?b?6Q(?=", "=?utf-8?b?w?= =?utf-8?b?6Q(?="),  # no base64
        ("=?utf-8?q?=C3?= =?UTF-8?q?=A4?=", "\u00e4"),  # a letter cut in two
        ("=?utf-8*de?q?x?=", "x"),
        ("=?punycode?q?x?=", "=?punycode?q?x?="),
        ("a =?x?", "a =?x?"),
    ],
)
def test_words_of_rfc_2047(value: str, text: str) -> None:
    assert header.decoded(value) == text


def test_headers_made_to_take_long() -> None:
    """Each grew with the square of the size, or with the number of sets or signatures times the size."""
    begun = time.process_time()
    header.decoded("=?a?q? " * 40_000)
    header.decoded("=?utf-8?q?a?= " * 20_000)
    for field in ("(" * 200_000, "<" * 200_000, '"\\' * 100_000, "a@b," * 50_000, "a:" * 100_000, "[" * 200_000):
        parse_address_list(field)
    sets = b"".join(
        b"ARC-Seal: i=%d; a=rsa-sha256; d=bank.fi; s=r; cv=%s; b=AAAA\r\n"
        b"ARC-Message-Signature: i=%d; a=rsa-sha256; d=bank.fi; s=r; h=from; bh=AAAA; b=AAAA\r\n"
        b"ARC-Authentication-Results: i=%d; %s\r\n" % (n, b"none" if n == 1 else b"pass", n, n, b"x  " * 2000)
        for n in range(1, 51)
    )
    at_once(arc.validate(sets + HEAD, BODY, _texts, NOW))
    at_once(dkim.verify(b"DKIM-Signature: v=1\r\n" * 10_000 + HEAD, BODY, _texts, NOW))
    assert time.process_time() - begun < 5


def _signed_part(length: int | None) -> bytes:
    """A message whose signature covers so many octets of the body."""
    signer = DkimSigner("bank.fi", "r", RSA)
    part = dkim.relaxed_body(BODY)[:length]
    signed = dkim.sign(HEAD, part, signer, NOW)
    if length is None:
        return signed + HEAD + BODY
    digest = base64.b64encode(hashlib.sha256(part).digest())
    field = re.sub(rb"bh=[^;]*;", b"bh=%s; l=%d;" % (digest, length), dkim.without_b(signed))
    fields = list(header.fields(HEAD))
    names = re.search(rb"h=([^;]*);", field)
    assert names is not None
    listed = [name.strip().decode() for name in names[1].split(b":")]
    data = dkim.signed_octets(fields, listed, field + b"\r\n", "relaxed")
    return field + base64.b64encode(dkim.sign_octets(RSA, data)) + b"\r\n" + HEAD + BODY


def test_a_signature_of_a_part_of_the_body() -> None:
    """Signature and hash are judged before any leniency: l= saves nothing that is wrong."""
    whole = _signed_part(8)
    assert [result.status for result in _verify(whole)] == ["policy"]
    assert [result.status for result in _verify(whole.replace(b"To: b@", b"To: c@"))] == ["fail"]
    assert [result.status for result in _verify(whole.replace(b"Hello", b"Hallo"))] == ["fail"]
    garbage = b"DKIM-Signature: v=1; a=rsa-sha256; d=bank.fi; s=r; h=from; l=0; bh=AAAA; b=AAAA\r\n"
    assert [result.status for result in _verify(garbage + HEAD + BODY)] == ["fail"]


@pytest.mark.parametrize("length", [b"", b" l=0;", b" l=3;"])
def test_a_chain_whose_message_signature_is_garbage(length: bytes) -> None:
    signer = DkimSigner("bank.fi", "r", RSA)
    head = _sealed(HEAD, signer)
    field = next(octets for name, octets in header.fields(head) if name == "ARC-Message-Signature")
    bad = b"ARC-Message-Signature: i=1; a=rsa-sha256; d=bank.fi; s=r; h=from;%s bh=AAAA; b=AAAA\r\n" % length
    fields = {name.lower(): octets for name, octets in header.fields(head)}
    sets = {1: {part: fields[part] for part in arc._PARTS} | {"arc-message-signature": bad}}
    seal = dkim.without_b(fields["arc-seal"])
    sets[1]["arc-seal"] = seal + b"\r\n"
    octets = arc._seal_octets(sets, arc._relaxed(sets), 1)
    sealed = seal + base64.b64encode(dkim.sign_octets(RSA, octets)) + b"\r\n"
    forged = head.replace(field, bad).replace(fields["arc-seal"], sealed)
    found = at_once(arc.validate(forged, BODY, _texts, NOW))
    assert (found.status, "message signature" in found.reason) == ("fail", True)


@pytest.mark.parametrize(
    "others", [["google-site-verification=x"], ["v=DKIM1; p="], [_record(ED25519)], [_record(RSA_OTHER)]]
)
def test_every_record_of_a_selector_is_tried(others: list[str]) -> None:
    async def lookup(name: str, kind: str) -> Records:
        return Records("ok", [*others, _record(RSA)])

    signed = dkim.sign(HEAD, BODY, DkimSigner("bank.fi", "r", RSA), NOW) + HEAD
    found = at_once(dkim.verify(signed, BODY, lookup, NOW))
    assert [(result.status, result.key_bits) for result in found] == [("pass", 2048)]
    sealed = _sealed(HEAD, DkimSigner("bank.fi", "r", RSA))
    assert at_once(arc.validate(sealed, BODY, lookup, NOW)).status == "pass"
    wrong = at_once(dkim.verify(signed.replace(b"To: b@", b"To: c@"), BODY, lookup, NOW))
    assert [result.status for result in wrong] == ["fail"]


@pytest.mark.parametrize(
    ("term", "sender", "helo"),
    [
        ("a:%{h}", "a@bank.fi", "a..b"),
        ("exists:%{h}.x.test", "a@bank.fi", ".h"),
        ("exists:%{l}.x.test", "u..v@bank.fi", "h"),
        ("exists:%{l}.x.test", "x" * 70 + "@bank.fi", "h"),
        ("mx:%{h}", "a@bank.fi", "x" * 64),
    ],
)
def test_a_client_cannot_name_its_way_out_of_a_refusal(term: str, sender: str, helo: str) -> None:
    """A name that cannot exist is not found (RFC 7208 4.3): no temperror at the client's will."""
    asked: list[str] = []

    async def lookup(name: str, kind: str) -> Records:
        asked.append(name)
        if kind == "TXT":
            return Records("ok", [f"v=spf1 {term} -all"])
        return Records("failed" if dns_name(name) is None else "nxdomain")

    assert at_once(spf.check("192.0.2.1", sender, helo, "r", lookup)).status == "fail"


def test_an_mx_host_whose_address_cannot_be_looked_up() -> None:
    async def lookup(name: str, kind: str) -> Records:
        return Records("ok", {"TXT": ["v=spf1 mx -all"], "MX": ["mx.test"]}[kind]) if kind != "A" else Records("failed")

    assert at_once(spf.check("192.0.2.1", "a@bank.fi", "h", "r", lookup)).status == "temperror"


@pytest.mark.parametrize(
    "record", ["v=spf1 exists:" + "%{p}." * 700 + "x.test -all", "v=spf1 -all exp=e.test", "v=spf1 ptr ptr ptr -all"]
)
def test_the_work_of_one_check_of_spf_is_bounded(record: str) -> None:
    asked = 0

    async def lookup(name: str, kind: str) -> Records:
        nonlocal asked
        asked += 1
        if kind == "TXT":
            return Records("ok", ["%{p}" * 16000 if name == "e.test" else record])
        if kind == "PTR":
            return Records("ok", [f"h{n}.test" for n in range(20)])
        return Records("ok", ["192.0.2.9"])

    at_once(spf.check("192.0.2.1", "a@bank.fi", "h", "r", lookup))
    assert asked <= 25


@pytest.mark.parametrize(
    "body", [b"\r\n" * 2_000_000, b"x" + b"\r\n" * 1_000_000, (b"\r\n" * 500 + b"x") * 2000, b"\n\r" * 1_000_000]
)
def test_bodies_made_to_take_long(body: bytes) -> None:
    """Each took minutes where the work grew with the square of the size."""
    begun = time.process_time()
    for how in ("simple", "relaxed"):
        dkim.canonical_body(body, how)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "record",
    ["v=spf1 a:x." + "a" * 60000 + "!", "v=spf1 exists:" + "%{s}" * 20000 + ".a.test", "v=spf1 " + "a/1" * 1300],
)
def test_spf_records_made_to_take_long(record: str) -> None:
    async def lookup(name: str, kind: str) -> Records:
        return Records("ok", [record]) if kind == "TXT" else Records("nxdomain")

    begun = time.process_time()
    assert at_once(spf.check("192.0.2.1", "a" * 60 + "@evil.test", "h", "r", lookup)).status == "permerror"
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "domain", ["paypal.com x.evil.com", "paypal.com,evil.com", "paypal.com(.evil.com", "paypal.com)\x7f"]
)
def test_a_signer_is_a_domain(domain: str) -> None:
    signed = dkim.sign(HEAD, BODY, DkimSigner("bank.fi", "r", RSA), NOW).replace(b"d=bank.fi", b"d=" + domain.encode())
    assert [result.status for result in _verify(signed + HEAD + BODY)] == ["permerror"]


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", ""])
def test_malformed_lengths(length: str) -> None:
    signed = dkim.sign(HEAD, BODY, DkimSigner("bank.fi", "r", RSA), NOW).replace(
        b"bh=", b"l=" + length.encode("latin-1") + b"; bh="
    )
    assert [result.status for result in _verify(signed + HEAD + BODY)] == ["permerror"]


def test_nothing_that_others_choose_adds_a_result() -> None:
    evil = "x;dkim=pass(a)header.d=paypal.com"
    texts = [
        spf.SpfResult("none", "d").text("", evil),
        spf.SpfResult("none", "d").text(evil + "@x", "h"),
        dmarc.DmarcVerdict("fail", f"[{evil}]", "none").text(),
        dkim.DkimResult("pass", "", evil, evil).text(),
        arc.Chain("pass", evil, 1, evil).text(),
    ]
    for text in texts:
        bare = re.sub(r'"[^"]*"', "", re.sub(r"\([^()]*\)", "", text))
        assert ";" not in bare, text
    context = Context({"auth_status": "pass", "auth_user": evil, "auth_name": "PLAIN"}, {})
    context.fields.append(f"Received-SPF: none helo={evil}\r\nX-Injected: yes")
    field = content.authentication_results("mx.test", context)
    assert field.count(b"\r\n") == 3
    assert b"\r\nX-Injected" not in field
    assert b'smtp.auth="x;dkim=pass(a)header.d=paypal.com"' in field


@pytest.mark.parametrize(
    ("field", "stays"),
    [
        ("Authentication-Results: mx.test; dkim=pass", False),
        ("authentication-results :\r\n\t(c) mx.TEST 1; dkim=pass", False),
        ("Authentication-Results: ((x) y) mx.test; dkim=pass", False),
        ('Authentication-Results: "mx.t\\est"; dkim=pass', False),
        ("Authentication-Results: mx.other.test; dkim=pass", True),
        ("Authentication-Results: xmx.test; dkim=pass", True),
    ],
)
def test_fields_that_claim_to_be_ours(field: str, stays: bool) -> None:
    head = f"Foo: Authentication-Results: mx.test; dmarc=pass\r\n{field}\r\nFrom: a@b\r\n\r\n".encode()
    found = content.without_results(Content(head, len(head)), ("other.test", "mx.test")).head
    assert found == (head if stays else head.replace(f"{field}\r\n".encode(), b""))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Opendkim_Sign = true", "Opendkim_Sign = true in global needs an opendkim stanza"),
        (
            'opendkim "d" { verify = true } Domain "a.test" { Opendkim_Sign = true }',
            "needs a dkim_domain or a key in its",
        ),
        ("Opendkim_Sign = false", ""),
        ('opendkim "d" { dkim_domain "a.test" { selector = s key = k.pem } } Opendkim_Sign = true', ""),
    ],
)
def test_what_is_to_be_signed_needs_a_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(text + ' ESMTP_Listener { Listen "127.0.0.1:2525" { } }')
    found = [str(fault) for fault in load_config(str(file)).faults if "Opendkim_Sign" in str(fault)]
    assert len(found) == bool(words), found
    assert not words or words in found[0]
