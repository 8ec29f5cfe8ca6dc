"""Serving answers what evaluation computes: every test picture POSTed at every threshold, compared one by one.

The reference is computed here from the bundle, by the code of `offramp evaluate`, in float32. The server's exit
counters on /metrics must grow by exactly the answers that were received.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.command_line import command_line
from benchmarks.load import LoadResult, Record, run_load
from benchmarks.machine import provenance
from benchmarks.options import AccuracyOptions, parse_thresholds
from benchmarks.pictures import Pictures, export_test_pictures
from benchmarks.plan import Job
from benchmarks.reference import Difference, Reference, differences, evaluate_bundle, largest_confidence_difference
from benchmarks.serving import Server, server_under_test
from benchmarks.stats import judge
from benchmarks.tables import accuracy_section
from models.bundle import EMBEDDED, load_bundle

# Batches of other sizes sum in another order: float32 confidences then differ in their last digits, never more.
ROUNDING = 1e-4
SHOWN = 10


def run(options: AccuracyOptions) -> int:
    """Compare a server's answers with the evaluation of its bundle; exit status 1 when they do not agree.

    python -m benchmarks.accuracy --data-root data
    """
    bundle = load_bundle(options.model or EMBEDDED)
    reference = evaluate_bundle(bundle, options.dataset, options.data_root, options.pictures)
    with tempfile.TemporaryDirectory() as folder, server_under_test(options) as server:
        pictures = export_test_pictures(options.dataset, options.data_root, options.pictures, Path(folder))
        document = compare(options, server, pictures, reference)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    typer.echo(f"{accuracy_section(document)}\n")
    for difference in document["differences"][:SHOWN]:
        typer.echo(describe(Difference(**difference)))
    typer.echo(f"written to {options.output}")
    typer.echo(json.dumps({name: value for name, value in document.items() if name != "differences"}))
    return 0 if document["agrees"] else 1


def compare(
    options: AccuracyOptions,
    server: Server,
    pictures: Pictures,
    reference: Reference,
    load: Callable[[Job], LoadResult] = run_load,
) -> dict[str, Any]:
    """Ask for everything, thresholds mixed, and put answers, evaluation and counters side by side.

    load: runs a job of the load generator. Raises BenchmarkError when a request failed.
    """
    head = {"benchmark": "accuracy", **provenance()}
    thresholds = parse_thresholds(options.thresholds)
    before = exit_counters(server.get("/metrics"))
    result = load(Job(server.url, str(pictures.folder), thresholds, options.connections))
    counted = exit_counters(server.get("/metrics"))
    counted.subtract(before)
    answered = Counter(record.exit for record in result.records if record.exit is not None)
    by_threshold = {t: [record for record in result.records if record.threshold == t] for t in thresholds}
    rows = [row(t, records, pictures, reference) for t, records in by_threshold.items()]
    found = [d for t, records in by_threshold.items() for d in differences(records, reference, t)]
    sentences, agrees = verdict(found, answered, counted)
    return {
        **head,
        "served": result.served,
        "own_server": server.own is not None,
        "dataset": options.dataset,
        "pictures": len(pictures),
        "connections": options.connections,
        "agrees": agrees,
        "rows": rows,
        "answers_by_exit": {str(exit): answered[exit] for exit in sorted(answered)},
        "counted_by_exit": {str(exit): counted[exit] for exit in sorted(counted)},
        "verdict": sentences,
        "differences": [asdict(difference) for difference in found],
    }


def row(threshold: float, records: Sequence[Record], pictures: Pictures, reference: Reference) -> dict[str, Any]:
    """One threshold: served beside evaluated. Raises BenchmarkError when a request failed."""
    num_exits = reference.confidence_NK.shape[1]
    quality = judge(records, pictures.labels, num_exits)
    exit_N = reference.exits(threshold)
    right = sum(
        int(reference.class_id_NK[n, exit - 1]) == label
        for n, (exit, label) in enumerate(zip(exit_N.tolist(), reference.labels_N.tolist(), strict=True))
    )
    evaluated = Counter(exit_N.tolist())
    found = differences(records, reference, threshold)
    return {
        "threshold": threshold,
        "accuracy": quality.accuracy,
        "evaluated_accuracy": right / len(exit_N),
        "exit_mix": [count / quality.pictures for count in quality.exit_counts],
        "evaluated_mix": [evaluated[exit] / len(exit_N) for exit in range(1, num_exits + 1)],
        "exits_differing": sum(d.served_exit != d.evaluated_exit for d in found),
        "labels_differing": sum(d.served_class_id != d.evaluated_class_id for d in found),
        "largest_confidence_difference": largest_confidence_difference(records, reference),
    }


def exit_counters(metrics: str) -> Counter[int]:
    """`offramp_samples_total` by exit, from the text of /metrics."""
    counts: Counter[int] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "offramp_samples_total":
                counts[int(sample.labels["exit"])] += int(sample.value)
    return counts


def verdict(
    found: Sequence[Difference], answered: Mapping[int, int], counted: Mapping[int, int]
) -> tuple[list[str], bool]:
    """In words, and whether all is well: differences only where float32 rounding decides, counters exact."""
    sentences = []
    worst = max((d.distance for d in found), default=0.0)
    if not found:
        sentences.append("Every answer has the exit and the class that the evaluation gives.")
    elif worst <= ROUNDING:
        sentences.append(
            f"{len(found)} answers differ from the evaluation, all within {worst:.1e} of a tie: float32 rounding."
        )
    else:
        sentences.append(f"{len(found)} answers differ from the evaluation, by up to {worst:.1e}: not rounding.")
    exits = sorted({*answered, *counted})
    exact = all(answered.get(exit, 0) == counted.get(exit, 0) for exit in exits)
    numbers = ", ".join(f"exit {exit}: {answered.get(exit, 0):,}" for exit in exits)
    if exact:
        sentences.append(f"`offramp_samples_total` grew by exactly the answers received ({numbers}).")
    else:
        grown = ", ".join(f"exit {exit}: {counted.get(exit, 0):,}" for exit in exits)
        sentences.append(f"`offramp_samples_total` grew by {grown}, but the answers received are {numbers}.")
    return sentences, worst <= ROUNDING and exact


def describe(difference: Difference) -> str:
    """One line for a reader."""
    d = difference
    return (
        f"picture {d.picture} at threshold {d.threshold:g}: served exit {d.served_exit} class {d.served_class_id}, "
        f"evaluated exit {d.evaluated_exit} class {d.evaluated_class_id}; {d.distance:.1e} from a tie"
    )


if __name__ == "__main__":
    command_line(AccuracyOptions, run)
