"""The benchmark of the data pipeline: its document says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.errors import BenchmarkError
from benchmarks.options import PipelineOptions
from benchmarks.training.pipeline import read_pictures, run, section


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("test", 1)):
        for name in ("cats", "dogs"):
            for i in range(count):
                path = tmp_path / "photos" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.RandomState(i).randint(0, 256, (20, 24, 3)).astype(np.uint8)
                Image.fromarray(noise).save(path)
    return tmp_path / "photos"


def options(path: Path | str, **changes: Any) -> PipelineOptions:
    values: dict[str, Any] = {"size": 16, "batch_size": 4, "workers": "0", "rounds": 2, "device": "cpu", **changes}
    return PipelineOptions(str(path), **values)


def test_fewer_pictures_are_spread_over_the_set(photos: Path) -> None:
    assert len(read_pictures(options(photos))) == 12
    assert list(read_pictures(options(photos, pictures=4)).labels_N) == [0, 0, 1, 1]


def test_the_document_holds_every_round_and_what_it_was_measured_on(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results" / "pipeline.json"
    run(options(photos, output=output))
    document = json.loads(output.read_text())
    assert document["benchmark"] == "pipeline"
    assert {"date", "command", "machine", "versions"} <= document.keys()
    assert [row["workers"] for row in document["rows"]] == [0]
    for row in document["rows"]:
        rounds = [r for r in document["rounds"] if r["workers"] == row["workers"]]
        assert len(rounds) == document["rounds_each"] == 2
        for name in ("pictures_per_s", "cpu_ms", "cores_used"):
            assert row[name]["min"] == min(r[name] for r in rounds)
            assert row[name]["max"] == max(r[name] for r in rounds)
    assert document["pictures"] == 12
    assert "| 0 |" in section(document)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="is not a folder"):
        read_pictures(options(tmp_path / "no"))
