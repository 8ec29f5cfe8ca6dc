"""The paths of the server."""

from __future__ import annotations

import gzip
from functools import lru_cache
from typing import Annotated

from fastapi import APIRouter, Path, Query
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import gzip_accepted
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from offramp.server.http.openapi import MODEL_ERRORS, PREDICTION_ERRORS, prediction_extra, problem_responses
from offramp.server.http.problems import not_ready
from offramp.server.http.responses import json_response, model_facts, model_summary
from offramp.server.http.schemas import ModelFacts, ModelList, PredictionAnswer, Status
from offramp.server.metrics import Metrics
from offramp.server.registry import Registry
from offramp.server.request.predict import Predictor

# The lowest level makes the metrics ten times smaller, in a fifth of the time of the highest.
GZIP_LEVEL = 1

ModelName = Annotated[str, Path(description="Name of a served model.", examples=["cifar100-resnet18"])]
Version = Annotated[str | None, Query(description="Version of the model. Default: the first served.")]


def prediction_routes(predictor: Predictor) -> APIRouter:
    """Routes of predictions."""
    router = APIRouter(tags=["predict"])
    responses = {200: {"model": PredictionAnswer}, **problem_responses(*PREDICTION_ERRORS)}

    @router.post("/v1/predict", responses=responses, openapi_extra=prediction_extra(), summary="Ask the default model")
    async def predict(request: Request) -> Response:
        """Classify one or several pictures; each leaves at the first exit that is confident enough."""
        return await predictor.answer(request)

    @router.post(
        "/v1/models/{model}/predict", responses=responses, openapi_extra=prediction_extra(), summary="Ask a model"
    )
    async def predict_with(request: Request, model: ModelName) -> Response:
        """Classify one or several pictures with a model of your choice."""
        return await predictor.answer(request, model)

    return router


def model_routes(registry: Registry) -> APIRouter:
    """Routes of the served models."""
    router = APIRouter(tags=["models"])
    summaries = {"default": registry.default_name, "models": [model_summary(served) for served in registry.served]}
    facts = {served: json_response(model_facts(served, registry)) for served in registry.served}

    @router.get("/v1/models", responses={200: {"model": ModelList}, **problem_responses(401, 403)})
    async def models() -> Response:
        """All served models, the default first."""
        return json_response(summaries)

    @router.get("/v1/models/{model}", responses={200: {"model": ModelFacts}, **problem_responses(*MODEL_ERRORS, 422)})
    async def model(model: ModelName, version: Version = None) -> Response:
        """Architecture, labels, input, exits with cost and accuracy, operating points."""
        return facts[registry.find(model, version)]

    return router


def operator_routes(registry: Registry, metrics: Metrics) -> APIRouter:
    """Routes for probes and Prometheus. They need no key."""
    router = APIRouter(tags=["operation"])

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", responses={200: {"model": Status}})
    async def livez() -> Response:
        """The process answers."""
        return json_response({"status": "alive"})

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses={200: {"model": Status}, **problem_responses(503)})
    async def readyz() -> Response:
        """Every model is loaded and warmed up, every engine alive, and the server is not shutting down."""
        reason = registry.why_not_ready()
        if reason is not None:
            raise not_ready(reason, draining=registry.draining)
        return json_response({"status": "ready"})

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=PlainTextResponse, response_description="Prometheus's text format")
    async def prometheus(request: Request) -> Response:
        """Metrics for Prometheus; docs/metrics.md describes each."""
        text, headers = await metrics.expose(), {"Vary": "Accept-Encoding"}
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            text, headers["Content-Encoding"] = compress(text), "gzip"
        return Response(text, headers=headers, media_type=CONTENT_TYPE_LATEST)

    return router


@lru_cache(maxsize=1)
def compress(text: bytes) -> bytes:
    """The text by gzip. Cached: several scrapers may share a text."""
    return gzip.compress(text, GZIP_LEVEL)
