"""The table, conclusions and plot of `offramp paper`, beside published figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.harness.figures import Columns, table

Document = dict[str, Any]
Row = dict[str, Any]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Published:
    """One line of a publication, CIFAR-100 top-1 in %. exits and ensemble as printed there; None where not given."""

    source: str
    base: float | None
    exits: tuple[float | None, float | None, float | None, float | None]
    ensemble: str


# Their networks have width 64; the papers' baselines have crop and flip only, and the journal code's users report the
# best test epoch.
PUBLISHED = (
    Published("ResNet-18, Be Your Own Teacher (ICCV 2019)", 77.09, (67.85, 74.57, 78.23, 78.64), "79.67"),
    Published("ResNet-18, DSN as compared there", None, (67.23, 73.80, 77.75, 78.38), "79.27"),
    Published("ResNet-18, DFS (ECCV 2024)", None, (74.17, 77.43, 78.82, 79.93), "80.89"),
    Published("ResNet-18, journal code, by its users", None, (76.25, 79.30, 81.06, 81.33), "82.32–82.57"),
    Published("ResNet-50, Be Your Own Teacher (ICCV 2019)", 77.68, (68.23, 74.21, 75.23, 80.56), "81.04"),
    Published("ResNet-50, journal recipe, third party", 80.88, (82.06, 83.64, 83.85, 83.41), "85.10"),
    Published("ResNet-101, Be Your Own Teacher (ICCV 2019)", 77.98, (None, None, None, 81.23), "82.03"),
    Published("ResNet-152, Be Your Own Teacher (ICCV 2019)", 79.21, (None, None, None, 81.61), "82.29"),
    Published("VGG19-BN, Be Your Own Teacher (ICCV 2019)", 64.47, (63.59, 67.04, 68.03, 67.73), "68.54"),
)


@dataclass(frozen=True)
class Estimate:
    """The mean of n values, their standard deviation, and half the width of the mean's 95 % t-interval (NaN of one)."""

    n: int
    mean: float
    deviation: float
    half_width: float


def estimate(values: Sequence[float]) -> Estimate:
    """The estimate from at least one value."""
    from scipy.stats import t

    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(1, mean, math.nan, math.nan)
    deviation = statistics.stdev(values)
    return Estimate(n, mean, deviation, float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * deviation / math.sqrt(n))


def paired_gain(ours: Sequence[Row], theirs: Sequence[Row], exit: int | None) -> Estimate | None:
    """Gain in points of one method over another, seed by seed; `exit` 1..K, -1 the deepest, None the ensemble.

    None where no seed was run by both, or an exit is missing.
    """

    def value(row: Row) -> float | None:
        if exit is None:
            return float(row["ensemble"])
        accuracy = row["accuracy"]
        if exit == -1:
            return float(accuracy[-1])
        return float(accuracy[exit - 1]) if exit <= len(accuracy) and len(accuracy) > 1 else None

    other = {row["seed"]: value(row) for row in theirs}
    gains = []
    for row in ours:
        mine, its = value(row), other.get(row["seed"])
        if mine is not None and its is not None:
            gains.append(100 * (mine - its))
    return estimate(gains) if gains else None


