"""Errors as the client sees them: RFC 9457 problem details, translated here and nowhere else.

Problem             frontend        its Kind
UnknownModel        registry        UNKNOWN_MODEL
LimitReached        client_limits   CLIENT_LIMIT
EngineError         engine          OVERLOADED, DRAINING or NOT_READY, DEADLINE_EXCEEDED, INTERNAL
HTTPException       router          NOT_FOUND, METHOD_NOT_ALLOWED
any other           a bug           INTERNAL, without details
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

from offramp.server.engine.errors import DeadlineExceeded, EngineError, EngineStopped, Overloaded
from offramp.server.http.request_log import RequestLog, new_request_id
from offramp.server.registry import UnknownModel
from offramp.server.request.client_limits import LimitReached

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

# nginx's number for a client that left before its answer; it is never sent, only counted.
CLIENT_GONE_STATUS = 499

# About the start of an engine.
RESTART_S = 5


@dataclass(frozen=True)
class Kind:
    """A kind of problem. slug: the end of its `type` URI. rejection: its reason in offramp_rejections_total."""

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

# The connection ends after these: a new one may reach another replica.
LAST_ON_THEIR_CONNECTION = (INTERNAL, DRAINING)

# Answers of the HTTP server to connections and to invalid or incomplete requests.
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
    """An error for the client. detail: one sentence that names the error and the fix. fields: further members."""

    def __init__(self, kind: Kind, detail: str, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.fields = fields


def retry_after(wait_s: float) -> dict[str, str]:
    """The Retry-After header: whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}


def not_ready(reason: str, *, draining: bool, **fields: Any) -> Problem:
    """The server cannot answer: it is shutting down (draining), or an engine is not ready yet."""
    kind, wait_s = (DRAINING, 1) if draining else (NOT_READY, RESTART_S)
    return Problem(kind, reason, retry_after(wait_s), **fields)


def from_engine(error: EngineError, **fields: Any) -> Problem:
    """The problem for an error of the engine."""
    match error:
        case Overloaded():
            return Problem(OVERLOADED, f"{error}", retry_after(error.retry_after_s), **fields)
        case EngineStopped():
            return not_ready(f"{error}; try again, or another replica", draining=error.draining, **fields)
        case DeadlineExceeded():
            return Problem(DEADLINE_EXCEEDED, f"{error}; allow more time with deadline_ms", **fields)
        case _:
            return Problem(INTERNAL, "the picture could not be classified; the server's log says why", **fields)


def problem_response(scope: Mapping[str, Any], problem: Problem) -> Response:
    """problem+json, with the request's path as instance. Records a refusal for the metrics."""
    log: RequestLog = scope["offramp.log"]
    log.rejection = problem.kind.rejection
    content = _content(problem, scope["path"], log.request_id)
    response = Response(content, problem.kind.status, problem.headers, MEDIA_TYPE)
    if problem.kind in LAST_ON_THEIR_CONNECTION:
        response.headers["Connection"] = "close"
    return response


def raw_response(
    problem: Problem,
    headers: Iterable[tuple[bytes, bytes]] = (),
    path: str = "",
    request_id: str = "",
    keep_alive: bool = False,
) -> bytes:
    """A whole HTTP/1.1 response to a request that does not reach the application.

    headers: beside the problem's own. path, request_id: of the request, if known. keep_alive: whether the connection
    stays open.
    """
    request_id = request_id or new_request_id()
    body = _content(problem, path, request_id).encode()
    status = problem.kind.status
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [f"{name.lower()}: {value}".encode() for name, value in problem.headers.items()]
    lines += [f"content-type: {MEDIA_TYPE}".encode(), b"content-length: %d" % len(body)]
    lines += [f"x-request-id: {request_id}".encode(), *([] if keep_alive else [b"connection: close"]), b"", body]
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


# Errors that `answer_error` turns into an answer. All others are bugs.
EXPECTED = (Problem, UnknownModel, LimitReached, EngineError, HTTPException, RequestValidationError, ClientDisconnect)


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to a request that failed. A bug is logged, and raised again later."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_GONE_STATUS)
    if isinstance(error, EXPECTED):
        return problem_response(request.scope, _problem_of(request, error))
    log: RequestLog = request.scope["offramp.log"]
    logger.error("request %s answered with 500: %r; the traceback follows", log.request_id, error)
    detail = "this is our fault, not yours; the server's log has the cause under this request_id"
    response = problem_response(request.scope, Problem(INTERNAL, detail))
    response.headers["X-Request-Id"] = log.request_id
    return response


def _problem_of(request: Request, error: Exception) -> Problem:
    path = request.scope["path"]
    match error:
        case Problem():
            return error
        case EngineError():
            return from_engine(error)
        case UnknownModel():
            return Problem(UNKNOWN_MODEL, str(error))
        case LimitReached():
            return Problem(
                CLIENT_LIMIT, str(error), retry_after(error.retry_after_s), limit=error.limit, **error.fields
            )
        case RequestValidationError():
            first = error.errors()[0]
            return Problem(INVALID_PARAMETER, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        case HTTPException(status_code=404):
            return Problem(NOT_FOUND, f"there is nothing at {path}; /docs lists what there is")
        case HTTPException(status_code=405):
            allowed = (error.headers or {}).get("Allow", "another method")
            return Problem(METHOD_NOT_ALLOWED, f"{path} does not take {request.method}: use {allowed}", error.headers)
        case HTTPException(status_code=status):
            title = HTTPStatus(status).phrase
            return Problem(Kind(title.lower().replace(" ", "-"), status, title), str(error.detail), error.headers)
    raise AssertionError("an error of EXPECTED has a case")
