"""The engine benchmark end to end: a tiny bundle, few pictures, batches that do not come out even."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.harness.errors import BenchmarkError
from benchmarks.options import EngineOptions
from benchmarks.serving.engine import describe, run
from offramp.models.bundle import save_bundle
from offramp.server.engine.runners.cuda.cuda_graphs import CudaGraphRunner
from tests.bundles import tiny_bundle
from tests.project import PROJECT

THRESHOLDS = (0.0, 0.4, 1.0)
TEST_PICTURES = 12
BATCH_SIZE = 4


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    """Options with a bundle and a folder of noise with its classes."""
    folder, bundle = tmp_path_factory.mktemp("engine-bench"), tiny_bundle()
    save_bundle(bundle, folder / "tiny", "A card.")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in bundle.labels:
            (folder / part / label).mkdir(parents=True)
            for number in range(TEST_PICTURES // len(bundle.labels)):
                pixels_HWC = generator.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels_HWC).save(folder / part / label / f"{number}.png")
    return EngineOptions(
        model=folder / "tiny",
        dataset=str(folder),
        thresholds=",".join(map(str, THRESHOLDS)),
        pictures=10,
        device="cpu",
        max_batch_size=BATCH_SIZE,
        rounds=2,
        output=folder / "results" / "engine.json",
    )


@pytest.mark.parametrize(
    ("runner", "kind", "bare"),
    [("openvino", "OpenVinoRunner", ["steps", "whole graph"]), ("torch", "TorchRunner", ["steps"])],
)
def test_a_whole_measurement_gives_every_variant_and_the_agreement(
    options: EngineOptions, runner: str, kind: str, bare: list[str]
) -> None:
    try:
        run(replace(options, runner=runner))
    finally:
        gc.unfreeze()
    result = json.loads(options.output.read_text())
    assert result["runner"]["kind"] == kind
    assert result["profile"]["batch_sizes"] == [1, 2, 4]
    rows = result["variants"]
    assert [row.get("threshold", row["variant"]) for row in rows] == [*bare, *THRESHOLDS]
    for row in rows:
        assert len(row["sample_ms"]) == options.rounds
        assert row["pictures_per_s"] > 0.0
    agreement = result["agreement"]
    assert agreement["pictures"] == 10
    assert agreement["largest_probability_difference"] < 0.05
    at_first, _, at_full_depth = agreement["thresholds"]
    assert at_first["changed_exits"] == at_full_depth["changed_exits"] == 0.0
    assert at_full_depth["disagreement_with_full_depth"] == 0.0
    engine_rows = {row["threshold"]: row for row in rows if row["variant"] == "engine"}
    assert (engine_rows[0.0]["mean_exit"], engine_rows[1.0]["mean_exit"]) == (1.0, 4.0)


def test_fewer_pictures_than_a_batch_are_refused(options: EngineOptions) -> None:
    with pytest.raises(BenchmarkError, match="3 pictures are too few: give at least max_batch_size, 4"):
        run(replace(options, pictures=3))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_result_names_the_type_that_cuda_graphs_compute_in(precision: str) -> None:
    runner = CudaGraphRunner(tiny_bundle(), torch.device("cpu"), max_samples=1, precision=precision)
    assert describe(runner) == {"kind": "CudaGraphRunner", "precision": precision}


def test_openvino_is_not_needed_to_start() -> None:
    code = "import sys; import benchmarks.serving.engine; sys.exit('openvino' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
