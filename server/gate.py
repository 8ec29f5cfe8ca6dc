"""The gate: answers that cost little, before the application is called.

A refusal through the framework costs as much as an answer, so that a server at several times its load would do little
but refuse. What is not refused here passes; the engine checks again at `submit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from starlette.types import Scope
from uvicorn._types import HTTPScope

from server.exchange import ApiKeys, Exchange, Report, client_of, new_request_id, request_id_of
from server.express import model_in
from server.http_config import Headers
from server.predict import PASSED, Predictor
from server.problems import Problem, from_engine, raw_response


class Gate:
    """The Doorkeeper of `http_config`: refuses predictions under overload, and reports each of its answers.

    count: called with the status of each rejection of a connection, or of an invalid or incomplete request.
    """

    def __init__(self, predictor: Predictor, keys: ApiKeys, report: Report, count: Callable[[int], None]) -> None:
        self._predictor = predictor
        self._keys = keys
        self._report = report
        self._count = count

    def refuse(self, scope: HTTPScope, headers: Headers) -> bytes | None:
        """See Doorkeeper."""
        model = model_in(scope["path"]) if scope["method"] == "POST" else None
        if model is None:
            return None
        fields = dict(scope["headers"])
        client = client_of(fields, scope, self._keys)
        found = None if client is None else self._predictor.overload(model, client)
        if client is None or found is None:
            cast(Scope, scope)[PASSED] = True
            return None
        name, overload = found
        problem = from_engine(overload)
        exchange = Exchange(request_id_of(fields), time.monotonic(), client, name, problem.kind.rejection)
        exchange.status = problem.kind.status
        self._report(scope, exchange, 0.0)
        return raw_response(problem, headers, scope["path"], exchange.request_id)

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """See Doorkeeper."""
        status = problem.kind.status
        exchange = Exchange(new_request_id(), time.monotonic(), address, status=status)
        self._count(status)
        self._report({"method": "-", "path": "-", "client": (address, 0)}, exchange, 0.0)
        return raw_response(problem, headers, request_id=exchange.request_id)
