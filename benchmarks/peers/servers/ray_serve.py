"""Ray Serve with its batching: replicas behind its HTTP proxy, each batching what reaches it."""

import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.network import Network, Setup

SETUP = Setup.from_environment()


@serve.deployment(num_replicas=SETUP.settings.workers, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
class Classifier:
    """One replica."""

    def __init__(self) -> None:
        self.network = Network(SETUP)

    @serve.batch(max_batch_size=SETUP.settings.max_batch_size, batch_wait_timeout_s=SETUP.settings.max_wait_ms / 1000)
    async def classify(self, bodies: list[bytes]) -> list[dict[str, Any]]:
        return self.network.answers([self.network.picture(body) for body in bodies])

    async def __call__(self, request: Request) -> dict[str, Any]:
        answer: dict[str, Any] = await self.classify(await request.body())
        return answer


if __name__ == "__main__":
    # Its dashboard would be four more processes on these cores.
    ray.init(include_dashboard=False, log_to_driver=False)
    http = {"host": "127.0.0.1", "port": int(sys.argv[1])}
    serve.start(http_options=http, logging_config={"enable_access_log": False})
    application = Classifier.bind()  # type: ignore[attr-defined]
    serve.run(application, route_prefix="/predict", blocking=True)
