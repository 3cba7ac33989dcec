#!/usr/bin/env python3
"""verify.py FOLDER PUBLIC-KEY.pem [TSA.pem]: are these records in the log that this key has signed, of whom, by when?

Stands alone: the standard library and the command openssl are all it needs. FOLDER is a proof that `quillon prove` has
made, unpacked. The key has to come to you another way than the proof: from the partner's contract, or his web site.
TSA.pem are the certificates of the authority that has put time stamps on the log, from its own web site.
"""

import base64
import calendar
import hashlib
import hmac
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time


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


def stamped(note: str, response: pathlib.Path, authority: str) -> str:
    """When an authority had a checkpoint before it (RFC 3161). Its certificates have to be good at that time."""
    command = ["openssl", "ts", "-reply", "-in", str(response), "-text"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    at = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("Time stamp:")]
    must(len(at) == 1, f"{response.name} is no time stamp")
    whole = re.sub(r"\.\d+", "", " ".join(at[0].split()))  # some give fractions of a second
    seconds = calendar.timegm(time.strptime(whole, "%b %d %H:%M:%S %Y GMT"))
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/checkpoint"
        pathlib.Path(data).write_bytes(note.encode())
        command = ["openssl", "ts", "-verify", "-attime", str(seconds), "-data", data, "-in", str(response)]
        done = subprocess.run([*command, "-CAfile", authority], capture_output=True, text=True, check=False)
    must(done.returncode == 0, f"{response.name} is no time stamp of this checkpoint: {done.stderr.strip()}")
    return at[0]


def main() -> None:
    folder, key, authority = pathlib.Path(sys.argv[1]), sys.argv[2], "".join(sys.argv[3:4])
    files = sorted(folder.glob("*.json"))
    must(files, f"there are no records in {folder}")
    for file in files:
        octets = file.read_bytes()
        proof = file.with_suffix(".proof").read_text(encoding="utf-8")
        where = verify(octets, proof, key)
        row = json.loads(octets)
        print(f"{file.name}: {where}: {row['at']} {row['kind']} {row.get('outcome', '')}".rstrip())
        response = file.with_suffix(".tsr")
        if authority:
            must(response.exists(), f"{file.name} has no time stamp yet")
            note = proof.split("\n\n", 1)[1]
            print(f"    in the log by {stamped(note, response, authority)}")
        elif response.exists():
            print("    with a time stamp, which the certificates of its authority would verify")
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
