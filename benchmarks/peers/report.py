"""The tables and the plot of `offramp bench peers`, from its result file's document."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Document = Mapping[str, Any]


def section(document: Document) -> str:
    """Markdown: two tables a workload, what was out and why, and how it was measured."""
    parts = [workload_section(part, document["peer_versions"]) for part in document["workloads"]]
    return "\n\n".join([*parts, how(document)])


def workload_section(part: Document, versions: Mapping[str, str]) -> str:
    """One workload: capacity, then latency, then who was out."""
    lines = [f"#### {part['model']}, {part['input_size']} px, {part['name'].rpartition(', ')[2]}", ""]
    lines += [*capacity_table(part, versions), "", *latency_table(part)]
    out = [f"- {name} was out: {last_line(words)}" for name, words in part["failed"].items()]
    return "\n".join([*lines, *([""] if out else []), *out])


def capacity_table(part: Document, versions: Mapping[str, str]) -> list[str]:
    """Closed loop: each peer, and how many times its throughput ours has."""
    ways = [way["name"] for way in part["ways"]]
    lines = [
        f"| server | accuracy | as full depth | pictures/s | CPU, ms | errors | {_ours(ways, 'ours')} |",
        f"| :--- |{' ---: |' * (5 + len(ways))}",
    ]
    for row in part["rows"]:
        closed = row["closed_loop"]
        name = f"{row['title']} ({versions[row['peer']]})"
        cells = [
            name if row["way"] == ways[0] else f"{name}, {row['way']}",
            *_answers(part["answers"][row["peer"]][row["way"]]),
            spread(closed["throughput"], ".0f"),
            spread(closed["cpu_ms"], ".2f"),
            str(closed["errors"]),
            *(spread(row["ours"][way]["throughput_ratio"], ".2f", "×") for way in ways),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for way, told in part["answers"]["offramp"].items():
        mine = [row["ours"][way]["closed_loop"] for row in part["rows"]]
        figures = [over(mine, "throughput", ".0f"), over(mine, "cpu_ms", ".2f"), str(sum(m["errors"] for m in mine))]
        cells = [f"Offramp, {way}", *_answers(told), *figures, *("" for _ in ways)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def latency_table(part: Document) -> list[str]:
    """Open loop at the same rate for both."""
    ways = [way["name"] for way in part["ways"]]
    lines = [
        f"| server | rate/s | p50, ms | p95 | p99 | errors, / ours | {_ours(ways, 'p99 of ours')} | over theirs |",
        f"| :--- |{' ---: |' * (6 + len(ways))}",
    ]
    for row in part["rows"]:
        opened, ours = row["open_loop"], row["ours"]
        cells = [
            row["title"],
            f"{opened['rate']:.0f}",
            *(spread(opened[name], ".1f") for name in ("p50_ms", "p95_ms", "p99_ms")),
            " / ".join(str(each["errors"]) for each in (opened, *(ours[way]["open_loop"] for way in ways))),
            *(spread(ours[way]["open_loop"]["p99_ms"], ".1f") for way in ways),
            " / ".join(f"{ours[way]['p99_ratio']['median']:.2f}" for way in ways) + " ×",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def how(document: Document) -> str:
    """How it was measured, and on what."""
    versions, machine = document["versions"], document["machine"]
    settings = "the fastest of its settings" if document["tune_seconds"] else "the first of its settings"
    return (
        f"Median (least–most) of {document['rounds']} rounds, ours and the peer by turns, each started anew and alone; "
        f"{document['seconds']} s after {document['warmup_seconds']} s of warm-up. Every peer with {settings}. "
        f"Pictures a second: closed loop of wrk, {document['connections']} connections; latency: open loop, "
        f"Poisson arrivals at {document['load']:.0%} of the peer's capacity. CPU: of all the server's processes, for "
        "one picture of the closed loop. Ratios are taken within a round. "
        f"{machine['cpu']}, {machine['cores']} cores; python {versions['python']}; {document['date'][:10]}. "
        f"`{document['command']}`"
    )


def plot(document: Document, path: Path) -> None:
    """Throughput and p99 of ours and the peers, a row of two panels a workload."""
    # Without a display, and without a window system's libraries.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = [part for part in document["workloads"] if part["rows"]]
    figure = Figure(figsize=(12, 0.9 + 4.2 * max(1, len(parts))), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, len(parts)), 2, squeeze=False)
    for (left, right), part in zip(grid, parts, strict=False):
        titles = [textwrap.fill(row["title"], 14) for row in part["rows"]]
        _bars(left, titles, part, "closed_loop", "throughput", "pictures/s, closed loop")
        _bars(right, titles, part, "open_loop", "p99_ms", "p99 in ms, open loop at the same rate")
        left.set_title(part["name"])
        left.legend(fontsize=7, ncols=2, loc="upper center")
    figure.savefig(path, dpi=120)


def spread(figure: Mapping[str, float], form: str, unit: str = "") -> str:
    """Median and, unless they look the same, extremes."""
    median, low, high = (format(figure[name], form) for name in ("median", "min", "max"))
    return f"{median}{unit}" if low == high else f"{median}{unit} ({low}–{high})"


def over(mine: list[Any], name: str, form: str) -> str:
    """The extremes of ours over all pairs."""
    if not mine:
        return "–"
    low, high = min(one[name]["min"] for one in mine), max(one[name]["max"] for one in mine)
    return f"{low:{form}}–{high:{form}}"


def last_line(words: str) -> str:
    """What an error comes down to."""
    return words.strip().splitlines()[-1][:300] if words.strip() else "it said nothing"


def _ours(ways: list[str], what: str) -> str:
    return " | ".join(f"{what}, {way}" for way in ways)


def _answers(told: Document) -> list[str]:
    accuracy = told["accuracy"]
    return ["–" if accuracy is None else f"{accuracy:.2%}", f"{told['agreement']:.2%}"]


def _bars(axes: Any, titles: list[str], part: Document, loop: str, figure: str, label: str) -> None:
    ways = [way["name"] for way in part["ways"]]
    series = {"peer": [row[loop][figure] for row in part["rows"]]}
    series |= {f"Offramp, {way}": [row["ours"][way][loop][figure] for row in part["rows"]] for way in ways}
    width = 0.8 / len(series)
    for index, (name, figures) in enumerate(series.items()):
        medians = [one["median"] for one in figures]
        reach = [[one["median"] - one["min"] for one in figures], [one["max"] - one["median"] for one in figures]]
        places = [place + (index - (len(series) - 1) / 2) * width for place in range(len(titles))]
        axes.bar(places, medians, width, yerr=reach, label=name, color="0.6" if index == 0 else f"C{index - 1}")
    axes.set_xticks(range(len(titles)), titles, fontsize=7)
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
