#!/usr/bin/env python3
"""verify.py FOLDER PUBLIC-KEY.pem: are these records in the log that this key has signed, and who were they for?

Stands alone: the standard library and the command openssl are all it needs. FOLDER is a proof that `quillon prove` has
made, unpacked. The key has to come to you another way than the proof: from the partner's contract, or his web site.
"""

import base64
import hashlib
import hmac
import json
import pathlib
import subprocess
import sys
import tempfile


class NotProven(Exception):
    """What is wrong with a proof."""


def must(true: object, words: str) -> None:
    """Not an assertion: those can be switched off."""
    if not true:
        raise NotProven(words)


def sha256(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()


def root_of(record: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that a record leads to (RFC 9162 2.1.3.2)."""
    found, place, last = sha256(b"\0" + record), index, size - 1
    must(0 <= place <= last, "the record is beyond the tree")
    for other in path:
        must(last, "the proof is too long")
        if place & 1 or place == last:
            found = sha256(b"\1" + other + found)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            found = sha256(b"\1" + found + other)
        place, last = place >> 1, last >> 1
    must(last == 0, "the proof is too short")
    return found


def is_signed(text: str, lines: list[str], name: str, key: str) -> bool:
    """Whether one of the lines is the signature of a text by a key."""
    for line in lines:
        words = line.split(" ")
        if len(words) != 3 or words[1] != name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            message, signature = f"{folder}/message", f"{folder}/signature"
            pathlib.Path(message).write_bytes(text.encode())
            pathlib.Path(signature).write_bytes(base64.b64decode(words[2])[4:])
            command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin"]
            done = subprocess.run([*command, "-in", message, "-sigfile", signature], capture_output=True, check=False)
        if done.returncode == 0:
            return True
    return False


def verify(record: bytes, proof: str, key: str) -> str:
    """What a proof says of a record; NotProven says what is wrong with it."""
    head, note = proof.split("\n\n", 1)
    lines = head.split("\n")
    must(lines[0] == "c2sp.org/tlog-proof@v1", "this is no proof")
    lines = [line for line in lines[1:] if not line.startswith("extra ")]
    index, path = int(lines[0].split()[1]), [base64.b64decode(line) for line in lines[1:]]
    body, signatures = note.split("\n\n", 1)
    origin, size, root = body.split("\n")[:3]
    found = root_of(record, index, int(size), path)
    must(base64.b64encode(found).decode() == root, "the record is not in the log")
    must(is_signed(body + "\n", signatures.split("\n"), origin, key), "the log is not signed by this key")
    return f"record {index} of {size} in {origin}"


def main() -> None:
    folder, key = pathlib.Path(sys.argv[1]), sys.argv[2]
    files = sorted(folder.glob("*.json"))
    must(files, f"there are no records in {folder}")
    for file in files:
        octets = file.read_bytes()
        where = verify(octets, file.with_suffix(".proof").read_text(encoding="utf-8"), key)
        row = json.loads(octets)
        print(f"{file.name}: {where}: {row['at']} {row['kind']} {row.get('outcome', '')}".rstrip())
        tls = row.get("tls") or {}
        for name in tls.get("certificates", []):
            certificate = folder / "certificates" / f"{name}.der"
            if certificate.exists():
                must(sha256(certificate.read_bytes()).hex() == name, f"{certificate} is another certificate")
        salt = file.with_suffix(".recipient")
        if salt.exists():
            hexadecimal, address = salt.read_text(encoding="utf-8").strip().split(" ", 1)
            stands = hmac.new(bytes.fromhex(hexadecimal), address.lower().encode(), hashlib.sha256).hexdigest()
            must(stands == row["recipient"], f"the record is not of {address}")
            print(f"    for {address}")


if __name__ == "__main__":
    try:
        main()
    except (NotProven, IndexError, ValueError, OSError) as error:
        sys.exit(f"NOT PROVEN: {error}")
