"""Signing in to the pages by OpenID Connect: who comes in, what he may do, and who does not come in."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import KeySet, RSAKey

from quillon.config.load import load
from quillon.lab.pki import Authority
from tests.support.browser import Browser
from tests.support.oidc import OidcProvider
from tests.support.server import Server, free_port, until

PAGE = {"Accept": "text/html,application/xhtml+xml"}


class World:
    """A provider, and a server that asks it."""

    def __init__(self, folder: Path, make: Callable[..., Server], more: str = "", given: str = "") -> None:
        authority = Authority(folder / "pki")
        self.ca = authority.write()
        issued = authority.issue("mx", ["127.0.0.1"])
        self.provider = OidcProvider(issued.certificate, issued.key)
        (folder / "secret").write_text("pass:word ä\n")
        self.url = f"https://127.0.0.1:{free_port()}"
        self.server = make(
            f"""Suspend_Delivery = true
            HTTP_Listener {{
              TLS_Certificate = "{issued.certificate}" TLS_Key = "{issued.key}"
              OIDCParameters = [ issuer = "{self.provider.issuer}" client_id = "quillon" secret_file = "{folder}/secret"
                url = "{self.url}" ca = "{self.ca}" {given} ]
              {more}
              Listen "{self.url.removeprefix("https://")}" {{ }} }}"""
        ).start()
        self._browsers: list[httpx.Client] = []
        self.browser = self.new_browser()

    def new_browser(self) -> httpx.Client:
        verify = ssl.create_default_context(cafile=str(self.ca))
        made = httpx.Client(verify=verify, follow_redirects=True, headers=PAGE, trust_env=False, timeout=30)
        self._browsers.append(made)
        return made

    def end(self) -> None:
        for browser in self._browsers:
            browser.close()
        self.provider.stop()

    def sign_in(self, path: str = "/") -> httpx.Response:
        return self.browser.get(self.url + path)

    def order(self, command: str, **headers: str) -> httpx.Response:
        given = {"Origin": self.url, **headers}
        return self.browser.post(f"{self.url}/api/v1/commands", json={"command": command}, headers=given)


@pytest.fixture
def world(tmp_path: Path, server: Callable[..., Server]) -> Iterator[World]:
    made = World(tmp_path, server)
    yield made
    made.end()


def test_who_signs_in_may_do_what_his_groups_say(world: World) -> None:
    world.provider.claims = {"groups": ["staff", "operate"]}
    page = world.sign_in("/queues?by=delayed")
    assert page.status_code == 200
    assert str(page.url) == f"{world.url}/queues?by=delayed"
    assert "ann@bank.test" in page.text
    assert world.provider.secrets == ["quillon:pass%3Aword+%C3%A4"]
    assert world.provider.asked[0]["redirect_uri"] == f"{world.url}/login/callback"
    cookie = next(one for one in world.browser.cookies.jar if one.name == "__Host-quillon")
    assert cookie.secure
    assert "HttpOnly" in cookie._rest  # type: ignore[attr-defined]
    assert (
        world.order("whoami").json()["result"].startswith("ann@bank.test, with the roles ann@bank.test, staff, operate")
    )
    assert world.order("summary reset").status_code == 200
    assert world.order("config reload").status_code == 403
    # what a browser sends for another page
    for headers in ({"Origin": "https://evil.test"}, {"Sec-Fetch-Site": "cross-site"}):
        assert world.order("summary reset", **headers).status_code == 403
    bare = world.browser.post(f"{world.url}/api/v1/commands", json={"command": "summary reset"})
    assert bare.status_code == 403
    # a program that is not signed in is told so, and is not led away
    with world.new_browser() as other:
        answer = other.get(f"{world.url}/metrics", headers={"Accept": "text/plain"})
        assert answer.status_code == 401
        assert "www-authenticate" not in answer.headers
        assert other.get(f"{world.url}/healthz").status_code == 200
    assert world.browser.post(f"{world.url}/logout", headers={"Origin": "https://evil.test"}).status_code == 403
    token = world.browser.cookies["__Host-quillon"]
    assert world.browser.post(f"{world.url}/logout", headers={"Origin": world.url}).text == "signed out\n"
    answer = httpx.get(
        f"{world.url}/metrics", headers={"Cookie": f"__Host-quillon={token}"},
        verify=ssl.create_default_context(cafile=str(world.ca)), trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 401


def test_orders_are_given_in_a_browser(world: World, tmp_path: Path) -> None:
    """What no program shows that sends the headers it thinks a browser would."""
    world.provider.claims = {"groups": ["operate"]}
    assert world.sign_in().status_code == 200
    message = {"sender": "a@shop.test", "recipients": ["b@bank.test"], "text": "x"}
    for _ in range(3):
        given = world.browser.post(f"{world.url}/api/v1/messages", json=message, headers={"Origin": world.url})
        assert given.status_code == 202, given.text
    browser = Browser(tmp_path)
    try:
        browser.go(f"{world.url}/domain/bank.test")
        browser.shows("ann@bank.test")
        browser.press("Pause for an hour")
        until(lambda: _told(world, "suspended") != [], "it is paused")
        (row,) = _told(world, "suspended")
        assert (row["domain"], row["by"]) == ("bank.test", "ann@bank.test")
        browser.go(f"{world.url}/domain/bank.test")
        browser.shows("Resume")
        browser.press("Fail all")
        browser.shows("3 messages would be failed")
        browser.press("Yes, do it")
        until(lambda: _told(world, "find --recipient b@bank.test")["total"] == 0, "no mail")
        browser.shows("Back")
        browser.press("Sign out")
        browser.shows("signed out")
        assert browser.console == []
    finally:
        browser.close()


def _told(world: World, command: str) -> Any:
    return world.order(command, Accept="application/json").json()["result"]


def test_to_be_known_to_the_provider_is_not_enough(world: World) -> None:
    assert world.sign_in().status_code == 403
    for group in ("view", "admin"):
        world.browser = world.new_browser()
        world.provider.claims = {"groups": group}
        assert world.sign_in().status_code == 200
        assert world.order("config reload").status_code == (200 if group == "admin" else 403)
    # a name is no group
    world.browser = world.new_browser()
    world.provider.claims = {"email": "admin"}
    assert world.sign_in().status_code == 403


def test_name_and_groups_may_be_told_beside_the_token(world: World) -> None:
    """OpenID Connect Core 5.4: claims that a scope asks for come from there, and need not be in the token."""
    world.provider.claims = {"email": None, "email_verified": None}
    world.provider.told = {"sub": "1", "email": "bob@bank.test", "email_verified": True, "groups": ["operate"]}
    assert world.sign_in("/queues").status_code == 200
    assert world.order("whoami").json()["result"].startswith("bob@bank.test, with the roles bob@bank.test, operate")
    for told, claims, why in (
        ({"sub": "2", "email": "bob@bank.test", "email_verified": True}, {}, "is about somebody else"),
        ({"email": "bob@bank.test", "email_verified": True}, {}, "is about somebody else"),
        # the word of the token is not about this address
        ({"sub": "1", "email": "bob@bank.test", "email_verified": False}, {"email_verified": True}, "has not verified"),
        ({"sub": "1", "email": "bob@bank.test"}, {"email_verified": True}, "has not verified"),
        ({"error": "temporarily"}, {}, "is about somebody else"),
    ):
        world.browser = world.new_browser()
        world.provider.told, world.provider.claims = told, {"email": None, "email_verified": None, **claims}
        answer = world.sign_in()
        assert (answer.status_code, why in answer.text) == (403, True), (told, answer.text)
    # what the token says goes first
    world.browser = world.new_browser()
    world.provider.told = {"sub": "1", "email": "bob@bank.test", "groups": ["admin"]}
    world.provider.claims = {"groups": None}
    assert world.sign_in().status_code == 200
    assert world.order("whoami").json()["result"].startswith("ann@bank.test, with the roles ann@bank.test, admin")


def test_what_the_configuration_says_holds_for_them_as_well(tmp_path: Path, server: Callable[..., Server]) -> None:
    (tmp_path / "groups").write_text("operate:ann\n")
    more = f"""Enable_Authorization = true AuthorizationParameters = [ uri = "groups://{tmp_path}/groups" ]"""
    world = World(tmp_path, server, more, 'user = "preferred_username" groups = "roles"')
    try:
        world.provider.claims = {"preferred_username": "ann", "groups": ["admin"]}
        assert world.sign_in().status_code == 200
        assert world.order("summary reset").status_code == 200
        assert world.order("config reload").status_code == 403
    finally:
        world.end()


NOW = int(time.time())


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": "somebody else"}, "aud"),
        ({"aud": ["quillon", "other"], "azp": "other"}, "is for somebody else"),
        ({"iss": "https://evil.test"}, "iss"),
        ({"exp": NOW - 3600}, "expired"),
        ({"exp": None}, "exp"),
        ({"iat": NOW + 86400}, "not good"),
        ({"email_verified": False}, "has not verified"),
        ({"email_verified": None}, "has not verified"),
        ({"email": None}, "does not say who this is"),
        ({"email": "a\nb"}, "does not say who this is"),
    ],
)
def test_tokens_that_are_not_good(world: World, claims: dict[str, Any], told: str) -> None:
    world.provider.claims = {"groups": ["admin"], **claims}
    answer = world.sign_in()
    assert answer.status_code == 403
    assert told in answer.json()["title"]
    assert "__Host-quillon" not in world.browser.cookies


