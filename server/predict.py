"""A prediction from request to answer: admit, read, check, decode, ask the engine, reply."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from server.accounts import Accounts
from server.answers import prediction_response
from server.bodies import FORM, JSON, Submission, parse_body, parse_query, read_body, refuse_without_pictures
from server.decoding import Decoder
from server.engine.errors import DeadlineExceeded, EngineError, Overloaded
from server.engine.request import Answer
from server.exchange import Exchange
from server.images import Picture
from server.limits import ClientLedger, Cost, Refusal
from server.metrics import NO_MODEL, UPLOADING, Metrics
from server.parameters import parse_parameters
from server.problems import CLIENT_LIMIT, DRAINING, NOT_READY, Problem, from_engine, retry_after
from server.registry import Registry, ServedModel
from server.settings import Settings
from server.terms import Defaults, Terms, in_private, make_terms
from server.uploads import Upload, UploadBudget

# Larger JSON and multipart bodies are parsed on a thread, so that other requests do not wait.
INLINE_BODY_BYTES = 64 * 1024

# The memory of larger bodies is returned to the system when they are gone.
LARGE_BODY_BYTES = 2**20

# Whether the client hangs up is watched by a task of its own, which most answers come too early to be worth.
UNWATCHED_S = 0.05

# Before a refusal because the server is not ready.
NOT_READY_PAUSE_S = 0.05

# In the scope of a request that the gate has let pass.
PASSED = "offramp.passed"

# Sets of parameters whose terms are kept for the next who asks for the same.
MOST_KNOWN_TERMS = 256


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
        self._defaults = Defaults(settings.deadline_ms, settings.brownout_to)
        self._known_terms = lru_cache(MOST_KNOWN_TERMS)(self._work_out)

    async def answer(self, request: Request, name: str = "") -> Response:
        """One request to the model `name`, "" for the default. Raises what server/problems.py translates."""
        exchange: Exchange = request.scope["offramp.exchange"]
        exchange.model = NO_MODEL
        found = self._registry.find(name or self._registry.default_name)
        exchange.model = found.bundle.name
        await self._refuse_unless_ready()
        # The gate has just asked for the same request, where it has let it pass.
        if PASSED not in request.scope and (refused := self.overload(exchange.model, exchange.client)):
            raise refused[1]
        self._refuse_beyond(self._ledger.too_many(exchange.client))
        # A client that cannot pay for one picture at exit 1 need not upload it.
        least = found.spent(1)
        self._refuse_beyond(self._ledger.too_much(exchange.client, least, exchange.started_s, contended=False))
        upload = Upload(self._uploads, exchange.client, upload_weight(request.headers))
        with self._ledger.place(exchange.client, exchange.started_s), self._closing(upload):
            submission = await self._receive(request, upload)
            served, terms = self._agree(exchange.model, submission)
            refuse_without_pictures(submission)
            try:
                response = await self._answered(submission.images, upload, served, terms, exchange, request.receive)
            except Problem:
                await self._until_next_step(exchange.started_s)
                raise
            await self._until_next_step(exchange.started_s)
        return response

    async def _answered(
        self,
        images: list[bytes],
        upload: Upload,
        served: ServedModel,
        terms: Terms,
        exchange: Exchange,
        receive: Receive,
    ) -> Response:
        """What was agreed on, paid for by the client as far as it was needed."""
        worst = served.spent(terms.contract.rule.max_exit)
        most = Cost(worst.total * len(images), worst.deep * len(images))
        busy = served.engine.inflight_samples > self._settings.max_batch_size
        self._refuse_beyond(self._ledger.too_much(exchange.client, most, time.monotonic(), contended=busy))
        deadline_s = None if terms.deadline_ms is None else exchange.started_s + terms.deadline_ms / 1000
        contract = terms.contract if deadline_s is None else replace(terms.contract, deadline_s=deadline_s)
        with self._ledger.charged(exchange.client, most, time.monotonic) as charge:
            async with while_connected(receive):
                pictures, decode_s = await self._decode(images, served, exchange.client, deadline_s)
                # The encoded pictures are of no more use, and their memory is for others.
                images.clear()
                self._release(upload)
                futures = served.engine.submit(pictures, contract, exchange.client)
                try:
                    answers = await answers_to(futures)
                finally:
                    charge.spent = cost_of(futures, served, worst)
        return prediction_response(served, terms, answers, decode_s, exchange.started_s, private=self._settings.private)

    async def _refuse_unless_ready(self) -> None:
        reason = self._registry.why_not_ready()
        if reason is not None:
            if not self._registry.draining:
                # A client that asks again at once must not take the processor from the engine that starts.
                await asyncio.sleep(NOT_READY_PAUSE_S)
            kind = DRAINING if self._registry.draining else NOT_READY
            raise Problem(kind, f"{reason}; try again, or another replica", retry_after(1))

    def overload(self, model: str, client: str) -> tuple[str, Overloaded] | None:
        """The name of the model and its refusal of one more picture of this client; None where it has room.

        Asked before the upload, so that no client waits for its refusal; the body may yet name any version.
        """
        name = model or self._registry.default_name
        if name not in self._registry or self._registry.why_not_ready() is not None:
            return None
        pictures = 1 + self._decoder.pending
        overloads: list[Overloaded] = []
        for served in self._registry.versions(name).values():
            overload = served.engine.overload(pictures, client)
            if overload is None:
                return None
            overloads.append(overload)
        return name, min(overloads, key=lambda overload: overload.retry_after_s)

    def _refuse_beyond(self, refusal: Refusal | None) -> None:
        if refusal is not None:
            detail, fields = self._beyond(refusal)
            raise Problem(CLIENT_LIMIT, detail, retry_after(refusal.retry_after_s), limit=refusal.limit, **fields)

    def _beyond(self, refusal: Refusal) -> tuple[str, dict[str, float]]:
        limits, wait_s = self._settings.client_limits, max(1, math.ceil(refusal.retry_after_s))
        match refusal.limit:
            case "max_inflight":
                number = limits.max_inflight
                text = f"you have {number} unanswered requests, which is the limit: wait for one of them"
                return text, {"limit_requests": number}
            case "compute_per_s":
                allowed = limits.compute_per_s
                text = (
                    f"you may cause {allowed / 1e9:g} billion multiply-adds a second, and have used up what was saved "
                    f"up: try again in {wait_s} s"
                )
                return text, {"limit_multiply_adds_per_s": allowed}
            case _:
                text = (
                    f"others wait, and more than {limits.deep_share:.0%} of the work lately was yours beyond exit 1: "
                    "try again in a moment"
                )
                return text, {"limit_share": limits.deep_share}

    async def _until_next_step(self, started_s: float) -> None:
        """Where answers come in steps, so that their time tells little of a picture: wait for the next one."""
        step_s = self._settings.answer_step_ms / 1000
        if step_s:
            await asyncio.sleep(-(time.monotonic() - started_s) % step_s)

    @contextmanager
    def _closing(self, upload: Upload) -> Iterator[None]:
        try:
            yield
        finally:
            self._release(upload)

    def _release(self, upload: Upload) -> None:
        if upload.size_bytes > LARGE_BODY_BYTES:
            self._decoder.return_memory()
        upload.release()

    async def _receive(self, request: Request, upload: Upload) -> Submission:
        query = parse_query(request.scope["query_string"])
        try:
            body = await read_body(request.headers, request.receive, self._settings.max_body_bytes, upload)
        except ClientDisconnect:
            self._metrics.cancelled.labels(UPLOADING).inc()
            raise
        content_type, max_images = request.headers.get("content-type", ""), self._settings.max_images
        if len(body) <= INLINE_BODY_BYTES:
            return parse_body(content_type, body, query, max_images)
        return await self._decoder.run(upload.client, parse_body, content_type, body, query, max_images)

    def _agree(self, model: str, submission: Submission) -> tuple[ServedModel, Terms]:
        """Who answers, on what terms. With a raw picture come short texts alone, mostly the same as many times before.

        Values from JSON are not looked up: 1 and true are equal, and mean different things.
        """
        given = tuple(submission.parameters.items())
        if submission.body_names:
            return self._work_out(model, given, submission.body_names)
        return self._known_terms(model, given)

    def _work_out(
        self, model: str, given: tuple[tuple[str, Any], ...], body_names: Sequence[str] = ()
    ) -> tuple[ServedModel, Terms]:
        parameters = parse_parameters(dict(given), body_names)
        served = self._registry.find(model, parameters.version)
        terms = make_terms(parameters, served, self._defaults)
        return served, in_private(terms, parameters) if self._settings.private else terms

    async def _decode(
        self, images: Sequence[bytes], served: ServedModel, client: str, deadline_s: float | None
    ) -> tuple[list[Picture], float]:
        """The decoded pictures, and the seconds that took. Raises DeadlineExceeded where the deadline comes first."""
        # Pictures that wait for the decoder will want a place in the engine: refuse now, not after their wait.
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
        self._metrics.decode_duration_of(served.bundle.name).observe(decode_s)
        return pictures, decode_s


def cost_of(futures: Sequence[asyncio.Future[Answer]], served: ServedModel, worst: Cost) -> Cost:
    """What a request has cost: what its pictures took, the worst for those given up, and nothing where we failed."""
    costs = [
        worst if future.cancelled() else Cost() if future.exception() else served.spent(future.result().exit)
        for future in futures
    ]
    return Cost(sum(cost.total for cost in costs), sum(cost.deep for cost in costs))


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels what runs inside when the client hangs up. Raises ClientDisconnect then."""
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
        for one in watches:
            one.cancel()


async def answers_to(futures: Sequence[asyncio.Future[Answer]]) -> list[Answer]:
    """All answers, in order. Raises the Problem of the first picture that failed; the others are cancelled then."""
    try:
        await _settled(futures)
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


async def _settled(futures: Sequence[asyncio.Future[Answer]]) -> None:
    """Until all are done, or one has failed; which of these, they are asked themselves."""
    if len(futures) > 1:
        await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
        return
    # One picture, as nearly always, is spared what `asyncio.wait` sets up.
    settled = asyncio.Event()
    futures[0].add_done_callback(lambda _: settled.set())
    await settled.wait()


def upload_weight(headers: Headers) -> int:
    """Bytes in memory at once for a byte of the body: a form is copied into its parts, JSON into texts and bytes."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return {FORM: 2, JSON: 3}.get(media_type, 1)
