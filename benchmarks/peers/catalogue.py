"""Offramp and each peer: how it is started, how a picture is sent to it, and how its answer is read.

A peer's `variants` are the settings that make sense on a machine of a few cores, among them the advice of its
documentation. The benchmark tries each and compares Offramp with the fastest.
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

SERVERS = "benchmarks.peers.servers"


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


def _ask_plainly(picture: bytes, media_type: str, query: str) -> Request:
    return Request("/predict", media_type, picture)


@dataclass(frozen=True)
class Peer:
    """One server.

    package: its version is shown; its environment has this name. command: starts it. ask: makes a request of a picture,
    its media type and a query for Offramp. unwrap: the prediction in an answer's body. variables: added to its
    environment. has_exits: whether it takes `Exits`. needs_shared_python: whether its environment needs an interpreter
    with a shared library.
    """

    name: str
    title: str
    package: str
    command: Callable[[Launch], list[str]]
    variants: tuple[PeerSettings, ...] = (PeerSettings(),)
    ask: Callable[[bytes, str, str], Request] = _ask_plainly
    unwrap: Callable[[bytes], dict[str, Any]] = json.loads
    variables: Mapping[str, str] = field(default_factory=dict)
    has_exits: bool = False
    needs_shared_python: bool = False

    def read(self, body: bytes) -> PeerAnswer:
        """The answer in a body."""
        answer = self.unwrap(body)
        return PeerAnswer(answer["class_id"], answer["label"], answer["exit"], answer["confidence"])


def _command(words: str) -> Callable[[Launch], list[str]]:
    """A command of the peer's environment, with {port}, {work} and {workers} filled in."""

    def command(launch: Launch) -> list[str]:
        values = {"port": launch.port, "work": launch.work, "workers": launch.settings.workers}
        program, *arguments = words.split()
        return [str(launch.bin / program), *(argument.format(**values) for argument in arguments)]

    return command


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
        "implementation": f"{SERVERS}.mlserver.Classifier",
        "max_batch_size": settings.max_batch_size,
        "max_batch_time": settings.max_wait_ms / 1000,
    }
    (launch.work / "settings.json").write_text(json.dumps(server))
    (launch.work / "model-settings.json").write_text(json.dumps(model))
    return [str(launch.bin / "mlserver"), "start", str(launch.work)]


def _ask_mlserver(picture: bytes, media_type: str, query: str) -> Request:
    data = [base64.b64encode(picture).decode()]
    tensor = {"name": "picture", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    body = json.dumps({"inputs": [{**tensor, "data": data}]}).encode()
    return Request("/v2/models/classifier/infer", "application/json", body)


def _ask_triton(picture: bytes, media_type: str, query: str) -> Request:
    # Triton's "raw binary request": the body is the only element of the only input.
    headers = {"Inference-Header-Content-Length": "0"}
    return Request("/v2/models/classifier/infer", "application/octet-stream", picture, headers)


def _unwrap_triton(body: bytes) -> dict[str, Any]:
    # JSON of the model's metadata, four bytes of length, and the output, which is JSON itself.
    _, end = json.JSONDecoder().raw_decode(text := body.decode("latin-1"))
    answer: dict[str, Any] = json.loads(text[end + 4 :].encode("latin-1"))
    return answer


def offramp(model: Path | None, server_threads: int = 0) -> Peer:
    """Offramp, as `make serve` starts it. model: the bundle; None is the embedded one."""

    def command(launch: Launch) -> list[str]:
        words = [sys.executable, "-m", "offramp", "serve", "--port", str(launch.port), "--log-level", "warning"]
        words += ["--max-wait-s", "60"]
        words += ["--threads", str(server_threads)] if server_threads else []
        return [*words, *(["--model", str(model.resolve())] if model else [])]

    return Peer(
        "offramp",
        "Offramp",
        "offramp",
        command,
        ask=lambda picture, media_type, query: prediction(picture, query, media_type),
        unwrap=lambda body: json.loads(body)["predictions"][0],
        has_exits=True,
    )


WHOLE_MACHINE, TWO_WORKERS = PeerSettings(), PeerSettings(workers=2, threads=1)
LARGE_BATCHES, STREAMS = PeerSettings(max_batch_size=64), PeerSettings(hint="THROUGHPUT")
FAST_QUEUE = PeerSettings(max_batch_size=64, fast_queue=True)

PEERS = (
    Peer(
        "fastapi",
        "FastAPI, threads",
        "fastapi",
        _command(
            f"uvicorn {SERVERS}.fastapi:app --host 127.0.0.1 --port {{port}} --workers {{workers}} --no-access-log "
            "--log-level warning"
        ),
        variants=(STREAMS, PeerSettings(workers=2, hint="THROUGHPUT"), TWO_WORKERS),
    ),
    Peer(
        "litserve",
        "LitServe, batched",
        "litserve",
        _command(f"python -m {SERVERS}.litserve {{port}}"),
        variants=(
            WHOLE_MACHINE,
            PeerSettings(hint="THROUGHPUT", max_batch_size=64),
            PeerSettings(max_batch_size=64, max_wait_ms=5.0),
            FAST_QUEUE,
            TWO_WORKERS,
        ),
    ),
    Peer(
        "litserve-continuous",
        "LitServe, continuous batching over our stages",
        "litserve",
        _command(f"python -m {SERVERS}.litserve_continuous {{port}}"),
        variants=(WHOLE_MACHINE, LARGE_BATCHES, FAST_QUEUE),
        has_exits=True,
    ),
    Peer(
        "bentoml",
        "BentoML, adaptive batching",
        "bentoml",
        _command(f"bentoml serve {SERVERS}.bentoml:Classifier --host 127.0.0.1 --port {{port}}"),
        variants=(LARGE_BATCHES, TWO_WORKERS),
        ask=lambda picture, media_type, query: form("/predict", [("images", picture)], media_type),
        unwrap=lambda body: json.loads(body)[0],
        variables={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        "mlserver",
        "MLServer, adaptive batching",
        "mlserver",
        _mlserver,
        # One worker: the network runs in the server's own process; two: in a process beside it.
        variants=(
            PeerSettings(max_wait_ms=5.0),
            PeerSettings(max_batch_size=64, max_wait_ms=1.0),
            PeerSettings(workers=2),
        ),
        ask=_ask_mlserver,
        unwrap=lambda body: json.loads(json.loads(body)["outputs"][0]["data"][0]),
    ),
    Peer(
        "ray-serve",
        "Ray Serve, @serve.batch",
        "ray",
        _command(f"python -m {SERVERS}.ray_serve {{port}}"),
        variants=(WHOLE_MACHINE, TWO_WORKERS),
        variables={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Peer(
        "pytriton",
        "PyTriton, dynamic batching",
        "nvidia-pytriton",
        # Triton leaves a hundred megabytes of files when it is ended from outside: into a folder that goes.
        _command(f"python -m {SERVERS}.pytriton {{port}} {{work}}/triton"),
        variants=(WHOLE_MACHINE, PeerSettings(workers=2, hint="THROUGHPUT")),
        ask=_ask_triton,
        unwrap=_unwrap_triton,
        needs_shared_python=True,
    ),
)


def find_peers(names: str) -> tuple[Peer, ...]:
    """The peers with these names, separated by commas, or all. Raises ValueError for an unknown name."""
    by_name = {peer.name: peer for peer in PEERS}
    return tuple(by_name[name] for name in parse_names("peers", names, by_name))
