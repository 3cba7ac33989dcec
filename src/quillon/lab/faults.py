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
class Fault:
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

FAULTS: tuple[Fault, ...] = (
    Fault("good", "Nothing is wrong."),
    # STARTTLS itself
    Fault("no-starttls", "Does not offer STARTTLS.", "no_starttls", quirk="unoffered"),
    Fault("starttls-454", "Offers STARTTLS, then answers 454.", "starttls_refused", quirk="refuse 454 4.7.0 not now"),
    Fault("starttls-501", "Offers STARTTLS, then answers 501.", "starttls_refused", quirk="refuse 501 5.5.4 what"),
    Fault("starttls-silent", "Offers STARTTLS, then never answers it.", "starttls_refused", quirk="silent"),
    Fault("starttls-drop", "Closes the connection at STARTTLS.", "starttls_refused", quirk="drop"),
    Fault("starttls-injected", "Sends replies in clear behind the 220.", "starttls_injection", quirk="inject"),
    Fault("ehlo-unlike", "Offers nothing but STARTTLS in clear, everything inside TLS.", quirk="shy"),
    Fault("starttls-again", "Offers STARTTLS inside TLS too.", quirk="again"),
    # the handshake
    Fault("garbage", "Random octets instead of a ServerHello.", "not_tls", quirk="garbage"),
    Fault("smtp-in-handshake", "An SMTP reply instead of a ServerHello.", "not_tls", quirk="text"),
    Fault("handshake-silent", "Never answers the ClientHello.", "handshake_timeout", quirk="mute"),
    Fault("handshake-trickle", "A ServerHello that never ends, octet by octet.", "handshake_timeout", quirk="trickle"),
    Fault("close-after-220", "Closes right behind the 220.", "handshake_eof", quirk="close 220"),
    Fault("close-after-hello", "Closes when the ClientHello has come.", "handshake_eof", quirk="close hello"),
    Fault("close-in-flight", "Closes in the middle of its first flight.", "handshake_eof", quirk="close flight"),
    Fault("alert", "Answers the ClientHello with an alert.", "alert_handshake_failure", quirk="alert"),
    Fault("tls10-only", "Speaks TLS 1.0 only.", "alert_protocol_version", tls=_OLD),
    Fault(
        "no-shared-cipher",
        "Has only a suite without encryption.",
        "alert_handshake_failure",
        tls={**_ONLY_12, "tls_ciphers": "NULL-SHA256:ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0"},
    ),
    Fault(
        "client-certificate",
        "Demands a client certificate.",
        "alert_certificate_required",
        tls={"tls_verify_mode": "require", "tls_client_ca": "ca.pem"},
        wants_client=True,
    ),
    Fault(
        "client-certificate-tls12",
        "Demands a client certificate, over TLS 1.2.",
        "alert_handshake_failure",
        tls={**_ONLY_12, "tls_verify_mode": "require", "tls_client_ca": "ca.pem"},
        wants_client=True,
    ),
    Fault(
        "close-after-handshake",
        "Closes as soon as the handshake is done.",
        "closed_after_handshake",
        quirk="close secured",
    ),
    # the chain
    Fault("expired", "A certificate of last month.", "expired", "expired"),
    Fault("not-yet-valid", "A certificate of next month.", "not_yet_valid", "not-yet-valid"),
    Fault("self-signed", "Signed by itself.", "self_signed", "self-signed"),
    Fault("unknown-issuer", "Signed by an authority that nobody knows.", "unknown_issuer", "unknown-issuer"),
    Fault("no-intermediate", "Leaves out the intermediate certificate.", "unknown_issuer", "no-intermediate"),
    Fault("with-intermediate", "Sends the intermediate certificate, as it should.", "", "with-intermediate"),
    Fault("issuer-no-ca", "Issued by a certificate that is no authority.", "invalid_ca", "issuer-no-ca"),
    Fault("weak-key", "An RSA key of 1024 bits.", "weak_key", "weak-key", tls=_WEAK),
    Fault("sha1", "Signed with SHA-1.", "weak_signature", "sha1", tls=_WEAK),
    Fault("wrong-purpose", "For clients only (extended key usage).", "wrong_purpose", "wrong-purpose"),
    # the name
    Fault("wrong-name", "Names another host.", "name_mismatch", "wrong-name"),
    Fault("wildcard", "A wildcard for the left-most label, as it should be.", "", "wildcard"),
    Fault("wildcard-inside", "A wildcard in the wrong label.", "name_mismatch", "wildcard-inside"),
    Fault("wildcard-part", "A wildcard for a part of a label.", "name_mismatch", "wildcard-part"),
    Fault("wildcard-top", "A wildcard right below the top-level domain.", "name_mismatch", "wildcard-top"),
    Fault("cn-only", "The name only as common name, no subjectAltName.", "", "cn-only"),
    Fault("cn-beside-san", "The name as common name, another one in subjectAltName.", "name_mismatch", "cn-beside-san"),
    Fault("nul-in-name", "The name, a NUL, and another domain.", "name_mismatch", "nul-in-name"),
    # SMTP inside TLS
    Fault("ehlo-5xx", "Refuses EHLO inside TLS.", reply=("EHLO", "502 5.5.1 not any more")),
    Fault("mail-4xx", "Refuses MAIL for now.", reply=("MAIL", "451 4.3.0 later")),
    Fault("mail-5xx", "Refuses MAIL for good.", reply=("MAIL", "550 5.7.1 no")),
    Fault("rcpt-4xx", "Refuses RCPT for now.", reply=("RCPT", "450 4.2.1 later")),
    Fault("rcpt-5xx", "Refuses RCPT for good.", reply=("RCPT", "550 5.1.1 nobody")),
    Fault("data-4xx", "Refuses DATA for now.", reply=("DATA", "451 4.3.0 later")),
    Fault("data-5xx", "Refuses DATA for good.", reply=("DATA", "554 5.6.0 no")),
    Fault("end-4xx", "Refuses the message for now.", reply=(".", "451 4.3.0 later")),
    Fault("end-5xx", "Refuses the message for good.", reply=(".", "554 5.6.0 no")),
    Fault("slow", "Answers octet by octet.", quirk="slow"),
    Fault("no-close-notify", "Closes without close_notify after QUIT.", quirk="rude"),
)


def fault(name: str) -> Fault:
    """The row of that name. Raises KeyError."""
    for row in FAULTS:
        if row.name == name:
            return row
    raise KeyError(name)
