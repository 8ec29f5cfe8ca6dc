"""Figures over rounds, and Markdown tables of them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import truediv
from typing import Any, TypeVar

import numpy as np

Way = TypeVar("Way")
Document = Mapping[str, Any]
FORM = re.compile(r"([^a-zA-Z%×]*[a-zA-Z%]?)(.*)")


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the values of all rounds."""

    median: float
    min: float
    max: float


def spread(values: Iterable[float]) -> Spread:
    """The spread of at least one value."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def ratios(values: Sequence[float], references: Sequence[float]) -> Spread:
    """value / reference, both of the same round."""
    return spread(starmap(truediv, zip(values, references, strict=True)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Smallest value that at least `percent` of the values do not exceed; NaN without values."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else math.nan


def interleaved(ways: Sequence[Way], rounds: int) -> Iterator[tuple[int, Way]]:
    """(round, way) for all rounds. Each round begins with another way than the one before."""
    for number in range(rounds):
        first = number % len(ways)
        for way in (*ways[first:], *ways[:first]):
            yield number, way


class Figure:
    """A value of a result file, for templates such as `{throughput:.0f} pictures/s` or `{ratio:.2f×}`.

    A spread is written as `median (least–most)`, a list as shares in per cent, an object as counts, None as a dash.
    What follows the format is a unit. `{row[name]}` reads a field.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, name: str | int) -> Figure:
        return Figure(self.value[name])

    def __format__(self, template: str) -> str:
        match = FORM.fullmatch(template)
        assert match is not None, "a template is one line"
        form, unit = match.groups()
        match self.value:
            case None:
                return "–"
            case {"median": median, "min": least, "max": most}:
                low, middle, high = (format(number, form) for number in (least, median, most))
                return f"{middle}{unit}" + ("" if low == middle == high else f" ({low}–{high})")
            case dict():
                return ", ".join(f"{name}: {count:,}" for name, count in sorted(self.value.items())) or "–"
            case list():
                return " / ".join(format(100 * share, form) for share in self.value)
            case value:
                return format(value, form) + unit


def fill(template: str, values: Document) -> str:
    """The template with the values of a row or a document; see `Figure`."""
    return template.format_map({name: Figure(value) for name, value in values.items()})


Column = str | Callable[[Any], str]
Columns = Mapping[str, Column]


def table(columns: Columns, rows: Iterable[Document]) -> str:
    """Markdown table. columns: by heading, a template for `fill`, or a function of the row."""
    cells = [[fill(c, row) if isinstance(c, str) else c(row) for c in columns.values()] for row in rows]
    has_words = [any(re.match(r"[^\W\d]|[`*/]", cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [list(columns), ["---" if words else "---:" for words in has_words], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def source(document: Document) -> str:
    """Machine, versions, date and command of a result, in one line."""
    machine, versions = document["machine"], document["versions"]
    hardware = ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]])
    names = ("python", "torch", "fastapi", "uvicorn", "offramp")
    software = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    elsewhere = "" if document.get("own_server", True) else " (of the load generator; the server was started elsewhere)"
    return f"{hardware}{elsewhere}; {software}; {document['date'][:10]}. `{document['command']}`"


def section(document: Document, *blocks: str) -> str:
    """Blocks of Markdown with figures of the document filled into each, and its source at the end of the last."""
    filled = [block if block.startswith("| ") else fill(block, document) for block in blocks]
    return "\n\n".join([*filled[:-1], f"{filled[-1]} {source(document)}"])
