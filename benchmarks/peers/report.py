"""The tables and the plot of `offramp bench peers`, from its result file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import Document, fill, section, table


def peers_section(document: Document) -> str:
    """Two tables for each workload, failures, and how it was measured."""
    parts = [workload_section(part, document["peer_versions"]) for part in document["workloads"]]
    settings = "the fastest of its settings" if document["tune_seconds"] else "the first of its settings"
    how = (
        "Median (least–most) of {rounds} rounds. Offramp and the peer alternate, each started anew and alone; "
        f"{{seconds}} s after {{warmup_seconds}} s of warm-up. Every peer with {settings}. Pictures a second: closed "
        "loop of wrk, {connections} connections; latency: open loop, Poisson arrivals at {load:.0%} of the peer's "
        "capacity. CPU: of all the server's processes, for one picture of the closed loop. Ratios are taken within a "
        "round."
    )
    return "\n\n".join([*parts, section(document, how)])


def workload_section(part: Document, versions: Mapping[str, str]) -> str:
    """One workload: capacity, latency, failures."""
    title = fill("#### {model}, {input_size} px, ", part) + part["name"].rpartition(", ")[2]
    failed = [f"- {name} was left out: {last_line(error)}" for name, error in part["failed"].items()]
    blocks = [title, capacity_table(part, versions), latency_table(part), "\n".join(failed)]
    return "\n\n".join(filter(None, blocks))


def capacity_table(part: Document, versions: Mapping[str, str]) -> str:
    """Closed loop: each peer with Offramp's throughput over it, then Offramp."""
    ways = [way["name"] for way in part["ways"]]
    rows: list[dict[str, Any]] = []
    for row in part["rows"]:
        name = f"{row['title']} ({versions[row['peer']]})"
        server = name if row["way"] == ways[0] else f"{name}, {row['way']}"
        ratios = {way: row["ours"][way]["throughput_ratio"] for way in ways}
        rows.append({"server": server, **part["answers"][row["peer"]][row["way"]], **row["closed_loop"], **ratios})
    for way, answers in part["answers"]["offramp"].items():
        loops = [row["ours"][way]["closed_loop"] for row in part["rows"]]
        figures = {name: _over_pairs([each[name] for each in loops]) for name in ("throughput", "cpu_ms")}
        errors = sum(each["errors"] for each in loops)
        rows.append({"server": f"Offramp, {way}", **answers, **figures, "errors": errors, **dict.fromkeys(ways)})
    columns = {
        "server": "{server}",
        "accuracy": "{accuracy:.2%}",
        "as full depth": "{agreement:.2%}",
        "pictures/s": "{throughput:.0f}",
        "CPU, ms": "{cpu_ms:.2f}",
        "errors": "{errors}",
    }
    over_peer = {f"Offramp / peer, {way}": lambda row, way=way: fill("{over:.2f×}", {"over": row[way]}) for way in ways}
    return table({**columns, **over_peer}, rows)


def _over_pairs(spreads: Sequence[Document]) -> dict[str, float] | None:
    """The middle of the medians, the least and the most of all pairs; None without pairs."""
    if not spreads:
        return None
    medians = sorted(each["median"] for each in spreads)
    least, most = min(each["min"] for each in spreads), max(each["max"] for each in spreads)
    return {"median": medians[len(medians) // 2], "min": least, "max": most}


def latency_table(part: Document) -> str:
    """Open loop at the same rate for the peer and for Offramp."""
    ways = [way["name"] for way in part["ways"]]
    columns: dict[str, Any] = {
        "server": "{title}",
        "rate/s": "{open_loop[rate]:.0f}",
        "p50, ms": "{open_loop[p50_ms]:.1f}",
        "p95": "{open_loop[p95_ms]:.1f}",
        "p99": "{open_loop[p99_ms]:.1f}",
        "errors, peer / Offramp": lambda row: " / ".join(
            str(each["errors"]) for each in (row["open_loop"], *(row["ours"][way]["open_loop"] for way in ways))
        ),
        **{f"p99 of Offramp, {way}": f"{{ours[{way}][open_loop][p99_ms]:.1f}}" for way in ways},
        "p99, Offramp / peer": lambda row: (
            " / ".join(f"{row['ours'][way]['p99_ratio']['median']:.2f}" for way in ways) + " ×"
        ),
    }
    return table(columns, part["rows"])


def last_line(error: str) -> str:
    """The last line of an error."""
    return error.strip().splitlines()[-1][:300] if error.strip() else "without a message"


def plot(document: Document, path: Path) -> None:
    """Throughput and p99 of Offramp and the peers, a row of two panels for each workload."""
    # This canvas needs no display, and no window system's libraries.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = [part for part in document["workloads"] if part["rows"]]
    figure = Figure(figsize=(12, 0.9 + 4.2 * max(1, len(parts))), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, len(parts)), 2, squeeze=False)
    for (left, right), part in zip(grid, parts, strict=False):
        _bars(left, part, "closed_loop", "throughput", "pictures/s, closed loop")
        _bars(right, part, "open_loop", "p99_ms", "p99 in ms, open loop at the same rate")
        left.set_title(part["name"])
        left.legend(fontsize=7, ncols=2, loc="upper center")
    figure.savefig(path, dpi=120)


def _bars(axes: Any, part: Document, loop: str, name: str, label: str) -> None:
    rows, ways = part["rows"], [way["name"] for way in part["ways"]]
    series = {"peer": [row[loop][name] for row in rows]}
    series |= {f"Offramp, {way}": [row["ours"][way][loop][name] for row in rows] for way in ways}
    width = 0.8 / len(series)
    for index, (title, spreads) in enumerate(series.items()):
        medians = [each["median"] for each in spreads]
        reach = [[e["median"] - e["min"] for e in spreads], [e["max"] - e["median"] for e in spreads]]
        places = [place + (index - (len(series) - 1) / 2) * width for place in range(len(rows))]
        axes.bar(places, medians, width, yerr=reach, label=title, color=f"C{index - 1}" if index else "0.6")
    axes.set_xticks(range(len(rows)), [textwrap.fill(row["title"], 14) for row in rows], fontsize=7)
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
