"""LitServe with its batching: a worker process collects requests, decodes them and runs the network."""

import sys
from typing import Annotated, Any

import litserve
from fastapi import Body

from benchmarks.peers.network import Network, Picture, Setup


class Classifier(litserve.LitAPI):
    """LitServe's hooks: decode, batch (its own stacks the arrays), predict, unbatch, encode."""

    def setup(self, device: str) -> None:
        self.network = Network(Setup.from_environment())

    # A raw body, by FastAPI's own means: LitServe's default is JSON, in which a picture is a third larger.
    def decode_request(self, request: Annotated[bytes, Body()]) -> Picture:
        return self.network.picture(request)

    def predict(self, x: list[Picture]) -> list[dict[str, Any]]:
        return self.network.answers(list(x))

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def serve(api: litserve.LitAPI, port: int) -> None:
    """Serve until stopped."""
    settings = Setup.from_environment().settings
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=settings.workers, timeout=False, fast_queue=settings.fast_queue
    )
    server.run("127.0.0.1", port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    settings = Setup.from_environment().settings
    api = Classifier(max_batch_size=settings.max_batch_size, batch_timeout=settings.max_wait_ms / 1000)
    serve(api, int(sys.argv[1]))
