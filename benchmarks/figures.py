"""Figures as they stand in tables, and where they come from, for all documents alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_extremes(values: Mapping[str, float], form: str, unit: str = "") -> str:
    """Median, and least and greatest in brackets."""
    return f"{values['median']:{form}}{unit} ({values['min']:{form}}–{values['max']:{form}})"


def shares(mix: Sequence[float], form: str) -> str:
    """Of an exit mix, in per cent."""
    return " / ".join(f"{100 * share:{form}}" for share in mix)


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    """Markdown of one head, its cells divided by bars, and rows of cells."""
    lines = [f"| {head} |", "| ---: " * (head.count("|") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def provenance(document: Mapping[str, Any]) -> str:
    """Where, with what, when and how it was measured."""
    machine, versions = document["machine"], document["versions"]
    hardware = ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]])
    names = ("python", "torch", "fastapi", "uvicorn", "offramp")
    software = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    whose = "" if document.get("own_server", True) else " (of the load generator; the server was started elsewhere)"
    return f"{hardware}{whose}; {software}; {document['date'][:10]}. `{document['command']}`"
