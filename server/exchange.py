"""One HTTP request and its answer, as the outermost layer sees it: identity, key, status, log line, counters."""

from __future__ import annotations

import hashlib
import hmac
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

PROTECTED = "/v1/"

# Visible ASCII and short enough for a log line; anything else is replaced, not refused.
SANE_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Exchange:
    """What is known of one request.

    client: who asks, for limits: the digest of a key, or the address. model: the `model` label of its metrics;
    None where the request asks for no prediction. rejection: why it was refused, if it was.
    """

    request_id: str
    started_s: float
    client: str
    model: str | None = None
    rejection: str | None = None
    status: int = 0


class ApiKeys:
    """The accepted keys, as digests, so that comparing takes the same time whatever is asked. None: all may ask."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @property
    def needed(self) -> bool:
        """Whether requests must bring a key."""
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        """Whether the key is one of ours; looks at all of them in any case."""
        given = _digest(key)
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


class Report:
    """Reports a finished exchange to the metrics, and to the access log where that is on.

    record: called with the exchange and its duration in seconds.
    """

    def __init__(self, record: Callable[[Exchange, float], None], access_log: bool) -> None:
        self._record = record
        self._access_log = access_log

    def __call__(self, scope: Mapping[str, Any], exchange: Exchange, duration_s: float) -> None:
        self._record(exchange, duration_s)
        if self._access_log:
            _log(scope, exchange, duration_s)


class ExchangeMiddleware:
    """Gives each request its Exchange and X-Request-Id, checks its key, and reports it when it is over.

    refuse: makes the answer to a protected path without (None) or with a wrong key (its bytes).
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        refuse: Callable[[Scope, bytes | None], ASGIApp],
        report: Report,
    ) -> None:
        self.app = app
        self._keys = keys
        self._refuse = refuse
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        client = client_of(headers, scope, self._keys)
        exchange = Exchange(request_id_of(headers), time.monotonic(), client or _address(scope))
        scope["offramp.exchange"] = exchange
        id_header = (b"x-request-id", exchange.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        app = self.app
        if client is None and scope["path"].startswith(PROTECTED):
            app = self._refuse(scope, _key(headers))
        try:
            await app(scope, receive, send_with_id)
        finally:
            # An exception on its way out becomes a 500 in the layer around this one.
            exchange.status = exchange.status or 500
            self._report(scope, exchange, time.monotonic() - exchange.started_s)


def new_request_id() -> str:
    """Unique, not secret: random numbers of the process's own, where a UUID would ask the system for each."""
    return f"{random.getrandbits(128):032x}"


def client_of(headers: dict[bytes, bytes], scope: Mapping[str, Any], keys: ApiKeys) -> str | None:
    """Who asks: the digest of its key where keys are needed, else its address. None without an accepted key."""
    if not keys.needed:
        return _address(scope)
    key = _key(headers)
    return _digest(key).hex() if key is not None and keys.accept(key) else None


def request_id_of(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode("ascii") if SANE_REQUEST_ID.fullmatch(given) else new_request_id()


def _address(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _key(headers: dict[bytes, bytes]) -> bytes | None:
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key") or None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _log(scope: Mapping[str, Any], exchange: Exchange, duration_s: float) -> None:
    # Quoted again: a decoded path may hold line breaks, and a log line must stay one line.
    method, path = scope["method"], quote(scope["path"])
    status, request_id, client = exchange.status, exchange.request_id, _address(scope)
    logger.info("%s %s %s %d %.1f ms %s", client, method, path, status, duration_s * 1000, request_id)
