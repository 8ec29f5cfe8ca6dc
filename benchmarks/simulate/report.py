"""Tables of a simulation: goodput and p99 by policy and load, and whether the default policy wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.harness.figures import Document, table
from benchmarks.harness.figures import source as source_of
from offramp.server.engine.policies import DEFAULT_POLICY

# Smaller differences may change with the length of the run or the seed.
EQUAL_GOODPUT, EQUAL_P99 = 0.01, 0.05
MOST_MIXES = 3


@dataclass(frozen=True)
class LoadPoint:
    """One load, the same for all policies. load: share of the capacity, or clients an engine in a closed loop."""

    profile: str
    mix: str
    arrivals: str
    engines: int
    load: float


Pair = tuple[LoadPoint, Document, Document]


def by_load(rows: Sequence[Document]) -> dict[LoadPoint, dict[str, Document]]:
    """The rows of each load by policy, in the order of the run."""
    points: dict[LoadPoint, dict[str, Document]] = {}
    for row in rows:
        point = LoadPoint(**{field.name: row[field.name] for field in fields(LoadPoint)})
        points.setdefault(point, {})[row["policy"]] = row
    return points


def simulation_section(document: Document) -> str:
    """A table for each profile, kind of arrivals and size of the fleet, policies as columns; then conclusions.

    Of more than MOST_MIXES mixes the tables have those in the middle: where nearly all samples leave at one exit,
    policies hardly differ. The conclusions count all.
    """
    names = list(document["mixes"])
    cut = max(0, (len(names) - MOST_MIXES + 1) // 2)
    in_table = names[cut : cut + MOST_MIXES]
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for point, policies in by_load(document["rows"]).items():
        if point.mix in in_table:
            group = groups.setdefault((point.profile, point.arrivals, point.engines), [])
            group.append({"mix": point.mix, "load": point.load, "policies": policies})
    blocks = [block for group, rows in groups.items() for block in _group(document, group, rows)]
    if left_out := [name for name in names if name not in in_table]:
        blocks.append(f"Mixes {', '.join(left_out)} are in the result file, and count below.")
    blocks.append("\n".join(f"- {sentence}" for sentence in document["verdict"]))
    return "\n\n".join(
        [*blocks, f"{document['samples_an_engine']:,} requests an engine in each run. {source_of(document)}"]
    )


def _group(document: Document, group: tuple[str, str, int], rows: list[dict[str, Any]]) -> list[str]:
    profile, arrivals, engines = group
    policies = rows[0]["policies"]
    origin = "measured" if document["profiles"][profile]["measured"] else "hypothetical, not measured"
    fleet = "1 engine" if engines == 1 else f"{engines:,} engines ({document['dispatch']})"
    within_ms = next(iter(policies.values()))["objective_ms"]
    counted = "Answers" if within_ms is None else f"Answers within {within_ms:.1f} ms"
    columns: dict[str, Any] = {"mix": "{mix}", "clients" if arrivals == "closed" else "load": "{load:g}"}
    columns |= {
        policy: f"{{policies[{policy}][goodput_share]:.3f}} · {{policies[{policy}][p99_ms]:.2f}}" for policy in policies
    }
    title = f"**Profile {profile} ({origin}), {arrivals}, {fleet}.** {counted} as a share of the capacity · p99 in ms."
    return [title, table(columns, rows)]


def conclusions(rows: Sequence[Document]) -> list[str]:
    """Against each other policy: where the default is better, equal or worse; and its worst load."""
    pairs: dict[str, list[Pair]] = {}
    for point, policies in by_load(rows).items():
        ours = policies.get(DEFAULT_POLICY)
        for name, theirs in policies.items():
            # Where a policy answered nothing there is nothing to compare.
            if ours and name != DEFAULT_POLICY and ours["goodput"] * theirs["goodput"] > 0.0:
                pairs.setdefault(name, []).append((point, ours, theirs))
    return [_against(name, some) for name, some in pairs.items()]


def _against(name: str, pairs: Sequence[Pair]) -> str:
    goodput = [ours["goodput"] / theirs["goodput"] - 1.0 for _, ours, theirs in pairs]
    p99 = [1.0 - ours["p99_ms"] / theirs["p99_ms"] for _, ours, theirs in pairs]
    return (
        f"{DEFAULT_POLICY} against {name}, {len(pairs)} cells: goodput {_count(goodput, EQUAL_GOODPUT)}, "
        f"p99 {_count(p99, EQUAL_P99)}; at worst {100 * min(goodput):+.1f} % goodput ({_where(goodput, pairs)}) and "
        f"{-100 * min(p99):+.0f} % p99 ({_where(p99, pairs)})"
    )


def _count(gains: Sequence[float], equal: float) -> str:
    better, worse = sum(gain > equal for gain in gains), sum(gain < -equal for gain in gains)
    return f"better in {better}, equal in {len(gains) - better - worse}, worse in {worse}"


def _where(gains: Sequence[float], pairs: Sequence[Pair]) -> str:
    point = pairs[min(range(len(gains)), key=lambda at: gains[at])][0]
    return f"{point.profile}, mix {point.mix}, {point.arrivals} {point.load:g}"
