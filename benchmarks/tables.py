"""Markdown for readers, from result files; and the documents that hold it, kept in step with them.

    python -m benchmarks.tables            # write the tables into docs/performance.md and docs/paper.md
    python -m benchmarks.tables --check    # fail where a document is stale

A table stands between two marks: `<!-- results: NAME.json -->` and `<!-- end of results -->`. The targets come from
several files: `<!-- results: targets -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.paper_report import paper_section
from benchmarks.peers.report import section as peers_section
from benchmarks.targets import targets_section

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
DOCUMENTS = (PROJECT / "docs" / "performance.md", PROJECT / "docs" / "paper.md")
MARKED = re.compile(r"(<!-- results: (?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- end of results -->)", re.DOTALL)

# Accuracy, in percentage points, that a verdict of "exits pay" may lose against exits off.
TOLERATED_POINTS = 1.0

Document = dict[str, Any]


def thresholds_section(document: Document) -> str:
    """The table of `benchmarks.thresholds`, where its figures come from, and what they say."""
    latency = "p50, ms | p95 | p99 | CPU, ms | errors |"
    lines = [
        f"| threshold | accuracy | changed | exit mix, % | pictures/s | against off | {latency}",
        "| ---: " * 11 + "|",
    ]
    for row in document["rows"]:
        cpu = row["server_cpu_ms"]
        cells = [
            f"{row['threshold']:g}",
            f"{row['accuracy']:.2%}",
            f"{row['disagreement']:.2%}",
            _shares(row["exit_mix"], ".0f"),
            _spread(row["throughput"], ".0f"),
            _spread(row["ratio"], ".2f", "×"),
            _spread(row["p50_ms"], ".1f"),
            _spread(row["p95_ms"], ".1f"),
            _spread(row["p99_ms"], ".1f"),
            _spread(cpu, ".2f") if cpu else "–",
            str(row["errors"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    source = (
        f"{document['served']}; {document['pictures']:,} {document['dataset']} test pictures as PNG. Median "
        f"(least–most) of {document['rounds_each']} interleaved rounds of {document['seconds']:g} s after "
        f"{document['warmup_seconds']:g} s of warm-up. Pictures a second: closed loop, {document['connections']} "
        f"connections. Latency: open loop, Poisson arrivals at {document['open_loop_rate']:.0f}/s for every threshold. "
        "CPU: the server's, for one picture of the closed loop. Changed: answers of another class than at threshold 1. "
        f"{_provenance(document)}"
    )
    return "\n".join([*lines, "", source, "", *(f"- {sentence}" for sentence in document["verdict"])])


def thresholds_verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In words, for each threshold below 1: whether exits pay, and at what accuracy and latency."""
    off = next(row for row in rows if row["threshold"] == 1.0)
    sentences = []
    for row in rows:
        if row is off:
            continue
        ratio = row["ratio"]
        points = 100 * (row["accuracy"] - off["accuracy"])
        if ratio["min"] > 1.0:
            verdict = "exits pay" if points >= -TOLERATED_POINTS else "faster, but at a price in accuracy"
        elif ratio["max"] < 1.0:
            verdict = "exits do not pay"
        else:
            verdict = "exits make no difference that these rounds can tell"
        p99_ms, off_p99_ms = row["p99_ms"]["median"], off["p99_ms"]["median"]
        sentences.append(
            f"Threshold {row['threshold']:g}: {verdict}: {_spread(ratio, '.2f', '×')} the throughput of exits off, "
            f"accuracy {points:+.2f} points; "
            f"p99 at the same load {p99_ms:.1f} ms against {off_p99_ms:.1f} ms."
        )
    return sentences


def accuracy_section(document: Document) -> str:
    """The table of `benchmarks.accuracy`: what was served beside what the evaluation computes."""
    lines = [
        "| threshold | accuracy served | evaluated | exit mix served | evaluated | exits ≠ | labels ≠ | confidence ≠ |",
        "| ---: " * 8 + "|",
    ]
    for row in document["rows"]:
        cells = [
            f"{row['threshold']:g}",
            f"{row['accuracy']:.2%}",
            f"{row['evaluated_accuracy']:.2%}",
            _shares(row["exit_mix"], ".2f"),
            _shares(row["evaluated_mix"], ".2f"),
            str(row["exits_differing"]),
            str(row["labels_differing"]),
            f"{row['largest_confidence_difference']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    source = (
        f"{document['served']}; {document['pictures']:,} {document['dataset']} test pictures as PNG, each at every "
        f"threshold, {document['connections']} requests in flight, thresholds mixed. Exit mix in %. ≠: how many "
        f"answers differ; of confidences, the largest difference. {_provenance(document)}"
    )
    return "\n".join([*lines, "", source, "", *(f"- {sentence}" for sentence in document["verdict"])])


