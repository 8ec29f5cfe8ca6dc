"""The outermost layer of a request: its id, its client, its API key, and its line in log and metrics."""

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

# Visible ASCII, short enough for a log line. Any other id is replaced.
SANE_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class RequestLog:
    """One request, for log and metrics.

    client: the name for limits: the digest of its key, or its address. model: the `model` label of its metrics; None
    for other requests than predictions. rejection: the reason of a refusal.
    """

    request_id: str
    started_s: float
    client: str
    model: str | None = None
    rejection: str | None = None
    status: int = 0


class ApiKeys:
    """The accepted keys, as digests, so that each comparison takes the same time. Without keys, none is needed."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @property
    def needed(self) -> bool:
        """Whether requests need a key."""
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        """Whether the key is accepted. Compares it with all keys in any case."""
        given = _digest(key)
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


class RequestReporter:
    """Reports a finished request to the metrics and the access log.

    record: called with the request's log and its duration in seconds.
    """

    def __init__(self, record: Callable[[RequestLog, float], None], access_log: bool) -> None:
        self._record = record
        self._access_log = access_log

    def __call__(self, scope: Mapping[str, Any], log: RequestLog, duration_s: float) -> None:
        self._record(log, duration_s)
        if self._access_log:
            _write_line(scope, log, duration_s)


class RequestLogMiddleware:
    """Gives each request its RequestLog and X-Request-Id, and reports it at the end.

    refuse: called with scope, headers and whether the client has an accepted key, or needs none. It returns the answer
    to a request that may not go on, else None.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        refuse: Callable[[Scope, dict[bytes, bytes], bool], ASGIApp | None],
        report: RequestReporter,
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
        log = RequestLog(request_id_of(headers), time.monotonic(), client or _address(scope))
        scope["offramp.log"] = log
        id_header = (b"x-request-id", log.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                log.status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        app = self._refuse(scope, headers, client is not None) or self.app
        try:
            await app(scope, receive, send_with_id)
        finally:
            # The layer around this one answers an exception with 500.
            log.status = log.status or 500
            self._report(scope, log, time.monotonic() - log.started_s)


def new_request_id() -> str:
    """A unique id, not secret. From the process's own generator: a UUID needs a system call."""
    return f"{random.getrandbits(128):032x}"


def client_of(headers: dict[bytes, bytes], scope: Mapping[str, Any], keys: ApiKeys) -> str | None:
    """The client: the digest of its key if keys are needed, else its address. None without an accepted key."""
    if not keys.needed:
        return _address(scope)
    key = key_of(headers)
    return _digest(key).hex() if key is not None and keys.accept(key) else None


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The id that the client gave, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode("ascii") if SANE_REQUEST_ID.fullmatch(given) else new_request_id()


def _address(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def key_of(headers: dict[bytes, bytes]) -> bytes | None:
    """The API key that a request carries."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key") or None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _write_line(scope: Mapping[str, Any], log: RequestLog, duration_s: float) -> None:
    # Quoted again: a decoded path may have line breaks.
    method, path = scope["method"], quote(scope["path"])
    status, request_id, client = log.status, log.request_id, _address(scope)
    logger.info("%s %s %s %d %.1f ms %s", client, method, path, status, duration_s * 1000, request_id)
