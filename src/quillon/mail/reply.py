"""SMTP replies. Every reply that Quillon itself ever sends or makes up is named here, and nowhere else.

Texts are those of the manual's table of responses where it has one. `[internal]` marks an outcome that Quillon
decided by itself, without a word of the remote host.
"""

from __future__ import annotations

import re
from typing import Final

from quillon.mail import shown

NO_TEXT = "no text"  # of a reply for which a policy gave none
LINE_LENGTH = 500  # octets of a reply line's text: RFC 5321 4.5.3.1.5 has 512 for the line
MOST_TEXT = 8192  # characters of a reply's text
_LINE = re.compile(r"([2-5][0-9][0-9])(?:[ -]|\Z)(?:([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s|\Z))?(.*)", re.S)


class Reply:
    """A reply code (RFC 5321 4.2), an enhanced status code (RFC 2034, may be empty) and text, lines joined by LF. Never
    changed: several are made for each message, and a dataclass is slow in that."""

    __slots__ = ("_octets", "code", "enhanced", "text")

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        self.code: Final = code
        self.enhanced: Final = enhanced
        self.text: Final = text
        self._octets = b""  # once it has been asked for

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reply):
            return NotImplemented
        return self.code == other.code and self.enhanced == other.enhanced and self.text == other.text

    def __hash__(self) -> int:
        return hash((self.code, self.enhanced, self.text))

    def __repr__(self) -> str:
        return f"Reply({self.code!r}, {self.enhanced!r}, {self.text!r})"

    def __str__(self) -> str:
        """One line, as the logs print it."""
        body = self.text.replace("\n", " ")
        return f"{self.code} {self.enhanced} {body}" if self.enhanced else f"{self.code} {body}"

    def encode(self) -> bytes:
        """The reply as it goes over the wire, each line with its code and CRLF."""
        if not self._octets:
            prefix = f"{self.enhanced} " if self.enhanced else ""
            lines = [part for line in self.text.split("\n") for part in _parts(line)]
            out = [f"{self.code}-{prefix}{line}\r\n" for line in lines[:-1]]
            out.append(f"{self.code} {prefix}{lines[-1]}\r\n")
            self._octets = "".join(out).encode("ascii", "replace")
        return self._octets

    @property
    def positive(self) -> bool:
        return self.code < 400

    @property
    def transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    def because(self, cause: str) -> Reply:
        """The same reply with a cause behind its text."""
        return Reply(self.code, self.enhanced, f"{self.text} ({cause})")


def words(text: str) -> str:
    """The text of a reply out of what somebody wrote: no control characters, lines joined by LF, of some length."""
    lines = (shown.printable(line.replace("\t", " ")).strip() for line in re.split(r"[\r\n]+", text.strip()))
    return "\n".join(lines)[:MOST_TEXT]


def parse_reply(text: str) -> Reply:
    """Read `550 5.7.1 relaying denied` as an operator or a script wrote it. Raises ValueError."""
    match = _LINE.match(text.strip())
    if match is None:
        raise ValueError(f"not an SMTP reply: {text[:80]!r}")
    code, enhanced, rest = match.groups()
    return Reply(int(code), enhanced or "", words(rest) or NO_TEXT)


def _parts(line: str) -> list[str]:
    """A line in pieces that a client has to be able to read."""
    if len(line) <= LINE_LENGTH:
        return [line]
    return [line[at : at + LINE_LENGTH] for at in range(0, len(line), LINE_LENGTH)]


def _r(text: str) -> Reply:
    return parse_reply(text)


# Reception: greeting and session
OK = _r("250 2.0.0 Ok")
RESET = _r("250 2.0.0 Reset state")
SENDER_OK = _r("250 2.1.0 Sender Ok")
RECIPIENT_OK = _r("250 2.1.5 Recipient Ok")
START_MAIL_INPUT = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
READY_FOR_TLS = _r("220 2.0.0 Ready to start TLS")
CLOSING = _r("221 2.0.0 Closing connection")
HELP = _r("214 2.0.0 See RFC 5321; commands: EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP STARTTLS AUTH")
CANNOT_VERIFY = _r("252 2.5.2 Cannot VRFY user, but will accept message and attempt delivery")

