"""Markdown tables of an evaluation and of a certificate, and the JSON files beside a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offramp.models.bundle import Bundle
from offramp.models.certificate import Certificate
from offramp.training.certify.calibration_result import CalibrationResult, ExitSelection
from offramp.training.certify.exits import REFERENCE_DISAGREEMENT, ExitChoice
from offramp.training.evaluate.evaluation import Evaluation
from offramp.training.evaluate.predictions import ThresholdCounts

# Thresholds for which the bound of any single threshold is shown.
SINGLE_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    lines = [f"| {' | '.join(header)} |", "| ---: " * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def exits_table(evaluation: Evaluation) -> str:
    """Accuracy of every exit alone and as served, and how well its confidence is calibrated and ranked."""
    header = ["exit", "accuracy alone", "accuracy served", "ECE at T = 1 → fitted", "AUROC", "AURC"]
    rows = [
        [
            f"{exit.exit}",
            f"{exit.accuracy:.2%}",
            f"{exit.ensemble_accuracy:.2%}",
            f"{exit.ece_uncalibrated:.4f} → {exit.ece:.4f}",
            "–" if exit.auroc is None else f"{exit.auroc:.4f}",
            f"{exit.aurc:.4f}",
            f"{exit.multiply_adds / 1e6:.1f} M",
            f"{exit.compute:.3f}",
        ]
        for exit in evaluation.exits
    ]
    if len(evaluation.exits) > 1:
        rows.append(["mean of all", f"{evaluation.ensemble_accuracy:.2%}", "", "", "", "", "", "1.000"])
    return table([*header, "multiply-adds", "of full"], rows)


def short_exits_table(evaluation: Evaluation) -> str:
    """Accuracy and cost of every exit, if it answered every picture."""
    rows = [[f"{e.exit}", f"{e.ensemble_accuracy:.2%}", f"{e.compute:.0%}"] for e in evaluation.exits]
    return table(["exit", "accuracy", "multiply-adds of full depth's"], rows)


def overthinking_table(evaluation: Evaluation) -> str:
    """How often each exit's answer is final, and what an oracle reaches; empty for a network with one exit."""
    if len(evaluation.exits) == 1:
        return ""
    oracle = evaluation.oracle
    header = ["exit", "answers as the last exit", "as all later exits", "right here, wrong at the last"]
    rows = [[f"{e.exit}", f"{e.agreement:.2%}", f"{e.settled:.2%}", f"{e.overthought:.2%}"] for e in evaluation.exits]
    return (
        f"{table(header, rows)}\n\n"
        f"Oracle, leaving at the first exit that is right: {oracle.accuracy:.2%} right at {oracle.compute:.3f} of the "
        f"full cost. Overthinking: {oracle.overthought:.2%} of the pictures are right at an earlier exit and wrong at "
        f"the last; {oracle.wasted:.2%} are right at the last and were so before."
    )


def thresholds_table(evaluation: Evaluation) -> str:
    """Accuracy, cost and exit mix of each threshold."""
    exits = [f"exit {exit.exit}" for exit in evaluation.exits]
    rows = [
        [f"{p.threshold:g}", f"{p.accuracy:.2%}", f"{p.compute:.3f}", f"{p.disagreement:.2%}"]
        + [f"{share:.1%}" for share in p.exit_mix]
        for p in evaluation.operating_points
    ]
    return table(["threshold", "accuracy", "mean cost", "differs from full depth", *exits], rows)


def certificate_table(certificate: Certificate, on_test: Sequence[ThresholdCounts]) -> str:
    """Every promise with its thresholds, and their figures on the certifying and on the test pictures."""
    header = ["promised", "thresholds", "observed", "bound", "accuracy lost", "its bound", "cost", "leave at exit"]
    rows = [
        [
            f"≤ {100 * point.max_disagreement:g}%",
            ", ".join(f"{threshold:g}" for threshold in point.thresholds),
            f"{point.observed:.2%}",
            f"{point.bound:.2%}",
            f"{point.accuracy_drop:.2%}",
            f"{point.accuracy_drop_bound:.2%}",
            f"{point.compute:.3f}",
            " / ".join(f"{share:.0%}" for share in point.exit_mix),
            f"{counts.disagreed / counts.pictures:.2%}",
            f"{(counts.lost - counts.gained) / counts.pictures:.2%}",
        ]
        for point, counts in zip(certificate.points, on_test, strict=True)
    ]
    return table([*header, "differs on test", "lost on test"], rows)


def any_threshold_table(certificate: Certificate) -> str:
    """The proven bound of some single thresholds."""
    bounds = [f"{certificate.bound_at(threshold):.2%}" for threshold in SINGLE_THRESHOLDS]
    return table(["threshold", *(f"{threshold:g}" for threshold in SINGLE_THRESHOLDS)], [["bound", *bounds]])


def choices_table(choices: Sequence[ExitChoice]) -> str:
    """The cost of each choice of exits at the same disagreement, the cheapest first."""
    rows = [
        [", ".join(map(str, c.exits)), f"{c.compute:.3f}", f"{c.accuracy:.2%}", f"{c.full_accuracy:.2%}"]
        for c in sorted(choices, key=lambda choice: choice.compute)
    ]
    return table(
        ["exits", f"cost at {REFERENCE_DISAGREEMENT:.0%} disagreement", "accuracy there", "accuracy at full depth"],
        rows,
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `folder/evaluation.json`, whole or not at all."""
    _write_json(asdict(evaluation), folder / "evaluation.json")


def write_calibration(bundle: Bundle, result: CalibrationResult, selection: ExitSelection, folder: Path) -> None:
    """Write `folder/calibration.json` with certificate, fronts and choices of exits, whole or not at all."""
    values = {
        "calibration": bundle.calibration.as_json(),
        "threshold": bundle.threshold,
        "certificate": result.certificate and result.certificate.as_json(),
        "missed": [asdict(missed) for missed in result.missed],
        "fronts": result.fronts.as_json() if result.fronts else {},
        "exits": asdict(selection),
    }
    _write_json(values, folder / "calibration.json")


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