def grouped(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Comparable rows: by network, recipe and length as a title, then by method."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        data = row["data"].partition(",")[0]
        title = (
            f"{data}: {row['network']}, {row['epochs']} epochs of recipe {row['recipe']}, {row['batch_size']} a step"
        )
        groups.setdefault(title, {}).setdefault(row["method"], []).append(row)
    return groups


def paper_section(document: Document) -> str:
    """All networks' tables, conclusions, and the published figures."""
    blocks = []
    for title, methods in grouped(document["rows"]).items():
        blocks += [
            f"**{title}**; test accuracy in % (mean ± deviation)",
            _accuracy_table(methods),
            _cost_table(methods),
            "\n".join(f"- {sentence}" for sentence in conclusions(methods)),
        ]
    hardware = ", ".join(sorted({row["hardware"] for row in document["rows"]}))
    how = (
        "Every figure is of the last epoch's weights, as stored in the bundle (float16 kernels); no test picture chose "
        "anything. Ensemble: the mean of all exits' logits; served: the last exit, with the logits of visited exits "
        "weighed as calibrated. The rows of a table share recipe, augmentation and heads; a method's name has the "
        "exceptions. Hours are the clock's, on a machine that may have been shared. "
        f"{hardware}; {document['date'][:10]}. `{document['command']}`"
    )
    published = (
        "Published, CIFAR-100, width 64 (other recipes and lengths, so a distance to these rows says nothing of a "
        "method; the users of the journal's code report its best test epoch; VGG has five exits here, four there):"
    )
    return "\n\n".join([*filter(None, blocks), how, published, _published_table()])


def _accuracy_table(methods: dict[str, list[Row]]) -> str:
    num_exits = max(len(rows[0]["accuracy"]) for rows in methods.values())
    lines = []
    for method, rows in methods.items():
        accuracy = [_mean([100 * row["accuracy"][k] for row in rows]) for k in range(len(rows[0]["accuracy"]))]
        single = len(accuracy) == 1
        exits = [""] * (num_exits - len(accuracy)) + accuracy
        lines.append(
            {
                "method": method,
                "n": len(rows),
                **{f"exit {k}": cell for k, cell in enumerate(exits, start=1)},
                "ensemble": "" if single else _mean([100 * row["ensemble"] for row in rows]),
                "served": "" if single else _mean([100 * row["served"][-1] for row in rows]),
                "deepest − baseline": _gain(methods, method, "baseline", -1),
                "ensemble − baseline": _gain(methods, method, "baseline", None),
                "ensemble − DSN": "" if single else _gain(methods, method, "dsn", None),
            }
        )
    return table({heading: f"{{{heading}}}" for heading in lines[0]}, lines)


def _cost_table(methods: dict[str, list[Row]]) -> str:
    def of_plain(row: Row, name: str) -> str:
        return " / ".join(f"{cost / row['backbone_multiply_adds']:.3f}" for cost in row[name])

    columns: Columns = {
        "method": "{method}",
        "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
        "cost of exits, all heads passed": lambda row: (
            f"{of_plain(row, 'sequential_multiply_adds')} × {row['backbone_multiply_adds'] / 1e6:.1f} M"
        ),
        "its own head only, as published": lambda row: of_plain(row, "as_published_multiply_adds"),
        "hours a run": "{hours:.2f}",
    }
    return table(
        columns, [rows[0] | {"hours": statistics.fmean(row["hours"] for row in rows)} for rows in methods.values()]
    )


def conclusions(methods: dict[str, list[Row]]) -> list[str]:
    """Each distilling method against deep supervision, and both against the plain network."""
    sentences = []
    for method, rows in methods.items():
        if "baseline" in methods and method != "baseline":
            gain = paired_gain(rows, methods["baseline"], -1)
            if gain:
                sentences.append(f"{method} against the plain network, deepest exit: {_gain_words(gain)}.")
        if "dsn" in methods and method not in ("baseline", "dsn"):
            shallow = paired_gain(rows, methods["dsn"], 1)
            deepest = paired_gain(rows, methods["dsn"], -1)
            together = paired_gain(rows, methods["dsn"], None)
            if shallow and deepest and together:
                sentences.append(
                    f"{method} against deep supervision: exit 1 {_gain_words(shallow)}; deepest exit "
                    f"{_gain_words(deepest)}; ensemble {_gain_words(together)}."
                )
    return sentences


def _gain_words(gain: Estimate) -> str:
    if gain.n < 3:
        return f"{gain.mean:+.2f} points over {gain.n} seed{'s' if gain.n > 1 else ''}, too few to compare"
    interval = f"{gain.mean:+.2f} ± {gain.half_width:.2f} points (95 % of {gain.n} seeds)"
    if abs(gain.mean) <= gain.half_width:
        return f"{interval}, no significant difference"
    return f"{interval}, {'better' if gain.mean > 0 else 'worse'}"


def _mean(values: Sequence[float]) -> str:
    mean = estimate(values)
    return f"{mean.mean:.2f}" + (f" ± {mean.deviation:.2f}" if mean.n > 1 else "")


def _gain(methods: dict[str, list[Row]], method: str, control: str, exit: int | None) -> str:
    if control not in methods or method == control:
        return ""
    gain = paired_gain(methods[method], methods[control], exit)
    return f"{gain.mean:+.2f}" if gain else ""


def _published_table() -> str:
    columns = {
        "source": "{source}",
        "baseline": "{base:.2f}",
        **{f"exit {k}": f"{{exits[{k - 1}]:.2f}}" for k in range(1, 5)},
        "ensemble": "{ensemble}",
    }
    return table(columns, [vars(row) | {"exits": dict(enumerate(row.exits))} for row in PUBLISHED])


def paper_plot(document: Document, path: Path) -> None:
    """Accuracy against cost, a line a method, a panel a network; bars are standard deviations over seeds.

    Needs matplotlib (the `train` extra); raises ModuleNotFoundError without it.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    groups = grouped(document["rows"])
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(6 * len(groups), 4.4), layout="constrained", squeeze=False
    )
    for panel, (title, methods) in zip(panels[0], groups.items(), strict=True):
        for method, rows in methods.items():
            plain = rows[0]["backbone_multiply_adds"]
            cost = [c / plain for c in rows[0]["sequential_multiply_adds"]]
            estimates = [estimate([100 * row["accuracy"][k] for row in rows]) for k in range(len(cost))]
            bars = [0.0 if math.isnan(e.deviation) else e.deviation for e in estimates]
            line = panel.errorbar(cost, [e.mean for e in estimates], yerr=bars, marker="o", capsize=3, label=method)
            if len(cost) > 1:
                ensemble = estimate([100 * row["ensemble"] for row in rows]).mean
                panel.plot(cost[-1], ensemble, "*", markersize=12, color=line[0].get_color())
        panel.set_title(fill(title, 48) + "\n(star: ensemble)", fontsize=10)
        panel.set(xlabel="multiply-adds / plain network", ylabel="test accuracy, %")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
