"""The parts of `offramp bench trust`, and the file that they are written to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import wrk_path
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import say, write_part
from benchmarks.options import TRUST_PARTS, TrustOptions, parse_names
from benchmarks.serving.trust.attack import measure_attack
from benchmarks.serving.trust.audit import measure_audit, measure_audit_cost
from benchmarks.serving.trust.brownout import measure_brownout
from benchmarks.serving.trust.certified import measure_certified
from benchmarks.serving.trust.privacy import measure_privacy
from benchmarks.serving.trust.setup import Setup, prepare

MEASURE: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "certified": measure_certified,
    "audit": measure_audit,
    "audit-cost": measure_audit_cost,
    "brownout": measure_brownout,
    "privacy": measure_privacy,
    "attack": measure_attack,
}


def run(options: TrustOptions) -> None:
    """Measure the parts. Each is written at once: a failure of the next does not lose it."""
    wrk_path()
    with tempfile.TemporaryDirectory() as folder:
        setup = prepare(options, Path(folder))
        for name in parse_names("only", options.only, MEASURE):
            write_part(options.output, "trust", TRUST_PARTS, name, measure_part(setup, name))
            say(f"{name}: written to {options.output}")


def measure_part(setup: Setup, name: str) -> dict[str, Any]:
    """One part, as a document of its own."""
    head = {**provenance("trust", setup.options), "benchmark": f"trust-{name}"}
    return {**head, "served": setup.served, "dataset": setup.options.dataset, **MEASURE[name](setup)}
