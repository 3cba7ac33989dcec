"""What is wrong with a configuration beyond single values: the files it names, and settings that contradict.

A certificate, key, CA or DH file that is missing, unreadable, not PEM, or whose key does not match is a fault, for a
missing certificate must never come to mean plaintext. One that has expired is a warning: a renewal may be on its way.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from quillon.config.model import Config
from quillon.config.scope import Entry, Node, resolve
from quillon.config.syntax import Fault

_STRENGTH_TLS = {"no": 0, "ifavailable": 1, "required": 2}
_STRENGTH_VERIFY = {"no": 0, "optional": 0, "ca": 1, "host": 2}
SYSTEM = "system"


def check(config: Config, *, files_only: bool = False) -> list[Fault]:
    """Every such fault of a configuration; `files_only` where the tree is known to be incomplete."""
    faults: list[Fault] = []
    for node in config.root.walk():
        _check_files(config, node, faults)
    if files_only:
        return faults
    for node in config.listen_nodes():
        _check_listen(config, node, faults)
    _check_delivery(config, faults)
    _check_scripts(config, faults)
    return faults


def _check_files(config: Config, node: Node, faults: list[Fault]) -> None:
    for name in ("tls_ca", "tls_client_ca"):
        entry = node.settings.get(name)
        if entry is not None and entry.value and entry.value != SYSTEM:
            _certificates(entry, faults)
        elif entry is not None and entry.value == SYSTEM and name == "tls_client_ca":
            faults.append(
                Fault(
                    entry.position,
                    "TLS_Client_CA has to be a file: public trust is no ground to trust a client",
                )
            )
    _check_pair(config, node, faults)
    entry = node.settings.get("tls_dhparams_file")
    if entry is not None and _read(entry, faults) is not None:
        try:
            SSL.Context(SSL.TLS_METHOD).load_tmp_dh(entry.value)
        except SSL.Error:
            faults.append(Fault(entry.position, f"{entry.value} holds no Diffie-Hellman parameters in PEM"))
    entry = node.settings.get("tls_ciphers")
    if entry is not None:
        _check_ciphers(entry, faults)


def _check_pair(config: Config, node: Node, faults: list[Fault]) -> None:
    """A certificate and the key that goes with it in this scope."""
    if not {"tls_certificate", "tls_key"} & node.settings.keys():
        return
    chain = _ancestors(node)
    options = config.table.options
    certificate = resolve(options["tls_certificate"], chain, config.folder).entry
    key = resolve(options["tls_key"], chain, config.folder).entry
    if certificate is None or not certificate.value:
        own = node.settings.get("tls_key")
        if own is not None and own.value and certificate is None:
            faults.append(Fault(own.position, "TLS_Key without TLS_Certificate"))
        return
    here = "tls_certificate" in node.settings
    chain_certs = _certificates(certificate, faults if here else [])
    if not chain_certs:
        return
    if here:
        _check_dates(certificate, chain_certs[0], faults)
    source = key if key is not None and key.value else certificate
    data = _read(source, faults)
    if data is None:
        return
    try:
        private = serialization.load_pem_private_key(data, None)
    except TypeError:
        faults.append(
            Fault(
                source.position,
                f"the key in {source.value} is encrypted; a server needs it without a password",
            )
        )
        return
    except ValueError:
        hint = " and TLS_Key is not set" if source is certificate else ""
        faults.append(Fault(source.position, f"{source.value} holds no private key in PEM{hint}"))
        return
    if _public(private.public_key()) != _public(chain_certs[0].public_key()):
        faults.append(
            Fault(
                source.position,
                f"the key in {source.value} does not match the certificate in {certificate.value}",
            )
        )


def _public(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _check_dates(entry: Entry, certificate: x509.Certificate, faults: list[Fault]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if certificate.not_valid_after_utc < now:
        when = certificate.not_valid_after_utc.date()
        faults.append(Fault(entry.position, f"the certificate in {entry.value} expired on {when}", warning=True))
    elif certificate.not_valid_before_utc > now:
        when = certificate.not_valid_before_utc.date()
        faults.append(
            Fault(entry.position, f"the certificate in {entry.value} is not valid before {when}", warning=True)
        )


def _read(entry: Entry, faults: list[Fault]) -> bytes | None:
    try:
        return Path(entry.value).read_bytes()
    except OSError as error:
        faults.append(Fault(entry.position, f"cannot read {entry.value}: {error.strerror}"))
        return None


def _certificates(entry: Entry, faults: list[Fault]) -> list[x509.Certificate]:
    data = _read(entry, faults)
    if data is None:
        return []
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        faults.append(Fault(entry.position, f"{entry.value} holds no certificate in PEM: {str(error).splitlines()[0]}"))
        return []


def _check_ciphers(entry: Entry, faults: list[Fault]) -> None:
    text = str(entry.value)
    if text.upper().startswith("NORMAL"):
        message = f"{text!r} is a GnuTLS priority string; the openssl engine uses DEFAULT instead"
        faults.append(Fault(entry.position, message, warning=True))
        return
    try:
        SSL.Context(SSL.TLS_METHOD).set_cipher_list(text.encode())
    except (SSL.Error, ValueError):
        faults.append(Fault(entry.position, f"TLS_Ciphers = {text!r} names no usable cipher; see `openssl ciphers`"))


def _ancestors(node: Node) -> list[Node]:
    chain = [node]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    return chain


def _check_listen(config: Config, listen: Node, faults: list[Fault]) -> None:
    chain = _ancestors(listen)
    options = config.table.options

    def value(name: str, nodes: list[Node] = chain) -> object:
        return resolve(options[name], nodes, config.folder).value

    extensions = resolve(options["smtp_extensions"], chain, config.folder)
    offered = "STARTTLS" in extensions.value
    implicit = resolve(options["use_ssl"], chain, config.folder)
    certificate = value("tls_certificate") or any("tls_certificate" in peer.settings for peer in listen.of("peer"))
    if implicit.value and not certificate:
        where = implicit.entry.position if implicit.entry else listen.position
        faults.append(Fault(where, f'Use_SSL on Listen "{listen.label}" needs TLS_Certificate'))
    if implicit.value and offered and extensions.entry and implicit.entry:
        if extensions.node is implicit.node:
            faults.append(Fault(extensions.entry.position, "Use_SSL and STARTTLS exclude each other on one listener"))
        else:
            text = f'STARTTLS is not offered on Listen "{listen.label}", which has Use_SSL'
            faults.append(Fault(extensions.entry.position, text, warning=True))
    if offered and not implicit.value and not certificate and extensions.entry:
        text = f'STARTTLS is not offered on Listen "{listen.label}" as long as it has no TLS_Certificate'
        faults.append(Fault(extensions.entry.position, text, warning=True))
    verify = resolve(options["tls_verify_mode"], chain, config.folder)
    if certificate and verify.value == "require" and not value("tls_client_ca"):
        where = verify.entry.position if verify.entry else listen.position
        faults.append(Fault(where, "without TLS_Client_CA no client certificate verifies", warning=True))


def _check_delivery(config: Config, faults: list[Fault]) -> None:
    options = config.table.options
    for node in config.root.walk():
        entry = node.settings.get("tls_verify")
        if (
            entry is not None
            and entry.value != "no"
            and not resolve(options["tls_ca"], _ancestors(node), config.folder).value
        ):
            text = f"TLS_Verify = {entry.text} in {node.path} without TLS_CA: no certificate verifies (unknown_issuer)"
            faults.append(Fault(entry.position, text, warning=True))
    for name, strength in (("tls", _STRENGTH_TLS), ("tls_verify", _STRENGTH_VERIFY)):
        for domain in config.root.of("domain"):
            if name in domain.settings:
                _warn_weaker_bindings(config, domain, name, strength, faults)


def _warn_weaker_bindings(
    config: Config, domain: Node, name: str, strength: dict[str, int], faults: list[Fault]
) -> None:
    """A binding's value beats a global Domain's (manual, fallback page), which surprises where it weakens TLS."""
    wanted = domain.settings[name]
    for node in config.root.walk():
        entry = node.settings.get(name)
        if node.kind in ("binding", "binding_group") and entry and strength[entry.value] < strength[wanted.value]:
            text = f"{name} = {entry.text} of {node.path} beats the stricter {name} = {wanted.text} of {domain.path} ({wanted.position})"
            faults.append(Fault(entry.position, text, warning=True))


def _check_scripts(config: Config, faults: list[Fault]) -> None:
    for node in config.root.of("scriptlet"):
        for script in node.of("script"):
            if "source" not in script.settings:
                faults.append(Fault(script.position, f'script "{script.label}" has no source'))