# Reception: limits and resources
IDLE_TIMEOUT = _r("421 4.4.2 Idle timeout, closing connection")
CONCURRENCY_LIMIT = _r("421 4.4.5 Service unavailable, concurrency limit reached")
SHUTTING_DOWN = _r("421 4.3.2 Service shutting down, closing connection")
MESSAGES_PER_CONNECTION = _r("421 4.4.5 Service unavailable, messages per connection limit reached")
RECIPIENTS_PER_CONNECTION = _r("452 4.5.3 Service unavailable, recipients per connection limit reached")
RECIPIENTS_PER_MESSAGE = _r("452 4.5.3 Service unavailable, recipients per message limit reached")
MESSAGE_TOO_LARGE = _r("552 5.3.4 message size limit exceeded")
TOO_MANY_ERRORS = _r("421 4.7.0 Too many errors, closing connection")
LINE_TOO_LONG = _r("500 5.5.2 line too long")
NO_ROOM = _r("452 4.3.1 Insufficient system storage")
SPOOL_FAILED = _r("451 4.3.0 transaction failed")
NO_BINDING = _r("451 4.3.5 configuration error, please try later")
POLICY_FAILED = _r("451 4.3.0 policy error, please try later")
INTERNAL_ERROR = _r("421 4.3.0 internal error, closing connection")

NOT_HTTP = _r("421 4.7.0 this is SMTP, not HTTP; closing connection")
TLS_IN_CLEAR = _r("421 4.7.0 TLS handshake where SMTP begins in clear: use STARTTLS, or a port with TLS from the start")

# Reception: syntax and sequence
UNRECOGNIZED = _r("500 5.5.2 unrecognized command")
INVALID_EHLO = _r("501 5.5.2 invalid EHLO")
INVALID_HELO = _r("501 5.5.2 invalid HELO")
MAIL_SYNTAX = _r("501 5.5.2 MAIL FROM syntax error")
RCPT_SYNTAX = _r("501 5.5.2 RCPT TO syntax error")
MAIL_AGAIN = _r("501 5.5.1 MAIL FROM already established")
RSET_ARGUMENTS = _r("501 5.5.4 invalid arguments to RSET")
DATA_ARGUMENTS = _r("501 5.5.4 unexpected argument to DATA")
NO_PARAMETERS = _r("501 5.5.4 Syntax error (no parameters allowed)")
UNKNOWN_PARAMETER = _r("555 5.5.4 MAIL FROM/RCPT TO parameters not recognized or not implemented")
RCPT_WITHOUT_MAIL = _r("503 5.5.1 RCPT TO without MAIL FROM")
DATA_WITHOUT_MAIL = _r("503 5.5.1 DATA without MAIL FROM")
DATA_WITHOUT_RCPT = _r("503 5.5.1 DATA without RCPT TO")
BAD_SEQUENCE = _r("503 5.5.1 bad sequence of commands")
HELO_NEEDED = _r("550 5.5.1 RFC2821 HELO/EHLO needed")
TLS_NOT_AVAILABLE = _r("454 4.7.0 TLS not available")
TLS_POLICY_FAILED = _r("421 4.7.0 TLS cannot be set up, please try later")
NULL_SENDER_REFUSED = _r("550 5.1.7 null envelope sender not allowed")
LITERAL_REFUSED = _r("550 5.1.3 address literals are not allowed")
UNQUALIFIED = _r("501 5.1.3 a domain is needed in the address")

