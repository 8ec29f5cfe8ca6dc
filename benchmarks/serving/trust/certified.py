"""Certified contracts: what is promised, and what all test pictures show."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.results import say
from benchmarks.serving.answers import FULL_DEPTH, accuracy, ask_each, classes, disagreement, exit_mix, mean_compute
from benchmarks.serving.trust.setup import Setup


def measure_certified(setup: Setup) -> dict[str, Any]:
    """Every picture once for each contract, compared with the server's own answers at full depth."""
    connections, class_ids, rows = setup.options.connections, setup.pictures.class_ids, []
    with setup.serve() as server:
        full = ask_each(server, setup.requests(FULL_DEPTH), connections)
        for point in setup.certificate.points:
            query = f"max_disagreement={point.max_disagreement}"
            early = ask_each(server, setup.requests(query), connections)
            rows.append(
                {
                    "max_disagreement": point.max_disagreement,
                    "bound": point.bound,
                    "observed": point.observed,
                    "disagreement": disagreement(early, classes(full)),
                    "accuracy": accuracy(early, class_ids),
                    "compute": mean_compute(early),
                    "certified_compute": point.compute,
                    "exit_mix": exit_mix(early, len(point.exit_mix)),
                }
            )
            say(f"{query}: {rows[-1]['disagreement']:.2%} disagree")
    return {
        "pictures": len(setup.pictures),
        "delta": setup.certificate.delta,
        "certified_on": setup.certificate.pictures,
        "full_depth_accuracy": accuracy(full, class_ids),
        "rows": rows,
    }
