"""Predictor: one prediction request from its bytes to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from offramp.server.engine.errors import DeadlineExceeded, EngineError, Overloaded
from offramp.server.engine.request import Answer
from offramp.server.http.problems import INVALID_IMAGE, Problem, from_engine, not_ready
from offramp.server.http.request_log import RequestLog
from offramp.server.http.responses import prediction_response
from offramp.server.metrics import NO_MODEL, UPLOADING, Metrics
from offramp.server.registry import Registry, ServedModel
from offramp.server.request.accounts import Accounts
from offramp.server.request.bodies import (
    CURL,
    CURL_HINT,
    FORM,
    JSON,
    Submission,
    check_has_pictures,
    parse_body,
    parse_query,
    read_body,
)
from offramp.server.request.client_limits import ClientLedger, Cost
from offramp.server.request.decoding import Decoder
from offramp.server.request.images import Picture
from offramp.server.request.parameters import parse_parameters
from offramp.server.request.privacy import answer_in_steps, check_private
from offramp.server.request.resolve import ResolvedRequest, resolve
from offramp.server.request.uploads import Upload, UploadBudget
from offramp.server.settings import Settings

# Larger JSON and multipart bodies are parsed on a thread, so that other requests do not wait.
INLINE_BODY_BYTES = 64 * 1024

# The memory of larger bodies goes back to the system after use.
LARGE_BODY_BYTES = 2**20

# Most answers come sooner than this. Later, a task watches whether the client hangs up.
UNWATCHED_S = 0.05

# Delay of a refusal while the server is not ready.
NOT_READY_PAUSE_S = 0.05

# In the scope of a request that the gate has admitted.
ADMITTED = "offramp.admitted"

# Sets of parameters whose resolved request is kept.
MAX_RESOLVED = 256


class Predictor:
    """Answers prediction requests for all served models."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        decoder: Decoder,
        accounts: Accounts | None = None,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._decoder = decoder
        self._uploads = UploadBudget(settings.max_uploads_bytes)
        self._ledger = ClientLedger(settings.client_limits, accounts)
        self._resolved = lru_cache(MAX_RESOLVED)(self._resolve_now)

    async def answer(self, request: Request, name: str = "") -> Response:
        """Answer one request to the model `name`, "" for the default. Raises the errors of server/http/problems.py."""
        log: RequestLog = request.scope["offramp.log"]
        default = await self._admit(request, name, log)
        with (
            self._ledger.request(log.client, default.cost_at(1)) as account,
            self._upload(request.headers, log.client) as upload,
        ):
            submission = await self._receive(request, upload)
            resolved = self._resolve(default.bundle.name, submission)
            check_has_pictures(submission)
            async with answer_in_steps(self._settings.answer_step_ms / 1000, log.started_s):
                served, images = resolved.served, submission.images
                worst = resolved.worst_cost.times(len(images))
                busy = served.engine.inflight_samples > self._settings.max_batch_size
                account.reserve(worst, contended=busy)
                deadline_s = resolved.deadline_s(log.started_s)
                async with while_connected(request.receive):
                    with hint_at_curl(request.headers):
                        pictures, decode_s = await self._decode(images, served, log.client, deadline_s)
                    # Free the memory of the encoded pictures for other requests.
                    images.clear()
                    self._release(upload)
                    futures = served.engine.submit(pictures, resolved.contract, log.client, deadline_s)
                    try:
                        answers = await all_answers(futures)
                    finally:
                        # In private mode, the client's account must not show the exits.
                        account.spend(worst if self._settings.private else cost_of(futures, resolved))
                total_s = time.monotonic() - log.started_s
                return prediction_response(resolved, answers, decode_s, total_s, private=self._settings.private)

    def overload(self, model: str, client: str) -> tuple[str, Overloaded] | None:
        """The model's name and the error for one more picture of this client; None if there is room. Pure.

        Called before the upload, so that no client uploads in vain. The body may still name any version of the model.
        """
        name = model or self._registry.default_name
        if name not in self._registry or self._registry.why_not_ready() is not None:
            return None
        pictures = 1 + self._decoder.pending
        versions = self._registry.versions(name).values()
        overloads = [served.engine.overload(pictures, client) for served in versions]
        if None in overloads:
            return None
        return name, min(filter(None, overloads), key=lambda overload: overload.retry_after_s)

    async def _admit(self, request: Request, name: str, log: RequestLog) -> ServedModel:
        """Refuse before the upload what cannot be answered. Returns the model's default version."""
        log.model = NO_MODEL
        served = self._registry.find(name or self._registry.default_name)
        log.model = served.bundle.name
        if (reason := self._registry.why_not_ready()) is not None:
            if not self._registry.draining:
                # A client that asks again at once must not take the processor from the engine that starts.
                await asyncio.sleep(NOT_READY_PAUSE_S)
            raise not_ready(f"{reason}; try again, or another replica", draining=self._registry.draining)
        if ADMITTED not in request.scope and (overload := self.overload(log.model, log.client)):
            raise overload[1]
        return served

    async def _receive(self, request: Request, upload: Upload) -> Submission:
        query = parse_query(request.scope["query_string"])
        try:
            body = await read_body(request.headers, request.receive, self._settings.max_body_bytes, upload)
        except ClientDisconnect:
            self._metrics.series("cancelled_total", UPLOADING).inc()
            raise
        content_type, max_images = request.headers.get("content-type", ""), self._settings.max_images
        if len(body) <= INLINE_BODY_BYTES:
            return parse_body(content_type, body, query, max_images)
        return await self._decoder.run(upload.client, parse_body, content_type, body, query, max_images)

    def _resolve(self, model: str, submission: Submission) -> ResolvedRequest:
        """A raw picture comes with short texts, mostly the same as before. JSON is not cached: 1 equals true there."""
        given = tuple(submission.parameters.items())
        if submission.body_names:
            return self._resolve_now(model, given, submission.body_names)
        return self._resolved(model, given)

    def _resolve_now(
        self, model: str, given: tuple[tuple[str, Any], ...], body_names: Sequence[str] = ()
    ) -> ResolvedRequest:
        parameters = parse_parameters(dict(given), body_names)
        served = self._registry.find(model, parameters.version)
        resolved = resolve(parameters, served, self._settings)
        if self._settings.private:
            check_private(parameters)
        return resolved

    async def _decode(
        self, images: Sequence[bytes], served: ServedModel, client: str, deadline_s: float | None
    ) -> tuple[list[Picture], float]:
        """The decoded pictures, and the seconds it took. Raises DeadlineExceeded."""
        # Refuse now what the engine would refuse after the decoding.
        if overload := served.engine.overload(len(images) + self._decoder.pending, client):
            raise overload
        start_s = time.monotonic()
        left_s = None if deadline_s is None else deadline_s - start_s
        try:
            async with asyncio.timeout(left_s):
                pictures = await self._decoder.decode(images, served.bundle.preprocessing, client)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the pictures were decoded") from None
        decode_s = time.monotonic() - start_s
        self._metrics.series("decode_duration_seconds", served.bundle.name).observe(decode_s)
        return pictures, decode_s

    @contextmanager
    def _upload(self, headers: Headers, client: str) -> Iterator[Upload]:
        upload = Upload(self._uploads, client, upload_weight(headers))
        try:
            yield upload
        finally:
            self._release(upload)

    def _release(self, upload: Upload) -> None:
        if upload.size_bytes > LARGE_BODY_BYTES:
            self._decoder.return_memory()
        upload.release()