# Reception: AUTH (RFC 4954 6)
AUTHENTICATED = _r("235 2.7.0 Authentication successful")
AUTH_FAILED = _r("535 5.7.8 Sorry")
AUTH_ERROR = _r("550 5.7.8 Unexpected auth error")
AUTH_CANCELLED = _r("501 5.7.0 authentication cancelled")
AUTH_NO_BASE64 = _r("501 5.5.2 cannot decode base64")
AUTH_LINE_TOO_LONG = _r("500 5.5.6 authentication exchange line is too long")
AUTH_MALFORMED = _r("535 5.7.8 malformed authentication response")
AUTH_MECHANISM_UNKNOWN = _r("504 5.5.4 unrecognized authentication type")
AUTH_NEEDS_TLS = _r("538 5.7.11 encryption required for requested authentication mechanism")
AUTH_TOO_MANY = _r("421 4.7.0 too many failed authentications, try again later")
AUTHENTICATION_REQUIRED = _r("530 5.7.0 authentication required")

# Reception: trusted clients
XCLIENT_SYNTAX = _r("501 5.5.4 bad XCLIENT attribute")
XREMOTEIP_SYNTAX = _r("501 5.5.4 XREMOTEIP needs an IP address")
XSETCONTEXT_SYNTAX = _r("501 5.5.4 XSETCONTEXT needs name=value, and no name that begins with tls")

# Reception: content
LONE_LF_IN_HEADERS = _r("550 5.6.0 Lone CR or LF in headers (see RFC2822 section 2.2)")
LONE_LF_IN_BODY = _r("550 5.6.0 Lone CR or LF in body (see RFC2822 section 2.3)")
NUL_IN_MESSAGE = _r("550 5.6.0 NUL in the message (see RFC2045 section 2.8)")
NO_VALID_RECIPIENTS = _r("554 5.5.1 no valid recipients")
HEADERS_MISSING = _r("550 5.6.0 Required headers not found (see RFC2822 section 3.6)")
HEADERS_TOO_LARGE = _r("552 5.3.4 header section too large")
DATE_MISSING = _r("550 5.6.0 Missing required RFC2822 Date field (see RFC2822 section 3.6)")
HEADER_LINE_TOO_LONG = _r("550 5.6.0 Header line too long (see RFC2822 section 3.5)")
BODY_LINE_TOO_LONG = _r("550 5.6.0 Body line too long (see RFC2822 section 3.5)")
MAIL_LOOP = _r("554 5.4.6 too many Received header fields, mail is looping")

# Reception: policy
RELAYING_DENIED = _r("550 5.7.1 relaying denied")

# Delivery: connection and dialog, stage by stage
CONNECT_TIMED_OUT = _r("450 4.4.1 [internal] Connection Timed Out")
NO_BANNER = _r("451 4.4.2 [internal] no banner")
NO_EHLO_RESPONSE = _r("451 4.4.2 [internal] no HELO/EHLO response")
NO_AUTH_RESPONSE = _r("451 4.4.2 [internal] no AUTH response")
AUTH_NOT_OFFERED = _r("454 4.7.0 [internal] the host does not offer the mechanism of AUTH")
AUTH_IN_CLEAR = _r("454 4.7.0 [internal] AUTH needs TLS, and there is none")
AUTH_INCOMPLETE = _r("454 4.7.0 [internal] no user or no password for AUTH")
AUTH_REFUSED = _r("454 4.7.0 [internal] the host refused AUTH")
NO_MAIL_RESPONSE = _r("451 4.4.2 [internal] no MAIL FROM response")
NO_RCPT_RESPONSE = _r("451 4.4.2 [internal] no RCPT TO response")
NO_DATA_RESPONSE = _r("451 4.4.2 [internal] no DATA response")
NO_BODY_RESPONSE = _r("451 4.4.2 [internal] no BODY response")
NO_RSET_RESPONSE = _r("451 4.4.2 [internal] no RSET response")
CONNECTION_CLOSED = _r("451 4.4.2 [internal] connection closed by remote host")
MALFORMED_REPLY = _r("451 4.4.2 [internal] malformed reply from remote host")
NO_VALID_HOSTS = _r("451 4.4.1 [internal] No valid hosts (unable to make any connections)")
EIGHT_BIT_NEEDED = _r("554 5.6.3 [internal] the message has 8-bit content, and the host does not offer 8BITMIME")
SMTPUTF8_NEEDED = _r("550 5.6.7 [internal] address needs SMTPUTF8")

