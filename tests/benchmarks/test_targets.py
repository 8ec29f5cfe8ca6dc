"""The targets: when one is met, and which of several figures counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import targets
from benchmarks.targets import TARGETS, targets_section


def around(median: float) -> dict[str, float]:
    return {"median": median, "min": median - 0.1, "max": median + 0.1}


def engine(full_depth: float, *ideal: float) -> dict[str, Any]:
    rows = [{"threshold": at / 10, "share_of_ideal": around(share)} for at, share in enumerate(ideal)]
    return {"variants": [{"variant": "steps"}, *rows, {"threshold": 1.0, "share_of_bare": around(full_depth)}]}


def peers(**ratios: tuple[float, float]) -> dict[str, Any]:
    """Throughput ratios, off and on, by peer. Half of the p99 of each."""
    rows = [
        {
            "peer": peer,
            "title": f"{peer}, as one would",
            "ours": {
                way: {"throughput_ratio": around(ratio), "p99_ratio": around(0.5)}
                for way, ratio in zip(("exits off", "threshold 0.8"), both, strict=True)
            },
        }
        for peer, both in ratios.items()
    ]
    cells = [
        {"server": "offramp", "way": way, "rate": rate, "round": round, "against": "ray", "throughput": throughput}
        for round, off in enumerate((100.0, 200.0, 400.0))
        for way, throughput in (("exits off", off), ("threshold 0.8", off * (1.0 + round)))
        for rate in (None, 70.0)
    ]
    agreement = {"exits off": {"agreement": 1.0}, "threshold 0.8": {"agreement": 0.992}}
    ways = [{"name": "exits off"}, {"name": "threshold 0.8"}]
    return {"workloads": [{"ways": ways, "rows": rows, "cells": cells, "answers": {"offramp": agreement}}]}


def test_the_median_decides() -> None:
    assert targets.full_depth(engine(0.95)) == ("0.95 (0.85–1.05)", True)
    assert targets.full_depth(engine(0.94))[1] is False


def test_the_worst_threshold_counts() -> None:
    assert targets.ideal(engine(1.0, 0.9, 0.7, 0.8)) == ("0.70 (0.60–0.80) at threshold 0.1", False)
    rows = [{"threshold": 0.5, "beyond_ms": around(0.2)}, {"threshold": 1.0, "beyond_ms": around(0.25)}]
    assert targets.worst_threshold(0.3, "cpu", "beyond_ms", {"cpu": rows}) == (
        "0.25 ms (0.15–0.35) at threshold 1",
        True,
    )


def test_the_best_ordinary_peer_counts_and_the_one_made_for_us_apart() -> None:
    document = peers(fastapi=(1.5, 2.0), ray=(9.0, 12.0), pytriton=(3.0, 4.0))
    assert targets.over_peers(3.0, False, False, document) == (
        "3.00× (2.90–3.10), pytriton, as one would (exits off)",
        True,
    )
    assert targets.over_peers(5.0, True, False, document) == (
        "4.00× (3.90–4.10), pytriton, as one would (threshold 0.8)",
        False,
    )
    assert targets.over_peers(1.0, False, True, document)[0].startswith("1.50×")


def test_exits_pay_within_a_round_and_only_where_answers_stay() -> None:
    document = peers(ray=(1.0, 1.0))
    assert targets.exits_pay(document) == ("2.00× (1.00–3.00), threshold 0.8, 0.8% disagreement", True)
    document["workloads"][0]["answers"]["offramp"]["threshold 0.8"]["agreement"] = 0.98
    assert targets.exits_pay(document) == ("no threshold with so little disagreement was measured", False)


def test_every_p99_has_to_be_within() -> None:
    document = peers(fastapi=(1.0, 1.0), ray=(1.0, 1.0))
    assert targets.p99(document) == ("fastapi 0.50; ray 0.50 (threshold 0.8)", True)
    document["workloads"][0]["rows"][0]["ours"]["threshold 0.8"]["p99_ratio"] = around(0.6)
    assert targets.p99(document)[1] is False


@pytest.mark.parametrize(("slope", "is_flat"), [(0.5, True), (-0.5, True), (1.5, False)])
def test_flat_is_less_than_a_mebibyte_in_100000(slope: float, is_flat: bool) -> None:
    words, met = targets.flat({"memory": {"mib_per_100k": slope, "requests": 200_000}})
    assert words == f"{slope:+.2f} MiB in 100,000 of 200,000 requests"
    assert met is is_flat


def test_what_was_not_measured_is_not_met(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(json.dumps(engine(0.96, 0.8)))
    lines = targets_section(tmp_path).splitlines()[2:]
    assert len(lines) == len(TARGETS)
    assert "| 0.96 (0.86–1.06) | yes | `engine.json` |" in lines[0]
    assert "| 0.80 (0.70–0.90) at threshold 0 | **no** | `engine.json` |" in lines[1]
    assert all("| not measured | **no** |" in line for line in lines[2:])
