"""A real Ray on this machine: its replicas answer as one server does, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from benchmarks.processes import free_port
from models.bundle import save_bundle
from server.app import create_app
from server.loading import load_registry
from server.metrics import Metrics
from server.settings import Settings
from tests.deploy.conftest import needed
from tests.server.conftest import make_bundle
from tests.server.processes.supervised import encoded_pictures

ray = needed("ray", "ray")
serve = needed("ray.serve", "ray")

PATH = "/v1/predict?threshold=0.12"
CLIENTS = 8
# Batches of other sizes compute in another order.
ALIKE = 1e-5

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore:::ray")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    save_bundle(make_bundle(), path, "card")
    return path


@dataclass
class Cluster:
    """A Ray of this machine alone. url: of its proxy."""

    url: str
    bundle: Path

    def deploy(self, replicas: int, **arguments: Any) -> None:
        """Deploy, as `serve run` does, and wait until it is done."""
        from server.ray_app import app

        given = {"model": str(self.bundle), "runner": "torch", "device": "cpu", "audit_share": "0"} | arguments
        serve.run(app({"replicas": replicas, "cpus": "0.5", **given}), name="tiny", route_prefix="/tiny")

    def has(self, count: int) -> bool:
        """Whether there are so many replicas."""
        return len(self.replicas()) == count

    def replicas(self) -> set[int]:
        """Process ids."""
        return {
            int(file.parent.name)
            for file in Path("/proc").glob("[0-9]*/cmdline")
            if file.read_bytes().startswith(b"ray::ServeReplica:tiny")
        }


@pytest.fixture(scope="module")
def cluster(tiny) -> Iterator[Cluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    cluster = Cluster(f"http://127.0.0.1:{port}/tiny", tiny)
    cluster.deploy(2)
    yield cluster
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return encoded_pictures()


@pytest.fixture(scope="module")
def expected(tiny, pictures) -> list[float]:
    """The confidence that one server has for each picture: no two are alike."""
    metrics, settings = Metrics(), Settings(model=[tiny], device="cpu", runner="torch", threads=1, audit_share=0.0)
    app = create_app(load_registry(settings, metrics), settings, metrics, warm_first=True)

    async def asked() -> list[httpx.Response]:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://one") as client,
        ):
            return [await client.post(PATH, content=picture) for picture in pictures]

    confidences = [confidence(answer) for answer in asyncio.run(asked())]
    ordered = sorted(confidences)
    assert min(b - a for a, b in pairwise(ordered)) > 2 * ALIKE
    return confidences


def confidence(answer: httpx.Response) -> float:
    return float(answer.json()["predictions"][0]["confidence"])


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


@dataclass
class Load:
    """What clients saw that asked all the time. wrong: answers that were another picture's."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    longest_s: float = 0.0

    def more(self, count: int) -> None:
        """Wait for so many answers more."""
        answered = self.statuses[200]
        until(lambda: self.statuses[200] > answered + count)


@contextmanager
def load(cluster: Cluster, pictures: list[bytes], expected: list[float]) -> Iterator[Load]:
    """Clients that ask again and again, until the block ends."""
    seen, over = Load(), Event()

    def go_on(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                at = number % len(pictures)
                start_s = time.monotonic()
                answer = client.post(cluster.url + PATH, content=pictures[at])
                seen.longest_s = max(seen.longest_s, time.monotonic() - start_s)
                seen.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    seen.wrong += abs(confidence(answer) - expected[at]) > ALIKE
                number += 1

    with ThreadPoolExecutor(CLIENTS) as threads:
        asking = [threads.submit(go_on, number) for number in range(CLIENTS)]
        try:
            seen.more(20)
            yield seen
        finally:
            over.set()
        for one in asking:
            one.result()


def test_every_replica_answers_as_one_server_does(cluster, pictures, expected):
    with load(cluster, pictures, expected) as seen:
        seen.more(200)
    assert (set(seen.statuses), seen.wrong) == ({200}, 0)
    assert len(cluster.replicas()) == 2


def test_paths_below_the_route_prefix_are_those_of_one_server(cluster):
    for path, status in {"/readyz": 200, "/v1/models/tiny": 200, "/docs": 200, "/v1/models/none": 404}.items():
        assert httpx.get(cluster.url + path).status_code == status
    assert httpx.get(cluster.url + "/openapi.json").json()["servers"] == [{"url": "/tiny"}]


def test_metrics_reach_rays_own_with_the_replica_as_a_label(cluster, pictures, expected):
    port = ray.nodes()[0]["MetricsExportPort"]

    def replicas() -> set[str]:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("ray_offramp_samples_total{")]
        return {re.findall(r'replica="(\w+)"', line)[0] for line in lines if not line.endswith(" 0.0")}

    with load(cluster, pictures, expected):
        until(lambda: len(replicas()) >= 2)


def test_when_a_replica_is_killed_no_answer_is_swapped_none_is_missing_and_another_takes_its_place(
    cluster, pictures, expected
):
    def replaced() -> bool:
        now = cluster.replicas()
        return len(now) == 2 and len(now - before) == 1

    with load(cluster, pictures, expected) as seen:
        for _ in range(2):
            before = cluster.replicas()
            os.kill(min(before), signal.SIGKILL)
            until(replaced)
            seen.more(50)
    assert seen.wrong == 0
    # Requests that the killed replica had: each client has one at most.
    assert sum(count for status, count in seen.statuses.items() if status != 200) <= 2 * CLIENTS
    assert set(seen.statuses) <= {200, 500, 503}


def test_replicas_come_and_go_under_load_and_no_request_fails(cluster, pictures, expected):
    with load(cluster, pictures, expected) as seen:
        for count in (3, 2):
            cluster.deploy(count)
            until(partial(cluster.has, count))
    assert (set(seen.statuses), seen.wrong) == ({200}, 0)


def test_a_broken_bundle_is_refused_before_anything_is_replaced(cluster, tiny, tmp_path, pictures, expected):
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.json").write_text("{}")
    with load(cluster, pictures, expected) as seen:
        with pytest.raises(ValueError, match="broken"):
            cluster.deploy(2, model=str(broken))
        seen.more(50)
    assert (set(seen.statuses), seen.wrong) == ({200}, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 80}, "port is Ray's business: leave it out"),
        ({"cpus": "many"}, "cpus 'many' is no number"),
        ({"treads": 2}, "treads is no option of offramp serve"),
        ({"threads": "many"}, "threads 'many'"),
        ({"threads": -1}, "threads -1 is out of range"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    from server.ray_app import app

    with pytest.raises(ValueError, match=message):
        app(arguments)


def test_arguments_are_texts_or_values():
    from server.ray_app import settings_of

    assert settings_of({"model": "a,b", "threads": "2", "private": "true"}) == settings_of(
        {"model": ["a", "b"], "threads": 2, "private": True}
    )
