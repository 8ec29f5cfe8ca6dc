"""An evaluation for readers: Markdown tables and a plot."""

from __future__ import annotations

from pathlib import Path

from training.evaluate import Evaluation


def exits_table(evaluation: Evaluation) -> str:
    """Markdown: every exit alone, and with the logits of the exits visited before it."""
    lines = [
        "| exit | accuracy alone | accuracy served | ECE | multiply-adds | share of full cost |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {e.exit} | {e.accuracy:.2%} | {e.ensemble_accuracy:.2%} | {e.ece:.4f} "
        f"| {e.multiply_adds / 1e6:.1f} M | {e.compute:.3f} |"
        for e in evaluation.exits
    ]
    lines.append(f"| mean of all | {evaluation.ensemble_accuracy:.2%} | | | | 1.000 |")
    return "\n".join(lines)


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


def plot(evaluation: Evaluation, title: str, path: Path) -> None:
    """Accuracy against mean cost as the threshold moves, beside every exit alone; and the exit mix.

    Needs matplotlib (the `train` extra); raises ModuleNotFoundError without it.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (trade_off, mix) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    points = evaluation.operating_points
    trade_off.plot([p.compute for p in points], [100 * p.accuracy for p in points], "o-", label="threshold sweep")
    trade_off.plot(
        [e.compute for e in evaluation.exits],
        [100 * e.ensemble_accuracy for e in evaluation.exits],
        "s--",
        label="always this exit",
    )
    for point in points[:: max(1, len(points) // 8)]:
        trade_off.annotate(f"{point.threshold:g}", (point.compute, 100 * point.accuracy), fontsize=8)
    trade_off.set(xlabel="mean multiply-adds / full network", ylabel="accuracy, %", title=title)
    trade_off.grid(alpha=0.3)
    trade_off.legend()
    bottom = [0.0] * len(points)
    for k in range(len(evaluation.exits)):
        shares = [100 * p.exit_mix[k] for p in points]
        mix.bar(range(len(points)), shares, bottom=bottom, label=f"exit {k + 1}")
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    mix.set_xticks(range(len(points)), [f"{p.threshold:g}" for p in points], rotation=60)
    mix.set(xlabel="threshold", ylabel="pictures leaving, %", title="exit mix")
    mix.legend(loc="lower left")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
