"""PyTriton: Triton's own server, its dynamic batching, and the network in a Python callable."""

import json
import sys
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.network import Network, Setup


def main(port: int, workspace: str, setup: Setup) -> None:
    """Serve until stopped. workspace: an empty folder for Triton's own files."""
    network, settings = Network(setup), setup.settings

    @batch
    def classify(image: Any) -> dict[str, Any]:
        answers = network.answers([network.picture(data) for (data,) in image.tolist()])
        return {"answer": np.array([[json.dumps(answer).encode()] for answer in answers], dtype=bytes)}

    # Its own metrics and gRPC would listen on fixed ports.
    config = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config, workspace=workspace) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[classify] * settings.workers,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=settings.max_batch_size,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(settings.max_wait_ms * 1000)),
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Setup.from_environment())
