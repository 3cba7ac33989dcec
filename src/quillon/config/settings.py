"""Frozen settings, one class per consumer. A field carries the name of its option in lower case.

`build` fills a class from a chain of stanzas. What is compared for equality here decides what may be shared: two
deliveries may use one connection only if their `OutboundTls` are equal.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, TypeVar

from quillon.config.values import Throttle
from quillon.mail.address import Mailbox

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Certificates for one server name: a host name, `*.domain`, or `*` for any. Pairs of certificate and key file."""

    name: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class InboundTls:
    """TLS of one session that a client opened. Paths are absolute, None is "unset".

    `tls_identities` are those of the Listen and of its listener, the narrower first. `tls_any_client`, which is no
    option, has clients show whatever certificate they have, of authorities that TLS_Client_CA does not name as well.
    """

    tls_engine: str
    tls_certificate: str | None
    tls_key: str | None
    tls_client_ca: str | None
    tls_ciphers: str | None
    tlsv13_ciphersuites: str | None
    tls_ec_curve_names: str | None
    tls_protocols: frozenset[str]
    tls_session_resumption: bool
    tls_verify_mode: str | None
    tls_allow_renegotiation: bool
    tls_dhparams_file: str | None
    tls_enable_dhe_ciphers: bool
    tls_crl: str | None
    tls_crl_check: str
    tls_ocsp: str
    tls_ocsp_responder: str | None
    tls_ocsp_response: str | None
    tls_identities: tuple[TlsIdentity, ...] = ()
    tls_any_client: bool = False


@dataclass(frozen=True, slots=True)
class OutboundTls:
    """TLS of one delivery. `tls` is no, ifavailable or required; `tls_verify` no, ca, host or optional; `tls_spki` are
    SHA-256 in hexadecimal digits. `tls_agreed`, which is no option, tells that a contract wants what is verified: no
    TLSA record and no policy's word stands in for it."""

    tls: str
    tls_ifavailable_fallback: bool
    tls_verify: str
    tls_engine: str
    tls_ca: str | None
    tls_certificate: str | None
    tls_key: str | None
    tls_ciphers: str | None
    tlsv13_ciphersuites: str | None
    tls_ec_curve_names: str | None
    tls_protocols: frozenset[str]
    tls_session_resumption: bool
    tls_dhparams_file: str | None
    tls_enable_dhe_ciphers: bool
    tls_crl: str | None
    tls_crl_check: str
    tls_ocsp: str
    tls_ocsp_responder: str | None
    tls_names: tuple[str, ...]
    tls_spki: tuple[str, ...]
    tls_enforce: str
    tls_agreed: bool = False


