"""Errors as the client sees them: RFC 9457 problem details, translated here and nowhere else.

Problem             raised by the frontend itself, of one Kind
UnknownModel        registry      -> UNKNOWN_MODEL
EngineError         engine        -> OVERLOADED, DRAINING or NOT_READY, DEADLINE_EXCEEDED, INTERNAL
HTTPException       router        -> NOT_FOUND, METHOD_NOT_ALLOWED
anything else       our own bugs  -> INTERNAL, without a word about the inside
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from server.engine.errors import DeadlineExceeded, EngineError, EngineStopped, Overloaded
from server.exchange import Exchange, new_request_id
from server.registry import UnknownModel

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

# nginx's number for a client that left before its answer; it is never sent, only counted.
CLIENT_GONE_STATUS = 499


@dataclass(frozen=True)
class Kind:
    """A sort of problem. slug: the end of its `type` URI. rejection: its reason in offramp_rejections_total."""

    slug: str
    status: int
    title: str
    rejection: str | None = None


MALFORMED_BODY = Kind("malformed-body", 400, "The body cannot be read")
MALFORMED_REQUEST = Kind("malformed-request", 400, "The request is not valid HTTP/1.1")
UNKNOWN_HOST = Kind("unknown-host", 400, "The server does not answer to this host")
UNAUTHENTICATED = Kind("unauthenticated", 401, "An API key is needed")
FORBIDDEN = Kind("forbidden", 403, "The API key is not accepted")
NOT_FOUND = Kind("not-found", 404, "There is nothing at this path")
UNKNOWN_MODEL = Kind("unknown-model", 404, "No such model or version is served")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "The path does not take this method")
REQUEST_TIMEOUT = Kind("request-timeout", 408, "The request took too long to arrive")
BODY_TOO_LARGE = Kind("body-too-large", 413, "The body is too large")
TOO_MANY_IMAGES = Kind("too-many-images", 413, "The request has too many pictures")
TOO_MANY_PIXELS = Kind("too-many-pixels", 413, "The picture has too many pixels")
URL_TOO_LONG = Kind("url-too-long", 414, "The URL is too long")
UNSUPPORTED_MEDIA_TYPE = Kind("unsupported-media-type", 415, "The media type or picture format is not supported")
INVALID_PARAMETER = Kind("invalid-parameter", 422, "A parameter is wrong")
INVALID_IMAGE = Kind("invalid-image", 422, "A picture is missing, truncated or corrupt")
NOT_CERTIFIED = Kind("not-certified", 422, "The contract cannot be certified")
CLIENT_LIMIT = Kind("client-limit", 429, "This client has reached its limit", "client_limit")
HEADERS_TOO_LARGE = Kind("headers-too-large", 431, "The headers are too many or too large")
INTERNAL = Kind("internal-error", 500, "The server failed")
OVERLOADED = Kind("overloaded", 503, "The server is overloaded", "overloaded")
DRAINING = Kind("draining", 503, "The server is shutting down", "draining")
NOT_READY = Kind("not-ready", 503, "The server is not ready", "not_ready")
DEADLINE_EXCEEDED = Kind("deadline-exceeded", 504, "The deadline passed before the first exit")
HTTP_VERSION = Kind("http-version", 505, "The HTTP version is not supported")

# After these the client is better served by a new connection: perhaps by another replica.
LAST_ON_THEIR_CONNECTION = (INTERNAL, DRAINING)

# Answers of the HTTP server itself, to connections and to invalid or incomplete requests.
HTTP_REJECTIONS = (
    MALFORMED_REQUEST,
    METHOD_NOT_ALLOWED,
    REQUEST_TIMEOUT,
    URL_TOO_LONG,
    CLIENT_LIMIT,
    HEADERS_TOO_LARGE,
    OVERLOADED,
    HTTP_VERSION,
)

KINDS: tuple[Kind, ...] = tuple(kind for kind in list(globals().values()) if isinstance(kind, Kind))
REJECTIONS: tuple[str, ...] = tuple(kind.rejection for kind in KINDS if kind.rejection)


class Problem(Exception):
    """What a client did, or met. detail: one sentence that says what and how to mend it. fields: more members."""

    def __init__(self, kind: Kind, detail: str, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.fields = fields


def retry_after(wait_s: float) -> dict[str, str]:
    """The Retry-After header: whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}


