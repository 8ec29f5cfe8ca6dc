"""A small server for the load generator to meet, and its pictures."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from benchmarks.pictures import Pictures, write_pictures

PICTURES = [b"picture-a", b"picture-b", b"picture-c"]
LABELS = ["cat", "dog", "owl"]


class SmallServer:
    """An ASGI app that knows three "pictures" and what it was asked; below threshold 1 it answers at exit 1 of 4.

    failing: pictures refused with 503. held: so many requests wait until one more has come in.
    miscounted: added to the counter of exit 1 on /metrics with every look at it.
    """

    def __init__(self, failing: frozenset[bytes] = frozenset(), held: int = 0, miscounted: int = 0) -> None:
        self.seen: list[tuple[bytes, str, str]] = []
        self.clients: set[tuple[str, int]] = set()
        self.most_in_flight = 0
        self._in_flight = 0
        self._failing = failing
        self._held = held
        self._miscounted = miscounted
        self._answered = Counter({1: 0, 4: 0})
        self._enough = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await self._reply(send, 200, self._metrics() if scope["path"] == "/metrics" else b"ready")
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.seen.append((body, scope["query_string"].decode(), dict(scope["headers"])[b"content-type"].decode()))
        self.clients.add(tuple(scope["client"]))
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        if self._held:
            if len(self.seen) > self._held:
                self._enough.set()
            await self._enough.wait()
        self._in_flight -= 1
        class_id = PICTURES.index(body)
        threshold = float(scope["query_string"].decode().partition("=")[2])
        exit = 1 if threshold < 1 else 4
        prediction = {"label": LABELS[class_id], "class_id": class_id, "confidence": 0.9, "exit": exit, "exits": 4}
        if body in self._failing:
            await self._reply(send, 503, b"full")
            return
        self._answered[exit] += 1
        answer = {"model": "small", "version": "7", "predictions": [prediction]}
        await self._reply(send, 200, json.dumps(answer).encode())

    def _metrics(self) -> bytes:
        self._answered[1] += self._miscounted
        lines = [f'offramp_samples_total{{model="small",exit="{k}"}} {n}.0' for k, n in self._answered.items()]
        return "\n".join(["# TYPE offramp_samples counter", *lines, ""]).encode()

    async def _reply(self, send: Any, status: int, body: bytes) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Running:
    """uvicorn on a free port in a thread of its own."""

    def __init__(self, app: SmallServer) -> None:
        self.app = app
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            assert self._thread.is_alive()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"


@pytest.fixture
def serve() -> Callable[..., Running]:
    """Serve a SmallServer of the given properties while the context lasts."""
    return lambda **properties: Running(SmallServer(**properties))


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Three pictures in a folder."""
    return write_pictures(PICTURES, LABELS, tmp_path)
