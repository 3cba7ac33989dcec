"""A validating resolver (unbound) over a DNS of our own: a signed root with everything in it, below it an unsigned zone, a
bogus one, and delegations to nobody."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import dns.dnssec
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.node
import dns.query
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.DNSKEY
import dns.rrset
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec
from dns.dnssectypes import Algorithm

from tests.support.peers import require
from tests.support.server import free_port, until

_SOA = "3600 IN SOA ns. hostmaster. 1 3600 600 86400 60"
_HEAD = """
@ {soa}
@ 3600 IN NS {ns}
"""

Keys = list[tuple[ec.EllipticCurvePrivateKey, dns.rdtypes.ANY.DNSKEY.DNSKEY]]


def signed(name: str, records: str, keys: Keys, tlsa: Mapping[str, Sequence[bytes]] = {}) -> dns.zone.Zone:
    """A zone with signatures and NSEC records; `records` as in a zone file, names relative to the root, `tlsa` are
    TLSA records by name as octets, well-formed or not."""
    ns = "ns." if name == "." else f"ns.{name}"
    text = f"$ORIGIN {name}\n" + _HEAD.format(soa=_SOA, ns=ns) + f"{ns} 3600 IN A 127.0.0.1\n$ORIGIN .\n" + records
    zone = dns.zone.from_text(text, origin=name, relativize=False, check_origin=False)
    with zone.writer() as version:
        for owner, datas in tlsa.items():
            for data in datas:
                rdata = dns.rdata.GenericRdata(dns.rdataclass.IN, dns.rdatatype.TLSA, data)
                version.add(dns.name.from_text(owner), 2, rdata)
        dns.dnssec.sign_zone(zone, version, [*keys], add_dnskey=True, lifetime=30 * 86400, inception=None)
    return zone


def new_keys() -> Keys:
    """One key that signs all."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = dns.dnssec.make_dnskey(private.public_key(), Algorithm.ECDSAP256SHA256, flags=257)
    return [(private, public)]


def ds(name: str, keys: Keys) -> str:
    """The record by which a parent vouches for a zone."""
    return f"{name} 3600 IN DS {dns.dnssec.make_ds(dns.name.from_text(name), keys[0][1], 'SHA256')}\n"


class Zones:
    """`records` go into the root zone, `insecure` into `insecure.`, which is not signed; what stands below `bogus.` does
    not validate. `address` is where it listens, at the port `port`, by default a free one; at `second` it
    listens as well, at the port where all programs look for a resolver."""

    def __init__(
        self,
        folder: Path,
        records: str = "",
        insecure: str = "",
        bogus: str = "",
        tlsa: Mapping[str, Sequence[bytes]] = {},
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        second: str = "",
        validating: bool = True,
    ) -> None:
        self._program = require("unbound")
        self._validating = validating
        self.folder = folder
        self.address, self.port = address, port or free_port()
        self._keys = new_keys()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.write(records, insecure, bogus, tlsa)
        anchor = dns.dnssec.make_ds(dns.name.root, self._keys[0][1], "SHA256")
        zones = "".join(
            f'auth-zone:\n  name: "{name}"\n  zonefile: "{file}"\n  for-upstream: yes\n  for-downstream: no\n'
            for name, file in ((".", "root.zone"), ("insecure.", "insecure.zone"), ("bogus.", "bogus.zone"))
        )
        (folder / "unbound.conf").write_text(
            f"""server:
  interface: {self.address}@{self.port}
  {f"interface: {second}@53" if second else ""}
  do-daemonize: no
  chroot: ""
  username: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  logfile: "{folder}/unbound.log"
  access-control: 127.0.0.0/8 allow
  do-not-query-localhost: no
  module-config: "{"validator " if validating else ""}iterator"
  trust-anchor: ". DS {anchor}"
  cache-max-ttl: 2
  cache-max-negative-ttl: 1
  do-ip6: no
  local-zone: "test." nodefault
  local-zone: "localhost." nodefault
remote-control:
  control-enable: no
{zones}"""
        )
        self.start()

    def write(
        self, records: str = "", insecure: str = "", bogus: str = "", tlsa: Mapping[str, Sequence[bytes]] = {}
    ) -> None:
        """Other records; a resolver that runs learns of them at `restart`."""
        other = new_keys()
        delegations = (
            f"insecure. 3600 IN NS ns.insecure.\nns.insecure. 3600 IN A 127.0.0.1\n"
            f"bogus. 3600 IN NS ns.bogus.\nns.bogus. 3600 IN A 127.0.0.1\n{ds('bogus.', new_keys())}"
        )
        signed(".", delegations + records, self._keys, tlsa).to_file(str(self.folder / "root.zone"), relativize=False)
        signed("bogus.", bogus, other).to_file(str(self.folder / "bogus.zone"), relativize=False)
        head = _HEAD.format(soa=_SOA, ns="ns.insecure.").replace("@", "insecure.")
        (self.folder / "insecure.zone").write_text(f"{head}ns.insecure. 3600 IN A 127.0.0.1\n{insecure}")

    def start(self) -> None:
        self._process = subprocess.Popen([self._program, "-c", str(self.folder / "unbound.conf"), "-d"])
        until(self._is_up, "unbound answers")

    def _is_up(self) -> bool:
        """Whether it answers, and vouches for the root if it is to."""
        query = dns.message.make_query(".", "NS", want_dnssec=True, flags=dns.flags.RD | dns.flags.AD)
        with contextlib.suppress(OSError, dns.exception.DNSException):
            answer = dns.query.udp(query, self.address, port=self.port, timeout=0.5)
            return bool(answer.answer) and bool(answer.flags & dns.flags.AD) is self._validating
        return False

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None
