"""The tables of `benchmarks.hostile`, one section a part, each from its part of the result file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figures import provenance, table, with_extremes

Document = Mapping[str, Any]


def attacks_section(document: Document) -> str:
    """Photographs of another client, quiet and beside each attack."""
    rows = [
        [
            row["attack"],
            str(row["frontends"]),
            with_extremes(row["quiet"]["p99_ms"], ".0f"),
            *(with_extremes(row["during"][name], ".0f") for name in ("p50_ms", "p99_ms", "max_ms")),
            with_extremes(row["ratio"], ".1f", "×"),
            f"{sum(row['lost'].values())} of {row['sent']:,}",
            f"{row['peak_mib']:,.0f}",
            _counts(row["answers"]),
        ]
        for row in document["rows"]
    ]
    how = (
        f"A photograph of 320 × 240 pixels every {1000 / document['photos_per_s']:.0f} ms from another address, timed "
        f"from when it was due; {document['seconds']:g} s quiet, then as long beside the attack. p99 against quiet: in "
        f"the same round. Median (least–most) of {document['rounds_each']} rounds. MiB: the most resident memory that "
        "the server's processes ever held."
    )
    head = (
        "attack | frontends | quiet p99, ms | p50 beside | p99 | max | p99 against quiet | not answered | MiB "
        "| what the attacker got"
    )
    return _section(document, table(head, rows), how)


def overload_section(document: Document) -> str:
    """Goodput, refusals and probes by load."""
    rows = [
        [
            row["load"],
            str(row["frontends"]),
            with_extremes(row["goodput_per_s"], ".0f"),
            with_extremes(row["of_capacity"], ".2f", "×"),
            with_extremes(row["p99_ms"], ".0f"),
            f"{row['refused']['median']:.0%}",
            f"{row['broken']['max']:.0f}",
            with_extremes(row["livez_p99_ms"], ".0f"),
            f"{row['livez_max_ms']['max']:.0f}",
            f"{row['livez_lost']['max']:.0f}",
            with_extremes(row["load_cores"], ".2f"),
        ]
        for row in document["rows"]
    ]
    how = (
        f"c: closed loop of {document['connections']} connections, in the same round; then Poisson arrivals at 2 c and "
        f"5 c, timed from when they were due. Median (least–most) of {document['rounds_each']} rounds of "
        f"{document['seconds']:g} s. Broken: most without an answer in a round. /livez: every "
        f"{1000 / document['probes_per_s']:.0f} ms on a connection of its own. Client: the cores that it took from the "
        "server by itself."
    )
    head = (
        "load | frontends | answers/s | of c | p99 of answers, ms | refused | broken | /livez p99, ms | max | lost "
        "| client, cores"
    )
    return _section(document, table(head, rows), how)


def fairness_section(document: Document) -> str:
    """The honest client, alone and beside a greedy one."""
    rows = [
        [
            row["load"],
            str(row["frontends"]),
            f"{row['answered']['median']:.2%} ({row['answered']['min']:.2%}–{row['answered']['max']:.2%})",
            with_extremes(row["p50_ms"], ".0f"),
            with_extremes(row["p99_ms"], ".0f"),
            f"{row['broken']['max']:.0f}",
            with_extremes(row["greedy_per_s"], ".0f"),
        ]
        for row in document["rows"]
    ]
    how = (
        f"An honest client of Poisson arrivals at {document['honest_share']:.0%} of capacity, alone and beside another "
        f"that keeps {document['connections']} connections busy. Median (least–most) of {document['rounds_each']} "
        f"rounds of {document['seconds']:g} s."
    )
    head = "honest client | frontends | answered | p50, ms | p99, ms | broken | greedy client's answers/s"
    return _section(document, table(head, rows), how)


def faults_section(document: Document) -> str:
    """Requests, readiness and processes, by fault."""
    rows = [
        [
            row["fault"],
            str(row["frontends"]),
            str(row["runs"]),
            *(f"{row[name]:,}" for name in ("requests", "wrong", "hung", "broken")),
            _counts(row["statuses"]),
            *(with_extremes(row[name], ".1f") if row[name] else "–" for name in ("longest_s", *TIMES)),
            _counts(row["exit_statuses"]) or "–",
        ]
        for row in document["rows"]
    ]
    how = (
        f"{document['connections']} connections in a closed loop; every other request has a deadline of "
        f"{1000 * document['deadline_s']:.0f} ms. Wrong: another class or probability than a quiet server gives. Hung: "
        f"no answer {1000 * document['grace_s']:.0f} ms after its deadline, or after {document['patience_s']:g} s. "
        "Broken: the connection ended. Longest wait, seconds from the first signal to `/readyz` red, from the last to "
        "green, and from the signal to the end of the process: median (least–most) of the runs."
    )
    head = (
        "fault | frontends | runs | requests | wrong | hung | broken | answers | longest wait, s | red, s | green, s "
        "| end, s | exit status"
    )
    return _section(document, table(head, rows), how)


def mutants_section(document: Document) -> str:
    """Counts by status."""
    rows = [[status, f"{count:,}"] for status, count in document["statuses"].items()]
    bad = ", ".join(f"{one['number']} ({one['answer']})" for one in document["bad"][:20]) or "none"
    how = (
        f"{document['mutants']:,} mutants from number {document['first']:,}, {document['per_s']:.0f} a second. "
        f"Failures of the server: {len(document['bad'])}, by number: {bad}. Servers that died: {document['dead']}."
    )
    return _section(document, table("answer | mutants", rows), how)


TIMES = ("red_s", "green_s", "end_s")
HOSTILE_SECTIONS = {
    "hostile-attacks": attacks_section,
    "hostile-overload": overload_section,
    "hostile-fairness": fairness_section,
    "hostile-faults": faults_section,
    "hostile-mutants": mutants_section,
}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))


def _section(document: Document, rows: str, how: str) -> str:
    return f"{rows}\n\n{how} {provenance(document)}"