# Delivery: TLS
STARTTLS_NOT_ADVERTISED = _r("451 4.7.6 [internal] STARTTLS required but not advertised")
STARTTLS_NO_GO_AHEAD = _r("451 4.7.5 [internal] no tls go-ahead")
TLS_FAILED = _r("451 4.7.5 [internal] TLS negotiation failed")
CERT_WRONG_NAME = _r("451 4.7.5 [internal] SSL certificate subject does not match host")
CERT_WRONG_CA = _r("451 4.7.5 [internal] remote node SSL certificate not signed by a valid CA")
CONTRACT_NO_TLS = _r("451 4.7.6 [internal] TLS has been agreed on for mail of this domain")
CONTRACT_CERTIFICATE = _r("451 4.7.5 [internal] a certificate has been agreed on for mail of this domain")
CONTRACT_NOT_SMTP = _r("550 5.7.1 [internal] TLS has been agreed on for mail of this domain: it comes by SMTP")
CERT_WRONG_KEY = _r("451 4.7.5 [internal] remote node SSL certificate has another key than those agreed on")
CERT_EXPIRED = _r("454 4.7.5 [internal] certificate expired")
CERT_NOT_YET_VALID = _r("454 4.7.5 [internal] certificate not yet valid: possible clock skew")
TLSA_MISMATCH = _r("451 4.7.5 [internal] no TLSA record names the remote certificate")
TLSA_MISSING = _r("451 4.7.5 [internal] no usable TLSA records, which are demanded")
TLSA_LOOKUP_FAILED = _r("451 4.7.5 [internal] TLSA records could not be looked up")
MX_NOT_IN_POLICY = _r("451 4.7.5 [internal] the MTA-STS policy of the domain does not name this host")
NOT_VALIDATING = _r("451 4.3.5 [internal] the resolver does not validate DNSSEC, which use_dane needs")

REQUIRETLS_NEEDED = _r("550 5.7.30 [internal] REQUIRETLS support required")
REQUIRETLS_UNCERTAIN = _r("451 4.7.5 [internal] REQUIRETLS: it is not known now whether this is a host of the domain")
REQUIRETLS_INSECURE = _r("550 5.7.30 [internal] REQUIRETLS: nothing proves that this is a host of the domain")
NO_EVIDENCE = _r("451 4.3.0 [internal] no evidence can be written, without which nothing is taken")
DEMAND_LOST = _r("451 4.3.5 [internal] the stanza or policy that this message was to be sent under holds no more")

# Delivery: routing
NO_ROUTE = _r("451 4.3.5 [internal] a routing name needs Routes or Gateway")
NO_MX_OR_A = _r("454 4.4.4 [internal] no MX or A for domain")
LOOKUP_FAILED = _r("554 5.4.4 [internal] Domain Lookup Failed")
NULL_MX = _r("550 5.4.4 [internal] NULL MX domain does not accept mail")
LEADS_HERE = _r("554 5.4.6 [internal] mail for this domain leads back to this server")
PROHIBITED_HOST = _r("551 5.4.6 [internal] Private/Loopback Address")

HOST_LIMIT = _r("451 4.4.5 [internal] as many connections to the hosts as are allowed")

# Delivery: expiry and administration
MANUALLY_PURGED = _r("554 5.7.0 [internal] Message manually purged")
MANUALLY_FAILED = _r("554 5.7.0 [internal] manually failed")
MANUALLY_DISCARDED = _r("554 5.7.0 [internal] Message manually discarded")
MAX_RETRIES = _r("554 5.4.7 [internal] exceeded max retries without delivery")
MAX_TIME = _r("554 5.4.7 [internal] exceeded max time without delivery")
EXPIRED_UNATTEMPTED = _r("554 5.4.5 [internal] Delivery not attempted (message expired)")
BLACKHOLED_INLINE = _r("551 5.7.1 recipient blackholed")
BLACKHOLED = _r("554 5.7.0 [internal] Blackholed")
REFUSED = _r("550 5.7.1 [internal] refused by policy")
BODY_MISSING = _r("550 5.3.0 [internal] message body missing")
