"""The peers of the fault farm, one row each: what is broken, and the cause that TLS_Verify = host finds.

`cause` is empty where a message is to be delivered over verified TLS, and for faults that are not TLS's. A row says
which certificate the peer shows (a name of `quillon.lab.farm_pki`), how its TLS settings differ, and what it does
otherwise than a good host (`quirk`, carried out by `quillon.lab.farm`). `reply` is a (verb, reply) given inside TLS.
`wants_client` marks peers that are good hosts for whoever presents a client certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DOMAIN = "farm.test"


@dataclass(frozen=True, slots=True)
class BrokenPeer:
    name: str
    about: str
    cause: str = ""
    certificate: str = "good"
    quirk: str = ""
    reply: tuple[str, str] = ("", "")
    tls: Mapping[str, Any] = field(default_factory=dict)
    wants_client: bool = False

    @property
    def host(self) -> str:
        """The name under which a delivery knows this peer."""
        return f"{self.name}.{DOMAIN}"


_OLD = {"tls_protocols": frozenset({"TLSv1.0"}), "tls_ciphers": "ALL:@SECLEVEL=0"}
_WEAK = {"tls_ciphers": "DEFAULT:@SECLEVEL=0"}
_ONLY_12 = {"tls_protocols": frozenset({"TLSv1.2"})}

FAULTS: tuple[BrokenPeer, ...] = (
    BrokenPeer("good", "Nothing is wrong."),
    # STARTTLS itself
    BrokenPeer("no-starttls", "Does not offer STARTTLS.", "no_starttls", quirk="unoffered"),
    BrokenPeer(
        "starttls-454", "Offers STARTTLS, then answers 454.", "starttls_refused", quirk="refuse 454 4.7.0 not now"
    ),
    BrokenPeer("starttls-501", "Offers STARTTLS, then answers 501.", "starttls_refused", quirk="refuse 501 5.5.4 what"),
    BrokenPeer("starttls-silent", "Offers STARTTLS, then never answers it.", "starttls_refused", quirk="silent"),
    BrokenPeer("starttls-drop", "Closes the connection at STARTTLS.", "starttls_refused", quirk="drop"),
    BrokenPeer("starttls-injected", "Sends replies in clear behind the 220.", "starttls_injection", quirk="inject"),
    BrokenPeer("ehlo-unlike", "Offers nothing but STARTTLS in clear, everything inside TLS.", quirk="shy"),
    BrokenPeer("starttls-again", "Offers STARTTLS inside TLS too.", quirk="again"),
    # the handshake
    BrokenPeer("garbage", "Random octets instead of a ServerHello.", "not_tls", quirk="garbage"),
    BrokenPeer("smtp-in-handshake", "An SMTP reply instead of a ServerHello.", "not_tls", quirk="text"),
    BrokenPeer("handshake-silent", "Never answers the ClientHello.", "handshake_timeout", quirk="mute"),
    BrokenPeer(
        "handshake-trickle", "A ServerHello that never ends, octet by octet.", "handshake_timeout", quirk="trickle"
    ),
    BrokenPeer("close-after-220", "Closes right behind the 220.", "handshake_eof", quirk="close 220"),
    BrokenPeer("close-after-hello", "Closes when the ClientHello has come.", "handshake_eof", quirk="close hello"),
    BrokenPeer("close-in-flight", "Closes in the middle of its first flight.", "handshake_eof", quirk="close flight"),
    BrokenPeer("alert", "Answers the ClientHello with an alert.", "alert_handshake_failure", quirk="alert"),
    BrokenPeer("tls10-only", "Speaks TLS 1.0 only.", "alert_protocol_version", tls=_OLD),
    BrokenPeer(
        "no-shared-cipher",
        "Has only a suite without encryption.",
        "alert_handshake_failure",
        tls={**_ONLY_12, "tls_ciphers": "NULL-SHA256:ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0"},
    ),
    BrokenPeer(
        "client-certificate",
        "Demands a client certificate.",
        "alert_certificate_required",
        tls={"tls_verify_mode": "require", "tls_client_ca": "ca.pem"},
        wants_client=True,
    ),
    BrokenPeer(
        "client-certificate-tls12",
        "Demands a client certificate, over TLS 1.2.",
        "alert_handshake_failure",
        tls={**_ONLY_12, "tls_verify_mode": "require", "tls_client_ca": "ca.pem"},
        wants_client=True,
    ),
    BrokenPeer(
        "close-after-handshake",
        "Closes as soon as the handshake is done.",
        "closed_after_handshake",
        quirk="close secured",
    ),
    # the chain
    BrokenPeer("expired", "A certificate of last month.", "expired", "expired"),
    BrokenPeer("not-yet-valid", "A certificate of next month.", "not_yet_valid", "not-yet-valid"),
    BrokenPeer("self-signed", "Signed by itself.", "self_signed", "self-signed"),
    BrokenPeer("unknown-issuer", "Signed by an authority that nobody knows.", "unknown_issuer", "unknown-issuer"),
    BrokenPeer("no-intermediate", "Leaves out the intermediate certificate.", "unknown_issuer", "no-intermediate"),
    BrokenPeer("with-intermediate", "Sends the intermediate certificate, as it should.", "", "with-intermediate"),
    BrokenPeer("issuer-no-ca", "Issued by a certificate that is no authority.", "invalid_ca", "issuer-no-ca"),
    BrokenPeer("weak-key", "An RSA key of 1024 bits.", "weak_key", "weak-key", tls=_WEAK),
    BrokenPeer("sha1", "Signed with SHA-1.", "weak_signature", "sha1", tls=_WEAK),
    BrokenPeer("wrong-purpose", "For clients only (extended key usage).", "wrong_purpose", "wrong-purpose"),
    # the name
    BrokenPeer("wrong-name", "Names another host.", "name_mismatch", "wrong-name"),
    BrokenPeer("wildcard", "A wildcard for the left-most label, as it should be.", "", "wildcard"),
    BrokenPeer("wildcard-inside", "A wildcard in the wrong label.", "name_mismatch", "wildcard-inside"),
    BrokenPeer("wildcard-part", "A wildcard for a part of a label.", "name_mismatch", "wildcard-part"),
    BrokenPeer("wildcard-top", "A wildcard right below the top-level domain.", "name_mismatch", "wildcard-top"),
    BrokenPeer("cn-only", "The name only as common name, no subjectAltName.", "", "cn-only"),
    BrokenPeer(
        "cn-beside-san", "The name as common name, another one in subjectAltName.", "name_mismatch", "cn-beside-san"
    ),
    BrokenPeer("nul-in-name", "The name, a NUL, and another domain.", "name_mismatch", "nul-in-name"),
    # SMTP inside TLS
    BrokenPeer("ehlo-5xx", "Refuses EHLO inside TLS.", reply=("EHLO", "502 5.5.1 not any more")),
    BrokenPeer("mail-4xx", "Refuses MAIL for now.", reply=("MAIL", "451 4.3.0 later")),
    BrokenPeer("mail-5xx", "Refuses MAIL for good.", reply=("MAIL", "550 5.7.1 no")),
    BrokenPeer("rcpt-4xx", "Refuses RCPT for now.", reply=("RCPT", "450 4.2.1 later")),
    BrokenPeer("rcpt-5xx", "Refuses RCPT for good.", reply=("RCPT", "550 5.1.1 nobody")),
    BrokenPeer("data-4xx", "Refuses DATA for now.", reply=("DATA", "451 4.3.0 later")),
    BrokenPeer("data-5xx", "Refuses DATA for good.", reply=("DATA", "554 5.6.0 no")),
    BrokenPeer("end-4xx", "Refuses the message for now.", reply=(".", "451 4.3.0 later")),
    BrokenPeer("end-5xx", "Refuses the message for good.", reply=(".", "554 5.6.0 no")),
    BrokenPeer("slow", "Answers octet by octet.", quirk="slow"),
    BrokenPeer("no-close-notify", "Closes without close_notify after QUIT.", quirk="rude"),
)


def fault(name: str) -> BrokenPeer:
    """The row of that name. Raises KeyError."""
    for row in FAULTS:
        if row.name == name:
            return row
    raise KeyError(name)
