"""What a simulation says, in Markdown: goodput and p99 by policy and load, and whether the default wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.simulate_agreement import agreement_section
from server.engine.policies import DEFAULT_POLICY

# Differences that a longer run, or another seed, could turn round.
EQUAL_GOODPUT, EQUAL_P99 = 0.01, 0.05
MOST_MIXES = 3


@dataclass(frozen=True)
class Cell:
    """What every policy met alike. load: share of the capacity, or clients an engine where arrivals are `closed`."""

    profile: str
    mix: str
    arrivals: str
    engines: int
    load: float


def by_cell(rows: Sequence[dict[str, Any]]) -> dict[Cell, dict[str, dict[str, Any]]]:
    """The rows of each cell by policy, in the order of the run."""
    cells: dict[Cell, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cell = Cell(**{field.name: row[field.name] for field in fields(Cell)})
        cells.setdefault(cell, {})[row["policy"]] = row
    return cells


def simulation_section(document: dict[str, Any]) -> str:
    """One table for each profile, kind of arrivals and fleet, policies as columns; what it comes to; the agreement.

    Of more than MOST_MIXES mixes these are the ones in the middle: where all leave at one exit, all policies are alike,
    or nearly. The others are in the result file, and count in the verdict.
    """
    shown = _middle([*document["mixes"]])
    tables: dict[tuple[Any, ...], list[str]] = {}
    for cell, policies in by_cell(document["rows"]).items():
        if cell.mix not in shown:
            continue
        lines = tables.setdefault((cell.profile, cell.arrivals, cell.engines), [])
        if not lines:
            lines += [_heading(document, cell, next(iter(policies.values()))), "", *_columns(cell, list(policies))]
        figures = [f"{row['goodput_share']:.3f} · {_latency(row['p99_ms'])}" for row in policies.values()]
        lines.append(f"| {cell.mix} | {cell.load:g} | {' | '.join(figures)} |")
    blocks = ["\n".join(lines) for lines in tables.values()]
    left_out = [name for name in document["mixes"] if name not in shown]
    if left_out:
        blocks.append(f"Mixes {', '.join(left_out)} are in the result file, and count below.")
    blocks.append("\n".join(f"- {sentence}" for sentence in document["verdict"]))
    return "\n\n".join([*blocks, *filter(None, [agreement_section(document)])])


def _middle(mixes: Sequence[str]) -> Sequence[str]:
    cut = max(0, (len(mixes) - MOST_MIXES + 1) // 2)
    return mixes[cut : cut + MOST_MIXES]


def _heading(document: dict[str, Any], cell: Cell, row: dict[str, Any]) -> str:
    origin = "measured" if document["profiles"][cell.profile]["measured"] else "hypothetical, not measured"
    engines = "1 engine" if cell.engines == 1 else f"{cell.engines:,} engines ({document['dispatch']})"
    within_ms = row["objective_ms"]
    counted = "Answers" if within_ms is None else f"Answers within {within_ms:.1f} ms"
    return (
        f"**Profile {cell.profile} ({origin}), {cell.arrivals}, {engines}.** "
        f"{counted} as a share of the capacity · p99 in ms."
    )


def _latency(value_ms: float | None) -> str:
    return "–" if value_ms is None else f"{value_ms:.2f}"


def _columns(cell: Cell, policies: Sequence[str]) -> list[str]:
    what = "clients" if cell.arrivals == "closed" else "load"
    return [f"| mix | {what} | {' | '.join(policies)} |", f"| --- | ---: |{' ---: |' * len(policies)}"]


def simulation_verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In words: against each other policy, where the default is better, equal or worse; and its worst cell."""
    pairs: dict[str, list[tuple[Cell, dict[str, Any], dict[str, Any]]]] = {}
    for cell, policies in by_cell(rows).items():
        ours = policies.get(DEFAULT_POLICY)
        for name, theirs in policies.items():
            # Where nobody was answered there is nothing to compare.
            if ours and name != DEFAULT_POLICY and ours["goodput"] * theirs["goodput"] > 0.0:
                pairs.setdefault(name, []).append((cell, ours, theirs))
    return [_against(name, met) for name, met in pairs.items()]


def _against(name: str, met: Sequence[tuple[Cell, dict[str, Any], dict[str, Any]]]) -> str:
    goodput = [ours["goodput"] / theirs["goodput"] - 1.0 for _, ours, theirs in met]
    p99 = [1.0 - ours["p99_ms"] / theirs["p99_ms"] for _, ours, theirs in met]
    return (
        f"{DEFAULT_POLICY} against {name}, {len(met)} cells: goodput {_count(goodput, EQUAL_GOODPUT)}, "
        f"p99 {_count(p99, EQUAL_P99)}; at worst {100 * min(goodput):+.1f} % goodput ({_where(goodput, met)}) and "
        f"{-100 * min(p99):+.0f} % p99 ({_where(p99, met)})"
    )


def _count(gains: Sequence[float], equal: float) -> str:
    better, worse = sum(gain > equal for gain in gains), sum(gain < -equal for gain in gains)
    return f"better in {better}, equal in {len(gains) - better - worse}, worse in {worse}"


def _where(gains: Sequence[float], met: Sequence[tuple[Cell, dict[str, Any], dict[str, Any]]]) -> str:
    cell = met[min(range(len(gains)), key=lambda at: gains[at])][0]
    return f"{cell.profile}, mix {cell.mix}, {cell.arrivals} {cell.load:g}"
