"""The gate: under overload a prediction is refused by its headers, for next to nothing.

A refusal through the framework costs as much as an answer, so that a server at several times its load would do little
but refuse. Whatever is not overloaded passes; the Predictor looks again, with the whole request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from server.exchange import ApiKeys, Exchange, client_of, request_id_of
from server.express import model_in
from server.predict import Predictor
from server.problems import from_engine, raw_response


class Gate:
    """Refuses requests by their scope; see `http_config.Refuse`.

    record: called with every refused exchange and its duration in seconds.
    """

    def __init__(self, predictor: Predictor, keys: ApiKeys, record: Callable[[Exchange, float], None]) -> None:
        self._predictor = predictor
        self._keys = keys
        self._record = record

    def __call__(self, scope: Mapping[str, Any]) -> bytes | None:
        model = model_in(scope["path"]) if scope["method"] == "POST" else None
        if model is None:
            return None
        headers = dict(scope["headers"])
        client = client_of(headers, scope, self._keys)
        found = None if client is None else self._predictor.overload(model, client)
        if client is None or found is None:
            return None
        name, overload = found
        problem = from_engine(overload)
        exchange = Exchange(request_id_of(headers), time.monotonic(), client, name, problem.kind.rejection)
        exchange.status = problem.kind.status
        self._record(exchange, 0.0)
        return raw_response(problem, (), scope["path"], exchange.request_id)
