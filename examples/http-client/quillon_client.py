"""Send mail through Quillon's HTTP_Listener, with the standard library alone.

client = Client("https://mx1.shop.example:8443", user="shop", password="secret", ca="ca.pem")
result = client.send("bounces@shop.example", ["ann@bank.example"], subject="Hello", text="...")
print(result[0]["id"])
"""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
import uuid
from typing import Any


class Refused(Exception):
    """A message was refused for good, or the request was wrong; `results` has what was said of each message."""

    def __init__(self, words: str, results: list[dict[str, Any]]) -> None:
        super().__init__(words)
        self.results = results


class Client:
    """`user` and `password`, or `certificate` (PEM with its key), say who sends; `ca` is whom the server's is of."""

    def __init__(
        self,
        url: str,
        *,
        user: str = "",
        password: str = "",
        certificate: str | None = None,
        ca: str | None = None,
        attempts: int = 5,
        timeout: float = 60.0,
    ) -> None:
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"{url!r} is no address of an HTTP_Listener")
        self._url = url.rstrip("/") + "/api/v1/messages"
        self._login = base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
        self._attempts = attempts
        self._timeout = timeout
        self._tls = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
        if self._tls is not None and certificate is not None:
            self._tls.load_cert_chain(certificate)

    def send(self, sender: str, recipients: list[Any], **parts: Any) -> list[dict[str, Any]]:
        """Send one message; `parts` are those of the API, such as subject, text, html, attachments. Raises Refused, and
        OSError where the server can't be reached or takes nothing for now."""
        message = {"sender": sender, "recipients": recipients, **parts}
        return self._post(json.dumps(message).encode(), str(uuid.uuid4()))

    def _post(self, data: bytes, key: str) -> list[dict[str, Any]]:
        """The same request with the same key, until there is an answer: it is taken once."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        if self._login:
            headers["Authorization"] = f"Basic {self._login}"
        problem: OSError = OSError("no attempt was made")
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(2.0**attempt, 30.0))
            request = urllib.request.Request(self._url, data, headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=self._timeout, context=self._tls) as answer:
                    found: list[dict[str, Any]] = json.load(answer)["results"]
                    return found
            except urllib.error.HTTPError as error:
                with error:
                    told = json.load(error)
                if error.code != 503:
                    raise Refused(told.get("title", "refused"), told.get("results", [])) from None
                problem = OSError(told.get("title") or "not taken for now")
            except OSError as error:
                problem = error
        raise problem
