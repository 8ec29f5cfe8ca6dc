"""Offramp and each peer: how it is started, how a picture is sent to it, and how its answer is read.

A peer's `variants` are the settings that make sense on a machine of a few cores, among them the advice of its
documentation. The benchmark tries each and compares Offramp with the best.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.requests import Request, form, prediction
from benchmarks.harness.server import free_port
from benchmarks.options import parse_names
from benchmarks.peers.network import PeerSettings

PACKAGE = "benchmarks.peers"


@dataclass(frozen=True)
class Launch:
    """What a server is started with. bin: its environment's folder of commands. work: an empty folder."""

    bin: Path
    port: int
    work: Path
    settings: PeerSettings


@dataclass(frozen=True)
class PeerAnswer:
    """A server's answer to a picture."""

    class_id: int
    label: str
    exit: int
    confidence: float


def _plain(picture: bytes, media_type: str, query: str) -> Request:
    return Request("/predict", media_type, picture)


def _plain_answer(body: bytes) -> PeerAnswer:
    return _peer_answer(json.loads(body))


@dataclass(frozen=True)
class Peer:
    """One server.

    name: also of its environment, unless `environment` has another. package: the one whose version is shown.
    ask: makes a request of a picture, its media type and a query for Offramp. read: reads the answer's body.
    variables: added to its environment. has_exits: whether it takes `Exits`. needs_shared_python: its environment
    needs an interpreter with a shared library.
    """

    name: str
    title: str
    package: str
    command: Callable[[Launch], list[str]]
    variants: tuple[PeerSettings, ...] = (PeerSettings(),)
    ask: Callable[[bytes, str, str], Request] = _plain
    read: Callable[[bytes], PeerAnswer] = _plain_answer
    environment: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    has_exits: bool = False
    needs_shared_python: bool = False

    @property
    def folder(self) -> str:
        """Name of the folders of its environment and its requirements."""
        return self.environment or self.name


def _peer_answer(prediction: dict[str, Any]) -> PeerAnswer:
    return PeerAnswer(*(prediction[name] for name in ("class_id", "label", "exit", "confidence")))


def _module(name: str) -> Callable[[Launch], list[str]]:
    def command(launch: Launch) -> list[str]:
        return [str(launch.bin / "python"), "-m", f"{PACKAGE}.{name}", str(launch.port)]

    return command


def _uvicorn(launch: Launch) -> list[str]:
    options = ["--port", str(launch.port), "--workers", str(launch.settings.workers)]
    quiet = ["--no-access-log", "--log-level", "warning"]
    return [str(launch.bin / "uvicorn"), f"{PACKAGE}.fastapi.serve:app", "--host", "127.0.0.1", *options, *quiet]


def _bentoml(launch: Launch) -> list[str]:
    service = f"{PACKAGE}.bentoml.service:Classifier"
    return [str(launch.bin / "bentoml"), "serve", service, "--host", "127.0.0.1", "--port", str(launch.port)]


def _bentoml_ask(picture: bytes, media_type: str, query: str) -> Request:
    return form("/predict", [("images", picture)], media_type)


def _bentoml_read(body: bytes) -> PeerAnswer:
    (answer,) = json.loads(body)
    return _peer_answer(answer)


def _mlserver(launch: Launch) -> list[str]:
    settings = launch.settings
    server = {
        "host": "127.0.0.1",
        "http_port": launch.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": settings.workers - 1,
        "debug": False,
    }
    model = {
        "name": "classifier",
        "implementation": f"{PACKAGE}.mlserver.runtime.Classifier",
        "max_batch_size": settings.max_batch_size,
        "max_batch_time": settings.max_wait_ms / 1000,
    }
    (launch.work / "settings.json").write_text(json.dumps(server))
    (launch.work / "model-settings.json").write_text(json.dumps(model))
    return [str(launch.bin / "mlserver"), "start", str(launch.work)]


