"""The gate: refuses under overload before the application is called.

A refusal through the framework costs as much as an answer: a server at several times its load would do little else.
The engine checks again at `submit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from starlette.types import Scope
from uvicorn._types import HTTPScope

from offramp.server.http.express import model_in
from offramp.server.http.problems import Problem, from_engine, raw_response
from offramp.server.http.request_log import (
    ApiKeys,
    RequestLog,
    RequestReporter,
    client_of,
    new_request_id,
    request_id_of,
)
from offramp.server.http.uvicorn_config import Headers
from offramp.server.request.predict import ADMITTED, Predictor


class Gate:
    """Answers in place of the application, and reports each answer. See `uvicorn_config.Gatekeeper`.

    count: called with the status of each rejection of a connection, or of an invalid or incomplete request.
    """

    def __init__(
        self, predictor: Predictor, keys: ApiKeys, report: RequestReporter, count: Callable[[int], None]
    ) -> None:
        self._predictor = predictor
        self._keys = keys
        self._report = report
        self._count = count

    def refuse(self, scope: HTTPScope, headers: Headers, keep_alive: bool) -> bytes | None:
        """See Gatekeeper."""
        model = model_in(scope["path"]) if scope["method"] == "POST" else None
        if model is None:
            return None
        fields = dict(scope["headers"])
        client = client_of(fields, scope, self._keys)
        overload = None if client is None else self._predictor.overload(model, client)
        if client is None or overload is None:
            cast(Scope, scope)[ADMITTED] = True
            return None
        name, error = overload
        problem = from_engine(error)
        log = RequestLog(request_id_of(fields), time.monotonic(), client, name, problem.kind.rejection)
        log.status = problem.kind.status
        self._report(scope, log, 0.0)
        return raw_response(problem, headers, scope["path"], log.request_id, keep_alive)

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """See Gatekeeper."""
        status = problem.kind.status
        log = RequestLog(new_request_id(), time.monotonic(), address, status=status)
        self._count(status)
        self._report({"method": "-", "path": "-", "client": (address, 0)}, log, 0.0)
        return raw_response(problem, headers, request_id=log.request_id)
