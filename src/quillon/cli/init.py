"""`quillon init ROLE`: a configuration to begin with, for one of three roles, with what has to be changed marked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HEAD = """\
# Quillon as {what}. Lines marked CHANGE are yours to fill in; `quillon check -c {name}` says what is missing,
# `quillon explain -c {name} --domain NAME` where each value comes from.

Hostname  = mx.example.com            # CHANGE: the name in banner and EHLO; the certificate's, too
PidFile   = {base}/quillon.pid
SpoolBase = {base}/spool

ec_logger "main" {{
  mainlog   = {base}/log/mainlog.ec
  rejectlog = {base}/log/rejectlog.ec
  paniclog  = {base}/log/paniclog.ec
  jsonlog   = {base}/log/events.json
}}

Control_Listener {{ Listen "{base}/console" {{ }} }}        # quillon console -c {name} summary
HTTP_Listener {{ Listen "127.0.0.1:8025" {{ }} }}           # pages and /metrics, for this machine

alerts {{
  mail_to = ( "postmaster@example.com" )                # CHANGE
}}

# TLS wherever it is offered; Domain stanzas below demand more.
TLS = ifavailable
"""

TLS = """\
  # CHANGE: with these, clients may use STARTTLS. Before the files are there, leave all three lines commented out.
  # TLS_Certificate = /etc/quillon/mx.pem
  # TLS_Key         = /etc/quillon/mx.key
  # SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "PIPELINING" "8BITMIME" "STARTTLS" )
"""

ROLES = {
    "relay": (
        "a relay for hosts of your own",
        """
# In: these hosts may send anywhere; everybody may write to the domains that are yours.
Relay_Domains = ( "example.com" )                       # CHANGE
Domain "example.com" {{ Gateway = "10.0.0.25" }}           # CHANGE: where their mail is kept
ESMTP_Listener {{
  Relay_Hosts = ( 127.0.0.0/8 10.0.0.0/8 )              # CHANGE
{tls}  Listen ":{port}" {{ }}
}}
""",
    ),
    "gateway": (
        "a gateway to partners who demand TLS",
        """
# In and out for one's own domain, with a partner to whom nothing goes in clear.
Relay_Domains = ( "example.com" )                       # CHANGE
Domain "example.com" {{ Gateway = "10.0.0.25" }}           # CHANGE: the inner server
ESMTP_Listener {{
  Relay_Hosts = ( 127.0.0.0/8 10.0.0.0/8 )              # CHANGE
{tls}  # TLS_Client_CA = /etc/quillon/partners-ca.pem        # who vouches for the certificates that partners show
  Listen ":{port}" {{ }}
}}

# CHANGE: one such stanza for each partner. `quillon tls-probe --domain partner.example -c {name}` says what their
# hosts do now.
Domain "partner.example" {{
  TLS        = required                                 # nothing leaves without TLS
  TLS_Verify = host                                     # to a host whose certificate names it
  TLS_CA     = system                                   # or a file with the authority that they have named
}}
""",
    ),
    "platform": (
        "a sending platform",
        """
# In: your applications, by SMTP from these hosts, or by HTTP once HTTP_Listener asks who comes.
ESMTP_Listener {{
  Relay_Hosts = ( 127.0.0.0/8 10.0.0.0/8 )              # CHANGE
{tls}  Listen ":{port}" {{ }}
}}

# Out: a binding for each kind of mail, each with an address of its own. Policy chooses: msg:binding("bulk").
Binding "transactional" {{ }}                             # CHANGE: Bind_Address = 192.0.2.1
Binding "bulk" {{ Max_Outbound_Connections = 20 }}         # CHANGE: Bind_Address = 192.0.2.2

# Large receivers want few connections and patience.
Domain "gmail.com" {{ Max_Outbound_Connections = 20 Max_Recipients_Per_Batch = 50 }}
Retry_Interval     = 900
Message_Expiration = 172800
Generate_Delay_DSN = false
""",
    ),
}


def add(commands: Any) -> None:
    parser = commands.add_parser("init")
    parser.add_argument("role", choices=sorted(ROLES), help="what the server is to be")
    parser.add_argument("-o", "--output", default="ecelerity.conf", metavar="FILE", help="default: ecelerity.conf")
    parser.add_argument("--base", metavar="FOLDER", help="where spool, logs and console go (default: the file's)")
    parser.add_argument("--port", type=int, default=25, help="of SMTP (25)")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    file = Path(given.output).absolute()
    base = Path(given.base).absolute() if given.base else file.parent
    try:
        with open(file, "x", encoding="utf-8") as out:
            out.write(configuration(given.role, file.name, str(base), given.port))
    except OSError as error:
        words = "it is there already, and was left as it is" if isinstance(error, FileExistsError) else error.strerror
        print(f"quillon init: {file}: {words}", file=sys.stderr)
        return 1
    print(f"{file} is written. Fill in what is marked CHANGE, then: quillon check -c {given.output}")
    return 0


def configuration(role: str, name: str, base: str, port: int) -> str:
    """The text of a configuration for a role; paths go below `base`."""
    what, body = ROLES[role]
    words = {"what": what, "name": name, "base": base, "port": port, "tls": TLS}
    return HEAD.format(**words) + body.format(**words)
