"""An evaluation for readers: Markdown tables and a plot."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.training.evaluate.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def exits_table(evaluation: Evaluation) -> str:
    """Markdown: every exit alone and with the logits of the exits visited before it, how well its confidence is
    calibrated, and how well it ranks right above wrong."""
    lines = [
        "| exit | accuracy alone | accuracy served | ECE at T = 1 → fitted | AUROC | AURC | multiply-adds | of full |",
        "| ---: " * 8 + "|",
    ]
    lines += [
        f"| {e.exit} | {e.accuracy:.2%} | {e.ensemble_accuracy:.2%} | {e.ece_uncalibrated:.4f} → {e.ece:.4f} "
        f"| {'–' if e.auroc is None else f'{e.auroc:.4f}'} | {e.aurc:.4f} | {e.multiply_adds / 1e6:.1f} M "
        f"| {e.compute:.3f} |"
        for e in evaluation.exits
    ]
    if len(evaluation.exits) > 1:
        lines.append(f"| mean of all | {evaluation.ensemble_accuracy:.2%} | | | | | | 1.000 |")
    return "\n".join(lines)


def short_exits_table(evaluation: Evaluation) -> str:
    """Markdown: accuracy and cost of every exit, had it answered every picture."""
    lines = ["| exit | accuracy | multiply-adds of full depth's |", "| ---: | ---: | ---: |"]
    lines += [f"| {exit.exit} | {exit.ensemble_accuracy:.2%} | {exit.compute:.0%} |" for exit in evaluation.exits]
    return "\n".join(lines)


def overthinking_table(evaluation: Evaluation) -> str:
    """Markdown: how far each exit's answer is the last word, and what a perfect exit policy would reach.

    Empty for a network of one exit, which cannot overthink.
    """
    if len(evaluation.exits) == 1:
        return ""
    oracle = evaluation.oracle
    lines = [
        "| exit | answers as the last exit | as all later exits | right here, wrong at the last |",
        "| ---: " * 4 + "|",
    ]
    lines += [f"| {e.exit} | {e.agreement:.2%} | {e.settled:.2%} | {e.overthought:.2%} |" for e in evaluation.exits]
    sentences = (
        f"Oracle, leaving at the first exit that is right: {oracle.accuracy:.2%} right at {oracle.compute:.3f} of the "
        f"full cost. Overthinking: {oracle.overthought:.2%} of the pictures are right at an earlier exit and wrong at "
        f"the last; {oracle.wasted:.2%} are right at the last and were so before."
    )
    return "\n".join([*lines, "", sentences])


def thresholds_table(evaluation: Evaluation) -> str:
    """Markdown: what each threshold gets right, costs, and where pictures leave."""
    num_exits = len(evaluation.exits)
    lines = [
        "| threshold | accuracy | mean cost | differs from full depth | "
        + " | ".join(f"exit {k}" for k in range(1, num_exits + 1))
        + " |",
        "| ---: " * (4 + num_exits) + "|",
    ]
    lines += [
        f"| {p.threshold:g} | {p.accuracy:.2%} | {p.compute:.3f} | {p.disagreement:.2%} | "
        + " | ".join(f"{share:.1%}" for share in p.exit_mix)
        + " |"
        for p in evaluation.operating_points
    ]
    return "\n".join(lines)


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """`folder/evaluation.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".evaluation.json.partial"
    partial.write_text(json.dumps(evaluation.as_json(), indent=2) + "\n")
    partial.replace(folder / "evaluation.json")


def plot(evaluation: Evaluation, title: str, path: Path) -> None:
    """Four panels: accuracy against cost, exit mix, selective risk and reliability of every exit.

    Needs matplotlib (the `train` extra); raises ModuleNotFoundError without it.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(12, 9), layout="constrained")
    figure.suptitle(f"{title}, {evaluation.pictures:,} pictures")
    for panel, draw in zip(panels.flat, (_trade_off, _exit_mix, _risk_coverage, _reliability), strict=True):
        draw(panel, evaluation)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _trade_off(panel: Axes, evaluation: Evaluation) -> None:
    points, exits = evaluation.operating_points, evaluation.exits
    panel.plot(
        [point.compute for point in points],
        [100 * point.accuracy for point in points],
        "o-",
        color="0.25",
        markersize=4,
        label="one threshold at every exit",
    )
    for point in points[:: max(1, len(points) // 8)]:
        panel.annotate(
            f"{point.threshold:g}",
            (point.compute, 100 * point.accuracy),
            xytext=(3, -11),
            textcoords="offset points",
            fontsize=8,
        )
    for k, exit in enumerate(exits):
        label = f"always exit {exit.exit}"
        panel.plot(exit.compute, 100 * exit.ensemble_accuracy, "s", color=f"C{k}", label=label)
    oracle = evaluation.oracle
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
        ranking = "" if exit.auroc is None else f", AUROC {exit.auroc:.3f}"
        label = f"exit {exit.exit}: AURC {exit.aurc:.3f}{ranking}"
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
    panel.set(
        xlabel="confidence, %",
        ylabel="accuracy, %",
        title="reliability: dotted at temperature 1, solid at the fitted one",
    )
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left")
