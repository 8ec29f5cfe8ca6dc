"""Figures over rounds, and Markdown tables of them."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import truediv
from typing import Any, TypeVar

import numpy as np

from benchmarks.harness.results import say

Way = TypeVar("Way")
Measured = TypeVar("Measured")
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


def spreads(records: Sequence[Any], *names: str) -> dict[str, Spread | None]:
    """The spread of each named field over the records. A value that is None or NaN is left out; None without values."""
    values = {name: [getattr(record, name) for record in records] for name in names}
    known = {name: [value for value in some if value is not None and value == value] for name, some in values.items()}
    return {name: spread(some) if some else None for name, some in known.items()}


def ratios(values: Iterable[float], references: Iterable[float]) -> Spread:
    """value / reference, both of the same round."""
    return spread(starmap(truediv, zip(values, references, strict=True)))


def field_ratios(name: str, records: Sequence[Any], references: Sequence[Any]) -> Spread:
    """The same of one field of the records."""
    return ratios(*([getattr(record, name) for record in some] for some in (records, references)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Smallest value that at least `percent` of the values do not exceed; NaN without values."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else math.nan


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums by name."""
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return dict(total)


def interleave(ways: Mapping[Way, Callable[[int], Measured]], rounds: int) -> dict[Way, list[Measured]]:
    """What each way gives in each round, given the round's number. Each round begins with the next way.

    A machine whose speed changes does so for all ways alike.
    """
    order, results = list(ways), {way: list[Measured]() for way in ways}
    for number in range(rounds):
        first = number % len(order)
        for way in (*order[first:], *order[:first]):
            results[way].append(ways[way](number))
            say(f"round {number}, {way}: {results[way][-1]}")
    return results


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
