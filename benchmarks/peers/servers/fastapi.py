"""FastAPI: the event loop reads the body, threads decode and run the network, which has a stream for each core.

FastAPI has no batching: every stream of the network takes single pictures. There are as many threads as cores: more
would only take the interpreter's lock from one another and from the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from benchmarks.peers.network import Network, Setup


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.network = Network(Setup.from_environment())
    with ThreadPoolExecutor(os.cpu_count() or 1) as app.state.threads:
        yield


app = FastAPI(lifespan=lifespan)


def classify(network: Network, data: bytes) -> dict[str, Any]:
    (answer,) = network.answers([network.picture(data)])
    return answer


@app.post("/predict")
async def predict(request: Request) -> JSONResponse:
    data, state = await request.body(), request.app.state
    answer = await asyncio.get_running_loop().run_in_executor(state.threads, classify, state.network, data)
    return JSONResponse(answer)