@contextmanager
def hint_at_curl(headers: Headers) -> Iterator[None]:
    """Add to the problem of a corrupt picture what `curl -d` would have done to it, if curl may have sent it."""
    try:
        yield
    except Problem as problem:
        if problem.kind is INVALID_IMAGE and headers.get("content-type", "").lower() == CURL:
            problem.detail += f" {CURL_HINT}"
        raise


def cost_of(futures: Sequence[asyncio.Future[Answer]], resolved: ResolvedRequest) -> Cost:
    """Cost of a request: of each answer its exit, of a cancelled picture the worst case, of a failed one nothing."""
    costs = [
        resolved.worst_cost
        if future.cancelled()
        else Cost()
        if future.exception()
        else resolved.served.cost_at(future.result().exit)
        for future in futures
    ]
    return Cost(sum(cost.total for cost in costs), sum(cost.deep for cost in costs))


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block if the client hangs up. Raises ClientDisconnect then."""
    loop, task, gone, watches = asyncio.get_running_loop(), asyncio.current_task(), False, list[asyncio.Task[None]]()
    assert task is not None, "requests run in tasks"

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = task.cancel()

    timer = loop.call_later(UNWATCHED_S, lambda: watches.append(loop.create_task(watch())))
    try:
        yield
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        for watching in watches:
            watching.cancel()


async def all_answers(futures: Sequence[asyncio.Future[Answer]]) -> list[Answer]:
    """All answers, in order. Raises the Problem of the first picture that failed, and cancels the others."""
    try:
        if len(futures) > 1:
            await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
        else:
            # The usual case. `asyncio.wait` costs more.
            settled = asyncio.Event()
            futures[0].add_done_callback(lambda _: settled.set())
            await settled.wait()
    finally:
        for future in futures:
            future.cancel()
    errors = [None if future.cancelled() else future.exception() for future in futures]
    for index, error in enumerate(errors):
        if isinstance(error, EngineError):
            raise from_engine(error, image=index) from error
        if error is not None:
            raise error
    return [future.result() for future in futures]


def upload_weight(headers: Headers) -> int:
    """Bytes in memory for each byte of the body: a form is copied into parts, JSON into texts and bytes."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return {FORM: 2, JSON: 3}.get(media_type, 1)
