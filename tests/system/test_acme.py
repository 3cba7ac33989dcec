"""Certificates by ACME, of a real server: had at the start, renewed, and told of where they cannot be had."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quillon.cli.main import main
from tests.support.pebble import Pebble
from tests.support.peers import require
from tests.support.server import Server, free_port, until


class World:
    def __init__(self, folder: Path) -> None:
        self.folder, self.http, self.smtp = folder, free_port(), free_port()
        self.pebble = Pebble(folder / "pebble", self.http)

    def text(self, acme: str, http: str = "") -> str:
        pki = f"{self.folder}/pki"
        listener = http or f'HTTP_Listener {{ Well_Known = true Listen "127.0.0.1:{self.http}" {{ }} }}'
        return f"""{listener}
        acme "mx" {{ directory = "{self.pebble.url}" directory_ca = "{self.pebble.ca}" agree_terms = true
          certificate = {pki}/mx.pem key = {pki}/mx.key {acme} }}
        ESMTP_Listener {{ TLS_Certificate = {pki}/mx.pem TLS_Key = {pki}/mx.key SMTP_Extensions = ( STARTTLS )
          Listen "127.0.0.1:{self.smtp}" {{ }} }}"""

    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates((self.folder / "pki/mx.pem").read_bytes())[0]

    def public(self) -> bytes:
        return self.certificate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def shown(self) -> bytes:
        """What the listener shows."""
        context = ssl._create_unverified_context()
        with smtplib.SMTP("127.0.0.1", self.smtp, timeout=30) as client:
            client.starttls(context=context)
            return client.sock.getpeercert(True) or b""  # type: ignore[union-attr]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.pebble.stop()


pytestmark = pytest.mark.peer


def test_a_server_has_a_certificate_from_its_first_start_on(
    world: World, server: Callable[..., Server], capsys: Any
) -> None:
    given = server(world.text("names = ( mx.ours.test MX2.ours.test )"))

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["acme", *words, "-c", str(given.file)])
        told = capsys.readouterr()
        return status, told.out + told.err

    status, text = run("list")
    assert (status, "not there; to be renewed: there is none yet" in text) == (0, True)
    assert run("prepare") == (0, f"mx: {world.folder}/pki/mx.pem stands in until there is another\n")
    assert run("prepare")[1].endswith("is there\n")
    assert world.certificate().issuer == world.certificate().subject
    before = world.public()
    given.start()
    until(lambda: world.certificate().issuer != world.certificate().subject, "a certificate of the server's")
    names = world.certificate().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"mx.ours.test", "mx2.ours.test"}
    assert world.public() == before, "the key stays, and so do its TLSA records"
    until(lambda: world.shown() == world.certificate().public_bytes(Encoding.DER), "the listener shows it")
    until(lambda: any("was renewed" in row["text"] for row in given.events("notice")), "word of it")
    assert not list((given.folder / "spool/acme/challenges").iterdir())
    assert (world.folder / "pki/mx.key").stat().st_mode & 0o777 == 0o600

    assert run("renew") == (0, f"mx: {world.folder}/pki/mx.pem need not be renewed\n")
    last = world.certificate().serial_number
    status, text = run("renew", "mx", "--force")
    assert (status, "was renewed: by order" in text) == (0, True), text
    assert world.certificate().serial_number != last
    assert world.public() == before
    assert run("renew", "other")[0] == 1
    status, text = run("list")
    assert "to be renewed" not in text
    assert "mx.ours.test, mx2.ours.test by http-01" in text


def test_names_are_shown_by_records_that_a_hook_publishes(
    world: World, server: Callable[..., Server], capsys: Any
) -> None:
    require("curl")
    hook = world.pebble.hook(world.folder)
    given = server(world.text(f'names = ( "*.ours.test" ours.test ) challenge = dns-01 hook = "{hook}" key_type = rsa'))
    assert main(["acme", "prepare", "-c", str(given.file)]) == 0
    assert main(["acme", "renew", "-c", str(given.file)]) == 0, capsys.readouterr().err
    told = [line.split() for line in (world.folder / "told").read_text().splitlines()]
    assert sorted(words[0] for words in told) == ["publish", "publish", "remove", "remove", "renewed"]
    assert {words[1] for words in told[:-1]} == {"_acme-challenge.ours.test"}
    assert told[-1][1:] == ["mx", f"{world.folder}/pki/mx.pem"]
    assert world.certificate().public_key().key_size == 2048  # type: ignore[union-attr]
    hook.write_text("#!/bin/sh\necho no zone here >&2\nexit 3\n")
    last = world.certificate()
    capsys.readouterr()
    assert main(["acme", "renew", "--force", "-c", str(given.file)]) == 1
    assert "status 3: no zone here" in capsys.readouterr().err
    assert world.certificate() == last


def test_a_certificate_that_cannot_be_had_is_told_and_the_old_one_stays(
    world: World, server: Callable[..., Server], capsys: Any
) -> None:
    elsewhere = f'HTTP_Listener {{ Well_Known = true Listen "127.0.0.1:{free_port()}" {{ }} }}'
    given = server(world.text("names = ( mx.ours.test )", elsewhere))
    assert main(["acme", "prepare", "-c", str(given.file)]) == 0
    given.start()
    until(lambda: 'acme "mx": mx.ours.test: ' in "".join(given.log("paniclog.ec")), "word of what is wrong")
    assert world.shown() == world.certificate().public_bytes(Encoding.DER)
    world.pebble.stop()
    capsys.readouterr()
    assert main(["acme", "renew", "-c", str(given.file)]) == 1
    assert 'acme "mx": ' in capsys.readouterr().err


def test_a_server_that_wants_an_account_from_elsewhere(
    tmp_path: Path, server: Callable[..., Server], capsys: Any
) -> None:
    secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    bound = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {"kid-1": secret}}
    made = World.__new__(World)
    made.folder, made.http, made.smtp = tmp_path, free_port(), free_port()
    made.pebble = Pebble(tmp_path / "bound", made.http, **bound)
    try:
        names = "names = ( mx.ours.test )"
        given = server(made.text(names))
        assert main(["acme", "prepare", "-c", str(given.file)]) == 0
        capsys.readouterr()
        assert main(["acme", "renew", "-c", str(given.file)]) == 1
        assert "externalAccountRequired" in capsys.readouterr().err
        account = f'external_account = "kid-1" external_account_key = "{secret}"'
        given.configure(made.text(f"{names} {account}"))
        given.start()
        until(lambda: made.certificate().issuer != made.certificate().subject, "a certificate of the server's")
    finally:
        made.pebble.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("names = ( mx.ours.test ) agree_terms = false", "agree_terms = true says"),
        ("", "it needs names"),
        ('names = ( "mx ours" )', "is no name of a host"),
        ('names = ( "*.ours.test" )', "a wildcard needs"),
        ("names = ( mx.ours.test ) challenge = dns-01", "dns-01 needs a hook"),
        ('names = ( mx.ours.test ) directory = "http://acme.test/"', "begins with https://"),
    ],
)
def test_what_nothing_could_come_of_is_refused(
    server: Callable[..., Server], capsys: Any, options: str, words: str
) -> None:
    given = server(f'acme "mx" {{ agree_terms = true certificate = "/x/mx.pem" key = "/x/mx.key" {options} }}')
    assert main(["check", "-c", str(given.file)]) == 2
    told = capsys.readouterr()
    assert words in told.out + told.err


def test_http_01_needs_who_answers(server: Callable[..., Server], capsys: Any) -> None:
    options = 'names = ( mx.ours.test ) agree_terms = true certificate = "/x/mx.pem" key = "/x/mx.key"'
    assert main(["check", "-c", str(server(f'acme "mx" {{ {options} }}').file)]) == 2
    told = capsys.readouterr()
    assert "http-01 needs an HTTP_Listener with Well_Known" in told.out + told.err
