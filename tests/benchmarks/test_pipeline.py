"""The pipeline's benchmark: a folder and shards hold the same pictures, and the document says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.errors import BenchmarkError
from benchmarks.pipeline import PipelineOptions, forms_of, parse_workers, pipeline_section, run, write_shards
from training.data import FolderSet


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


def options(path: Path | str, **changes: object) -> PipelineOptions:
    values = {"size": 16, "batch_size": 4, "workers": "0", "rounds": 2, "device": "cpu", **changes}
    return PipelineOptions(str(path), **values)  # type: ignore[arg-type]


def test_folder_and_shards_are_the_same_pictures(photos: Path) -> None:
    with forms_of(options(photos)) as forms:
        folder, shards = forms["folder"], forms["shards"]
        assert len(folder) == len(shards) == 12
        assert folder.class_names == shards.class_names
        np.testing.assert_array_equal(folder.labels_N, shards.labels_N)
        for i in range(12):
            np.testing.assert_array_equal(folder[i][0], shards[i][0])


def test_fewer_pictures_are_spread_over_the_set(photos: Path) -> None:
    with forms_of(options(photos, pictures=4)) as forms:
        assert list(forms["folder"].labels_N) == list(forms["shards"].labels_N) == [0, 0, 1, 1]


def test_the_document_holds_every_round_and_what_it_was_measured_on(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results" / "pipeline.json"
    assert run(options(photos, output=output)) == 0
    document = json.loads(output.read_text())
    assert document["benchmark"] == "pipeline"
    assert {"date", "command", "machine", "versions"} <= document.keys()
    assert [(row["form"], row["workers"]) for row in document["rows"]] == [("folder", 0), ("shards", 0)]
    for row in document["rows"]:
        rounds = [r for r in document["rounds"] if r["form"] == row["form"]]
        assert len(rounds) == document["rounds_each"] == 2
        for name in ("pictures_per_s", "cpu_ms", "cores_used"):
            assert row[name]["min"] == min(r[name] for r in rounds)
            assert row[name]["max"] == max(r[name] for r in rounds)
    assert document["pictures"] == 12
    assert "| shards | 0 |" in pipeline_section(document)


def test_shards_are_measured_alone(photos: Path, tmp_path: Path) -> None:

    with forms_of(options(photos)) as forms:
        folder = forms["folder"]
        assert isinstance(folder, FolderSet)
        (tmp_path / "shards").mkdir()
        write_shards(folder, tmp_path / "shards")
    for path in (tmp_path / "shards", f"{tmp_path}/shards/train-00000{{1..1}}.tar"):
        with forms_of(options(path)) as forms:
            assert list(forms) == ["shards"]
            assert len(forms["shards"]) == 12


@pytest.mark.parametrize("text", ["", "two", "-1", "257", "1,1", "1,,2"])
def test_workers_that_are_no_list_of_numbers_are_refused(text: str) -> None:
    assert parse_workers("0,4") == (0, 4)
    with pytest.raises(ValueError, match="workers"):
        options("photos", workers=text)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="neither a folder nor"), forms_of(options(tmp_path / "no")):
        pass
