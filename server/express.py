"""The short way for predictions: past the framework's routing and dependency injection, of which they use nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.predict import Predictor

PREDICT, MODELS, OF_A_MODEL = "/v1/predict", "/v1/models/", "/predict"


class ExpressMiddleware:
    """Hands POSTs to the prediction paths straight to the Predictor; everything else takes the usual way.

    The routes behind it stay: they document the paths, and refuse other methods. handlers: by exception, as the
    framework has them; an exception without one is passed on.
    """

    def __init__(self, app: ASGIApp, predictor: Predictor, handlers: Mapping[Any, Callable[..., Any]]) -> None:
        self.app = app
        self._predictor = predictor
        # A handler of everything answers further out, where the cause is logged.
        self._handlers = {kind: handler for kind, handler in handlers.items() if kind is not Exception}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = model_in(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if model is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._predictor.answer(request, model)
        except Exception as error:
            handler = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handler is None:
                raise
            response = await handler(request, error)
        await response(scope, receive, send)


def model_in(path: str) -> str | None:
    """The model that a path asks for a prediction, "" for the default; None for any other path."""
    if path == PREDICT:
        return ""
    if not (path.startswith(MODELS) and path.endswith(OF_A_MODEL)):
        return None
    name = path[len(MODELS) : -len(OF_A_MODEL)]
    return name if name and "/" not in name else None
