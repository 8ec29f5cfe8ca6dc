"""The web application: served models behind HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response
from starlette.types import Scope

from offramp.server.http import openapi
from offramp.server.http.docs_page import add_docs_page
from offramp.server.http.express import ExpressMiddleware
from offramp.server.http.gate import Gate
from offramp.server.http.hosts import AllowedHosts
from offramp.server.http.problems import (
    EXPECTED,
    FORBIDDEN,
    UNAUTHENTICATED,
    UNKNOWN_HOST,
    Problem,
    answer_error,
    problem_response,
)
from offramp.server.http.request_log import ApiKeys, RequestLogMiddleware, RequestReporter, key_of
from offramp.server.http.routes import model_routes, operator_routes, prediction_routes
from offramp.server.metrics import NO_MODEL, Metrics
from offramp.server.registry import Registry
from offramp.server.request.accounts import Accounts
from offramp.server.request.decoding import DecodeLimits, Decoder
from offramp.server.request.predict import Predictor
from offramp.server.settings import Settings

PROTECTED = "/v1/"

# Probes and scrapers use an address, not a name.
PROBES = ("/livez", "/readyz", "/metrics")

DESCRIPTION = "Early-exit image classification: an easy picture leaves at a shallow exit."


def create_app(
    registry: Registry,
    settings: Settings,
    metrics: Metrics,
    accounts: Accounts | None = None,
    warm_first: bool = False,
) -> FastAPI:
    """The application. Its lifespan starts the engines, and drains them at the end.

    accounts: of clients, shared with the other processes of the server; None for this process only. warm_first: the
    lifespan waits until the models are warm, and raises RuntimeError if the warm-up fails.
    """
    keys = ApiKeys(settings.read_api_keys())
    decoder = Decoder(
        DecodeLimits(settings.decode_threads, settings.max_pixels, settings.decode_memory_bytes, settings.max_wait_s)
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Not awaited: during the warm-up, /livez answers and /readyz gives the reason.
        starting = asyncio.create_task(registry.start())
        if warm_first:
            await starting
            if registry.failure is not None:
                raise RuntimeError(registry.failure)
        yield
        await starting
        await registry.drain()
        decoder.close()

    app = _Application(
        title="Offramp",
        version=version("offramp"),
        description=DESCRIPTION,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((*EXPECTED, Exception), answer_error),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        with_keys=keys.needed,
    )
    predictor = Predictor(registry, settings, metrics, decoder, accounts)
    # The HTTP server calls it before the application.
    report = RequestReporter(metrics.record, settings.access_log)
    app.state.gate = Gate(predictor, keys, report, metrics.record_http_rejection)
    app.add_middleware(ExpressMiddleware, predictor=predictor)
    refuse = partial(_refuse, AllowedHosts(settings.allowed_hosts))
    app.add_middleware(RequestLogMiddleware, keys=keys, refuse=refuse, report=report)
    app.include_router(prediction_routes(predictor))
    app.include_router(model_routes(registry))
    app.include_router(operator_routes(registry, metrics))
    add_docs_page(app)
    for served in registry.served:
        metrics.watch(served.bundle.name, served.engine)
    return app


class _Application(FastAPI):
    """FastAPI with additions to the OpenAPI document."""

    def __init__(self, *, with_keys: bool, **options: Any) -> None:
        super().__init__(**options)
        self._with_keys = with_keys

    def openapi(self) -> dict[str, Any]:
        """The document of /openapi.json and /docs, made once."""
        if self.openapi_schema is None:
            schema = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            self.openapi_schema = openapi.complete(schema, self._with_keys)
        return self.openapi_schema


def _refuse(hosts: AllowedHosts, scope: Scope, headers: dict[bytes, bytes], has_key: bool) -> Response | None:
    """The answer to a request for an unknown host, without a key, or with a wrong key; None to let it pass."""
    path, host = scope["path"], headers.get(b"host", b"").decode("latin-1")
    if path not in PROBES and not hosts.allow(host):
        detail = f"the server does not answer to the host {host[:100]!r}: use a name that --allowed-hosts has"
        return problem_response(scope, Problem(UNKNOWN_HOST, detail))
    if has_key or not path.startswith(PROTECTED):
        return None
    if path.endswith("/predict"):
        scope["offramp.log"].model = NO_MODEL
    if key_of(headers) is None:
        detail = "send an API key, as Authorization: Bearer KEY or as X-API-Key: KEY"
        return problem_response(scope, Problem(UNAUTHENTICATED, detail, {"WWW-Authenticate": "Bearer"}))
    return problem_response(scope, Problem(FORBIDDEN, "this API key is not accepted here"))
