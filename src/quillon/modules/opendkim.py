"""`opendkim`: DKIM signatures verified after the data, and made in final validation (manual, opendkim module).

Verification sets dkim_status and dkim_domain in the message context. Signing needs opendkim_sign = true for the
message's binding and domain, and takes the domain of the From field, or the base_domain of its dkim_domain stanza.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quillon.mailauth import dkim
from quillon.mailauth.author import author_of
from quillon.mailauth.dkim import DkimError, DkimResult, DkimSigner, PrivateKey
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Callout, Hook, Phase, PolicyError, Verdict


@dataclass(frozen=True, slots=True)
class Signing:
    """How a domain signs: `key` is a path with %{d} and %{s} for domain and selector."""

    base_domain: str
    selector: str
    key: str
    header_canon: str = "simple"
    body_canon: str = "simple"
    headers: tuple[str, ...] = dkim.DEFAULT_HEADERS
    identity: str = ""


@dataclass(frozen=True, slots=True)
class DkimSettings:
    """An opendkim stanza; `default` signs for domains without a dkim_domain stanza, if it has a selector and a key."""

    name: str
    verify: bool
    default: Signing
    domains: Mapping[str, Signing] = field(default_factory=dict)


async def results_of(call: Call, environment: Environment) -> list[DkimResult]:
    """The results of a message's signatures, verified once."""
    known = call.context.facts.get("dkim")
    if isinstance(known, list):
        return known
    content = call.view.content
    found = await dkim.verify(content.head, content.body, environment.records, environment.now())
    call.context.facts["dkim"] = found
    return found


class OpenDkim:
    """`signs` tells whether opendkim_sign is on for a message's binding group, binding and recipient domain."""

    facility = "opendkim"

    def __init__(
        self, settings: DkimSettings, environment: Environment, signs: Callable[[str, str, str], bool]
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._environment = environment
        self._signs = signs
        self._keys: dict[str, PrivateKey] = {}
        for domain, signing in settings.domains.items():
            self._key(signing, signing.base_domain or domain)  # now, not with the first message

    def callout(self, phase: Phase) -> Callout | None:
        if phase is Phase.DATA and self._settings.verify:
            return self._verify
        return self._sign if phase is Phase.FINAL_VALIDATION else None

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        return None

    def close(self) -> None:
        self._keys.clear()

    def _verify(self, call: Call) -> Awaitable[Verdict]:
        return self._verified(call)

    async def _verified(self, call: Call) -> Verdict:
        results = await results_of(call, self._environment)
        message = call.context.message
        passed = [result.domain for result in results if result.status == "pass"]
        message["dkim_status"] = "pass" if passed else (results[0].status if results else "none")
        if passed:
            message["dkim_domain"] = ",".join(dict.fromkeys(passed))
        call.context.results += [result.text() for result in results] or ["dkim=none"]
        return Verdict.CONT

    def _sign(self, call: Call) -> Verdict:
        view = call.view
        recipient = view.recipient.rpartition("@")[2].lower()
        if not self._signs(view.binding_group or "default", view.binding or "default", recipient):
            return Verdict.CONT
        author = author_of(view.content.head)
        domain = author.domains[0] if author.domains else ""
        signing = self._settings.domains.get(domain)
        if signing is None and self._settings.default.selector and self._settings.default.key and domain:
            signing = self._settings.default
        if signing is None:
            return Verdict.CONT
        signer = self.signer(signing, signing.base_domain or domain)
        content = view.content
        known = content.derived.get(signer)
        if known is None:
            try:
                known = dkim.sign(content.signed_head, content.body, signer, self._environment.now())
            except DkimError as error:
                raise PolicyError(str(error)) from None
            content.derived[signer] = known
        view.put_in_front(known)
        return Verdict.CONT

    def signer(self, signing: Signing, domain: str) -> DkimSigner:
        """Raises PolicyError where the key cannot be had: mail that is to be signed does not go out unsigned."""
        return DkimSigner(
            domain,
            signing.selector,
            self._key(signing, domain),
            signing.header_canon,
            signing.body_canon,
            signing.headers,
            signing.identity,
        )

    def _key(self, signing: Signing, domain: str) -> PrivateKey:
        path = signing.key.replace("%{d}", domain).replace("%{s}", signing.selector)
        found = self._keys.get(path)
        if found is None:
            found = self._keys[path] = load_key(path)
        return found


def load_key(path: str) -> PrivateKey:
    """Raises PolicyError."""
    try:
        return dkim.load_private_key(Path(path).read_bytes())
    except OSError as error:
        raise PolicyError(f"opendkim: cannot read {path}: {error.strerror}") from None
    except DkimError as error:
        raise PolicyError(f"opendkim: {path}: {error}") from None
