"""All parts, and the file that they are written to: each with the machine, versions and command it was measured by."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from benchmarks.hostile.attacks import attacks
from benchmarks.hostile.faults import faults
from benchmarks.hostile.mutants import mutants
from benchmarks.hostile.options import HostileOptions
from benchmarks.hostile.overload import fairness, overload
from benchmarks.hostile.setting import Setting
from benchmarks.machine import provenance
from benchmarks.part_files import write_part
from benchmarks.pictures import export_test_pictures, read_pictures

MEASURE: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "attacks": attacks,
    "overload": overload,
    "fairness": fairness,
    "faults": faults,
    "mutants": mutants,
}


def run(options: HostileOptions) -> int:
    """Measure the effect of attacks, overload, greedy clients, faults and mutated requests on a server."""
    with tempfile.TemporaryDirectory() as folder:
        pictures, requests = Path(folder) / "pictures", Path(folder) / "requests"
        pictures.mkdir()
        export_test_pictures(options.dataset, options.data_root, options.pictures, pictures)
        setting = Setting(options, read_pictures(pictures), requests)
        for name in options.parts:
            # Written after each part: a failure of the next does not lose what took minutes.
            write_part(options.output, "hostile", tuple(MEASURE), name, measured(setting, name))
            typer.echo(f"{name}: written to {options.output}")
    typer.echo(json.dumps({"output": str(options.output), "parts": options.parts}))
    return 0


def measured(setting: Setting, name: str) -> dict[str, Any]:
    """One part, as a document of its own."""
    return {"benchmark": f"hostile-{name}", **provenance(), **MEASURE[name](setting)}