def from_engine(error: EngineError, **fields: Any) -> Problem:
    """The engine's errors in HTTP's terms."""
    match error:
        case Overloaded():
            return Problem(OVERLOADED, f"{error}", retry_after(error.retry_after_s), **fields)
        case EngineStopped():
            kind = DRAINING if error.draining else NOT_READY
            return Problem(kind, f"{error}; ask another replica", retry_after(1), **fields)
        case DeadlineExceeded():
            return Problem(DEADLINE_EXCEEDED, f"{error}; allow more time with deadline_ms", **fields)
        case _:
            return Problem(INTERNAL, "the picture could not be classified; the server's log says why", **fields)


def problem_response(scope: Mapping[str, Any], problem: Problem) -> Response:
    """problem+json, with the request's path as instance; notes a refusal for the metrics."""
    exchange: Exchange = scope["offramp.exchange"]
    exchange.rejection = problem.kind.rejection
    content = _content(problem, scope["path"], exchange.request_id)
    response = Response(content, problem.kind.status, problem.headers, MEDIA_TYPE)
    if problem.kind in LAST_ON_THEIR_CONNECTION:
        response.headers["Connection"] = "close"
    return response


def raw_response(
    problem: Problem, headers: Iterable[tuple[bytes, bytes]] = (), path: str = "", request_id: str = ""
) -> bytes:
    """A whole HTTP/1.1 response, the last on its connection, for what ends before there is a request to answer.

    headers: beside the problem's own. path, request_id: of the request, where they are known.
    """
    request_id = request_id or new_request_id()
    body = _content(problem, path, request_id).encode()
    status = problem.kind.status
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [f"{name.lower()}: {value}".encode() for name, value in problem.headers.items()]
    lines += [f"content-type: {MEDIA_TYPE}".encode(), b"content-length: %d" % len(body)]
    lines += [f"x-request-id: {request_id}".encode(), b"connection: close", b"", body]
    return b"\r\n".join(lines)


def _content(problem: Problem, path: str, request_id: str) -> str:
    content = {
        "type": f"urn:offramp:problem:{problem.kind.slug}",
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": problem.detail,
        "instance": path,
        "request_id": request_id,
        **problem.fields,
    }
    return json.dumps(content)


def exception_handlers() -> dict[int | type[Exception], ExceptionHandler]:
    """For FastAPI: every exception that can leave a route."""
    return {
        Problem: _on_problem,
        UnknownModel: _on_unknown_model,
        EngineError: _on_engine_error,
        ClientDisconnect: _on_client_gone,
        HTTPException: _on_http_exception,
        RequestValidationError: _on_validation_error,
        Exception: _on_unexpected,
    }


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(request.scope, error)


async def _on_unknown_model(request: Request, error: Exception) -> Response:
    return problem_response(request.scope, Problem(UNKNOWN_MODEL, str(error)))


async def _on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return problem_response(request.scope, from_engine(error))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE_STATUS)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    match error.status_code:
        case 404:
            problem = Problem(NOT_FOUND, f"there is nothing at {path}; /docs lists what there is")
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            detail = f"{path} does not take {request.method}: use {allowed}"
            problem = Problem(METHOD_NOT_ALLOWED, detail, error.headers)
        case status:
            title = HTTPStatus(status).phrase
            kind = Kind(title.lower().replace(" ", "-"), status, title)
            problem = Problem(kind, str(error.detail), error.headers)
    return problem_response(request.scope, problem)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem_response(request.scope, Problem(INVALID_PARAMETER, f"{where}: {first['msg']}"))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    # Starlette raises the exception again after this answer, and the HTTP server logs its traceback.
    exchange: Exchange = request.scope["offramp.exchange"]
    logger.error("request %s answered with 500: %r; the traceback follows", exchange.request_id, error)
    detail = "this is our fault, not yours; the server's log has the cause under this request_id"
    response = problem_response(request.scope, Problem(INTERNAL, detail))
    response.headers["X-Request-Id"] = exchange.request_id
    return response
