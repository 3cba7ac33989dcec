#!/usr/bin/env python3
"""verify.py FOLDER PUBLIC-KEY.pem [--tsa TSA.pem] [--witness KEY]: are these records in the log that this key has
signed, of whom, by when?
verify.py --extends CHECKPOINT EXTENSION PUBLIC-KEY.pem: does a log still hold all that a checkpoint of it has signed?

Stands alone: the standard library and the command openssl are all it needs. FOLDER is a proof that `quillon prove` has
made, unpacked. The key has to come to you another way than the proof: from the partner's contract, or his web site.
TSA.pem are the certificates of the authority that has put time stamps on the log, from its own web site, and KEY is
that of a witness, NAME+HASH+KEY, from him. CHECKPOINT is one that you have kept, EXTENSION what `quillon proof extends`
has made for it.
"""

import argparse
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


def is_good(text: str, signature: bytes, key: str) -> bool:
    """Whether a signature of a text is by a key."""
    with tempfile.TemporaryDirectory() as folder:
        message, signed = f"{folder}/message", f"{folder}/signature"
        pathlib.Path(message).write_bytes(text.encode())
        pathlib.Path(signed).write_bytes(signature)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin"]
        done = subprocess.run([*command, "-in", message, "-sigfile", signed], capture_output=True, check=False)
    return done.returncode == 0


def signatures_of(lines: str, name: str) -> list[bytes]:
    """The signatures of somebody among the lines below a note."""
    found = [line.split(" ") for line in lines.split("\n")]
    return [base64.b64decode(words[2])[4:] for words in found if len(words) == 3 and words[1] == name]


def signed(note: str, key: str) -> list[str]:
    """The lines of a checkpoint that a key has signed; NotProven where it has not."""
    body, lines = note.split("\n\n", 1)
    origin = body.split("\n")[0]
    good = any(is_good(body + "\n", signature, key) for signature in signatures_of(lines, origin))
    must(good, "the log is not signed by this key")
    return body.split("\n")


def witnessed(note: str, witness: str) -> str:
    """When a witness has signed a checkpoint; NotProven where it has not."""
    name, _, rest = witness.partition("+")
    octets = base64.b64decode(rest.partition("+")[2])
    must(octets[:1] == b"\4" and len(octets) == 33, "the witness's key is none")
    body, lines = note.split("\n\n", 1)
    pem = base64.b64encode(bytes.fromhex("302a300506032b6570032100") + octets[1:]).decode()
    with tempfile.TemporaryDirectory() as folder:
        key = pathlib.Path(folder, "witness.pem")
        key.write_text(f"-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n", encoding="ascii")
        for signature in signatures_of(lines, name):
            at = int.from_bytes(signature[:8])
            if is_good(f"cosignature/v1\ntime {at}\n{body}\n", signature[8:], str(key)):
                return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    raise NotProven("the checkpoint is not signed by this witness")


def extends(old: str, extension: str, key: str) -> str:
    """What a log that has grown says of a checkpoint that was kept (RFC 9162 2.1.4.2)."""
    head, note = extension.split("\n\n", 1)
    _, was, old_root = signed(old, key)[:3]
    origin, size, new_root = signed(note, key)[:3]
    must(old.split("\n", 1)[0] == origin, "the two are of different logs")
    lines = head.split("\n")
    must(lines[0] == f"old {was}", "it is an extension of another checkpoint")
    path = [base64.b64decode(line) for line in lines[1:]]
    first, last = int(was), int(size)
    if first in (0, last):
        must(not path and (first == 0 or old_root == new_root), "the log is another one")
        return f"{origin}: {size} records, none of those {was} changed"
    path = path if first & (first - 1) else [base64.b64decode(old_root), *path]
    must(first < last and path, "the log is shorter than it was")
    place, last = first - 1, last - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = now = path[0]
    for other in path[1:]:
        must(last, "the extension is too long")
        if place & 1 or place == last:
            before, now = sha256(b"\1" + other + before), sha256(b"\1" + other + now)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            now = sha256(b"\1" + now + other)
        place, last = place >> 1, last >> 1
    same = [base64.b64encode(one).decode() for one in (before, now)] == [old_root, new_root]
    must(last == 0 and same, "the log does not hold what it did")
    return f"{origin}: {size} records, none of those {was} changed"


def verify(record: bytes, proof: str, key: str) -> str:
    """What a proof says of a record; NotProven says what is wrong with it."""
    head, note = proof.split("\n\n", 1)
    lines = head.split("\n")
    must(lines[0] == "c2sp.org/tlog-proof@v1", "this is no proof")
    lines = [line for line in lines[1:] if not line.startswith("extra ")]
    index, path = int(lines[0].split()[1]), [base64.b64decode(line) for line in lines[1:]]
    origin, size, root = signed(note, key)[:3]
    found = root_of(record, index, int(size), path)
    must(base64.b64encode(found).decode() == root, "the record is not in the log")
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
    parser = argparse.ArgumentParser(usage=__doc__.partition("\n\n")[0])
    parser.add_argument("given", nargs="+")
    parser.add_argument("--tsa", default="")
    parser.add_argument("--witness", default="")
    parser.add_argument("--extends", action="store_true")
    given = parser.parse_args()
    if given.extends:
        old, extension = (pathlib.Path(name).read_text(encoding="utf-8") for name in given.given[:2])
        print(extends(old, extension, given.given[2]))
        return
    folder, key, authority = pathlib.Path(given.given[0]), given.given[1], given.tsa
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
        other = file.with_suffix(".witnessed")
        if given.witness:
            must(other.exists(), f"{file.name} is not witnessed yet")
            seen = other.read_text(encoding="utf-8")
            verify(octets, seen, key)
            print(f"    witnessed {witnessed(seen.split(chr(10) * 2, 1)[1], given.witness)}")
        elif other.exists():
            print("    with the signature of a witness, which his key would verify")
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
