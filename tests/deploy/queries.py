"""Queries of Prometheus: valid, and for metrics that there are."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from offramp.server.metrics import Metrics

METRIC = re.compile(r"\b((?:offramp|process)_\w+)(?:\{([^}]*)\})?")


def run(*command: str | Path) -> None:
    """Run a command; its output where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def check_asked_for(queries: str) -> None:
    """Every metric in them is exposed from the start, with the labels that Prometheus does not add."""
    exposed = asyncio.run(Metrics().expose()).decode()
    asked = METRIC.findall(queries)
    assert asked
    for name, selector in asked:
        histogram = re.sub("_(bucket|sum|count)$", "", name)
        assert re.search(rf"^# TYPE ({name} |{histogram} histogram$)", exposed, re.MULTILINE), name
        for label in re.findall(r'\w+="[^"]*"', selector):
            if not label.startswith(("namespace=", "service=", "job=")):
                assert re.search(rf"^{name}\{{[^}}]*{re.escape(label)}", exposed, re.MULTILINE), (name, label)


def check_queries(promtool: str, queries: Sequence[str], folder: Path) -> None:
    """Each is a query that promtool can read, and asks for metrics that there are."""
    for query in queries:
        check_asked_for(query)
    rules = [{"record": f"asked:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = folder / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))
    run(promtool, "check", "rules", file)
