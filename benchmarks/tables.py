"""Markdown for readers, from result files; and the documents that hold it, kept in step with them.

    python -m benchmarks.tables            # write the tables into the documents in docs/
    python -m benchmarks.tables --check    # fail where a document is stale

A table stands between two marks: `<!-- results: NAME.json -->` and `<!-- end of results -->`; of a file with several
parts, `<!-- results: NAME.json#PART -->` is one. The targets come from several files: `<!-- results: targets -->`.
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
from benchmarks.figures import provenance, shares, with_extremes
from benchmarks.hostile.report import HOSTILE_SECTIONS
from benchmarks.paper_report import paper_section
from benchmarks.peers.report import section as peers_section
from benchmarks.ray_proxy import section as ray_proxy_section
from benchmarks.server_costs_report import server_costs_section
from benchmarks.simulate_tables import simulation_section
from benchmarks.targets import targets_section
from benchmarks.trust.report import TRUST_SECTIONS

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
DOCUMENTS = tuple(
    PROJECT / "docs" / f"{name}.md" for name in ("performance", "paper", "trust", "operations", "scaling")
)
MARKED = re.compile(
    r"(<!-- results: (?P<name>[\w.-]+)(?:#(?P<part>[\w-]+))? -->\n)(?P<body>.*?)(?P<end><!-- end of results -->)",
    re.DOTALL,
)

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
            shares(row["exit_mix"], ".0f"),
            with_extremes(row["throughput"], ".0f"),
            with_extremes(row["ratio"], ".2f", "×"),
            with_extremes(row["p50_ms"], ".1f"),
            with_extremes(row["p95_ms"], ".1f"),
            with_extremes(row["p99_ms"], ".1f"),
            with_extremes(cpu, ".2f") if cpu else "–",
            str(row["errors"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    source = (
        f"{document['served']}; {document['pictures']:,} {document['dataset']} test pictures as PNG. Median "
        f"(least–most) of {document['rounds_each']} interleaved rounds of {document['seconds']:g} s after "
        f"{document['warmup_seconds']:g} s of warm-up. Pictures a second: closed loop, {document['connections']} "
        f"connections. Latency: open loop, Poisson arrivals at {document['open_loop_rate']:.0f}/s for every threshold. "
        "CPU: the server's, for one picture of the closed loop. Changed: answers of another class than at threshold 1. "
        f"{provenance(document)}"
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
            f"Threshold {row['threshold']:g}: {verdict}: {with_extremes(ratio, '.2f', '×')} the throughput of exits "
            f"off, accuracy {points:+.2f} points; "
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
            shares(row["exit_mix"], ".2f"),
            shares(row["evaluated_mix"], ".2f"),
            str(row["exits_differing"]),
            str(row["labels_differing"]),
            f"{row['largest_confidence_difference']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    source = (
        f"{document['served']}; {document['pictures']:,} {document['dataset']} test pictures as PNG, each at every "
        f"threshold, {document['connections']} requests in flight, thresholds mixed. Exit mix in %. ≠: how many "
        f"answers differ; of confidences, the largest difference. {provenance(document)}"
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
            *(with_extremes(row[name], ".2f") for name in ("share_of_bare", "share_of_ideal", "times_full_depth")),
            f"{answers['accuracy']:.2%}",
            f"{answers['changed_exits']:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    options, runner = document["options"], document["runner"]
    source = (
        f"{document['model']['name']} {document['model']['version']}; {runner['kind']}, {runner['precision']}, batches "
        f"of at most {options['max_batch_size']}; {document['agreement']['pictures']:,} {options['dataset']} test "
        f"pictures; median (least–most) of {options['rounds']} interleaved rounds. {provenance(document)}"
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


SECTIONS = {
    "thresholds": thresholds_section,
    "accuracy": accuracy_section,
    "engine": engine_section,
    "paper": paper_section,
    "pipeline": pipeline_section,
    "peers": peers_section,
    "server-costs": server_costs_section,
    "simulate": simulation_section,
    "ray-proxy": ray_proxy_section,
    **TRUST_SECTIONS,
    **HOSTILE_SECTIONS,
}


def filled(text: str, results: Path) -> str:
    """The document with every marked table rendered anew. Raises BenchmarkError for a result that is no result."""
    return MARKED.sub(
        lambda match: match[1] + _section(results / match["name"], match["part"]) + "\n" + match["end"], text
    )


def _section(path: Path, part: str | None) -> str:
    if path.name != "targets" and not path.exists():
        return f"*Not measured yet: `benchmarks/results/{path.name}` is not there.*"
    try:
        if path.name == "targets":
            return targets_section(path.parent)
        document = json.loads(path.read_text())
        if part is not None and part not in document["parts"]:
            return f"*Not measured yet: `benchmarks/results/{path.name}` has no {part}.*"
        if part is not None:
            document = document["parts"][part]
        return SECTIONS[document["benchmark"]](document)
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a result file of these benchmarks ({error!r}); measure again") from error


def main(arguments: Sequence[str], results: Path = RESULTS) -> int:
    """Write or check the documents; 1 when one is stale, with its name and the fix."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Tables of the docs from results.")
    parser.add_argument(
        "documents",
        nargs="*",
        type=Path,
        default=DOCUMENTS,
        help="default: performance, paper, trust and operations of docs/",
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
