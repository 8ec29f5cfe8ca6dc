"""LitServe's continuous batching over our stages: pictures join between steps, and leave at a confident exit.

Its loop is made for language models: `step` advances everything in flight, and streams out what has ended. Here a step
runs one stage: the deepest that has pictures waiting, so that pictures in flight leave before new ones start.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body
from litserve.loops.continuous_batching_loop import ContinuousBatchingLoop, Output
from litserve.utils import LitAPIStatus

from benchmarks.peers.network import Array, Description, Graph, Setup, stage_file
from benchmarks.peers.servers.litserve import serve


@dataclass
class InFlight:
    """One request between stages. inputs: of its next stage, one row each. limits: see `Exits`."""

    uid: str
    inputs: tuple[Any, ...]
    limits: tuple[float, ...]


class StagedClassifier(litserve.LitAPI):
    """What the continuous loop asks for: add_request, has_capacity, has_active_requests, step."""

    def __init__(self, given: Setup) -> None:
        super().__init__(max_batch_size=given.settings.max_batch_size, stream=True, loop=ContinuousBatchingLoop())
        self.given = given

    def setup(self, device: str) -> None:
        self.description = Description.read(self.given.folder)
        stages = range(1, self.description.num_exits + 1)
        self.stages = [Graph(self.given.folder / stage_file(stage), self.given.settings) for stage in stages]
        self.queues: list[list[InFlight]] = [[] for _ in self.stages]
        # The loop adds requests from its own thread, while `step` runs in another.
        self.arrived: SimpleQueue[InFlight] = SimpleQueue()
        self.numbers = count()
        self.in_flight = 0

    # A raw body, by FastAPI's own means: LitServe's default is JSON, in which a picture is a third larger.
    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def predict(self, x: Any) -> Any:
        raise NotImplementedError("the continuous loop calls step")

    def add_request(self, uid: str, request: bytes) -> None:
        limits = self.given.exits.limits(next(self.numbers), self.description.num_exits)
        self.arrived.put(InFlight(uid, (self.description.picture(request),), limits))
        self.in_flight += 1

    def has_capacity(self) -> bool:
        # Without capacity the loop blocks for up to a second; a waiting request costs nothing.
        return True

    def has_active_requests(self) -> bool:
        return self.in_flight > 0

    def step(self, previous: list[Output] | None) -> list[Output]:
        """Run stages until a request leaves: LitServe takes an empty answer for an error and sleeps 10 ms."""
        while True:
            self.queues[0] += [self.arrived.get() for _ in range(self.arrived.qsize())]
            stage = max(index for index, queue in enumerate(self.queues) if queue)
            size, queue = self.given.settings.max_batch_size, self.queues[stage]
            batch, self.queues[stage] = queue[:size], queue[size:]
            if outputs := list(self._run(stage, batch)):
                return outputs

    def _run(self, stage: int, batch: list[InFlight]) -> Iterable[Output]:
        graph = self.stages[stage]
        columns = zip(*(request.inputs for request in batch), strict=True)
        probabilities_BC, *state = graph(*[np.stack(rows) for rows in columns])
        confidence_B: Array = probabilities_BC.max(axis=1)
        for row, request in enumerate(batch):
            if confidence_B[row] >= request.limits[stage]:
                answer = self.description.answer(probabilities_BC[row], stage + 1)
                yield Output(request.uid, answer, LitAPIStatus.OK)
                # LitServe does not send what comes with the end of a stream.
                yield Output(request.uid, {}, LitAPIStatus.FINISH_STREAMING)
            else:
                accumulated_BC, features_BHWC = state
                request.inputs = (features_BHWC[row], accumulated_BC[row])[: self.stages[stage + 1].num_inputs]
                self.queues[stage + 1].append(request)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        self.in_flight -= not output
        return output


if __name__ == "__main__":
    serve(StagedClassifier(Setup.from_environment()), int(sys.argv[1]))