def engine_section(document: Document) -> str:
    """The table of `benchmarks.engine`: bare loops, then the engine at each threshold."""
    lines = [
        "| what | threshold | pictures/s | of the bare loop | of the ideal | against off | accuracy | changed exits |",
        "| --- |" + " ---: |" * 7,
    ]
    agreement = {row["threshold"]: row for row in document["agreement"]["thresholds"]}
    for row in document["variants"]:
        speed = f"{row['pictures_per_s']:,.0f}"
        if row["variant"] != "engine":
            lines.append(f"| {row['variant']}, bare | – | {speed} | – | – | – | – | – |")
            continue
        answers = agreement[row["threshold"]]
        cells = [
            f"engine | {row['threshold']:g} | {speed}",
            *(_spread(row[name], ".2f") for name in ("share_of_bare", "share_of_ideal", "times_full_depth")),
            f"{answers['accuracy']:.2%}",
            f"{answers['changed_exits']:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    options, runner = document["options"], document["runner"]
    source = (
        f"{document['model']['name']} {document['model']['version']}; {runner['kind']}, {runner['precision']}, batches "
        f"of at most {options['max_batch_size']}; {document['agreement']['pictures']:,} {options['dataset']} test "
        f"pictures; median (least–most) of {options['rounds']} interleaved rounds. {_provenance(document)}"
    )
    return "\n".join([*lines, "", source])


def pipeline_section(document: Document) -> str:
    """The document as a Markdown table with its conditions."""
    lines = [
        "| form | workers | pictures/s | CPU a picture, ms | cores used |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in document["rows"]:
        cells = [row["form"], str(row["workers"])]
        for name, form in (("pictures_per_s", ".0f"), ("cpu_ms", ".2f"), ("cores_used", ".2f")):
            values = row[name]
            cells.append(
                f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})" if values else "–"
            )
        lines.append(f"| {' | '.join(cells)} |")
    machine = document["machine"]
    source = (
        f"{document['pictures']:,} pictures of {document['mean_file_bytes'] / 1000:.0f} kB to {document['size']} "
        f"pixels, batches of {document['batch_size']} to {document['device']}. Median (least–most) of "
        f"{document['rounds_each']} interleaved epochs; workers 0: decoded by the training process itself. "
        "CPU: of all processes; fewer cores used than processes means that others had the rest. "
        f"{machine['cpu']}, {machine['cores']} cores, load before {machine['load_average_before']}; "
        f"{document['date'][:10]}. `{document['command']}`"
    )
    return "\n".join([*lines, "", source])


def server_costs_section(document: Document) -> str:
    """The tables of `benchmarks.server_costs`: the way to readiness, one request alone, CPU, frontends, memory."""
    startup, memory = document["startup"], document["memory"]
    (first_count, first_mib), *_, (last_count, last_mib) = memory["samples"]
    parts = sorted(startup["parts_s"].items(), key=lambda part: -float(part[1]))
    ready = (
        f"From the command to readiness: {_spread(startup['ready_s'], '.1f')} s. Where they go, in a process that does "
        "the same one after the other:"
    )
    watched = (
        f"Memory over {last_count:,} requests at threshold {memory['threshold']:g}: {first_mib:.0f} MiB resident after "
        f"the first {first_count:,}, {last_mib:.0f} MiB after the last; from the second quarter on "
        f"{memory['mib_per_100k']:+.2f} MiB in 100,000 requests."
    )
    source = (
        f"{document['served']}; {document['pictures']:,} test pictures as PNG; median (least–most) of "
        f"{document['rounds']} rounds by turns of {document['seconds']} s; closed loops of {document['connections']} "
        f"connections; open loops of Poisson arrivals at {document['frontends'][0]['open_loop_rate']:.0f}/s. "
        f"{_provenance(document)}"
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
    return " | ".join([first, *(_spread(row[name], form) for name, form in forms.items())])


SECTIONS = {
    "thresholds": thresholds_section,
    "accuracy": accuracy_section,
    "engine": engine_section,
    "paper": paper_section,
    "pipeline": pipeline_section,
    "peers": peers_section,
    "server-costs": server_costs_section,
}


def _spread(values: dict[str, float], form: str, unit: str = "") -> str:
    return f"{values['median']:{form}}{unit} ({values['min']:{form}}–{values['max']:{form}})"


def _shares(mix: Sequence[float], form: str) -> str:
    return " / ".join(f"{100 * share:{form}}" for share in mix)


def _provenance(document: Document) -> str:
    machine, versions = document["machine"], document["versions"]
    hardware = ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]])
    names = ("python", "torch", "fastapi", "uvicorn", "offramp")
    software = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    whose = "" if document.get("own_server", True) else " (of the load generator; the server was started elsewhere)"
    return f"{hardware}{whose}; {software}; {document['date'][:10]}. `{document['command']}`"


def filled(text: str, results: Path) -> str:
    """The document with every marked table rendered anew. Raises BenchmarkError for a result that is no result."""
    return MARKED.sub(lambda match: match[1] + _section(results / match["name"]) + "\n" + match[4], text)


def _section(path: Path) -> str:
    if path.name == "targets":
        return targets_section(path.parent)
    if not path.exists():
        return f"*Not measured yet: `benchmarks/results/{path.name}` is not there.*"
    try:
        document = json.loads(path.read_text())
        return SECTIONS[document["benchmark"]](document)
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a result file of these benchmarks ({error!r}); measure again") from error


def main(arguments: Sequence[str], results: Path = RESULTS) -> int:
    """Write or check the documents; 1 when one is stale, with its name and the fix."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Tables of the docs from results.")
    parser.add_argument(
        "documents", nargs="*", type=Path, default=DOCUMENTS, help="default: docs/performance.md and docs/paper.md"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is stale")
    options = parser.parse_args(arguments)
    status = 0
    for path in options.documents:
        text = path.read_text(encoding="utf-8")
        new = filled(text, results)
        if new == text:
            continue
        if options.check:
            print(f"{path}: a table is stale; run python -m benchmarks.tables {path}", file=sys.stderr)
            status = 1
        else:
            path.write_text(new, encoding="utf-8")
            print(f"{path}: written")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
