"""The server's costs: a whole small measurement of a real server."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.pictures import as_png
from benchmarks.harness.server import Server, patient_server
from benchmarks.options import ServerCostsOptions
from benchmarks.serving.server_costs import growth, measure, section
from offramp.models.bundle import save_bundle
from tests.bundles import tiny_bundle


@pytest.mark.usefixtures("wrk")
def test_a_whole_measurement_gives_a_document_that_is_json_and_renders(tmp_path: Path) -> None:
    started: list[tuple[str, ...]] = []
    save_bundle(tiny_bundle(), tmp_path / "tiny", "A card.")
    options = ServerCostsOptions(
        model=tmp_path / "tiny", thresholds="0.5,1", frontends="0", rounds=1, seconds=1, requests=1000
    )
    png = as_png(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    with patient_server(options.model) as server:

        @contextmanager
        def the_same(model: Path, *flags: str) -> Iterator[Server]:
            started.append(flags)
            yield server

        try:
            document: dict[str, Any] = json.loads(json.dumps(measure(options, png, the_same), default=asdict))
        finally:
            gc.unfreeze()
    # For readiness, costs by threshold, the frontends and memory.
    assert started == [(), (), ("--frontends", "0"), ()]
    assert document["served"] == "tiny 1"
    assert document["startup"]["ready_s"]["median"] > 0.0
    for row in document["alone"]:
        http_ms, network_ms = (row[name]["median"] for name in ("http_p50_ms", "network_p50_ms"))
        assert min(http_ms, network_ms) > 0.0
        assert row["more_ms"]["median"] == pytest.approx(http_ms - network_ms)
    for row in document["cpu"]:
        assert row["server_ms"]["median"] > 0.0
        assert row["beyond_ms"]["median"] == pytest.approx(row["server_ms"]["median"] - row["engine_ms"]["median"])
    assert [(row["frontends"], row["threshold"], row["errors"]) for row in document["frontends"]] == [
        (0, 0.5, 0),
        (0, 1.0, 0),
    ]
    assert document["memory"]["requests"] >= 1000
    assert all(mib > 100 for _, mib in document["memory"]["samples"])
    tables = [block for block in section(document).split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_leak_is_growth_and_a_single_step_is_not() -> None:
    counts = range(1000, 41_000, 1000)
    assert growth([(n, 500.0 + 1e-5 * n) for n in counts]) == pytest.approx(1e-5)
    assert growth([(n, 500.0 if n < 30_000 else 503.0) for n in counts]) == 0.0
    # Growth at the beginning is warm-up.
    assert growth([(n, 500.0 + min(n, 10_000) / 100) for n in counts]) == 0.0
