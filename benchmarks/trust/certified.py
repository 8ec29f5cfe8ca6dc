"""Certified contracts: what is promised, and what all test pictures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.trust.answers import Answer, accuracy, ask_each, disagreement, exit_mix, mean_compute
from benchmarks.trust.setting import FULL_DEPTH, Setting, say
from models.certificate import CertifiedPoint


def certified(setting: Setting) -> dict[str, Any]:
    """Every picture once for each contract, compared with the server's own answers at full depth."""
    connections, labels = setting.options.connections, setting.pictures.labels
    with setting.serve() as server:
        full = ask_each(server.port, setting.requests(FULL_DEPTH), connections)
        rows = []
        for point in setting.certificate.points:
            query = f"max_disagreement={point.max_disagreement}"
            early = ask_each(server.port, setting.requests(query), connections)
            rows.append(row(point, early, {one.picture: one.class_id for one in full}, labels))
            say(f"certified {point.max_disagreement}: {rows[-1]['disagreement']:.2%} disagree")
    return {
        "pictures": len(setting.pictures),
        "delta": setting.certificate.delta,
        "certified_on": setting.certificate.pictures,
        "full_depth_accuracy": accuracy(full, labels),
        "rows": rows,
    }


def row(
    point: CertifiedPoint, early: Sequence[Answer], full: Mapping[int, int], labels: Sequence[int]
) -> dict[str, Any]:
    """One contract: promised beside served."""
    return {
        "max_disagreement": point.max_disagreement,
        "bound": point.bound,
        "observed": point.observed,
        "disagreement": disagreement(early, full),
        "accuracy": accuracy(early, labels),
        "compute": mean_compute(early),
        "certified_compute": point.compute,
        "exit_mix": exit_mix(early, len(point.exit_mix)),
    }