def _mlserver_ask(picture: bytes, media_type: str, query: str) -> Request:
    data = [base64.b64encode(picture).decode()]
    tensor = {"name": "picture", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    body = json.dumps({"inputs": [{**tensor, "data": data}]}).encode()
    return Request("/v2/models/classifier/infer", "application/json", body)


def _mlserver_read(body: bytes) -> PeerAnswer:
    (text,) = json.loads(body)["outputs"][0]["data"]
    return _plain_answer(text)


def _pytriton(launch: Launch) -> list[str]:
    # Triton's files, a hundred megabytes, stay behind when it is ended from outside.
    return [*_module("pytriton.serve")(launch), str(launch.work / "triton")]


def _triton_ask(picture: bytes, media_type: str, query: str) -> Request:
    # Triton's "raw binary request": the body is the only element of the only input.
    headers = {"Inference-Header-Content-Length": "0"}
    return Request("/v2/models/classifier/infer", "application/octet-stream", picture, headers)


def _triton_read(body: bytes) -> PeerAnswer:
    # JSON of the model's metadata, four bytes of length, and the output, which is JSON itself.
    _, end = json.JSONDecoder().raw_decode(text := body.decode("latin-1"))
    return _plain_answer(text[end + 4 :].encode("latin-1"))


def _offramp_ask(picture: bytes, media_type: str, query: str) -> Request:
    return prediction(picture, query, media_type)


def _offramp_read(body: bytes) -> PeerAnswer:
    (prediction,) = json.loads(body)["predictions"]
    return _peer_answer(prediction)


def offramp(model: Path | None, server_threads: int = 0) -> Peer:
    """Offramp, as `make serve` starts it. model: the bundle; None is the embedded one."""

    def command(launch: Launch) -> list[str]:
        words = [sys.executable, "-m", "offramp", "serve", "--port", str(launch.port), "--log-level", "warning"]
        words += ["--max-wait-s", "60"]
        if server_threads:
            words += ["--threads", str(server_threads)]
        return words if model is None else [*words, "--model", str(model.resolve())]

    return Peer("offramp", "Offramp", "offramp", command, ask=_offramp_ask, read=_offramp_read, has_exits=True)


BATCHES = (
    PeerSettings(),
    PeerSettings(hint="THROUGHPUT", max_batch_size=64),
    PeerSettings(max_batch_size=64, max_wait_ms=5.0),
)

PEERS = (
    Peer(
        "fastapi",
        "FastAPI, threads",
        "fastapi",
        _uvicorn,
        variants=(
            PeerSettings(hint="THROUGHPUT"),
            PeerSettings(workers=2, hint="THROUGHPUT"),
            PeerSettings(workers=2, threads=1),
        ),
    ),
    Peer(
        "litserve",
        "LitServe, batched",
        "litserve",
        _module("litserve.batched"),
        variants=(*BATCHES, PeerSettings(max_batch_size=64, fast_queue=True), PeerSettings(workers=2, threads=1)),
    ),
    Peer(
        "litserve-continuous",
        "LitServe, continuous batching over our stages",
        "litserve",
        _module("litserve.continuous"),
        variants=(PeerSettings(), PeerSettings(max_batch_size=64), PeerSettings(max_batch_size=64, fast_queue=True)),
        environment="litserve",
        has_exits=True,
    ),
    Peer(
        "bentoml",
        "BentoML, adaptive batching",
        "bentoml",
        _bentoml,
        variants=(PeerSettings(max_batch_size=64), PeerSettings(workers=2, threads=1)),
        ask=_bentoml_ask,
        read=_bentoml_read,
        variables={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        "mlserver",
        "MLServer, adaptive batching",
        "mlserver",
        _mlserver,
        # One worker: the network in the server's own process; two: in a process beside it.
        variants=(
            PeerSettings(max_wait_ms=5.0),
            PeerSettings(max_batch_size=64, max_wait_ms=1.0),
            PeerSettings(workers=2),
        ),
        ask=_mlserver_ask,
        read=_mlserver_read,
    ),
    Peer(
        "ray-serve",
        "Ray Serve, @serve.batch",
        "ray",
        _module("ray_serve.serve"),
        variants=(PeerSettings(), PeerSettings(workers=2, threads=1)),
        variables={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Peer(
        "pytriton",
        "PyTriton, dynamic batching",
        "nvidia-pytriton",
        _pytriton,
        variants=(PeerSettings(), PeerSettings(workers=2, hint="THROUGHPUT")),
        ask=_triton_ask,
        read=_triton_read,
        needs_shared_python=True,
    ),
)


def find_peers(names: str) -> tuple[Peer, ...]:
    """The peers with these names, separated by commas, or all. Raises ValueError for an unknown name."""
    by_name = {peer.name: peer for peer in PEERS}
    return tuple(by_name[name] for name in parse_names("peers", names, by_name))
