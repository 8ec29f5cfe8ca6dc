"""BentoML with adaptive batching: a batchable API, whose requests bring one picture each as a form's file."""

from typing import Any

import bentoml
from PIL import Image

from benchmarks.peers.network import Network, Setup

SETUP = Setup.from_environment()
QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=SETUP.settings.workers, traffic={"timeout": 60, "max_concurrency": 10_000}, logging=QUIET)
class Classifier:
    """One service: HTTP, batching and network in each worker."""

    def __init__(self) -> None:
        self.network = Network(SETUP)

    # Its batching waits as long as its own model of the latency says; beyond max_latency_ms it would refuse.
    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=SETUP.settings.max_batch_size, max_latency_ms=60_000)
    def predict(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        return self.network.answers([self.network.description.preprocess(image) for image in images])