def _unsigned(claims: dict[str, Any]) -> str:
    parts = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({"alg": "none"}, claims)
    )
    return ".".join([*parts, ""])


def test_tokens_that_nobody_has_signed(world: World) -> None:
    provider, good = world.provider, world.provider.key
    provider.claims = {"groups": ["admin"]}
    provider.published = KeySet([good])
    provider.key = RSAKey.generate_key(2048, parameters={"kid": "one"})
    assert "does not verify" in world.sign_in().json()["title"]
    provider.key = good
    now = int(time.time())
    claims = {
        "iss": provider.issuer,
        "aud": "quillon",
        "sub": "1",
        "iat": now,
        "exp": now + 60,
        "email": "a@b",
        "groups": ["admin"],
    }
    for token in (_unsigned(claims), "x.y.z", "", "a" * 10000):
        provider.token = token or " "
        assert world.sign_in().status_code == 403, token
    provider.token = None
    assert world.sign_in().status_code == 200


def test_keys_that_are_new_are_looked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.provider.claims = {"groups": ["view"]}
    assert world.sign_in().status_code == 200
    world.provider.key = RSAKey.generate_key(2048, parameters={"kid": "two"})
    world.provider.header = {"kid": "two"}
    world.browser = world.new_browser()
    answer = world.sign_in()
    # keys are not looked for at will: within a minute what is known has to do
    assert answer.status_code == 403
    assert "does not verify" in answer.json()["title"]


def test_answers_that_belong_to_no_login_of_this_browser(world: World) -> None:
    provider = world.provider
    provider.claims = {"groups": ["admin"]}
    begun = world.browser.get(f"{world.url}/login", follow_redirects=False)
    assert begun.status_code == 303
    back = world.browser.get(begun.headers["location"], follow_redirects=False).headers["location"]
    with world.new_browser() as other:
        assert "was not begun here" in other.get(back).json()["title"]
        other.get(f"{world.url}/login", follow_redirects=False)
        assert "was not begun here" in other.get(back).json()["title"]  # begun, but not this one
        other.cookies.set("__Host-quillon-login", "e30=.0", domain="127.0.0.1")
        assert other.get(back).status_code == 403
    assert "another provider" in world.browser.get(f"{back}&iss=https://evil.test").json()["title"]
    assert world.browser.get(back).status_code == 200
    assert world.browser.get(back).status_code == 403  # a code is good once
    refused = world.browser.get(f"{world.url}/login/callback?error=access_denied&state=x")
    assert refused.status_code == 403


@pytest.mark.parametrize("back", ["https://evil.test/", "//evil.test/", "/\\evil.test", "/a\tb", "javascript:1", ""])
def test_nobody_is_led_elsewhere(world: World, back: str) -> None:
    world.provider.claims = {"groups": ["view"]}
    answer = world.browser.get(f"{world.url}/login", params={"back": back})
    assert str(answer.url) == f"{world.url}/"


def test_a_provider_that_is_gone_keeps_nobody_else_out(tmp_path: Path, server: Callable[..., Server]) -> None:
    (tmp_path / "users").write_text("ann:secret\n")
    world = World(tmp_path, server, f'AuthPlainParameters = [ uri = "file://{tmp_path}/users" ]')
    world.provider.stop()
    answer = world.sign_in()
    assert answer.status_code == 503
    assert world.provider.issuer in answer.json()["title"]
    answer = world.browser.get(f"{world.url}/metrics", headers={"Accept": "text/plain"}, auth=("ann", "secret"))
    assert answer.status_code == 200
    world.end()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('issuer = "http://id.test"', "issuer has to be an https:// address"),
        ('url = "mx.test"', "url has to be an https:// address"),
        ('secret = "x"', "there is no 'secret'"),
        ('client_id = ""', "client_id is missing"),
    ],
)
def test_configurations_that_cannot_work(tmp_path: Path, given: str, told: str) -> None:
    good = {"issuer": "https://id.test", "client_id": "q", "secret_file": "s", "url": "https://mx.test"}
    name = given.split(maxsplit=1)[0]
    rows = [f'{key} = "{value}"' for key, value in good.items() if key != name] + [given]
    file = tmp_path / "ecelerity.conf"
    file.write_text(f'HTTP_Listener {{ OIDCParameters = [ {" ".join(rows)} ] Listen "127.0.0.1:8025" {{ }} }}')
    faults = [str(fault) for fault in load(str(file)).errors]
    assert any(told in fault and "ecelerity.conf:1:" in fault for fault in faults), faults
    assert any("TLS_Certificate" in fault for fault in faults)
