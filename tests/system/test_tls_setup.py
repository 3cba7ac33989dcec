"""What `tls-setup` prints is what senders obey, and what it calls a problem is what keeps their mail away."""

from __future__ import annotations

import dataclasses
import json
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.cli.main import main
from quillon.config.settings import StsPolicySettings
from quillon.lab.pki import DAY, Authority
from quillon.lab.sink import inbound_tls
from quillon.standards import fetch
from quillon.standards.setup import DomainRecords, ListenCertificate, LookedUp, ee, policy_id, policy_text, setup
from tests.support.peers import require_root
from tests.support.policies import Answer, PolicyHost
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.support.zones import Zones

HOST, DOMAIN = "mx.ours.test", "ours.test"
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def ders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Certificates by name: in use, another one, one of another host, one that ends soon."""
    authority = Authority(tmp_path_factory.mktemp("setup"))
    issued = {
        "used": authority.issue("used", [HOST]),
        "next": authority.issue("next", [HOST]),
        "other": authority.issue("other", ["mx.elsewhere.test"]),
        "ends": authority.issue("ends", [HOST], life=5 * DAY),
    }
    return {
        name: x509.load_pem_x509_certificates(one.certificate.read_bytes())[0].public_bytes(Encoding.DER)
        for name, one in issued.items()
    }


def wire(der: bytes) -> str:
    record = ee(der)
    return (bytes([record.usage, record.selector, record.matching]) + record.data).hex()


def good(ders: dict[str, bytes]) -> DomainRecords:
    policy = policy_text("enforce", [HOST], 604800)
    return DomainRecords(
        ((10, HOST),),
        True,
        {HOST: LookedUp((wire(ders["used"]),), True)},
        LookedUp((f"v=STSv1; id={policy_id(policy)};",)),
        LookedUp(tuple(policy.splitlines())),
        LookedUp(("v=TLSRPTv1; rua=mailto:x@ours.test",)),
    )


WANTED = StsPolicySettings(DOMAIN, "enforce", (), 604800)


def found(published: DomainRecords, *identities: ListenCertificate) -> Any:
    return setup(DOMAIN, identities, published, WANTED, "mailto:x@ours.test", NOW)


def test_what_is_right_has_no_problem(ders: dict[str, bytes]) -> None:
    result = found(good(ders), ListenCertificate("used.pem", ders["used"]))
    assert (result.problems, result.notes) == ((), ())
    assert result.zone[0] == f"_25._tcp.{HOST}. 3600 IN TLSA {ee(ders['used'])}"
    assert policy_id(policy_text("enforce", [HOST], 60)) != policy_id(policy_text("testing", [HOST], 60))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tlsa": {}}, "no TLSA record is published"),
        (
            {"tlsa": {HOST: LookedUp(problem="the lookup failed (SERVFAIL)")}},
            "who obeys DANE sends nothing to mx.ours.test",
        ),
        ({"tlsa": {HOST: LookedUp(("030101" + "ab" * 32,))}}, "who obeys DANE sends nothing now"),
        ({"tlsa": {HOST: LookedUp(("0301",))}}, "no usable TLSA record"),
        ({"sts": LookedUp()}, "_mta-sts.ours.test: no record is published"),
        ({"sts": LookedUp(("v=STSv1; id=!",))}, "malformed"),
        ({"policy": LookedUp(problem="mta-sts.ours.test has no address")}, "has no address"),
        (
            {"policy": LookedUp(("version: STSv1", "mode: enforce", "mx: mx2.ours.test", "max_age: 60"))},
            "does not name mx.ours",
        ),
        ({"policy": LookedUp(("version: STSv1", "mode: none", "max_age: 60"))}, "mode none"),
        ({"policy": LookedUp(("<html>",))}, "is none"),
    ],
)
def test_what_is_wrong_is_told(ders: dict[str, bytes], change: dict[str, Any], words: str) -> None:
    result = found(dataclasses.replace(good(ders), **change), ListenCertificate("used.pem", ders["used"]))
    assert any(words in problem for problem in result.problems), result.problems


def test_the_policy_that_the_configuration_has_is_compared(ders: dict[str, bytes]) -> None:
    used = ListenCertificate("used.pem", ders["used"])

    def problems(**changes: Any) -> tuple[str, ...]:
        wanted = dataclasses.replace(WANTED, **{"mx": (HOST,), **changes})
        return tuple(setup(DOMAIN, [used], good(ders), wanted, "mailto:x@ours.test", NOW).problems)

    assert problems() == ()
    assert problems(mode="testing") == ("the policy of ours.test is published as another one than is wanted here",)
    assert "mta_sts_policy: the policy of ours.test does not name mx.ours.test" in problems(mx=("other.test",))[0]


def test_a_key_that_comes_next_wants_its_record_before_it_is_used(ders: dict[str, bytes]) -> None:
    used, new = ListenCertificate("used.pem", ders["used"]), ListenCertificate("next.pem", ders["next"], True)
    result = found(good(ders), used, new)
    assert [line.split()[0] for line in result.zone[:2]] == [f"_25._tcp.{HOST}."] * 2
    assert "the next key (next.pem) has no record yet" in result.problems[0]
    both = LookedUp((wire(ders["used"]), wire(ders["next"])), True)
    assert found(dataclasses.replace(good(ders), tlsa={HOST: both}), used, new).problems == ()


def test_hosts_of_others_certificates_that_end_and_unsigned_zones_are_noted(ders: dict[str, bytes]) -> None:
    result = found(good(ders), ListenCertificate("other.pem", ders["other"]))
    assert "no certificate of this configuration names it" in result.notes[0]
    result = found(good(ders), ListenCertificate("used.pem", ders["used"]), ListenCertificate("ends.pem", ders["ends"]))
    assert any("ends.pem ends in" in note for note in result.notes)
    result = found(dataclasses.replace(good(ders), mx_secure=False), ListenCertificate("used.pem", ders["used"]))
    assert any("sign the zone" in note for note in result.notes)


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Our server's certificate, a sink that has it, a DNS that knows the host alone, and a web server for the policy."""
    require_root()  # port 443
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write()))
    fetch._context.cache_clear()
    own, web = authority.issue("own", [HOST]), authority.issue("web", [f"mta-sts.{DOMAIN}"])
    port = 25  # as MX records have it
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.8.1", port))
        except OSError:
            pytest.skip("a mail server listens on this machine's port 25 already")
    sink = SinkThread(host="127.0.8.1", port=port, tls=inbound_tls(str(own.certificate), str(own.key)))
    host = PolicyHost("127.0.8.2", web, Answer())
    rows = f"{DOMAIN}. 2 IN MX 10 {HOST}.\n{HOST}. 2 IN A 127.0.8.1\nmta-sts.{DOMAIN}. 2 IN A 127.0.8.2\n"
    zones = Zones(tmp_path / "dns", rows)
    file = tmp_path / "ours.conf"
    file.write_text(
        f'DNS_Servers = ( "127.0.0.1:{zones.port}" )\nESMTP_Listener {{ TLS_Certificate = "{own.certificate}"'
        f' TLS_Key = "{own.key}" Listen ":2525" {{ }} }}\n'
    )
    yield {"zones": zones, "rows": rows, "web": host, "sink": sink, "file": file, "ca": tmp_path / "ca.pem"} | {
        "authority": authority,
        "issued": web,
    }
    zones.stop()
    host.stop()
    sink.stop()


