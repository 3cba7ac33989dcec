"""`msys.validate.opendkim` and `msys.validate.openarc`: signatures made and looked at by scripts."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

from quillon.lua.msys.api import Api, Library, Object
from quillon.lua.msys.message import texts
from quillon.mailauth import arc, dkim
from quillon.mailauth.author import author_of
from quillon.mailauth.dkim import DkimError, DkimResult, DkimSigner
from quillon.policy.chain import chain_of
from quillon.policy.hook import Call, Phase

STATUS = {
    name: number
    for number, name in enumerate(
        (
            "DKIM_STAT_OK",
            "DKIM_STAT_BADSIG",
            "DKIM_STAT_NOSIG",
            "DKIM_STAT_NOKEY",
            "DKIM_STAT_CANTVRFY",
            "DKIM_STAT_SYNTAX",
            "DKIM_STAT_NORESOURCE",
            "DKIM_STAT_INTERNAL",
            "DKIM_STAT_REVOKED",
            "DKIM_STAT_INVALID",
            "DKIM_STAT_NOTIMPLEMENT",
            "DKIM_STAT_KEYFAIL",
            "DKIM_STAT_CBREJECT",
            "DKIM_STAT_CBTRYAGAIN",
            "DKIM_STAT_CBERROR",
        )
    )
}

_OK = STATUS["DKIM_STAT_OK"]
library = Library(STATUS)


def status_of(results: list[DkimResult]) -> int:
    """The DKIM_STAT of a message: that of a signature that holds, else of the first."""
    if not results:
        return STATUS["DKIM_STAT_NOSIG"]
    if any(result.status == "pass" for result in results):
        return STATUS["DKIM_STAT_OK"]
    return result_status(results[0])


def result_status(result: DkimResult) -> int:
    if result.status == "temperror":
        return STATUS["DKIM_STAT_KEYFAIL"]
    if result.status == "permerror":
        return STATUS["DKIM_STAT_NOKEY" if "no key" in result.reason else "DKIM_STAT_SYNTAX"]
    return STATUS["DKIM_STAT_OK" if result.status == "pass" else "DKIM_STAT_BADSIG"]


@library.of_api("msys.validate.opendkim.verify")
async def verify(api: Api, call: Call) -> tuple[Object, int]:
    """Verify the signatures of a message: a handle for the get_ functions, and a DKIM_STAT."""
    content = call.view.content
    found = await dkim.verify(content.head, content.body, api.environment.records, api.environment.now())
    return Object("dkim", found), status_of(found)


@library.function("msys.validate.opendkim.get_num_sigs")
def get_num_sigs(results: list[DkimResult]) -> tuple[int, int]:
    """How many signatures there are, and a DKIM_STAT."""
    return len(results), _OK


@library.function("msys.validate.opendkim.get_sig")
def get_sig(results: list[DkimResult], number: int = 0) -> tuple[Object | None, int]:
    """One of them, counted from 0, and its DKIM_STAT."""
    if not 0 <= int(number) < len(results):
        return None, STATUS["DKIM_STAT_INVALID"]
    found = results[int(number)]
    return Object("sig", found), result_status(found)


@library.function("msys.validate.opendkim.get_sig_canons")
def canons(result: DkimResult) -> tuple[str, int, str]:
    """The canonicalization of the header, a DKIM_STAT, and that of the body."""
    head, _, body = result.canonicalization.partition("/")
    return head, _OK, body or "simple"


@library.function("msys.validate.opendkim.get_sig_hdrsigned")
def hdrsigned(result: DkimResult, name: str) -> tuple[bool, int]:
    """Whether it covers a header field, and a DKIM_STAT."""
    return name.lower() in (header.strip().lower() for header in result.headers.split(":")), _OK


def _fact(read: Callable[[DkimResult], Any]) -> Callable[[DkimResult], tuple[Any, int]]:
    return lambda result: (read(result), _OK)


for _name, _read, _doc in (
    ("domain", attrgetter("domain"), "The domain that signed."),
    ("selector", attrgetter("selector"), "The selector of its key."),
    ("identity", attrgetter("identity"), "The identity, i=."),
    ("signalg", attrgetter("algorithm"), "The algorithm."),
    ("keysize", attrgetter("key_bits"), "Bits of the key."),
    ("errorstr", lambda result: result.reason or result.status, "What is wrong with it."),
    ("flags", lambda result: 1 if result.status == "pass" else 0, "1 if it holds."),
):
    library.function(f"msys.validate.opendkim.get_sig_{_name}", doc=f"{_doc} Behind it a DKIM_STAT.")(_fact(_read))


def signer_of(api: Api, options: Any, default_domain: str) -> DkimSigner:
    """Who signs, by the options of a script. Raises ValueError."""
    given = options if isinstance(options, dict) else {}
    domain = str(given.get("signing_domain") or given.get("base_domain") or default_domain)
    selector = str(given.get("selector") or "")
    if not domain or not selector:
        raise ValueError("signing needs signing_domain and selector")
    if not given.get("keybuf") and not given.get("keyfile"):
        raise ValueError("signing needs keyfile, the path of a PEM key, or keybuf, the key itself")
    if str(given.get("digest", "rsa-sha256")) == "rsa-sha1":
        _say_once(api, "digest = rsa-sha1 must not be used to sign (RFC 8301): mail is signed with rsa-sha256")
    if given.get("keybuf"):
        data = str(given["keybuf"]).encode()
    else:
        name = str(given.get("keyfile") or "").replace("%{d}", domain).replace("%{s}", selector)
        try:
            data = (Path(api.environment.folder) / name).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read {name}: {error.strerror}") from None
    names = tuple(texts(given["headerlist"])) if given.get("headerlist") else dkim.DEFAULT_HEADERS
    head, body = (str(given.get(name, "relaxed")) for name in ("header_canon", "body_canon"))
    if not {head, body} <= {"simple", "relaxed"}:
        raise ValueError("a canonicalization is simple or relaxed")
    return DkimSigner(
        domain, selector, dkim.load_private_key(data), head, body, names, str(given.get("identity") or "")
    )


def _say_once(api: Api, text: str) -> None:
    """A panic line, the first time that something happens in this worker."""
    said: set[str] = api.environment.shared.setdefault("said", set())
    if text not in said:
        said.add(text)
        api.environment.report(f"scriptlet: {text}")


@library.of_api("msys.validate.opendkim.sign")
def sign(api: Api, call: Call, vctx: Any = None, options: Any = None) -> bool:
    """sign(msg, vctx, {signing_domain, selector, keyfile or keybuf[, header_canon, body_canon, identity]}): sign a
    message, in core_final_validation."""
    final = (Phase.FINAL_VALIDATION, Phase.POST_FINAL_VALIDATION)
    if call.phase not in final and call.view.message_id:
        raise ValueError("sign in core_final_validation: what is changed later breaks the signature")
    content = call.view.content
    signer = signer_of(api, options, next(iter(author_of(content.head).domains), ""))
    call.view.put_in_front(dkim.sign(content.signed_head, content.body, signer, api.environment.now()))
    return True


@library.of_api("msys.validate.openarc.verify")
async def verify_chain(api: Api, call: Call) -> str:
    """Validate the ARC chain of a message; arc_cv in its context is none, pass or fail."""
    return (await chain_of(call, api.environment)).status


@library.of_api("msys.validate.openarc.sign", doc="Add one more link to the ARC chain of a message.")
@library.of_api("msys.validate.openarc.seal", doc="Add one more link to the ARC chain of a message.")
async def seal(api: Api, call: Call, options: Any = None, results: str | None = None) -> bool:
    """seal(msg, {signing_domain, selector, keyfile or keybuf[, authservid]}[, results]): seal a message, in
    core_final_validation; `results` is what ARC-Authentication-Results says behind the server's name."""
    given = options if isinstance(options, dict) else {}
    signer = signer_of(api, given, "")
    chain = await chain_of(call, api.environment)
    content = call.view.content
    server = str(given.get("authservid") or api.environment.hostname)
    try:
        fields = arc.seal(
            content.signed_head, content.body, signer, chain, server, results or "", api.environment.now()
        )
    except DkimError as error:
        raise ValueError(str(error)) from None
    call.view.put_in_front(fields)
    return True
