"""The tables of `benchmarks.server_costs`, from its result file's document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figures import provenance, with_extremes


def server_costs_section(document: Mapping[str, Any]) -> str:
    """The tables of `benchmarks.server_costs`: the way to readiness, one request alone, CPU, frontends, memory."""
    startup, memory = document["startup"], document["memory"]
    (first_count, first_mib), *_, (last_count, last_mib) = memory["samples"]
    parts = sorted(startup["parts_s"].items(), key=lambda part: -float(part[1]))
    ready = (
        f"From the command to readiness: {with_extremes(startup['ready_s'], '.1f')} s. Where they go, in a process "
        "that does the same one after the other:"
    )
    watched = (
        f"Memory over {last_count:,} requests at threshold {memory['threshold']:g}: {first_mib:.0f} MiB resident after "
        f"the first {first_count:,}, {last_mib:.0f} MiB after the last; from the second quarter on "
        f"{memory['mib_per_100k']:+.2f} MiB in 100,000 requests (median slope between any two samples)."
    )
    source = (
        f"{document['served']}; {document['pictures']:,} test pictures as PNG; median (least–most) of "
        f"{document['rounds']} rounds by turns of {document['seconds']} s; closed loops of {document['connections']} "
        f"connections; open loops of Poisson arrivals at {document['frontends'][0]['open_loop_rate']:.0f}/s. "
        f"{provenance(document)}"
    )
    tables = (
        _table("part | seconds", [f"{name} | {seconds:.2f}" for name, seconds in parts]),
        "One request alone, on one connection, and the network alone over the same pictures, medians:",
        _table(
            "threshold | over HTTP, ms | network, ms | more, ms",
            [
                _cells(row, f"{row['threshold']:g}", http_p50_ms=".2f", network_p50_ms=".2f", more_ms=".2f")
                for row in document["alone"]
            ],
        ),
        "CPU for one picture at capacity, of the server and of the engine alone:",
        _table(
            "threshold | pictures/s | server, ms | engine, ms | beyond, ms",
            [
                _cells(
                    row, f"{row['threshold']:g}", throughput=".0f", server_ms=".2f", engine_ms=".2f", beyond_ms=".2f"
                )
                for row in document["cpu"]
            ],
        ),
        "By the number of frontends; 0: one process does all:",
        _table(
            "frontends | threshold | pictures/s | CPU, ms | p50, ms | p99, ms | errors",
            [
                _cells(
                    row,
                    f"{row['frontends']} | {row['threshold']:g}",
                    throughput=".0f",
                    cpu_ms=".2f",
                    p50_ms=".1f",
                    p99_ms=".1f",
                )
                + f" | {row['errors']}"
                for row in document["frontends"]
            ],
        ),
    )
    return "\n\n".join([ready, *tables, watched, source])


def _table(head: str, rows: Sequence[str]) -> str:
    return "\n".join([f"| {head} |", "| ---: " * (head.count("|") + 1) + "|", *(f"| {row} |" for row in rows)])


def _cells(row: dict[str, Any], first: str, **forms: str) -> str:
    return " | ".join([first, *(with_extremes(row[name], form) for name, form in forms.items())])
