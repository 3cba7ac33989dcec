"""The cause codes: one word for each way in which TLS fails, for logs, replies, notifications and scripts.

`alert_<name>` stands for an alert that the other side sent (RFC 8446 6) and is not listed. The commands reproduce a
failure by hand; HOST, PORT, CA.pem and NAME stand for the host, its port, the file of TLS_CA and the name wanted.
"""

from __future__ import annotations

from typing import NamedTuple


class Cause(NamedTuple):
    """What happened, what to do, and a command that shows it, with words of what it then says."""

    meaning: str
    remedy: str
    command: str
    says: str


ALERT = (
    "The other side ended the handshake with this TLS alert (RFC 8446 6); its log says why. alert_unknown_ca,"
    " alert_bad_certificate and alert_certificate_required speak of our certificate, alert_protocol_version of"
    " TLS_Protocols, alert_handshake_failure of anything: ciphers, or over TLS 1.2 a client certificate."
)
_SHOW = "openssl s_client -starttls smtp -connect HOST:PORT"
_VERIFY = f"{_SHOW} -CAfile CA.pem -no-CApath -no-CAstore -verify_return_error"
_DETAIL = "The JSON log has the library's own words (`detail`)."

CAUSES: dict[str, Cause] = {
    "no_starttls": Cause(
        "The host did not offer STARTTLS.",
        "Ask the partner to offer it, or look for a device in between that strips it.",
        _SHOW,
        "Didn't find STARTTLS in server response",
    ),
    "starttls_refused": Cause(
        "The host offered STARTTLS and then refused it, or gave no answer.",
        "The reply stands in the log; often the host has lost its key.",
        _SHOW,
        "",
    ),
    "starttls_injection": Cause(
        "Octets in clear stood behind the 220 to STARTTLS.",
        "Somebody may be tampering with the connection: compare from another network.",
        _SHOW,
        "",
    ),
    "handshake_eof": Cause(
        "The connection was closed during the handshake.",
        "See the other side's log; often protocols or ciphers that do not fit, or a device in between that does not"
        " know the post-quantum group: try TLS_EC_Curve_Names = X25519:prime256v1 for that Domain.",
        _SHOW,
        "no peer certificate available",
    ),
    "closed_after_handshake": Cause(
        "The connection was closed behind a finished handshake, before a word inside TLS.",
        "See the other side's log: it may want a client certificate (TLS_Certificate for that Domain), or its SMTP"
        " server behind the TLS may be down.",
        _SHOW,
        "",
    ),
    "handshake_timeout": Cause(
        "The handshake did not end in time.",
        "Look for a firewall that drops large packets, or an overloaded host. Where the post-quantum group is the"
        " reason, set TLS_EC_Curve_Names = X25519:prime256v1 for that Domain.",
        _SHOW,
        "",
    ),
    "not_tls": Cause(
        "What came instead of a handshake was not TLS.",
        "Compare the port: STARTTLS (25, 587) against TLS from the first octet (465).",
        _SHOW,
        "wrong version number",
    ),
    "protocol_mismatch": Cause(
        "The sides share no protocol version.",
        "Compare TLS_Protocols with what the other side speaks.",
        f"{_SHOW} -tls1_2",
        "",
    ),
    "no_shared_cipher": Cause(
        "The sides share no cipher suite, group or signature algorithm.",
        "Compare TLS_Ciphers, TLSv13_Ciphersuites, TLS_EC_Curve_Names, and the kind of the certificate's key.",
        f"{_SHOW} -cipher ALL:@SECLEVEL=0",
        "",
    ),
    "no_client_certificate": Cause(
        "The client presented no certificate although TLS_Verify_Mode = require.",
        "Let the client configure one.",
        _SHOW,
        "",
    ),
    "handshake_too_large": Cause(
        "A message of the handshake, mostly a certificate with very many names, is over 100 KiB.",
        "Have the certificate issued for fewer names.",
        f"{_SHOW} -showcerts",
        "excessive message size",
    ),
    "no_application_protocol": Cause(
        "The client offered other protocols than smtp by ALPN: it takes this for a web server (RFC 9325 3.8).",
        "If it is to send mail, have it offer smtp or nothing.",
        f"{_SHOW} -alpn smtp",
        "no application protocol",
    ),
    "tls_on_clear_port": Cause(
        "A client began a handshake where SMTP begins in clear.",
        "Let it say STARTTLS, or use a port with Use_SSL = true.",
        "openssl s_client -connect HOST:PORT",
        "wrong version number",
    ),
    "handshake_failed": Cause(
        "The handshake failed in another way.",
        _DETAIL,
        f"{_SHOW} -state",
        "",
    ),
    "expired": Cause(
        "A certificate of the chain has expired.",
        "Have it renewed.",
        _VERIFY,
        "certificate has expired",
    ),
    "not_yet_valid": Cause(
        "A certificate of the chain is not valid yet.",
        "Compare both clocks.",
        _VERIFY,
        "certificate is not yet valid",
    ),
    "unknown_issuer": Cause(
        "The chain does not lead to a trusted authority.",
        "Add the issuer to the CA file, or have the host send the intermediate certificate too.",
        f"{_VERIFY} -showcerts",
        "unable to get local issuer certificate",
    ),
    "self_signed": Cause(
        "The certificate is signed by itself, and not trusted.",
        "Add it to the CA file, or have one issued by an authority.",
        _VERIFY,
        "self-signed certificate",
    ),
    "name_mismatch": Cause(
        "The certificate names neither the MX host nor the domain.",
        "The detail has the names wanted and those of the certificate.",
        f"{_VERIFY} -verify_hostname NAME",
        "mismatch",
    ),
    "revoked": Cause(
        "The certificate is revoked: a list of TLS_CRL names it, its OCSP responder says so, or a policy module.",
        "Have a new one issued.",
        f"{_VERIFY} -crl_check",
        "",
    ),
    "crl_missing": Cause(
        "TLS_CRL has no revocation list of the certificate's issuer, and TLS_CRL_Check = hard wants one.",
        "Add the list of that authority to the file, or set TLS_CRL_Check = soft.",
        f"{_VERIFY} -crl_check",
        "unable to get certificate CRL",
    ),
    "crl_outdated": Cause(
        "The revocation list of the certificate's issuer was to be renewed before now (TLS_CRL).",
        "Fetch the new list: a cron job has to renew the file.",
        f"{_VERIFY} -crl_check",
        "CRL has expired",
    ),
    "ocsp_missing": Cause(
        "TLS_OCSP = hard, and the OCSP responder of the certificate gave no answer, or does not know it.",
        "The detail says why: reach the responder, name another one (TLS_OCSP_Responder), or set TLS_OCSP = soft.",
        f"{_SHOW} -status",
        "",
    ),
    "ocsp_outdated": Cause(
        "The answer of the OCSP responder was to be renewed before now (TLS_OCSP = hard).",
        "The responder has to be mended by those who run it; compare the clocks as well.",
        f"{_SHOW} -status",
        "",
    ),
    "ocsp_invalid": Cause(
        "TLS_OCSP = hard, and the answer is none of the certificate's issuer, nor of a responder of his.",
        "Ask the partner what is stapled there, or who runs the responder.",
        f"{_SHOW} -status",
        "",
    ),
    "wrong_purpose": Cause(
        "The certificate may not be used for this purpose (extended key usage).",
        "Have it issued for its role: serverAuth for hosts, clientAuth for clients.",
        f"{_VERIFY} -purpose sslserver",
        "unsuitable certificate purpose",
    ),
    "invalid_ca": Cause(
        "An issuer in the chain may not issue this certificate (basic constraints, path length, name constraints).",
        "Have the chain reissued.",
        _VERIFY,
        "invalid CA certificate",
    ),
    "weak_key": Cause(
        "A key of the chain or of the key exchange is too short.",
        "RSA with 2048 bits or P-256 at least.",
        f"{_VERIFY} -auth_level 2",
        "key too weak",
    ),
    "weak_signature": Cause(
        "A signature of the chain uses a weak digest.",
        "Have it reissued with SHA-256 or better.",
        f"{_VERIFY} -auth_level 2",
        "digest algorithm too weak",
    ),
    "bad_signature": Cause(
        "A signature of the chain does not verify.",
        "The chain is put together wrongly, or was tampered with: have it reissued.",
        _VERIFY,
        "",
    ),
    "certificate_rejected": Cause(
        "The chain failed verification in another way.",
        _DETAIL,
        _VERIFY,
        "",
    ),
    "no_certificate": Cause(
        "The other side presented no certificate.",
        "A client: let it configure one. A host: anonymous suites cannot be verified, use others.",
        _SHOW,
        "",
    ),
    "key_mismatch": Cause(
        "The certificate has another key than those of TLS_SPKI, or of a TLS_Contract.",
        "The partner has a new key, or somebody is in between: ask, and add the new key beside the old one.",
        f"{_SHOW} </dev/null | openssl x509 -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256",
        "",
    ),
    "contract_no_tls": Cause(
        "Mail from the domain of a TLS_Contract came without TLS, or in an older version than it allows.",
        "Ask the partner, or see who else sends in its name: the log has the client's address.",
        _SHOW,
        "",
    ),
    "rejected_by_policy": Cause(
        "A policy module said that the certificate is not good.",
        "See the module's own lines in the paniclog; its name stands in the detail.",
        _VERIFY,
        "",
    ),
    "tlsa_mismatch": Cause(
        "No TLSA record of the host names a certificate that it sent (DANE).",
        "The partner has renewed its key without its DNS, or somebody is in between: the detail has both.",
        "posttls-finger -l dane -t 30 DOMAIN",
        "",
    ),
    "tlsa_missing": Cause(
        "The host has no usable TLSA records, and use_dane = mandatory demands them.",
        "Ask the partner to publish them in a signed zone, or set use_dane = true for that Domain.",
        "dig +dnssec TLSA _25._tcp.HOST",
        "",
    ),
    "tlsa_lookup_failed": Cause(
        "The TLSA records of the host could not be looked up, or did not validate: it may have some.",
        "The DNS of the partner has to answer questions for _25._tcp of its hosts, if only that there is nothing.",
        "dig +dnssec TLSA _25._tcp.HOST",
        "SERVFAIL",
    ),
    "sts_mx_mismatch": Cause(
        "The MTA-STS policy of the domain, which it wants enforced, does not name this MX host.",
        "The partner's policy and MX records have to agree; `console mta_sts show domain DOMAIN` shows the policy.",
        "curl https://mta-sts.DOMAIN/.well-known/mta-sts.txt",
        "",
    ),
    "no_requiretls": Cause(
        "The sender has said REQUIRETLS, and the host does not offer it (RFC 8689): it might go on in clear.",
        "Ask the partner for it, or send without REQUIRETLS: TLS = required and TLS_Verify = host for that Domain.",
        f"{_SHOW} -crlf",
        "",
    ),
    "requiretls_insecure": Cause(
        "The sender has said REQUIRETLS, and neither DNSSEC nor MTA-STS nor the configuration names the host.",
        "The partner has to sign its zone or publish a policy; or name its hosts by Routes or Gateway.",
        "dig +dnssec MX DOMAIN",
        "",
    ),
    "resolver_not_validating": Cause(
        "use_dane is set, and the resolver's answers cannot be relied on: mail waits rather than go without DANE.",
        "Run a validating resolver on this machine and name it in DNS_Servers, or one that you trust like it in"
        " DNSSEC_Trusted_Servers.",
        "dig +dnssec NS .",
        "ad",
    ),
    "policy_failed": Cause(
        "A policy module failed when it was asked for the parameters of TLS.",
        "See the paniclog: module, hook, line and error.",
        "quillon check -c ecelerity.conf",
        "",
    ),
    "demand_lost": Cause(
        "The stanza or policy that demanded TLS for this message is gone, or its binding is, or a weaker stanza goes"
        " before it.",
        "Put it back, or what demands as much; the paniclog names it with its last place.",
        "quillon check -c ecelerity.conf",
        "",
    ),
    "bad_local_settings": Cause(
        "Our own certificate, key or CA file cannot be loaded.",
        "See the paniclog, and correct the file.",
        "quillon check -c ecelerity.conf",
        "",
    ),
}
