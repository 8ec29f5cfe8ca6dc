"""Tables of a simulation: goodput and p99 by policy and load, and how the default policy compares with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.harness.figures import Document, source, table
from offramp.server.engine.policies import DEFAULT_POLICY

# A longer run or another seed may change smaller differences.
EQUAL_GOODPUT, EQUAL_P99 = 0.01, 0.05
MOST_MIXES = 3


class LoadPoint(NamedTuple):
    """One load, the same for all policies. load: share of the capacity, or clients of a closed loop."""

    profile: str
    mix: str
    arrivals: str
    load: float


def by_load(rows: Sequence[Document]) -> dict[LoadPoint, dict[str, Document]]:
    """The rows of each load by policy, in the order of the run."""
    points: dict[LoadPoint, dict[str, Document]] = {}
    for row in rows:
        points.setdefault(LoadPoint(*(row[name] for name in LoadPoint._fields)), {})[row["policy"]] = row
    return points


def simulation_section(document: Document) -> str:
    """A table for each profile and kind of arrivals, with the policies as columns; then the conclusions.

    The tables have at most MOST_MIXES mixes, those in the middle: where nearly all samples leave at one exit, policies
    hardly differ. The conclusions count all mixes.
    """
    names = list(document["mixes"])
    cut = max(0, (len(names) - MOST_MIXES + 1) // 2)
    in_table = names[cut : cut + MOST_MIXES]
    groups: dict[tuple[str, str], list[Document]] = {}
    for point, policies in by_load(document["rows"]).items():
        if point.mix in in_table:
            row = {**point._asdict(), "policies": policies}
            groups.setdefault((point.profile, point.arrivals), []).append(row)
    blocks = [
        block for (profile, arrivals), rows in groups.items() for block in _group(document, profile, arrivals, rows)
    ]
    if left_out := [name for name in names if name not in in_table]:
        blocks.append(f"Mixes {', '.join(left_out)} are in the result file, and count below.")
    blocks.append("\n".join(f"- {sentence}" for sentence in document["conclusions"]))
    return "\n\n".join([*blocks, f"{document['samples']:,} requests in each run. {source(document)}"])


def _group(document: Document, profile: str, arrivals: str, rows: Sequence[Document]) -> tuple[str, str]:
    policies = rows[0]["policies"]
    origin = "measured" if document["profiles"][profile]["measured"] else "hypothetical, not measured"
    within_ms = next(iter(policies.values()))["objective_ms"]
    counted = "Answers" if within_ms is None else f"Answers within {within_ms:.1f} ms"
    title = f"**Profile {profile} ({origin}), {arrivals}.** {counted} as a share of the capacity · p99 in ms."
    columns = {"mix": "{mix}", "clients" if arrivals == "closed" else "load": "{load:g}"}
    columns |= {
        name: f"{{policies[{name}][goodput_share]:.3f}} · {{policies[{name}][p99_ms]:.2f}}" for name in policies
    }
    return title, table(columns, rows)


def conclusions(rows: Sequence[Document]) -> list[str]:
    """Against each other policy: at how many loads the default is better, equal or worse, and its worst load."""
    goodput: dict[str, dict[LoadPoint, float]] = {}
    p99: dict[str, dict[LoadPoint, float]] = {}
    for point, policies in by_load(rows).items():
        default = policies.get(DEFAULT_POLICY)
        for name, other in policies.items():
            # A policy that answered nothing has no latency to compare.
            if default and name != DEFAULT_POLICY and default["goodput"] * other["goodput"] > 0.0:
                goodput.setdefault(name, {})[point] = default["goodput"] / other["goodput"] - 1.0
                p99.setdefault(name, {})[point] = 1.0 - default["p99_ms"] / other["p99_ms"]
    return [
        f"{DEFAULT_POLICY} against {name}, {len(gains)} cells: goodput {_count(gains, EQUAL_GOODPUT)}, "
        f"p99 {_count(p99[name], EQUAL_P99)}; at worst {100 * min(gains.values()):+.1f} % goodput ({_worst(gains)}) "
        f"and {-100 * min(p99[name].values()):+.0f} % p99 ({_worst(p99[name])})"
        for name, gains in goodput.items()
    ]


def _count(gains: dict[LoadPoint, float], equal: float) -> str:
    better, worse = sum(gain > equal for gain in gains.values()), sum(gain < -equal for gain in gains.values())
    return f"better in {better}, equal in {len(gains) - better - worse}, worse in {worse}"


def _worst(gains: dict[LoadPoint, float]) -> str:
    point = min(gains, key=lambda point: gains[point])
    return f"{point.profile}, mix {point.mix}, {point.arrivals} {point.load:g}"
