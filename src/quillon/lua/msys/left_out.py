"""What the manual's API has and this server has not, and why. Calling one of these is an error that says so."""

from __future__ import annotations

from quillon.lua.msys.api import Api

_SCANNER = "content scanners are asked over SMTP or HTTP, not loaded into the server"
_PUSH = "push notifications are not delivered by this server"
_HTTP = "there is no HTTP listener"
_THREADS = "there are no thread pools: a function that waits suspends its own session only"
_FILES = "files are read by msys.readfile and require, and written by msys.core.io_wrapper_open"
_SEALED = "scripts reach the system through the documented functions only"

REASONS: dict[str, str] = (
    dict.fromkeys(
        (
            "msys.av.engines",
            "msys.av.scan",
            "msys.av.scan_part",
            "msys.brightmail.scan",
            "msys.cloudmark.add_af_data",
            "msys.cloudmark.analyze",
            "msys.cloudmark.score",
            "msys.cloudmark.score_af",
            "msys.commtouch.diagnose",
            "msys.expurgate.scan",
            "msys.symantec_beik.scan",
        ),
        _SCANNER,
    )
    | dict.fromkeys(
        ("msys.apn.apn_status_classifier", "msys.gcm.gcm_classify_error", "msys.gcm.gcm_get_result_error_code"), _PUSH
    )
    | dict.fromkeys(("msys.httpsrv.register", "msys.httpclnt.http_status_classifier"), _HTTP)
    | dict.fromkeys(("curl.new", "curl.escape", "curl.unescape"), "use msys.http.client")
    | dict.fromkeys(
        (f"io.{name}" for name in ("close", "input", "lines", "open", "output", "popen", "read", "write")), _FILES
    )
    | dict.fromkeys(
        (f"os.{name}" for name in ("execute", "exit", "getenv", "remove", "rename", "setlocale", "tmpname")), _SEALED
    )
    | dict.fromkeys((f"debug.{name}" for name in ("getinfo", "getlocal", "gethook", "sethook", "getupvalue")), _SEALED)
    | dict.fromkeys(("msys.threadpool.count", "msys.threadpool.find", "msys.threadpool.stat"), _THREADS)
    | {
        "msys.runInInst": _THREADS,
        "msys.snmpTrap": "there is no SNMP agent; write to the log and let the monitoring read it",
        "msys.os.statvfs_read": "disk space is watched by the server itself",
        "msys.os.statvfs_subscribe": "disk space is watched by the server itself",
        "msys.delivery.ob_get_current_message": "delivery has no scripts of its own connection",
        "msys.validate.dk.sign": "DomainKeys is historic (RFC 4870); use msys.validate.opendkim.sign",
        "msys.validate.dk.get_responsible_domain": "DomainKeys is historic (RFC 4870)",
        "loadfile": _FILES,
        "dofile": _FILES,
        "load": "use loadstring",
        "getfenv": _SEALED,
        "setfenv": _SEALED,
        "msys.runSieveScript": "Sieve is not in this server",
    }
)


def register(api: Api) -> None:
    api.left_out.update(REASONS)
