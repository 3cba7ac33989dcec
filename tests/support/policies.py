"""A web server for the policies of MTA-STS: one address per domain, each with the certificate and the answer it wants."""

from __future__ import annotations

import http.server
import ssl
import threading
from dataclasses import dataclass, field

from quillon.lab.pki import Issued

PATH = "/.well-known/mta-sts.txt"


@dataclass
class Answer:
    """What a policy host says."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/plain"})


class PolicyHost:
    """Listens at `address`, port 443, which takes root; `asked` counts requests."""

    def __init__(self, address: str, issued: Issued, answer: Answer) -> None:
        self.answer = answer
        self.asked = 0
        self.down = False
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked += 1
                if host.down:
                    self.connection.close()
                    return
                known = self.path == PATH
                self.send_response(host.answer.status if known else 404)
                for name, value in host.answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(host.answer.body)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer((address, 443), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.certificate, issued.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
