"""Plots of an evaluation and of a calibration. They need matplotlib (the `train` extra), else ModuleNotFoundError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.models.certificate import Certificate
from offramp.training.certify.calibration_result import Fronts
from offramp.training.evaluate.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE: dict[str, Any] = {"color": "0.25", "markersize": 4}


@contextmanager
def _panels(path: Path, title: str, rows: int, height: float) -> Iterator[Any]:
    """Rows of two panels each, saved at the end as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(rows, 2, figsize=(12, height), layout="constrained")
    figure.suptitle(title)
    yield panels.flat
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_evaluation(evaluation: Evaluation, title: str, path: Path) -> None:
    """Four panels: accuracy against cost, exit mix, selective risk and reliability of every exit."""
    with _panels(path, f"{title}, {evaluation.pictures:,} pictures", rows=2, height=9) as panels:
        for panel, draw in zip(panels, (_trade_off, _exit_mix, _risk_coverage, _reliability), strict=True):
            draw(panel, evaluation)


def _trade_off(panel: Axes, evaluation: Evaluation) -> None:
    points, oracle = evaluation.operating_points, evaluation.oracle
    accuracy = [100 * point.accuracy for point in points]
    panel.plot([point.compute for point in points], accuracy, "o-", **LINE, label="one threshold at every exit")
    for point in points[:: max(1, len(points) // 8)]:
        place = point.compute, 100 * point.accuracy
        panel.annotate(f"{point.threshold:g}", place, xytext=(3, -11), textcoords="offset points", fontsize=8)
    for k, exit in enumerate(evaluation.exits):
        label = f"always exit {exit.exit}"
        panel.plot(exit.compute, 100 * exit.ensemble_accuracy, "s", color=f"C{k}", label=label)
    panel.plot(oracle.compute, 100 * oracle.accuracy, "*", color="black", markersize=12, label="oracle")
    panel.set(xlabel="mean multiply-adds / full network", ylabel="accuracy, %", title="accuracy against cost")
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")


def _exit_mix(panel: Axes, evaluation: Evaluation) -> None:
    points = evaluation.operating_points
    tops = [list(accumulate(100 * share for share in point.exit_mix)) for point in points]
    for k, exit in enumerate(evaluation.exits):
        shares = [100 * point.exit_mix[k] for point in points]
        bottoms = [top[k] - share for top, share in zip(tops, shares, strict=True)]
        panel.bar(range(len(points)), shares, bottom=bottoms, color=f"C{k}", label=f"exit {exit.exit}")
    panel.set_xticks(range(len(points)), [f"{point.threshold:g}" for point in points], rotation=60)
    panel.set(xlabel="threshold", ylabel="pictures leaving, %", title="exit mix")
    panel.legend(loc="lower left", framealpha=1.0)


def _risk_coverage(panel: Axes, evaluation: Evaluation) -> None:
    for k, (exit, curves) in enumerate(zip(evaluation.exits, evaluation.curves, strict=True)):
        coverages = [100 * (step + 1) / len(curves.risk) for step in range(len(curves.risk))]
        auroc = "" if exit.auroc is None else f", AUROC {exit.auroc:.3f}"
        label = f"exit {exit.exit}: AURC {exit.aurc:.3f}{auroc}"
        panel.plot(coverages, [100 * risk for risk in curves.risk], color=f"C{k}", label=label)
    panel.set(
        xlabel="coverage: most confident pictures answered, %",
        ylabel="risk: wrong among them, %",
        title="risk against coverage",
    )
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left")


def _reliability(panel: Axes, evaluation: Evaluation) -> None:
    panel.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    for k, (exit, curves) in enumerate(zip(evaluation.exits, evaluation.curves, strict=True)):
        for reliability, style, label in (
            (curves.uncalibrated, ":", None),
            (curves.calibrated, "o-", f"exit {exit.exit}: ECE {exit.ece_uncalibrated:.3f} → {exit.ece:.3f}"),
        ):
            confidence = [100 * share for share in reliability.confidence]
            accuracy = [100 * share for share in reliability.accuracy]
            panel.plot(confidence, accuracy, style, color=f"C{k}", markersize=3, label=label)
    title = "reliability: dotted at temperature 1, solid at the fitted one"
    panel.set(xlabel="confidence, %", ylabel="accuracy, %", title=title)
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left")


def plot_calibration(fronts: Fronts, certificate: Certificate | None, title: str, path: Path) -> None:
    """Two panels: accuracy against cost, and disagreement against cost with the certified promises."""
    title = f"{title}, {fronts.pictures:,} pictures that chose no thresholds"
    with _panels(path, title, rows=1, height=4.8) as (left, right):
        _front_accuracy(left, fronts)
        _front_disagreement(right, fronts, certificate)


def _front_accuracy(panel: Axes, fronts: Fronts) -> None:
    front = fronts.by_multiply_adds
    panel.plot([point.compute for point in front], [100 * point.accuracy for point in front], "o-", **LINE)
    if fronts.costs:
        full_ms = fronts.costs.sequential_ms[-1]
        by_ms = [(point.mean_ms / full_ms, 100 * point.accuracy) for point in fronts.by_ms if point.mean_ms is not None]
        panel.plot(*zip(*by_ms, strict=True), "o-", color="C0", markersize=4)
        panel.legend(["of multiply-adds", "of milliseconds"], loc="lower right")
    panel.set(xlabel="mean cost / full depth", ylabel="accuracy, %", title="accuracy against cost")
    panel.grid(alpha=0.3)


def _front_disagreement(panel: Axes, fronts: Fronts, certificate: Certificate | None) -> None:
    front = [point for point in fronts.by_multiply_adds if point.disagreement > 0.0]
    disagreements = [100 * point.disagreement for point in front]
    panel.plot([point.compute for point in front], disagreements, "o-", **LINE, label="observed")
    for point in certificate.points if certificate else ():
        promised = point.compute, 100 * point.max_disagreement
        panel.plot([point.compute] * 2, [100 * point.observed, 100 * point.bound], "-", color="C3", linewidth=2)
        panel.plot(*promised, "v", color="C3")
        panel.annotate(f"≤ {promised[1]:g} %", promised, xytext=(6, 2), textcoords="offset points")
    labels = {"xlabel": "mean multiply-adds / full depth", "ylabel": "differs from full depth, %"}
    panel.set(**labels, yscale="log", title="what is certified")
    panel.grid(alpha=0.3)
