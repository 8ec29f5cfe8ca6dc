"""Provenance without the paths of one machine."""

import pytest

from benchmarks.machine import command_line, provenance


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/opt/x/python3.11", "/opt/x/bin/offramp", "bench", "--rounds", "2"], "offramp bench --rounds 2"),
        (["python", "-m", "benchmarks.accuracy", "--pictures", "5"], "python -m benchmarks.accuracy --pictures 5"),
        (["python", "-m", "benchmarks.load"], "python -m benchmarks.load"),
    ],
)
def test_the_command_is_recorded_as_typed_and_without_install_paths(arguments: list[str], command: str) -> None:
    assert command_line(arguments) == command


def test_provenance_names_hardware_versions_and_date() -> None:
    document = provenance()
    assert document["machine"]["cpu"]
    assert document["machine"]["cores"] >= 1
    assert {"python", "torch", "fastapi", "uvicorn"} <= document["versions"].keys()
    assert document["date"].endswith("+00:00")
