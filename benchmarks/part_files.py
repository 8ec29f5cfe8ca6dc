"""A result file of several parts, each measured by a run of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_part(output: Path, benchmark: str, order: Sequence[str], name: str, part: dict[str, Any]) -> None:
    """Put a part into the result file of `benchmark`; the others stay as they are. order: of the parts in the file."""
    parts: dict[str, Any] = json.loads(output.read_text())["parts"] if output.exists() else {}
    parts[name] = part
    document = {"benchmark": benchmark, "parts": {known: parts[known] for known in order if known in parts}}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2) + "\n")