@dataclass(frozen=True, slots=True)
class ReceptionSettings:
    """Everything about a session that a client opened, but TLS. Times in seconds, sizes in octets, 0 for no limit."""

    pathway: str
    use_ssl: bool
    starttls_injection_policy: str
    tls_verified_peer_can_relay: bool
    smtp_extensions: tuple[str, ...]
    trusted_clients: tuple[Network, ...]
    enable_authentication: bool
    always_allow: bool
    always_deny: bool
    auth_in_clear: tuple[str, ...]
    authplainparameters: dict[str, str] | None
    authloginparameters: dict[str, str] | None
    authcrammd5parameters: dict[str, str] | None
    authdigestmd5parameters: dict[str, str] | None
    authscramsha256parameters: dict[str, str] | None
    auth_failure_delay: int
    auth_failure_limit: int
    auth_failure_window: int
    policy_time: int
    banner_hostname: str | None
    static_banner: str | None
    received_hostname: str | None
    authserv_ids: tuple[str, ...]
    idle_time: int
    session_time: int
    data_time: int
    listener_sessions: int
    service_sessions: int
    max_message_size: int
    max_receptions_per_connection: int
    max_recipients_per_connection: int
    max_recipients_per_message: int
    max_errors_per_connection: int
    max_commands_per_connection: int
    max_received_headers: int
    context: dict[str, str] | None
    allow_ip_literal: bool
    allow_null_envelope_sender: bool
    allow_trailing_whitespace_in_commands: bool
    domain_for_unqualified_recipient_addresses: str | None
    domain_for_unqualified_sender_address: str | None
    require_ehlo: bool
    relay_hosts: tuple[Network, ...]
    open_relay: bool
    relay_for_sending_domains: tuple[str, ...] | None
    relay_domains: tuple[str, ...]
    bounce_domains: tuple[str, ...]
    rfc2821_allow_whitespace_in_envelope: bool
    rfc2821_pedantic_address_rules: bool
    rfc2822_date_header: str
    rfc2822_messageid_header: str
    rfc2822_missing_headers: str
    rfc2822_lone_lf_in_headers: str
    rfc2822_lone_lf_in_body: str
    nul_in_message: str
    rfc2822_max_line_length: str
    rfc2822_max_line_length_policy: str
    rfc2822_trace_headers: bool
    reconfig_message: str
    generate_bounces_for_multi_recipient_policy_rejections: bool


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Everything about delivery to one (binding group, binding, routing domain), but TLS. Times in seconds."""

    bind_address: str
    bind_address_secondary: str | None
    ehlo_hostname: str
    routes: tuple[str, ...]
    delivery_method: str
    remote_smtp_port: int
    max_outbound_connections: int
    max_deliveries_per_connection: int
    max_recipients_per_batch: int
    max_hosts_per_attempt: int
    max_addresses_per_attempt: int
    connection_allocation_aggressiveness: str
    mx_rollup: bool
    outbound_throttle_messages: Throttle | None
    outbound_throttle_connections: Throttle | None
    suspend_delivery: bool
    blackhole: str
    send_8bitmime: str
    transform_8bitmime_content: str
    connect_timeout: int
    ehlo_timeout: int
    mailfrom_timeout: int
    rcptto_timeout: int
    body_timeout: int
    rset_timeout: int
    idle_timeout: int
    connect_timeout_to_delay: int
    mx_failures_to_delay: int
    host_failure_retry: int
    retry_interval: int
    max_retry_interval: int
    retry_spread: int
    max_retries: str
    message_expiration: int
    never_retry: bool
    never_attempt_expired_messages: bool
    mx_failures_fallback_to_a: int
    dns_failures_to_purge: int
    generate_bounces: bool
    generate_delay_dsn: bool
    delay_dsn_retry_interval: int
    delay_dsn_max_retry_interval: int
    bounces_inline_original: str
    mailerdaemon: Mailbox | None
    mdn_failures_notify: Mailbox | None
    drop_body_after_trans_fail: int
    max_resident_active_queue: int
    exclude_vctx_conn: tuple[re.Pattern[str], ...]
    exclude_vctx_mess: tuple[re.Pattern[str], ...]
    opendkim_sign: bool
    outbound_smtp_auth_type: str
    outbound_smtp_auth_user: str
    outbound_smtp_auth_pass: str
    outbound_smtp_auth_key: str
    outbound_smtp_auth_in_clear: bool
    use_dane: str
    enable_dane: bool
    use_mta_sts: bool
    enable_mta_sts: bool

    @property
    def dane(self) -> str:
        """How TLSA records rule delivery: false, true (where there are any), or mandatory."""
        return self.use_dane if self.enable_dane else "false"

    @property
    def looks_up(self) -> bool:
        """Whether it is looked up what is published about the hosts of a domain."""
        return self.dane != "false" or self.mta_sts

    @property
    def mta_sts(self) -> bool:
        """Whether the MTA-STS policy of a domain rules delivery to it."""
        return self.use_mta_sts and self.enable_mta_sts


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What holds for the whole process. Paths are absolute."""

    hostname: str | None
    pidfile: str
    workers: int
    spoolbase: str
    spool_mode: int
    spool_minimum_free_space: int
    spool_minimum_free_inodes: int
    record_folder: str | None
    large_message_threshold: int
    max_resident_messages: int
    server_max_outbound_connections: int
    migrate_connections_between_sibling_domains: bool
    default_binding: str
    drain_timeout: int
    resolv_conf: str
    dns_servers: tuple[str, ...]
    dnssec_trusted_servers: tuple[Network, ...]
    mta_sts_policy_store: str | None
    mta_sts_dns_cname_max_depth: int
    use_ipv6: bool
    prefer_ipv6_mxs: bool
    min_dns_ttl: int
    max_dns_ttl: int
    only_use_best_mx_for_relay_domains: bool
    prohibited_hosts: tuple[Network, ...]
    skip_hosts: tuple[Network, ...]
    relay_domains: tuple[str, ...]
    bounce_domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    user: str | None
    group: str | None
    supplemental_groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoggerSettings:
    """One ec_logger stanza. A path of None is a log that is not written."""

    mainlog: str | None
    rejectlog: str | None
    paniclog: str | None
    acctlog: str | None
    jsonlog: str | None
    heartbeat: int
    log_receptions: bool
    log_deliveries: bool
    log_transient_failures: bool
    log_permanent_failures: bool
    log_rejections: bool
    log_errors: bool
    mainlog_mode: int
    rejectlog_mode: int
    paniclog_mode: int
    acctlog_log_mode: int
    jsonlog_mode: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class CustomLog:
    """One stage of a custom_logger: its format, and the file that it goes to."""

    stage: str
    format: str
    path: str
    mode: int


