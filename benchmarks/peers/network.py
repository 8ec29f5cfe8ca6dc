"""What runs inside every peer: decoding, the exported network, answers. Needs openvino, Pillow and numpy only.

A peer adds only its server around this, so that peers differ in nothing else.
"""

from __future__ import annotations

import io
import json
import os
import random
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from offramp.models.preprocess import Preprocessing

WHOLE, DESCRIPTION = "whole.xml", "network.json"
# An environment variable reaches a peer through any launcher.
SETUP = "PEER_SETUP"
# Limits of the confidence: no picture leaves, every picture leaves.
NEVER_CONFIDENT, ALWAYS_CONFIDENT = 2.0, -1.0

Picture = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]


def stage_file(stage: int) -> str:
    """Name of stage 1..K within the network's folder."""
    return f"stage-{stage}.xml"


@dataclass(frozen=True)
class PeerSettings:
    """Settings of a peer for this machine. The benchmark tries some and takes the fastest.

    workers: processes, or replicas, that run the network. hint: "LATENCY", one batch at a time on all cores, or
    "THROUGHPUT", a stream for each core or two. threads: of a worker's network; 0: OpenVINO decides. max_batch_size,
    max_wait_ms: for servers that batch. fast_queue: LitServe's own transport.
    """

    workers: int = 1
    hint: str = "LATENCY"
    threads: int = 0
    max_batch_size: int = 32
    max_wait_ms: float = 2.0
    fast_queue: bool = False


@dataclass(frozen=True)
class Exits:
    """When pictures leave a peer that knows exits.

    threshold: a picture leaves at the first exit whose confidence reaches it. mix: instead, the share of the pictures
    that leave at each exit, whatever their confidence: for networks with random weights.
    """

    threshold: float = 1.0
    mix: tuple[float, ...] = ()

    def limits(self, number: int, num_exits: int) -> tuple[float, ...]:
        """For request 0, 1, …: the confidence at which it leaves, for each exit; at the last exit always."""
        if not self.mix:
            early = self.threshold if self.threshold < 1 else NEVER_CONFIDENT
            return (*(early,) * (num_exits - 1), ALWAYS_CONFIDENT)
        last = draw_exit(number, self.mix)
        return tuple(ALWAYS_CONFIDENT if exit >= last else NEVER_CONFIDENT for exit in range(1, num_exits + 1))


def draw_exit(number: int, mix: tuple[float, ...]) -> int:
    """The exit 1..K of request 0, 1, …: drawn by the shares of `mix`, the same for the same number."""
    return random.Random(number).choices(range(1, len(mix) + 1), weights=mix)[0]


@dataclass(frozen=True)
class Setup:
    """What the benchmark gives a peer. folder: of the exported network."""

    folder: Path
    settings: PeerSettings = PeerSettings()
    exits: Exits = Exits()

    def variables(self) -> dict[str, str]:
        """Environment variables that carry it."""
        return {SETUP: json.dumps({**asdict(self), "folder": str(self.folder)})}

    @classmethod
    def from_environment(cls) -> Setup:
        """The setup in the environment of this process."""
        given = json.loads(os.environ[SETUP])
        exits = Exits(given["exits"]["threshold"], tuple(given["exits"]["mix"]))
        return cls(Path(given["folder"]), PeerSettings(**given["settings"]), exits)


@dataclass(frozen=True)
class Description:
    """Facts of the exported network. size: side of the square input in pixels."""

    name: str
    size: int
    crop_fraction: float
    labels: tuple[str, ...]
    num_exits: int

    @classmethod
    def read(cls, folder: Path) -> Description:
        """From the folder that `benchmarks.peers.export` wrote."""
        given = json.loads((folder / DESCRIPTION).read_text())
        return cls(**{**given, "labels": tuple(given["labels"])})

    def picture(self, data: bytes) -> Picture:
        """An encoded picture as uint8 (size, size, 3)."""
        return self.preprocess(Image.open(io.BytesIO(data)))

    def preprocess(self, image: Image.Image) -> Picture:
        """An opened picture, preprocessed as in Offramp: uint8 (size, size, 3)."""
        return Preprocessing(self.size, self.crop_fraction).apply(image)

    def answer(self, probabilities_C: Array, exit: int = 0) -> dict[str, Any]:
        """A peer's answer to one picture; exit 0 is the last."""
        class_id = int(probabilities_C.argmax())
        return {
            "label": self.labels[class_id],
            "class_id": class_id,
            "confidence": round(float(probabilities_C[class_id]), 6),
            "exit": exit or self.num_exits,
        }


class Graph:
    """A compiled OpenVINO graph that any thread may run; each thread has an inference request of its own."""

    def __init__(self, path: Path, settings: PeerSettings) -> None:
        """Compile. OpenVINO chooses the precision: bfloat16 where the processor has it."""
        import openvino

        options: dict[str, Any] = {"PERFORMANCE_HINT": settings.hint}
        if settings.threads:
            options["INFERENCE_NUM_THREADS"] = settings.threads
        self._compiled = openvino.Core().compile_model(str(path), "CPU", options)
        self.num_inputs = len(self._compiled.inputs)
        self._own = threading.local()

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[Array, ...]:
        """All outputs of the graph, copied out."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        results = self._own.request.infer(list(inputs), share_inputs=True)
        return tuple(results[output] for output in self._compiled.outputs)


class Network:
    """The whole network at full depth."""

    def __init__(self, setup: Setup) -> None:
        """Compile, and run once, so that the first request is no slower."""
        self.description = Description.read(setup.folder)
        self.picture = self.description.picture
        self._graph = Graph(setup.folder / WHOLE, setup.settings)
        size = self.description.size
        self.answers([np.zeros((size, size, 3), np.uint8)])

    def answers(self, pictures: list[Picture]) -> list[dict[str, Any]]:
        """One batch through the network: an answer for each picture."""
        (probabilities_BC,) = self._graph(np.stack(pictures))
        return [self.description.answer(row_C) for row_C in probabilities_BC]
