"""A real server of several processes, started for tests, and seen from outside."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from tests.project import PYTHONPATH

# Nothing is audited unless a test wants it: audits are drawn at random, and each is some more steps. No request
# is refused because the machine is busy.
OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "runner": "torch",
    "threads": 1,
    "decode_threads": 1,
    "audit_share": 0.0,
    "max_wait_s": 60.0,
}
FRONTENDS = ("frontend-0", "frontend-1")
RUN = "offramp-*"
POLL_S = 0.02

CODE = """
import sys
from pathlib import Path
from offramp.server.processes.supervisor import supervise
from offramp.server.settings import Settings

options = dict(model=[Path(sys.argv[1])], port=0, frontends=2, drain_delay_s=0, **eval(sys.argv[2]))
sys.exit(supervise(Settings(**options), **({"hung_after_s": 6} | eval(sys.argv[3]))))
"""


@dataclass
class Server:
    """A running server, from outside. folder: where it keeps its temporary files."""

    process: subprocess.Popen[str]
    address: str
    folder: Path

    def children(self, module: str = "") -> set[int]:
        """Process ids of those that run a module: `engine` or `frontend`."""
        children = psutil.Process(self.process.pid).children()
        return {
            child.pid for child in children if f"offramp.server.processes.{module}" in str(child.as_dict(["cmdline"]))
        }

    async def get(self, path: str) -> httpx.Response:
        """Over a connection of its own."""
        async with httpx.AsyncClient(base_url=self.address) as client:
            return await client.get(path)

    async def predict(self, pictures: list[bytes]) -> set[int]:
        """Ask for all at once, so that each needs a connection of its own; the statuses."""
        async with httpx.AsyncClient(base_url=self.address, timeout=None) as client:
            asked = [client.post("/v1/predict?threshold=0", content=picture) for picture in pictures]
            return {response.status_code for response in await asyncio.gather(*asked)}

    async def samples(self) -> dict[str, float]:
        """Every sample of every metric, by its name and labels."""
        return {
            str((sample.name, sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families((await self.get("/metrics")).text)
            for sample in family.samples
        }

    def answered_by(self, frontend: str) -> float:
        """Requests that one frontend has counted."""
        [run] = self.folder.glob(RUN)
        families = MultiProcessCollector.merge([str(run / f"counter_{frontend}.db")])
        [requests] = [family for family in families if family.name == "offramp_requests"]
        return sum(sample.value for sample in requests.samples)

    async def every_frontend_answers(self, pictures: list[bytes]) -> bool:
        """Whether the engine and every frontend answer predictions."""
        before = [self.answered_by(frontend) for frontend in FRONTENDS]
        if await self.predict(pictures) != {200}:
            return False
        return all(self.answered_by(frontend) > count for frontend, count in zip(FRONTENDS, before, strict=True))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll: the processes send no events."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


@contextmanager
def serving(bundle: Path, folder: Path, options: dict[str, Any] | None = None, **times: Any) -> Iterator[Server]:
    """Two frontends and an engine. options: Settings' beside OPTIONS. times: the supervisor's. Ends with Ctrl-C."""
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-P", "-c", CODE, str(bundle), repr(OPTIONS | (options or {})), repr(times)]
    # Folders with the names of our packages, which must not be imported.
    for name in ("models", "server"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        loading, first = process.stderr.readline(), process.stderr.readline()
        address = re.search(r"http://[\d.:]+", first)
        assert address is not None, loading + first + process.stderr.read()
        assert loading.endswith(f"loading {bundle} on cpu; ready in some seconds\n")
        yield Server(process, address[0], folder)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def total(samples: dict[str, float], name: str, label: str = "") -> float:
    """Over all labels, or those with this one."""
    return sum(value for key, value in samples.items() if f"'{name}'" in key and label in key)


def encoded_pictures() -> list[bytes]:
    """Six pictures of noise, as PNG."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(6):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded
