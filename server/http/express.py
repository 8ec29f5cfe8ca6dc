"""Predictions without the framework's routing and dependency injection, which take longer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from offramp.server.http.problems import EXPECTED, answer_error
from offramp.server.request.predict import Predictor

PREDICT, MODELS, OF_A_MODEL = "/v1/predict", "/v1/models/", "/predict"


class ExpressMiddleware:
    """Passes POSTs on the prediction paths to the Predictor, and all other requests to the framework.

    The routes remain: they document the paths and refuse other methods.
    """

    def __init__(self, app: ASGIApp, predictor: Predictor) -> None:
        self.app = app
        self._predictor = predictor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = model_in(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if model is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._predictor.answer(request, model)
        except EXPECTED as error:
            response = await answer_error(request, error)
        await response(scope, receive, send)


def model_in(path: str) -> str | None:
    """The model in a prediction path, "" for the default; None for any other path."""
    if path == PREDICT:
        return ""
    if not (path.startswith(MODELS) and path.endswith(OF_A_MODEL)):
        return None
    name = path[len(MODELS) : -len(OF_A_MODEL)]
    return name if name and "/" not in name else None
