"""What is wrong with the files that a configuration names.

A certificate, key, CA or DH file that is missing, unreadable, not PEM, or whose key does not match is a fault, for a
missing certificate must never come to mean plaintext. One that has expired is a warning: a renewal may be on its way.
"""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from quillon.config import script_files
from quillon.config.model import Config
from quillon.config.scope import Entry, Node, ancestors, resolve
from quillon.config.syntax import Fault, Position

SYSTEM = "system"
_URL = re.compile(r"https?://[!-~]+")
SOON = datetime.timedelta(days=30)


def check_files(config: Config, node: Node, faults: list[Fault]) -> None:
    """What is wrong with the files and the cipher lists that one stanza names."""
    if node.kind == "tls_identity":
        _check_identity(node, faults)
        return
    _check_named_files(config, node, faults)
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
    ca = node.settings.get("ca") if node.kind == "tls_contract" else None
    if ca is not None and ca.value and ca.value != SYSTEM:
        _certificates(ca, faults)
    responder = node.settings.get("tls_ocsp_responder")
    if responder is not None and responder.value and not _URL.fullmatch(responder.value):
        text = f"TLS_OCSP_Responder = {responder.value}: it is a URL, as http://ocsp.example/"
        faults.append(Fault(responder.position, text))
    _check_pair(config, node, faults)
    entry = node.settings.get("tls_dhparams_file")
    if entry is not None and _read(entry, faults) is not None:
        try:
            SSL.Context(SSL.TLS_METHOD).load_tmp_dh(entry.value)
        except SSL.Error:
            faults.append(Fault(entry.position, f"{entry.value} holds no Diffie-Hellman parameters in PEM"))
    engine = resolve(config.table.options["tls_engine"], [config.root], config.folder).value
    _check_ciphers(node, engine, faults)


_FILES = {"policy": "module", "opendkim": "key", "dkim_domain": "key"}


def _check_named_files(config: Config, node: Node, faults: list[Fault]) -> None:
    """Files of modules and tables of users that are not there: told with all other faults, not after them."""
    entry = node.settings.get(_FILES.get(node.kind, ""))
    named = entry is not None and entry.value and "%{" not in entry.value
    if entry is not None and named and _read(entry, faults) is not None and node.kind != "policy":
        _check_secret(entry.value, entry.position, faults)
    entry = node.settings.get("source") if node.kind == "script" else None
    if entry is not None and entry.value not in ("", "msys.boot"):
        files = script_files.candidates(entry.value, script_files.folders(config.folder, config.files))
        if not any(file.is_file() for file in files):
            tried = ", ".join(map(str, files))
            faults.append(Fault(entry.position, f"there is no script {entry.value!r}: looked for {tried}"))


def _check_pair(config: Config, node: Node, faults: list[Fault]) -> None:
    """A certificate and the key that goes with it in this scope."""
    if not {"tls_certificate", "tls_key"} & node.settings.keys():
        return
    chain = ancestors(node)
    options = config.table.options
    certificate = resolve(options["tls_certificate"], chain, config.folder).entry
    key = resolve(options["tls_key"], chain, config.folder).entry
    if certificate is None or not certificate.value:
        own = node.settings.get("tls_key")
        anywhere = any("tls_certificate" in other.settings for other in config.root.walk())
        if own is not None and own.value and not anywhere:
            faults.append(Fault(own.position, "TLS_Key without TLS_Certificate"))
        return
    _check_match(certificate, key, faults, "tls_certificate" in node.settings)


def _check_match(certificate: Entry, key: Entry | None, faults: list[Fault], here: bool) -> None:
    """That a certificate can be read and the key is its own; `here` tells that the stanza itself names it."""
    chain_certs = _certificates(certificate, faults if here else [])
    if not chain_certs:
        if here and key is not None and key.value:
            _read(key, faults)  # every fault at once
        return
    if here:
        _check_dates(certificate, chain_certs[0], faults)
    source = key if key is not None and key.value else certificate
    data = _read(source, faults)
    if data is None:
        return
    if here or source is not certificate:
        _check_secret(source.value, source.position, faults)
    try:
        private = serialization.load_pem_private_key(data, None)
        matches = _public(private.public_key()) == _public(chain_certs[0].public_key())
    except UnsupportedAlgorithm as error:
        faults.append(Fault(source.position, f"{source.value} holds a key of a kind that is not supported: {error}"))
        return
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
    if not matches:
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
    elif certificate.not_valid_after_utc < now + SOON:
        when, days = certificate.not_valid_after_utc.date(), (certificate.not_valid_after_utc - now).days
        text = f"the certificate in {entry.value} expires on {when}, in {days} days"
        faults.append(Fault(entry.position, text, warning=True))
    elif certificate.not_valid_before_utc > now:
        when = certificate.not_valid_before_utc.date()
        faults.append(
            Fault(entry.position, f"the certificate in {entry.value} is not valid before {when}", warning=True)
        )


