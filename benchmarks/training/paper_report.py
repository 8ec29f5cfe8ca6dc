"""The tables and conclusions of `offramp paper`, beside published figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.figures import Columns, Document, table

Row = dict[str, Any]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Published:
    """One line of a publication, CIFAR-100 top-1 in %. None where the publication gives no figure."""

    source: str
    base: float | None
    exits: tuple[float | None, float | None, float | None, float | None]
    ensemble: str


# Their networks have width 64. The papers' baselines have crop and flip only. The journal code's users report the best
# test epoch.
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
    """The mean of n values, their standard deviation, and half the width of the mean's 95 % t-interval.

    The last two are NaN for n = 1.
    """

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


def paired_gain(rows: Sequence[Row], control: Sequence[Row], exit: int | None) -> Estimate | None:
    """Gain in points of one method over another, seed by seed; `exit` 1..K, -1 the deepest, None the ensemble.

    None where both ran no common seed, or a network lacks the exit.
    """
    by_seed = {row["seed"]: row for row in control}
    pairs = [(row, by_seed[row["seed"]]) for row in rows if row["seed"] in by_seed]
    if exit is None:
        gains = [row["ensemble"] - other["ensemble"] for row, other in pairs]
    elif exit == -1:
        gains = [row["accuracy"][-1] - other["accuracy"][-1] for row, other in pairs]
    else:
        # The plain network's only exit is its deepest.
        pairs = [pair for pair in pairs if all(len(row["accuracy"]) > max(1, exit - 1) for row in pair)]
        gains = [row["accuracy"][exit - 1] - other["accuracy"][exit - 1] for row, other in pairs]
    return estimate([100 * gain for gain in gains]) if gains else None


def by_table(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Comparable rows: by data, network, recipe and length as a title, then by method."""
    tables: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        data = row["data"].partition(",")[0]
        title = (
            f"{data}: {row['network']}, {row['epochs']} epochs of recipe {row['recipe']}, {row['batch_size']} a step"
        )
        tables.setdefault(title, {}).setdefault(row["method"], []).append(row)
    return tables


def paper_section(document: Document) -> str:
    """All networks' tables and conclusions, then the published figures."""
    blocks = []
    for title, methods in by_table(document["rows"]).items():
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
    columns = {
        "source": "{source}",
        "baseline": "{base:.2f}",
        **{f"exit {k}": f"{{exits[{k - 1}]:.2f}}" for k in range(1, 5)},
        "ensemble": "{ensemble}",
    }
    published_rows = [vars(row) | {"exits": dict(enumerate(row.exits))} for row in PUBLISHED]
    return "\n\n".join([*filter(None, blocks), how, published, table(columns, published_rows)])


def _accuracy_table(methods: dict[str, list[Row]]) -> str:
    num_exits = max(len(rows[0]["accuracy"]) for rows in methods.values())
    lines = []
    for method, rows in methods.items():
        exits = list(zip(*(row["accuracy"] for row in rows), strict=True))
        # The plain network's only exit stands below the others' deepest.
        cells = [""] * (num_exits - len(exits)) + [_mean(exit) for exit in exits]
        has_ensemble = len(exits) > 1
        lines.append(
            {
                "method": method,
                "n": len(rows),
                **{f"exit {k}": cell for k, cell in enumerate(cells, start=1)},
                "ensemble": _mean([row["ensemble"] for row in rows]) if has_ensemble else "",
                "served": _mean([row["served"][-1] for row in rows]) if has_ensemble else "",
                "deepest − baseline": _gain(methods, method, "baseline", -1),
                "ensemble − baseline": _gain(methods, method, "baseline", None),
                "ensemble − DSN": _gain(methods, method, "dsn", None) if has_ensemble else "",
            }
        )
    return table({heading: f"{{{heading}}}" for heading in lines[0]}, lines)


def _cost_table(methods: dict[str, list[Row]]) -> str:
    def shares(row: Row, name: str) -> str:
        return " / ".join(f"{cost / row['backbone_multiply_adds']:.3f}" for cost in row[name])

    columns: Columns = {
        "method": "{method}",
        "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
        "cost of exits, all heads passed": lambda row: (
            f"{shares(row, 'sequential_multiply_adds')} × {row['backbone_multiply_adds'] / 1e6:.1f} M"
        ),
        "its own head only, as published": lambda row: shares(row, "as_published_multiply_adds"),
        "hours a run": "{hours:.2f}",
    }
    hours = (statistics.fmean(row["hours"] for row in rows) for rows in methods.values())
    return table(columns, [rows[0] | {"hours": mean} for rows, mean in zip(methods.values(), hours, strict=True)])


def conclusions(methods: dict[str, list[Row]]) -> list[str]:
    """Each method against the plain network, and each distilling method against deep supervision."""
    sentences = []
    for method, rows in methods.items():
        if "baseline" in methods and method != "baseline" and (gain := paired_gain(rows, methods["baseline"], -1)):
            sentences.append(f"{method} against the plain network, deepest exit: {_gain_words(gain)}.")
        if "dsn" in methods and method not in ("baseline", "dsn"):
            exits = {"exit 1": 1, "deepest exit": -1, "ensemble": None}
            gains = {name: paired_gain(rows, methods["dsn"], exit) for name, exit in exits.items()}
            words = [f"{name} {_gain_words(gain)}" for name, gain in gains.items() if gain]
            if len(words) == len(exits):
                sentences.append(f"{method} against deep supervision: {'; '.join(words)}.")
    return sentences


def _gain_words(gain: Estimate) -> str:
    if gain.n < 3:
        return f"{gain.mean:+.2f} points over {gain.n} seed{'s' if gain.n > 1 else ''}, too few to compare"
    interval = f"{gain.mean:+.2f} ± {gain.half_width:.2f} points (95 % of {gain.n} seeds)"
    if abs(gain.mean) <= gain.half_width:
        return f"{interval}, no significant difference"
    return f"{interval}, {'better' if gain.mean > 0 else 'worse'}"


def _mean(shares: Sequence[float]) -> str:
    mean = estimate([100 * share for share in shares])
    return f"{mean.mean:.2f}" + (f" ± {mean.deviation:.2f}" if mean.n > 1 else "")


def _gain(methods: dict[str, list[Row]], method: str, control: str, exit: int | None) -> str:
    gain = paired_gain(methods[method], methods.get(control, []), exit) if method != control else None
    return f"{gain.mean:+.2f}" if gain else ""