@dataclass(frozen=True, slots=True)
class CustomLoggerSettings:
    """One custom_logger stanza: namespaces whose macros may be used, and the words of its sanitize option."""

    logs: tuple[CustomLog, ...]
    namespaces: tuple[str, ...]
    sanitize: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScriptSettings:
    """The scriptlet stanza. `scripts` are pairs of stanza name and source, in the order of the file.

    `cpu_limit` is in milliseconds per callout, `memory_limit` in MiB of all scripts of a worker; 0 is no limit.
    """

    scripts: tuple[tuple[str, str], ...]
    gc_pause: int
    gc_stepmul: int
    enabled: bool
    cpu_limit: int = 500
    memory_limit: int = 256


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """A policy stanza: a module in Python. `module` is an absolute path, `cpu_limit` in milliseconds per callout, 0 is
    no limit."""

    name: str
    module: str
    enabled: bool
    cpu_limit: int = 500


@dataclass(frozen=True, slots=True)
class DatasourceSettings:
    """A datasource stanza. `uris` are driver:connection; times in seconds; max_rows -1 is no limit."""

    name: str
    uri: tuple[str, ...]
    cache_life: int
    cache_size: int
    max_rows: int
    no_cache: bool


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """One socket: `host` is "" for any IPv4 address, `path` is set for a Unix socket."""

    name: str
    host: str
    port: int
    path: str
    backlog: int
    file_mode: int


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """The alerts stanza. Times in seconds, space in octets; 0 is what is not watched."""

    mail_to: tuple[Mailbox, ...]
    mail_from: Mailbox | None
    webhook: str | None
    every: int
    queue_size: int
    queue_age: int
    free_space: int
    certificate_days: int


@dataclass(frozen=True, slots=True)
class StampSettings:
    """Who puts time stamps on checkpoints: its URL, the file of certificates that it is verified by, and after how many
    seconds the next one is wanted."""

    url: str
    ca: str
    interval: int


@dataclass(frozen=True, slots=True)
class WitnessSettings:
    """Who witnesses checkpoints: the URL that questions go to, its name, the 32 octets of its key, and after how many
    seconds it is asked again."""

    url: str
    name: str
    key: bytes
    interval: int


@dataclass(frozen=True, slots=True)
class EvidenceSettings:
    """The evidence stanza: absolute paths, the name of this node, seconds between two checkpoints."""

    folder: str
    key: str
    node: str
    checkpoint_interval: int
    stamps: StampSettings | None = None
    witness: WitnessSettings | None = None

    @property
    def identity(self) -> tuple[str, str, str]:
        """What a running server cannot change."""
        return self.folder, self.key, self.node


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """An acme stanza: a certificate for `names`, of the server at `directory`, in the files `certificate` and `key`."""

    name: str
    directory: str
    directory_ca: str | None
    email: str
    names: tuple[str, ...]
    certificate: str
    key: str
    challenge: str
    hook: str | None
    reuse_key: bool
    key_type: str
    external_account: str = ""
    external_account_key: str = ""


@dataclass(frozen=True, slots=True)
class StsPolicySettings:
    """A mta_sts_policy stanza: the policy of a domain of ours."""

    domain: str
    mode: str
    mx: tuple[str, ...]
    max_age: int


@dataclass(frozen=True, slots=True)
class TlsReportReceiverSettings:
    """A tls_report_receiver stanza: the address that reports come to, the domains that they may be about, the seconds
    that they are kept, whether the mail goes on to the address as well."""

    name: str
    address: Mailbox
    domains: tuple[str, ...]
    keep: int
    deliver: bool


@dataclass(frozen=True, slots=True)
class TlsReportSettings:
    """The tls_reports stanza; `submitter` is the domain that reports."""

    sender: Mailbox
    submitter: str
    organization: str
    contact: str


class OidcProvider(NamedTuple):
    """Who vouches for users of HTTP by OpenID Connect: `url` is where browsers find the listener, `user` and `groups`
    are the claims that name them, `ca` is a PEM file, None for the system's."""

    issuer: str
    client_id: str
    secret_file: str
    url: str
    user: str = "email"
    groups: str = "groups"
    ca: str | None = None


class HttpListen(NamedTuple):
    """A Listen of HTTP_Listener: PEM files of its TLS, whether a client's certificate says who it is, and the uri of
    the file of users, whose passwords do so as well, as an OpenID provider may. `well_known`: it serves what everybody
    may ask, and no more."""

    listen: ListenSettings
    certificate: str | None
    key: str | None
    client_ca: str | None
    by_certificate: bool
    users: str | None
    well_known: bool = False
    oidc: OidcProvider | None = None

    @property
    def asks(self) -> bool:
        """Whether a client has to prove who it is."""
        by_certificate = self.client_ca is not None and self.by_certificate
        return self.users is not None or by_certificate or self.oidc is not None


def share(limit: int, workers: int) -> int:
    """One worker's part of a limit of the node, at least 1; 0 stays no limit."""
    return max(limit // workers, 1) if limit else 0


def build(cls: Callable[..., T], lookup: Callable[[str], Any]) -> T:
    """An instance of a settings class, each field without a default from the option of its name."""
    names = [field.name for field in fields(cls) if field.default is MISSING]  # type: ignore[arg-type]
    return cls(**{name: lookup(name) for name in names})
