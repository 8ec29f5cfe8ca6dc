"""Result files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer


def write(output: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Write the document, which may hold dataclasses, as JSON. Returns it as a reader of the file gets it."""
    text = json.dumps(document, indent=2, default=asdict)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n")
    written: dict[str, Any] = json.loads(text)
    return written


def publish(
    output: Path, document: Mapping[str, Any], section: Callable[[Any], str], without: Sequence[str] = ("rounds",)
) -> dict[str, Any]:
    """Write the document, print its tables, and as the last line its JSON without the fields `without`."""
    written = write(output, document)
    typer.echo(f"\n{section(written)}\n\nwritten to {output}")
    typer.echo(json.dumps({name: value for name, value in written.items() if name not in without}))
    return written


def write_part(output: Path, benchmark: str, order: Iterable[str], name: str, part: Mapping[str, Any]) -> None:
    """Write one part of a result file and keep its other parts. order: of all parts in the file."""
    parts: dict[str, Any] = json.loads(output.read_text())["parts"] if output.exists() else {}
    parts[name] = part
    write(output, {"benchmark": benchmark, "parts": {known: parts[known] for known in order if known in parts}})


def say(text: object) -> None:
    """Report progress on stderr."""
    typer.echo(str(text), err=True)
