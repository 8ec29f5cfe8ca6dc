"""What the server costs beside the network: a whole small measurement of a real server."""

import gc
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.processes import Running
from benchmarks.server_costs import ServerCostsOptions, growth, measured, parse_counts, served
from benchmarks.server_costs_report import server_costs_section
from models.bundle import save_bundle
from tests.bundles import tiny_bundle


def noise(number: int) -> list[bytes]:
    """Pictures as PNG."""
    png = []
    for pixels in np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        png.append(buffer.getvalue())
    return png


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_whole_measurement_gives_a_document_that_is_json_and_renders(tmp_path: Path) -> None:
    started: list[int] = []
    save_bundle(tiny_bundle(), tmp_path / "tiny", "A card.")
    options = ServerCostsOptions(
        model=tmp_path / "tiny", thresholds="0.5,1", frontends="0", rounds=1, seconds=1, requests=1000
    )
    with served(options) as (server, ready_s):

        @contextmanager
        def the_same(options: ServerCostsOptions, frontends: int = 0) -> Iterator[tuple[Running, float]]:
            started.append(frontends)
            yield server, ready_s

        try:
            document: dict[str, Any] = json.loads(json.dumps(measured(options, noise(8), the_same)))
        finally:
            gc.unfreeze()
    # For readiness, one alone, CPU, the frontends and memory.
    assert started == [0] * 5
    assert document["served"] == "tiny 1"
    assert document["startup"]["ready_s"]["median"] == ready_s
    assert {"import torch", "load the bundle"} < set(document["startup"]["parts_s"])
    assert all(seconds > 0.0 for seconds in document["startup"]["parts_s"].values())
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
    tables = [block for block in server_costs_section(document).split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize("text", ["", "1,1", "-1", "a", "1.5", "1,"])
def test_what_is_no_list_of_counts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give different whole numbers from 0 up"):
        parse_counts(text)


def test_counts_are_read_in_order() -> None:
    assert parse_counts("2,0,1") == (2, 0, 1)


def test_a_leak_is_growth_and_a_single_step_is_none() -> None:
    counts = range(1000, 41_000, 1000)
    assert growth([(n, 500.0 + 1e-5 * n) for n in counts]) == pytest.approx(1e-5)
    assert growth([(n, 500.0 if n < 30_000 else 503.0) for n in counts]) == 0.0
    # What grows at the beginning alone is warming up.
    assert growth([(n, 500.0 + min(n, 10_000) / 100) for n in counts]) == 0.0
