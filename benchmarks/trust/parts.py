"""All parts, and the file that they are written to: each with the machine, versions and command it was measured by."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from benchmarks.machine import provenance
from benchmarks.part_files import write_part
from benchmarks.trust.attack import attack
from benchmarks.trust.audit import audit, audit_cost
from benchmarks.trust.brownout import brownout
from benchmarks.trust.certified import certified
from benchmarks.trust.options import TrustOptions
from benchmarks.trust.privacy import privacy
from benchmarks.trust.setting import Setting, prepared
from benchmarks.wrk import wrk_path

MEASURE: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "certified": certified,
    "audit": audit,
    "audit-cost": audit_cost,
    "brownout": brownout,
    "privacy": privacy,
    "attack": attack,
}


def run(options: TrustOptions) -> int:
    """Measure what the server claims of contracts, audits, overload, privacy and attackers."""
    wrk_path()
    with tempfile.TemporaryDirectory() as folder:
        setting = prepared(options, Path(folder))
        for name in options.parts:
            # Written after each, so that what took minutes is not lost to a fault in the next.
            write_part(options.output, "trust", tuple(MEASURE), name, measured(setting, name))
            typer.echo(f"{name}: written to {options.output}")
    typer.echo(json.dumps({"output": str(options.output), "parts": options.parts}))
    return 0


def measured(setting: Setting, name: str) -> dict[str, Any]:
    """One part, as a document of its own."""
    head = {"benchmark": f"trust-{name}", **provenance(), "served": setting.served, "dataset": setting.options.dataset}
    return {**head, **MEASURE[name](setting)}
