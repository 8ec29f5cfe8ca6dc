"""Readiness, draining, and clients that leave."""

import asyncio
import threading
from typing import Any

import pytest

from offramp.models.cost import count_cost
from offramp.server.engine.engine import Engine
from offramp.server.http.app import create_app
from offramp.server.metrics import Metrics
from offramp.server.registry import Registry, ServedModel
from offramp.server.settings import Settings
from tests.server.engine.scripted import Recorder, ScriptedRunner


async def test_a_ready_server_says_so(site):
    assert (await site.client.get("/livez")).json() == {"status": "alive"}
    assert (await site.client.get("/readyz")).json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_probes_may_ask_for_the_headers_alone(site, path):
    got, head = await site.client.get(path), await site.client.head(path)
    assert head.status_code == 200
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert (await site.client.post(path)).headers["Allow"] == "GET"


async def test_a_draining_server_is_alive_but_takes_nothing_new(site, encode):
    site.registry.draining = True
    assert (await site.client.get("/livez")).status_code == 200
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["detail"]) == (503, "the server is shutting down")
    response = await site.client.post("/v1/predict", content=encode())
    assert (response.status_code, response.json()["type"]) == (503, "urn:offramp:problem:draining")
    assert response.headers["Retry-After"] == "1"
    # Its next request belongs to another replica.
    assert response.headers["Connection"] == "close"
    # A probe is no refused request.
    assert site.metric("offramp_rejections_total", reason="draining") == 1
    site.registry.draining = False


async def test_requests_in_flight_are_answered_while_the_server_drains(serve, encode):
    async with serve(holds=True) as site:
        asked = asyncio.create_task(site.client.post("/v1/predict", content=encode()))
        await site.engine.submitted.wait()
        site.registry.draining = True
        site.engine.release()
        assert (await asked).status_code == 200
        site.registry.draining = False


async def test_a_dead_engine_makes_the_server_not_ready(site, encode):
    site.engine.alive = False
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["type"]) == (503, "urn:offramp:problem:not-ready")
    assert "engine of tiny version 1 is not running" in ready.json()["detail"]
    assert (await site.client.post("/v1/predict", content=encode())).status_code == 503
    site.engine.alive = True


def served_by(bundle, engine, warm_up=lambda: None) -> ServedModel:
    return ServedModel(bundle, count_cost(bundle.config), "cpu", engine, warm_up)


def idle_engine() -> Engine:
    return Engine(ScriptedRunner(), Recorder())


async def drive(app, path: str) -> int:
    """GET over bare ASGI; the status."""
    statuses = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        statuses.append(message.get("status"))

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [],
        "root_path": "",
        "client": None,
    }
    await app(scope, receive, send)
    return statuses[0]


async def test_a_server_that_warms_up_answers_probes_but_is_not_ready(bundle, until):
    warm = threading.Event()

    def wait_for_warmth() -> None:
        warm.wait()

    registry = Registry([served_by(bundle, idle_engine(), wait_for_warmth)])
    app = create_app(registry, Settings(), Metrics())
    async with app.router.lifespan_context(app):
        try:
            assert await drive(app, "/livez") == 200
            assert await drive(app, "/readyz") == 503
            assert registry.why_not_ready() == "the models are warming up"
        finally:
            warm.set()
        await until(lambda: registry.why_not_ready() is None)
        assert await drive(app, "/readyz") == 200


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (KeyError("conv1"), "KeyError: 'conv1'"),
        (SystemExit(3), "SystemExit: 3"),
        (StopIteration(), "StopIteration: "),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_model_that_cannot_warm_up_gives_the_reason_after_any_error(bundle, cause, words):
    def fail() -> None:
        raise cause

    registry = Registry([served_by(bundle, idle_engine(), fail)])
    await registry.start()
    assert registry.why_not_ready() == f"warming up tiny version 1 failed: {words}"
    await registry.drain()


async def test_an_engine_that_cannot_even_start_is_a_failure_too(bundle):
    engine = idle_engine()
    await engine.start(asyncio.get_running_loop())
    registry = Registry([served_by(bundle, engine)])
    await registry.start()
    assert registry.failure == "warming up tiny version 1 failed: threads can only be started once"
    await registry.drain()


def test_one_name_and_version_twice_is_refused(bundle):
    served = [served_by(bundle, idle_engine()) for _ in range(2)]
    with pytest.raises(ValueError, match="'tiny' version '1' is given twice"):
        Registry(served)
    with pytest.raises(ValueError, match="at least one bundle"):
        Registry([])


class Client:
    """Speaks bare ASGI, so that it can hang up in the middle of a request.

    more: the body goes on after its first part, which is all that the client sends.
    """

    def __init__(
        self,
        body: bytes,
        more: bool = False,
        address: str = "192.0.2.1",
        media_type: str = "image/png",
        announced_bytes: int | None = None,
    ) -> None:
        self.body, self.more, self.address = body, more, address
        self.headers = [(b"content-type", media_type.encode())]
        if announced_bytes is not None:
            self.headers.append((b"content-length", b"%d" % announced_bytes))
        self.read = False
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def receive(self):
        if not self.read:
            self.read = True
            return {"type": "http.request", "body": self.body, "more_body": self.more}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    def post(self, app) -> asyncio.Task:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "query_string": b"",
            "headers": self.headers,
            "root_path": "",
            "client": (self.address, 5),
        }
        return asyncio.create_task(app(scope, self.receive, self.send))


async def test_a_client_that_leaves_while_waiting_takes_its_pictures_along(serve, encode):
    async with serve(holds=True) as site:
        client = Client(encode())
        asked = client.post(site.app)
        await site.engine.submitted.wait()
        assert site.metric("offramp_inflight_samples", model="tiny") == 1
        client.gone.set()
        await asked
        assert site.engine.waiting == []
        assert site.metric("offramp_cancelled_total", phase="queued") == 1
        assert site.metric("offramp_requests_total", model="tiny", code="499") == 1
        assert site.metric("offramp_inflight_samples", model="tiny") == 0


@pytest.mark.parametrize("pictures", [1, 2])
async def test_a_request_that_is_cut_off_by_the_server_takes_its_pictures_along(serve, encode, pictures):
    async with serve(holds=True) as site:
        asked = asyncio.create_task(site.client.post("/v1/predict", files=[("image", encode())] * pictures))
        await site.engine.submitted.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert site.engine.waiting == []
        assert site.metric("offramp_cancelled_total", phase="queued") == pictures


async def test_a_client_that_leaves_while_sending_is_counted(site, encode):
    client = Client(encode(), more=True)
    client.gone.set()
    await client.post(site.app)
    assert site.metric("offramp_cancelled_total", phase="upload") == 1
    assert site.engine.contracts == []


async def test_when_one_picture_fails_the_others_are_not_computed_in_vain(serve, encode):
    async with serve(holds=True, failures={7: ZeroDivisionError()}) as site:
        files = [("image", encode(red)) for red in (5, 7, 9)]
        asked = asyncio.create_task(site.client.post("/v1/predict", files=files))
        await site.engine.submitted.wait()
        site.engine.resolve(site.engine.waiting[1])
        assert (await asked).status_code == 500
        assert site.engine.waiting == []
        assert site.metric("offramp_cancelled_total", phase="queued") == 2
