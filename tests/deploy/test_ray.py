"""A real Ray on this machine: its replicas answer as one server does, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
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

from benchmarks.harness.server import free_port
from offramp.models.backbones import BACKBONES
from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import save_bundle
from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.server.http.app import create_app
from offramp.server.loading import load_registry
from offramp.server.metrics import Metrics
from offramp.server.settings import Settings
from tests.models.test_plugins import TINY, bundle_of, written
from tests.project import needed
from tests.server.conftest import CLASSES, make_bundle
from tests.server.processes.supervised import encoded_pictures

ray = needed("ray", "ray")
serve = needed("ray.serve", "ray")

PATH = "/v1/predict?threshold=0.12"
CLIENTS = 8
# What a client rests after an answer: the replicas that start beside the load need the cores too.
REST_S = 0.1
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
    """A Ray of this machine alone. url: of the application behind its proxy; dashboard: where `serve deploy` sends."""

    url: str
    dashboard: str
    config: Path
    bundle: Path

    def deploy(self, **changes: Any) -> None:
        """Run `serve deploy`, which waits for nothing. Changes: to the deployment, or to `args`."""
        given = {"model": str(self.bundle), "runner": "torch", "device": "cpu", "audit_share": 0, "cpus": 0.5}
        args = given | changes.pop("args", {})
        application = {
            "name": "tiny",
            "route_prefix": "/tiny",
            "import_path": "offramp.server.ray_app:app",
            "args": args,
        }
        application["deployments"] = [{"name": "Offramp", **changes}]
        http = {"host": "127.0.0.1", "port": httpx.URL(self.url).port}
        config = {"http_options": http, "applications": [application], "logging_config": {"enable_access_log": False}}
        self.config.write_text(json.dumps(config))  # JSON is YAML.
        serve_command = str(Path(sys.executable).parent / "serve")
        command = [serve_command, "deploy", "--address", self.dashboard, str(self.config)]
        subprocess.run(command, check=True, capture_output=True)

    def is_in(self, status: str) -> bool:
        """Whether the application has this status."""
        application = serve.status().applications.get("tiny")
        return application is not None and application.status.value == status

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
def cluster(tiny, tmp_path_factory) -> Iterator[Cluster]:
    # Ray gives up a proxy that a busy machine starts in more than 5 s.
    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120"}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **patience}
    dashboard = free_port()
    ray.init(num_cpus=4, dashboard_port=dashboard, log_to_driver=False, configure_logging=False)
    config = tmp_path_factory.mktemp("config") / "serve.yaml"
    cluster = Cluster(f"http://127.0.0.1:{free_port()}/tiny", f"http://127.0.0.1:{dashboard}", config, tiny)
    cluster.deploy(num_replicas=2)
    until(partial(cluster.is_in, "RUNNING"))
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

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)

    def more(self, count: int) -> None:
        """Wait for so many answers more."""
        answered = self.statuses[200]
        until(lambda: self.statuses[200] > answered + count)


@contextmanager
def load(
    cluster: Cluster, pictures: list[bytes], expected: list[float], clients: int = CLIENTS, rest_s: float = REST_S
) -> Iterator[Load]:
    """Clients that ask again and again, until the block ends. rest_s: after each answer."""
    seen, over = Load(), Event()

    def go_on(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                at = number % len(pictures)
                answer = client.post(cluster.url + PATH, content=pictures[at])
                seen.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    seen.wrong += abs(confidence(answer) - expected[at]) > ALIKE
                number += 1
                over.wait(rest_s)

    with ThreadPoolExecutor(clients) as threads:
        asking = [threads.submit(go_on, number) for number in range(clients)]
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
            # Requests fail that the killed replica had, or that Ray sent there before it knew: none later.
            failed = seen.failed
            seen.more(50)
            assert seen.failed == failed
    assert seen.wrong == 0
    assert set(seen.statuses) <= {200, 500, 503}


def test_replicas_come_and_go_under_load_and_no_request_fails(cluster, pictures, expected):
    with load(cluster, pictures, expected) as seen:
        two = cluster.replicas()
        cluster.deploy(num_replicas=3)
        until(partial(cluster.has, 3))
        assert two < cluster.replicas()
        cluster.deploy(num_replicas=2)
        until(partial(cluster.has, 2))
    assert (set(seen.statuses), seen.wrong) == ({200}, 0)


def test_a_broken_bundle_leaves_the_old_replicas_serving(cluster, tiny, tmp_path, pictures, expected):
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.json").write_text("{}")
    before = cluster.replicas()
    with load(cluster, pictures, expected) as seen:
        cluster.deploy(num_replicas=2, args={"model": str(broken)})
        until(partial(cluster.is_in, "DEPLOY_FAILED"))
        seen.more(50)
        assert str(broken) in serve.status().applications["tiny"].message
        assert cluster.replicas() == before
        cluster.deploy(num_replicas=2)
        until(partial(cluster.is_in, "RUNNING"))
    assert (set(seen.statuses), seen.wrong) == ({200}, 0)


def test_ray_adds_replicas_for_requests_and_takes_them_away_again(cluster, pictures, expected):
    scaling = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2, "metrics_interval_s": 0.5}
    delays = {"upscale_delay_s": 1, "downscale_delay_s": 1, "look_back_period_s": 2}
    with load(cluster, pictures, expected, rest_s=0) as seen:
        cluster.deploy(autoscaling_config=scaling | delays)
        until(partial(cluster.has, 3))
    with load(cluster, pictures, expected, clients=1) as last:
        until(partial(cluster.has, 1))
    assert (set(seen.statuses), seen.wrong) == (set(last.statuses), last.wrong) == ({200}, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 80}, "port is an option that Ray replaces: leave it out"),
        ({"cpus": "many"}, "cpus 'many' is not a number"),
        ({"cpus": float("nan")}, "cpus nan is out of range: give a number from 0.001 to 100000"),
        ({"gpus": -1}, "gpus -1 is out of range"),
        ({"replicas": "1e400"}, "replicas '1e400' is out of range"),
        ({"replicas": 1.5}, "replicas 1.5 is out of range: give a whole number"),
        ({None: 1}, "None is no option of offramp serve"),
        ({"api_keys_file": "nothing.txt"}, "--api-keys-file nothing.txt cannot be read"),
        ({"max_queue": 1}, "--max-queue 1 is below --max-images 64"),
        ({"treads": 2}, "treads is no option of offramp serve"),
        ({"threads": "many"}, "threads: Input should be a valid integer"),
        ({"threads": -1}, "--threads -1 is out of range"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    from offramp.server.ray_app import app

    with pytest.raises(ValueError, match=message):
        app(arguments)


def test_api_keys_are_in_no_error():
    from offramp.server.ray_app import app

    mistakes = ({"max_queue": 0}, {"threads": "many"}, {"log_level": "loud"}, {"unknown": 1}, {"api_keys": ["SECRET"]})
    for wrong in mistakes:
        with pytest.raises(ValueError, match=r".") as error:
            app({"api_keys": "SECRET", **wrong})
        assert "SECRET" not in str(error.value)


def test_arguments_are_texts_or_values():
    from offramp.server.ray_app import settings_of

    assert settings_of({"model": "a,b", "threads": "2", "private": "true"}) == settings_of(
        {"model": ["a", "b"], "threads": 2, "private": True}
    )


def test_a_broken_bundle_is_named_before_ray_starts_anything(tmp_path):
    from offramp.server.ray_app import app

    with pytest.raises(ValueError, match="nothing"):
        app({"model": str(tmp_path / "nothing")})


def test_own_backbones_are_known_before_the_bundle_is_read(own_networks, tmp_path):
    from offramp.server.ray_app import app

    source = written(tmp_path / "source", TINY + 'BACKBONES = {"tiny_own": build}')
    load_backbones(source)
    net = MultiExitNet(ModelConfig("tiny_own", CLASSES, input_size=32)).eval()
    save_bundle(bundle_of(net, make_bundle()), tmp_path / "own", "card")
    del BACKBONES["tiny_own"]
    with pytest.raises(ValueError, match="tiny_own"):
        app({"model": str(tmp_path / "own")})
    assert app({"model": str(tmp_path / "own"), "backbones": source})
