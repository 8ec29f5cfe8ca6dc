"""A calibration for readers: Markdown tables, sentences, a file and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.models.bundle import Bundle
from offramp.models.certificate import Certificate
from offramp.models.exit_policy import Calibration
from offramp.training.certify.calibrate import threshold_pictures
from offramp.training.certify.calibration_result import (
    SEARCH_SHARE,
    CalibrationFacts,
    CalibrationResult,
    ExitSelection,
    Fronts,
)
from offramp.training.certify.exits import MARGIN, REFERENCE, ExitChoice
from offramp.training.certify.promises import Shortfall
from offramp.training.evaluate.predictions import ThresholdCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from offramp.training.finish import CalibratedBundle

SINGLE_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with figures to the right."""
    lines = [f"| {' | '.join(header)} |", "| ---: " * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def certificate_table(certificate: Certificate, on_test: Sequence[ThresholdCounts]) -> str:
    """Every promise with its thresholds, and what they did on the certifying and on the test pictures."""
    header = ["promised", "thresholds", "observed", "bound", "accuracy lost", "its bound", "cost", "leave at exit"]
    rows = []
    for point, counts in zip(certificate.points, on_test, strict=True):
        rows.append(
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
        )
    return table([*header, "differs on test", "lost on test"], rows)


def any_threshold_table(certificate: Certificate) -> str:
    """What is proven of single thresholds, for some that people choose."""
    bounds = [f"{certificate.bound(threshold):.2%}" for threshold in SINGLE_THRESHOLDS]
    return table(["threshold", *(f"{threshold:g}" for threshold in SINGLE_THRESHOLDS)], [["bound", *bounds]])


def choices_table(choices: Sequence[ExitChoice]) -> str:
    """What each choice of exits costs at the same disagreement, the cheapest first."""
    rows = [
        [", ".join(map(str, c.exits)), f"{c.compute:.3f}", f"{c.accuracy:.2%}", f"{c.full_accuracy:.2%}"]
        for c in sorted(choices, key=lambda choice: choice.compute)
    ]
    return table(["exits", f"cost at {REFERENCE:.0%} disagreement", "accuracy there", "accuracy at full depth"], rows)


def selection_sentence(selection: ExitSelection) -> str:
    """Which exits pay, and what was done about it."""
    if not selection.choices:
        return f"The network keeps its exits: {selection.why_kept}."
    everything, best = selection.choices[0], min(selection.choices, key=lambda choice: choice.compute)
    gain = 1.0 - best.compute / everything.compute
    cheapest = (
        f"With exits {', '.join(map(str, best.exits))} alone the network would cost {gain:.1%} less at "
        f"{REFERENCE:.0%} disagreement, and be right on {best.accuracy:.2%} instead of {everything.accuracy:.2%}"
        if gain > 0.0
        else "No choice of fewer exits is cheaper"
    )
    if selection.num_dropped:
        kept = ", ".join(map(str, selection.exits))
        return f"Exits that do not pay were switched off: {kept} of {len(everything.exits)} stay, renumbered from 1."
    if selection.why_kept:
        return f"{cheapest}; all exits stay: {selection.why_kept}."
    return (
        f"{cheapest}; all exits stay, as it takes more than {MARGIN:.0%}, and no loss of accuracy, to go without one."
    )


def confidence_sentence(bundle: Bundle, facts: CalibrationFacts) -> str:
    """Why the bundle's confidences are not calibrated; empty when they are."""
    if bundle.calibration != Calibration.neutral(bundle.net.num_exits):
        return ""
    return (
        f"Confidences are the network's own: {facts.searched:,} held-out pictures do not show that temperatures help."
    )


def threshold_sentence(bundle: Bundle, facts: CalibrationFacts) -> str:
    """Where the default threshold comes from, and what a better one takes; empty for a single exit."""
    if bundle.net.num_exits == 1:
        return ""
    searched, lost = facts.searched, f"at most {100 * facts.tolerance:g} % of accuracy"
    needed = threshold_pictures(facts.tolerance)
    if needed is not None and searched >= needed:
        return (
            f"The default threshold is {bundle.threshold:g}: the cheapest that lost {lost} on the {searched:,} "
            "held-out pictures that fitted it."
        )
    more = f"{needed:,} (hold out {math.ceil(needed / SEARCH_SHARE):,}) do" if needed else "no number of pictures does"
    return (
        f"The default threshold is {bundle.threshold:g}, full depth: {searched:,} held-out pictures do not tell which "
        f"early answers lose {lost}; {more}."
    )


def shortfall_sentence(missed: Shortfall) -> str:
    """What a promise would take that could not be proven."""

    def held_out(pictures: int) -> str:
        return f"{pictures:,} (hold out {math.ceil(pictures / (1.0 - SEARCH_SHARE)):,})"

    said = (
        f"a disagreement of {100 * missed.promise:g} % is not certified: {missed.pictures:,} pictures can certify; "
        f"{held_out(missed.needed)} would do if none disagreed"
    )
    if missed.observed is None:
        return said
    more = missed.needed_as_observed
    would = "no number of pictures would do" if more is None else f"{held_out(more)} would do"
    return f"{said}; at the {missed.observed:.2%} observed at the most careful thresholds {would}"


def closing_sentences(finished: CalibratedBundle) -> list[str]:
    """What a training gave: accuracy of full depth, what the default threshold saves, what is certified.

    The last two only with several exits. They name the option that would give more.
    """
    evaluation, bundle, result = finished.evaluation, finished.bundle, finished.result
    full, facts = evaluation.operating_points[-1], result.facts
    sentences = [f"Full depth is right on {full.accuracy:.2%} of {evaluation.pictures:,} test pictures."]
    if bundle.net.num_exits == 1:
        return sentences
    needed = threshold_pictures(facts.tolerance)
    if needed is not None and facts.searched < needed:
        sentences.append(
            f"The default threshold is {bundle.threshold:g}, full depth: {facts.pictures:,} held-out pictures are too "
            f"few for a lower one; --calibration-size {math.ceil(needed / SEARCH_SHARE)} is enough."
        )
    else:
        sentences.append(
            f"The default threshold {bundle.threshold:g} is right on {result.point.accuracy:.2%} of the held-out "
            f"pictures and saves {1 - result.point.compute:.0%} of the multiply-adds."
        )
    return [*sentences, _certified_sentence(result)]


def _certified_sentence(result: CalibrationResult) -> str:
    promises = (
        [f"{100 * point.max_disagreement:g} %" for point in result.certificate.points] if result.certificate else []
    )
    said = (
        f"Certified: at most {', '.join(promises)} of the answers differ from full depth's, as max_disagreement asks."
        if promises
        else f"Nothing is certified: {result.facts.pictures:,} held-out pictures are too few."
    )
    missed = sorted(result.missed, key=lambda missed: missed.promise)
    if not missed:
        return said
    options = [
        f"--calibration-size {math.ceil(each.needed / (1.0 - SEARCH_SHARE))} certifies {100 * each.promise:g} %"
        for each in dict.fromkeys((missed[-1], missed[0]))
    ]
    return f"{said} If no answer differs, {' and '.join(options)}."


def write_calibration(bundle: Bundle, result: CalibrationResult, selection: ExitSelection, folder: Path) -> None:
    """`folder/calibration.json`: certificate, fronts and choices of exits; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "calibration": asdict(bundle.calibration),
        "threshold": bundle.threshold,
        "certificate": result.certificate and result.certificate.as_json(),
        "missed": [asdict(missed) for missed in result.missed],
        "fronts": result.fronts.as_json() if result.fronts else {},
        "exits": asdict(selection),
    }
    partial = folder / ".calibration.json.partial"
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "calibration.json")


def plot_calibration(fronts: Fronts, certificate: Certificate | None, title: str, path: Path) -> None:
    """Two panels: accuracy against cost, and disagreement against cost with the certified promises.

    Needs matplotlib (the `train` extra); raises ModuleNotFoundError without it.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    figure.suptitle(f"{title}, {fronts.pictures:,} pictures that chose no thresholds")
    _plot_accuracy(left, fronts)
    _plot_risk(right, fronts, certificate)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _plot_accuracy(panel: Axes, fronts: Fronts) -> None:
    front = fronts.by_multiply_adds
    panel.plot([p.compute for p in front], [100 * p.accuracy for p in front], "o-", color="0.25", markersize=3)
    if fronts.costs:
        full_ms = fronts.costs.sequential_ms[-1]
        by_ms = [(point.mean_ms / full_ms, 100 * point.accuracy) for point in fronts.by_ms if point.mean_ms is not None]
        panel.plot(*zip(*by_ms, strict=True), "o-", color="C0", markersize=3)
        panel.legend(["of multiply-adds", "of milliseconds"], loc="lower right")
    panel.set(xlabel="mean cost / full depth", ylabel="accuracy, %", title="accuracy against cost")
    panel.grid(alpha=0.3)


def _plot_risk(panel: Axes, fronts: Fronts, certificate: Certificate | None) -> None:
    front = [point for point in fronts.by_multiply_adds if point.disagreement > 0.0]
    disagreements = [100 * point.disagreement for point in front]
    panel.plot([p.compute for p in front], disagreements, "o-", color="0.25", markersize=3, label="observed")
    for point in certificate.points if certificate else ():
        promised = point.compute, 100 * point.max_disagreement
        panel.plot([point.compute] * 2, [100 * point.observed, 100 * point.bound], "-", color="C3", linewidth=2)
        panel.plot(*promised, "v", color="C3")
        panel.annotate(f"≤ {promised[1]:g} %", promised, xytext=(6, 2), textcoords="offset points")
    panel.set(
        xlabel="mean multiply-adds / full depth",
        ylabel="differs from full depth, %",
        yscale="log",
        title="what is certified",
    )
    panel.grid(alpha=0.3)
