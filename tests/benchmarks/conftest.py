"""A small server that records its requests, and its pictures."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import uvicorn

from benchmarks.harness.pictures import TestPictures
from benchmarks.harness.server import Server
from tests.project import needed_program

PICTURES = [b"picture-a", b"picture-b", b"picture-c"]
LABELS = ("cat", "dog", "owl")


class SmallServer:
    """An ASGI app that knows three "pictures"; below threshold 1 it answers at exit 1 of 4.

    failing: pictures refused with 503. held: so many requests wait until one more has come in. miscounted: added to the
    counter of exit 1 on /metrics at each read.
    """

    def __init__(self, failing: frozenset[bytes] = frozenset(), held: int = 0, miscounted: int = 0) -> None:
        self.seen: list[tuple[bytes, str]] = []
        self.clients: set[tuple[str, int]] = set()
        self.most_in_flight = self._in_flight = 0
        self._failing, self._held, self._miscounted = failing, held, miscounted
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
        self.seen.append((body, scope["query_string"].decode()))
        self.clients.add(tuple(scope["client"]))
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        if self._held:
            if len(self.seen) > self._held:
                self._enough.set()
            await self._enough.wait()
        self._in_flight -= 1
        if body in self._failing:
            await self._reply(send, 503, b"full")
            return
        exit = 1 if float(scope["query_string"].decode().partition("=")[2]) < 1 else 4
        self._answered[exit] += 1
        facts = {"confidence": 0.9, "exit": exit, "exits": 4, "exit_reason": "confident", "compute": exit / 4}
        prediction = {"label": LABELS[PICTURES.index(body)], "class_id": PICTURES.index(body), **facts}
        answer = {"model": "small", "version": "7", "predictions": [prediction]}
        await self._reply(send, 200, json.dumps(answer).encode())

    def _metrics(self) -> bytes:
        self._answered[1] += self._miscounted
        lines = [f'offramp_samples_total{{model="small",exit="{k}"}} {n}.0' for k, n in self._answered.items()]
        return "\n".join(["# TYPE offramp_samples counter", *lines, ""]).encode()

    async def _reply(self, send: Any, status: int, body: bytes) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True)
class Running:
    """A SmallServer that listens."""

    app: SmallServer
    server: Server


@contextmanager
def run_small_server(**properties: Any) -> Iterator[Running]:
    """A SmallServer under uvicorn on a free port, in a thread of its own."""
    app = SmallServer(**properties)
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    while not uvicorn_server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield Running(app, Server(uvicorn_server.servers[0].sockets[0].getsockname()[1]))
    finally:
        uvicorn_server.should_exit = True
        thread.join()


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Starts a SmallServer with the given properties."""
    return run_small_server


@pytest.fixture
def pictures() -> TestPictures:
    """The three "pictures"."""
    return TestPictures(np.zeros((3, 32, 32, 3), np.uint8), PICTURES, (0, 1, 2), LABELS)


@pytest.fixture
def wrk() -> str:
    """The path of wrk. Without it a test is skipped, and under CI it fails."""
    return needed_program("wrk")
