"""The containers that the chart and KServe describe, really run: read-only, without rights, and ended by a signal."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.conftest import load
from tests.deploy.container import PROJECT, Container, Running, container_of, started
from tests.project import needed_program

PICTURE = (PROJECT / "docs/pictures/rocket.jpg").read_bytes()
EMBEDDED = PROJECT / "models/pretrained"
KEY = "a-key"
CONCURRENT = 4


@pytest.fixture
def bwrap() -> str:
    return needed_program("bwrap")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def keys(tmp_path) -> Path:
    """As the Secret's volume shows it to the pod's group."""
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "keys").write_text(f"# ours\n{KEY}\n")
    (folder / "keys").chmod(stat.S_IRUSR | stat.S_IRGRP)
    return folder


class Client:
    """One client of the server at a port."""

    def __init__(self, running: Running, port: int, key: str = "") -> None:
        self._running = running
        self._port = port
        self._headers = {"X-API-Key": key} if key else {}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def wait_until_ready(self) -> None:
        """All processes have begun: /readyz alone may be the first frontend's."""
        while "Offramp serves" not in self._running.log:
            assert self._running.process.poll() is None, self._running.log
            time.sleep(0.05)
        assert self.http.get("/readyz").status_code == 200

    def wait_until_closed(self) -> None:
        """Nobody listens any more."""
        with contextlib.suppress(ConnectionError):
            while True:
                socket.create_connection(("127.0.0.1", self._port)).close()

    def predict(self) -> httpx.Response:
        return self.http.post("/v1/predict", content=PICTURE, headers=self._headers)

    def begin(self) -> socket.socket:
        """A request that the server has taken in and whose body it waits for."""
        connection = socket.create_connection(("127.0.0.1", self._port))
        headers = {"Host": "x", "Content-Length": len(PICTURE), "Expect": "100-continue", **self._headers}
        lines = ["POST /v1/predict HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.recv(1024).startswith(b"HTTP/1.1 100")
        return connection


def finish(connection: socket.socket) -> bytes:
    """Send the body; the whole answer."""
    connection.sendall(PICTURE)
    answer = b""
    with connection:
        while part := connection.recv(65536):
            answer += part
    return answer


SCENARIOS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "frontends, keys and a claim": {
        "settings": {"frontends": 2, "decode_threads": 1},
        "apiKeys": {"existingSecret": "keys"},
        "bundle": {"source": "claim", "claim": {"name": "bundles"}, "paths": ["cifar100-resnet18"]},
    },
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_the_chart_starts_serves_and_ends_in_time_with_nothing_lost(one, bwrap, port, keys, tmp_path, scenario):
    values = {**SCENARIOS[scenario]}
    values["settings"] = {**values.get("settings", {}), "port": port}
    container: Container = container_of(one("Deployment", values)["spec"]["template"]["spec"])
    assert container.read_only
    key = KEY if "apiKeys" in values else ""
    volumes = {"api-keys": keys, "bundles": EMBEDDED}
    with started(bwrap, container, volumes, tmp_path / "log") as running:
        client = Client(running, port, key)
        client.wait_until_ready()
        # The fast runner, whatever the root and the home directory are, and nothing else to complain of.
        assert "WARNING" not in running.log
        answer = client.predict()
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["label"] == "rocket"
        if key:
            assert client.http.post("/v1/predict", content=PICTURE).status_code == 401
        metrics = client.http.get("/metrics").text
        assert 'offramp_requests_total{code="200",model="cifar100-resnet18"} 1.0' in metrics
        assert 'offramp_predicted_wait_seconds{model="cifar100-resnet18"} 0.0' in metrics
        begun = [client.begin() for _ in range(CONCURRENT)]
        client.http.close()
        answers: list[bytes] = []

        def after_the_signal() -> None:
            client.wait_until_closed()
            answers.extend(finish(connection) for connection in begun)

        assert running.stop(container.grace_s, after_the_signal) == 0
        statuses = [answer.partition(b"\r\n")[0] for answer in answers]
        assert statuses == [b"HTTP/1.1 200 OK"] * CONCURRENT, running.log
        assert "WARNING" not in running.log


@pytest.mark.timeout(600)
def test_what_kserve_starts_serves_the_bundle_that_it_has_copied(bwrap, port, tmp_path):
    runtime, service = load("kserve/runtime.yaml")["spec"], load("kserve/photos.yaml")["spec"]["predictor"]
    (described,) = runtime["containers"]
    # What KServe makes of the two: its init container copies what lies at storageUri.
    mounts = [*described["volumeMounts"], {"name": "kserve-provision-location", "mountPath": "/mnt/models"}]
    pod = {**service, "containers": [{**described, "volumeMounts": mounts}]}
    container = container_of(pod)
    assert container.read_only
    assert set(container.env) >= {"OFFRAMP_HOST", "OFFRAMP_PORT"}
    container.env.update(OFFRAMP_HOST="127.0.0.1", OFFRAMP_PORT=str(port))
    stored = tmp_path / "stored"
    shutil.copytree(EMBEDDED / "cifar100-resnet18", stored)
    # Another name than that of the embedded bundle.
    model = json.loads((stored / "model.json").read_text())
    (stored / "model.json").write_text(json.dumps({**model, "name": "photos"}))
    with started(bwrap, container, {"kserve-provision-location": stored}, tmp_path / "log") as running:
        client = Client(running, port)
        client.wait_until_ready()
        assert "WARNING" not in running.log
        probes = [described[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")]
        assert {client.http.get(path).status_code for path in probes} == {200}
        answer = client.predict().json()
        assert (answer["model"], answer["predictions"][0]["label"]) == ("photos", "rocket")
        assert running.stop(container.grace_s, client.http.close) == 0
