"""Where the seconds before readiness go: what `offramp serve` does, one thing after the other, in a fresh process.

python -m benchmarks.startup
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

# What is imported, in the order in which the server does; each takes what those before it have not brought.
IMPORTS = ("torch", "fastapi", "openvino", "server.app", "server.loading", "server.engine.runners.openvino_runner")


def phases(model: Path | None, max_batch_size: int = 32) -> dict[str, float]:
    """Seconds of each part. Meant for a process that has imported nothing yet."""
    times: dict[str, float] = {}
    last_s = time.perf_counter()

    def done(name: str) -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        times[name], last_s = now_s - last_s, now_s

    for module in IMPORTS:
        importlib.import_module(module)
        done(f"import {module}")

    from models.bundle import EMBEDDED, load_bundle
    from models.cost import network_cost
    from models.device import choose_device
    from server.engine.profile import measure_profile
    from server.engine.runners.choice import choose_runner
    from server.memory import freeze_heap

    device = choose_device("auto")
    bundle = load_bundle(model or EMBEDDED)
    done("load the bundle")
    network_cost(bundle.net)
    done("count its multiply-adds")
    runner = choose_runner(bundle, device)
    done("convert the stages")
    freeze_heap()
    done("collect and freeze the heap")
    runner.warm_up(max_batch_size)
    done("compile for all batch sizes, warm up, compare with the reference")
    measure_profile(runner, bundle.preprocessing.size, max_batch_size, time.monotonic)
    done("measure what steps cost")
    return times


if __name__ == "__main__":
    print(json.dumps(phases(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