@pytest.mark.peer
def test_what_it_prints_is_what_senders_obey(ours: dict[str, Any], server: Callable[..., Server], capsys: Any) -> None:
    command = ["tls-setup", DOMAIN, "-c", str(ours["file"]), "--mode", "enforce"]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "PROBLEM  _25._tcp.mx.ours.test: no TLSA record is published" in said
    assert main([*command, "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert main([*command, "--policy"]) == 1
    ours["web"].answer = Answer(capsys.readouterr().out.encode())
    ours["zones"].write(ours["rows"] + "\n".join(made["zone"]).replace(" 3600 IN", " 2 IN") + "\n")
    ours["zones"].restart()
    assert main(command) == 0
    assert "PROBLEM" not in capsys.readouterr().out
    port = free_port()
    for options, standard in (("use_dane = true", "dane"), ("use_mta_sts = true", "mta-sts")):
        running = server(
            f"""{options} TLS_CA = "{ours["ca"]}" DNS_Servers = ( "127.0.0.1:{ours["zones"].port}" )
            ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}""",
            name=standard,
        ).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@sender.test", [f"b@{DOMAIN}"], "Subject: x\r\n\r\nhello\r\n")
        tls = running.wait_attempts(f"b@{DOMAIN}")[f"b@{DOMAIN}"]["tls"]
        assert (tls["standard"], tls["verified"]) == (standard, True)
        running.stop()
    bare = ours["file"].with_name("bare.conf")
    bare.write_text(f'DNS_Servers = ( "127.0.0.1:{ours["zones"].port}" )\n')
    assert main(["tls-setup", DOMAIN, "-c", str(bare)]) == 1
    assert "there is nothing to publish" in capsys.readouterr().err


@pytest.mark.peer
def test_our_own_listener_serves_the_policy(ours: dict[str, Any], server: Callable[..., Server], capsys: Any) -> None:
    ours["web"].stop()
    issued = ours["issued"]
    running = server(
        f"""DNS_Servers = ( "127.0.0.1:{ours["zones"].port}" )
        mta_sts_policy "{DOMAIN.upper()}" {{ mode = enforce mx = ( {HOST} ) max_age = 86400 }}
        HTTP_Listener {{ Well_Known = true TLS_Certificate = "{issued.certificate}" TLS_Key = "{issued.key}"
          Listen "127.0.8.2:443" {{ }} }}
        {ours["file"].read_text().splitlines()[1]}"""
    ).start()
    assert main(["tls-setup", DOMAIN, "-c", str(running.file), "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    ours["zones"].write(ours["rows"] + "\n".join(made["zone"]).replace(" 3600 IN", " 2 IN") + "\n")
    ours["zones"].restart()
    assert main(["tls-setup", DOMAIN, "-c", str(running.file)]) == 0, capsys.readouterr().out

    context = ssl.create_default_context(cafile=str(ours["ca"]))

    def get(path: str, host: str) -> tuple[int, str]:
        with httpx.Client(verify=context, trust_env=False) as client:
            extensions = {"sni_hostname": f"mta-sts.{DOMAIN}"}
            answer = client.get(f"https://127.0.8.2{path}", headers={"Host": host}, extensions=extensions)
            return answer.status_code, answer.text

    policy = "/.well-known/mta-sts.txt"
    assert get(policy, f"MTA-STS.{DOMAIN}:443") == (200, f"version: STSv1\nmode: enforce\nmx: {HOST}\nmax_age: 86400\n")
    assert [get(policy, host)[0] for host in (DOMAIN, "mta-sts.other.test", "127.0.8.2", "mta-sts.")] == [404] * 4
    assert [get(path, f"mta-sts.{DOMAIN}")[0] for path in ("/", "/metrics", "/healthz", "/api/v1/queues")] == [404] * 4
    token = running.folder / "spool/acme/challenges/abc_-1"
    token.parent.mkdir(parents=True)
    token.write_text("abc.print")
    (token.parent.parent / "secret").write_text("x")
    challenge = "/.well-known/acme-challenge/"
    assert get(f"{challenge}abc_-1", "anything.test") == (200, "abc.print")
    assert [get(challenge + name, "x.test")[0] for name in ("other", "..%2Fsecret", "%2Fetc%2Fpasswd", "a" * 129)] == [
        404
    ] * 4

    def shown() -> bytes:
        name = f"mta-sts.{DOMAIN}"
        with (
            socket.create_connection(("127.0.8.2", 443)) as sock,
            context.wrap_socket(sock, server_hostname=name) as tls,
        ):
            return tls.getpeercert(binary_form=True) or b""

    before = shown()
    issued.certificate.write_text("no certificate")
    until(lambda: "stays in use" in "".join(running.log("paniclog.ec")), "word of a file that is none")
    assert shown() == before
    again = ours["authority"].issue("again", [f"mta-sts.{DOMAIN}"])
    issued.key.write_bytes(again.key.read_bytes())
    issued.certificate.write_bytes(again.certificate.read_bytes())
    until(lambda: shown() != before, "the certificate that took its place")


@pytest.mark.parametrize(
    ("stanza", "words"),
    [
        ('mta_sts_policy "a b" { mx = ( x.test ) }', "its name is a domain"),
        ('mta_sts_policy "ours.test" { }', "mx has to name the hosts"),
        ('mta_sts_policy "ours.test" { mx = ( "*.*.test" ) }', "is no name of a host"),
    ],
)
def test_a_policy_that_nobody_could_read_is_refused(
    server: Callable[..., Server], capsys: Any, stanza: str, words: str
) -> None:
    assert main(["check", "-c", str(server(stanza).file)]) == 2
    told = capsys.readouterr()
    assert words in told.out + told.err


def test_a_policy_that_nobody_serves_is_told(server: Callable[..., Server], capsys: Any) -> None:
    given = server('mta_sts_policy "ours.test" { mode = none }')
    assert main(["check", "-c", str(given.file)]) == 0
    told = capsys.readouterr()
    assert "is served by nobody" in told.out + told.err
