"""Provenance without the paths of one machine; result files."""

import json
from pathlib import Path

import pytest

from benchmarks.harness.figures import spread
from benchmarks.harness.provenance import command, provenance
from benchmarks.harness.results import write, write_part
from benchmarks.options import PipelineOptions, ThresholdsOptions


@pytest.mark.parametrize(
    ("benchmark", "options", "words"),
    [
        ("thresholds", ThresholdsOptions(), "offramp bench thresholds"),
        ("thresholds", ThresholdsOptions(rounds=2, data_root=Path("/home/me")), "offramp bench thresholds --rounds 2"),
        ("thresholds", ThresholdsOptions(model=Path("/me/b 1")), "offramp bench thresholds --model 'b 1'"),
        ("thresholds", ThresholdsOptions(model=Path("runs/b")), "offramp bench thresholds --model runs/b"),
        ("pipeline", PipelineOptions("../me/photos", workers="0,4"), "offramp bench pipeline photos --workers 0,4"),
    ],
)
def test_the_command_has_the_options_that_differ_and_no_paths_of_this_machine(
    benchmark: str, options: object, words: str
) -> None:
    assert command(benchmark, options) == words


def test_provenance_names_hardware_versions_date_and_options() -> None:
    document = provenance("thresholds", ThresholdsOptions(output=Path("/home/me/x.json")))
    assert document["benchmark"] == "thresholds"
    assert document["machine"]["cpu"]
    assert document["machine"]["cores"] >= 1
    assert {"python", "torch", "fastapi", "uvicorn"} <= document["versions"].keys()
    assert document["date"].endswith("+00:00")
    assert document["options"]["rounds"] == "4"
    assert "/home/me" not in json.dumps(document)


def test_dataclasses_are_written_as_objects(tmp_path: Path) -> None:
    written = write(tmp_path / "new" / "x.json", {"rows": [{"speed": spread([1.0, 3.0])}]})
    assert written == {"rows": [{"speed": {"median": 2.0, "min": 1.0, "max": 3.0}}]}
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == written


def test_a_part_measured_anew_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    output, order = tmp_path / "results" / "trust.json", ("certified", "audit")
    for name, number in (("audit", 1), ("certified", 2), ("audit", 3)):
        write_part(output, "trust", order, name, {"n": number})
    document = json.loads(output.read_text())
    assert document == {"benchmark": "trust", "parts": {"certified": {"n": 2}, "audit": {"n": 3}}}
    assert list(document["parts"]) == ["certified", "audit"]
