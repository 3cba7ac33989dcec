"""The certificates of the fault farm, written once into a folder. Public parts only matter: never trust them."""

from __future__ import annotations

from pathlib import Path

from quillon.lab.faults import DOMAIN, FAULTS
from quillon.lab.pki import CLIENT, DAY, Authority


def write(folder: Path) -> Path:
    """Write all of it; gives the file of the authorities that a delivery is to trust."""
    root = Authority(folder, "Quillon fault farm CA")
    old = Authority(folder, "Quillon fault farm old CA", kind="rsa2048")
    other = Authority(folder, "An authority nobody knows")
    middle = Authority(folder, "Quillon fault farm intermediate CA", root)
    powerless = Authority(folder, "Not an authority", root, may_sign=False)
    trusted = root.write()
    trusted.write_bytes(trusted.read_bytes() + old.write("old-ca.pem").read_bytes())
    names = [fault.host for fault in FAULTS]
    root.issue("good", names)
    root.issue("expired", names, start=-60 * DAY, life=30 * DAY)
    root.issue("not-yet-valid", names, start=30 * DAY)
    root.issue("self-signed", names, self_signed=True)
    other.issue("unknown-issuer", names)
    middle.issue("no-intermediate", names, with_chain=False)
    middle.issue("with-intermediate", names)
    powerless.issue("issuer-no-ca", names)
    root.issue("weak-key", names, kind="rsa1024")
    old.issue("sha1", names, kind="rsa2048", sha1=True)
    root.issue("wrong-purpose", names, usage=[CLIENT])
    root.issue("wrong-name", ["mx.elsewhere.test"])
    root.issue("wildcard", [f"*.{DOMAIN}"])
    root.issue("wildcard-inside", ["wildcard-inside.*.test"])
    root.issue("wildcard-part", [f"wildcard-*.{DOMAIN}"])
    root.issue("wildcard-top", ["*.test"])
    root.issue("cn-only", [], common_name=f"cn-only.{DOMAIN}")
    root.issue("cn-beside-san", ["mx.elsewhere.test"], common_name=f"cn-beside-san.{DOMAIN}")
    root.issue("nul-in-name", [f"nul-in-name.{DOMAIN}\0.evil.test"], common_name="mx.elsewhere.test")
    return trusted
