"""From cells and answers to the figures of the table: medians and extremes over rounds, ratios within a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.peers.catalogue import Told
from benchmarks.peers.contest import Cell
from benchmarks.stats import spread

FIGURES = ("throughput", "p50_ms", "p95_ms", "p99_ms", "cpu_ms", "load_cpu_ms")


@dataclass(frozen=True)
class Answers:
    """What a server's answers are worth.

    accuracy: None without labels. agreement: share of the classes that ours gives at full depth. exits: how many left
    at each.
    """

    accuracy: float | None
    agreement: float
    exits: dict[int, int]


def quality(told: Sequence[Told], labels: Sequence[str], full_depth: Sequence[Told]) -> Answers:
    """Compare answers with the true labels, where there are any, and with those of the full depth."""
    count = len(told)
    right = sum(answer.label == label for answer, label in zip(told, labels, strict=bool(labels)))
    same = sum(answer.class_id == full.class_id for answer, full in zip(told, full_depth, strict=True))
    exits = Counter(answer.exit for answer in told)
    return Answers(right / count if labels else None, same / count, dict(sorted(exits.items())))


def row(title: str, settings: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """One peer, and ours beside it in each way. cells: of this pair, of all rounds."""
    name = cells[0].against
    theirs = [cell for cell in cells if cell.server == name]
    ours = [cell for cell in cells if cell.server != name]
    ways = dict.fromkeys(cell.way for cell in ours if cell.round == 0)
    return {
        "peer": name,
        "title": title,
        "settings": settings,
        "way": theirs[0].way,
        "closed_loop": _figures(_closed(theirs)),
        "open_loop": {"rate": theirs[-1].rate, **_figures(_open(theirs))},
        "ours": {
            way: {
                "closed_loop": _figures(_closed(mine)),
                "open_loop": _figures(_open(mine)),
                "throughput_ratio": _ratio(_closed(mine), _closed(theirs), lambda cell: cell.throughput),
                "p99_ratio": _ratio(_open(mine), _open(theirs), lambda cell: cell.p99_ms),
            }
            for way in ways
            if (mine := [cell for cell in ours if cell.way == way])
        },
    }


def _closed(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.rate is None]


def _open(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.rate is not None]


def _figures(cells: Sequence[Cell]) -> dict[str, Any]:
    figures = {name: asdict(spread([getattr(cell, name) for cell in cells])) for name in FIGURES}
    return {**figures, "requests": sum(c.requests for c in cells), "errors": sum(c.errors for c in cells)}


def _ratio(mine: Sequence[Cell], theirs: Sequence[Cell], figure: Callable[[Cell], float]) -> dict[str, float]:
    by_round = {cell.round: figure(cell) for cell in theirs}
    return asdict(spread([figure(cell) / by_round[cell.round] for cell in mine]))
