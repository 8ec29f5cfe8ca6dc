"""What calibration proved, for readers: Markdown tables, sentences, a file and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from models.bundle import Bundle
from models.certificate import Certificate
from models.exit_policy import Calibration
from training.answers import Outcome
from training.calibrate import threshold_pictures
from training.contracts import Shortfall
from training.exits import MARGIN, REFERENCE, ExitChoice
from training.trust import SEARCH_SHARE, ExitVerdict, Trust

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SINGLE_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with figures to the right."""
    lines = [f"| {' | '.join(header)} |", "| ---: " * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def certificate_table(certificate: Certificate, on_test: Sequence[Outcome]) -> str:
    """Every promise with its thresholds, and what they did on the certifying and on the test pictures."""
    header = ["promised", "thresholds", "observed", "bound", "accuracy lost", "its bound", "cost", "leave at exit"]
    rows = []
    for point, found in zip(certificate.points, on_test, strict=True):
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
                f"{found.disagreed / found.pictures:.2%}",
                f"{(found.lost - found.gained) / found.pictures:.2%}",
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


def verdict_sentence(verdict: ExitVerdict) -> str:
    """Which exits pay, and what was done about it."""
    if not verdict.choices:
        return f"The network keeps its exits: {verdict.why_kept}."
    everything, best = verdict.choices[0], min(verdict.choices, key=lambda choice: choice.compute)
    gain = 1.0 - best.compute / everything.compute
    cheapest = (
        f"With exits {', '.join(map(str, best.exits))} alone the network would cost {gain:.1%} less at "
        f"{REFERENCE:.0%} disagreement, and be right on {best.accuracy:.2%} instead of {everything.accuracy:.2%}"
        if gain > 0.0
        else "No choice of fewer exits is cheaper"
    )
    if verdict.num_dropped:
        kept = ", ".join(map(str, verdict.exits))
        return f"Exits that do not pay were switched off: {kept} of {len(everything.exits)} stay, renumbered from 1."
    if verdict.why_kept:
        return f"{cheapest}; all exits stay: {verdict.why_kept}."
    return (
        f"{cheapest}; all exits stay, as it takes more than {MARGIN:.0%}, and no loss of accuracy, to go without one."
    )


def confidence_sentence(bundle: Bundle) -> str:
    """Why the bundle's confidences are not calibrated; empty where they are."""
    if bundle.calibration != Calibration.neutral(bundle.net.num_exits):
        return ""
    searched = bundle.training["calibration"]["searched"]
    return f"Confidences are the network's own: {searched:,} held-out pictures do not show that temperatures help."


def threshold_sentence(bundle: Bundle) -> str:
    """Where the default threshold comes from, and what a better one takes; empty for a single exit."""
    if bundle.net.num_exits == 1:
        return ""
    fitted = bundle.training["calibration"]
    searched, lost = fitted["searched"], f"at most {100 * fitted['tolerance']:g} % of accuracy"
    needed = threshold_pictures(fitted["tolerance"])
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


def write_trust(bundle: Bundle, trust: Trust, verdict: ExitVerdict, folder: Path) -> None:
    """`folder/calibration.json`: certificate, fronts and choices of exits; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "calibration": asdict(bundle.calibration),
        "threshold": bundle.threshold,
        "certificate": trust.certificate and trust.certificate.as_json(),
        "missed": [asdict(missed) for missed in trust.missed],
        "fronts": trust.fronts,
        "exits": asdict(verdict),
    }
    partial = folder / ".calibration.json.partial"
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "calibration.json")


def plot_trust(trust: Trust, title: str, path: Path) -> None:
    """Two panels: accuracy against cost, and disagreement against cost with what is certified.

    Needs matplotlib (the `train` extra); raises ModuleNotFoundError without it.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    figure.suptitle(f"{title}, {trust.fronts['pictures']:,} pictures that chose no thresholds")
    _accuracy(left, trust)
    _risk(right, trust)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _accuracy(panel: Axes, trust: Trust) -> None:
    front = trust.fronts["by_multiply_adds"]
    by_compute = [point["compute"] for point in front]
    panel.plot(by_compute, [100 * point["accuracy"] for point in front], "o-", color="0.25", markersize=3)
    if timed := trust.fronts["by_ms"]:
        full_ms = trust.fronts["costs"]["sequential_ms"][-1]
        panel.plot(
            [point["mean_ms"] / full_ms for point in timed],
            [100 * point["accuracy"] for point in timed],
            "o-",
            color="C0",
            markersize=3,
        )
        panel.legend(["of multiply-adds", "of milliseconds"], loc="lower right")
    panel.set(xlabel="mean cost / full depth", ylabel="accuracy, %", title="accuracy against cost")
    panel.grid(alpha=0.3)


def _risk(panel: Axes, trust: Trust) -> None:
    front = [point for point in trust.fronts["by_multiply_adds"] if point["disagreement"] > 0.0]
    panel.plot(
        [point["compute"] for point in front],
        [100 * point["disagreement"] for point in front],
        "o-",
        color="0.25",
        markersize=3,
        label="observed",
    )
    for point in trust.certificate.points if trust.certificate else ():
        panel.plot([point.compute] * 2, [100 * point.observed, 100 * point.bound], "-", color="C3", linewidth=2)
        panel.plot(point.compute, 100 * point.max_disagreement, "v", color="C3")
        panel.annotate(
            f"≤ {100 * point.max_disagreement:g} %",
            (point.compute, 100 * point.max_disagreement),
            xytext=(6, 2),
            textcoords="offset points",
        )
    panel.set(
        xlabel="mean multiply-adds / full depth",
        ylabel="differs from full depth, %",
        yscale="log",
        title="what is certified",
    )
    panel.grid(alpha=0.3)