def _check_secret(path: str, position: Position, faults: list[Fault]) -> None:
    """A private key is for its owner and his group."""
    try:
        mode = os.stat(path).st_mode & 0o777
    except OSError:
        return
    if mode & 0o004:
        text = f"the private key in {path} can be read by everybody (mode {mode:04o}): chmod 640"
        faults.append(Fault(position, text, warning=True))


def _read(entry: Entry, faults: list[Fault]) -> bytes | None:
    try:
        return Path(entry.value).read_bytes()
    except (OSError, ValueError) as error:
        faults.append(Fault(entry.position, f"cannot read {entry.value}: {getattr(error, 'strerror', error)}"))
        return None


def _certificates(entry: Entry, faults: list[Fault]) -> list[x509.Certificate]:
    data = _read(entry, faults)
    if data is None:
        return []
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):
        faults.append(Fault(entry.position, f"{entry.value} holds no certificate in PEM, or a broken one"))
        return []


def _check_ciphers(node: Node, engine: str, faults: list[Fault]) -> None:
    """Lists for OpenSSL; what GnuTLS thinks of its priority string is asked when its contexts are tried out."""
    if engine == "gnutls":
        for name in ("tlsv13_ciphersuites", "tls_ec_curve_names"):
            if name in node.settings:
                text = f"{name} has no meaning for TLS_Engine = gnutls; say it in the priority string of TLS_Ciphers"
                faults.append(Fault(node.settings[name].position, text, warning=True))
        return
    entry = node.settings.get("tls_ciphers")
    if entry is not None and str(entry.value).upper().startswith("NORMAL"):
        message = f"{entry.value!r} is a GnuTLS priority string; the openssl engine uses DEFAULT instead"
        faults.append(Fault(entry.position, message, warning=True))
    elif entry is not None:
        try:
            SSL.Context(SSL.TLS_METHOD).set_cipher_list(str(entry.value).encode())
        except (SSL.Error, ValueError):
            text = f"TLS_Ciphers = {entry.value!r} names no usable cipher; see `openssl ciphers`"
            faults.append(Fault(entry.position, text))
    entry = node.settings.get("tlsv13_ciphersuites")
    for suite in str(entry.value).split(":") if entry is not None else ():
        try:
            # one by one, for of several OpenSSL leaves out the unknown ones without a word
            SSL.Context(SSL.TLS_METHOD).set_tls13_ciphersuites(suite.encode() or b"-")
        except (SSL.Error, ValueError):
            text = f"TLSv13_Ciphersuites: {suite!r} is unknown; see `openssl ciphers -s -tls1_3`"
            faults.append(Fault(entry.position, text))  # type: ignore[union-attr]
    entry = node.settings.get("tls_ec_curve_names")
    if entry is not None and not all(entry.value.split(":")):
        faults.append(Fault(entry.position, "TLS_EC_Curve_Names: a name is missing between the colons"))


def _check_identity(node: Node, faults: list[Fault]) -> None:
    """The pairs of a TLS_Identity."""
    certificates = node.settings.get("tls_certificate")
    if certificates is None or not certificates.value:
        faults.append(Fault(node.position, f'TLS_Identity "{node.label}" needs TLS_Certificate'))
        return
    keys = node.settings.get("tls_key")
    if keys is not None and len(keys.value) != len(certificates.value):
        text = f"there are {len(certificates.value)} certificates and {len(keys.value)} keys"
        faults.append(Fault(keys.position, text))
        return
    for n, path in enumerate(certificates.value):
        certificate = replace(certificates, value=path)
        _check_match(certificate, replace(keys, value=keys.value[n]) if keys is not None else None, faults, True)
