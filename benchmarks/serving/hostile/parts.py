"""The parts of `offramp bench hostile`, and the file that they are written to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.pictures import read_test_pictures
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import say, write_part
from benchmarks.options import HostileOptions, parse_names
from benchmarks.serving.hostile.attacks import measure_attacks
from benchmarks.serving.hostile.faults import measure_faults
from benchmarks.serving.hostile.mutants import measure_mutants
from benchmarks.serving.hostile.overload import measure_fairness, measure_overload
from benchmarks.serving.hostile.setup import Setup

MEASURE: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "attacks": measure_attacks,
    "overload": measure_overload,
    "fairness": measure_fairness,
    "faults": measure_faults,
    "mutants": measure_mutants,
}


def run(options: HostileOptions) -> None:
    """Measure the parts. Each is written at once: a failure of the next does not lose it."""
    png = read_test_pictures(options.dataset, options.data_root, options.pictures).png
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(options, png, Path(folder))
        for name in parse_names("only", options.only, MEASURE):
            write_part(options.output, "hostile", tuple(MEASURE), name, measure_part(setup, name))
            say(f"{name}: written to {options.output}")


def measure_part(setup: Setup, name: str) -> dict[str, Any]:
    """One part, as a document of its own."""
    head = {**provenance("hostile", setup.options), "benchmark": f"hostile-{name}"}
    return {**head, **MEASURE[name](setup)}
