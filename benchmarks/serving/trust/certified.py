"""Certified contracts: the promises, and what all test pictures show."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.figures import Document, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.results import say
from benchmarks.serving.answers import FULL_DEPTH, accuracy, ask_each, classes, disagreement, exit_mix, mean_compute
from benchmarks.serving.trust.setup import TrustSetup


def measure(setup: TrustSetup) -> dict[str, Any]:
    """Every picture once for each contract, compared with the server's own answers at full depth."""
    connections, class_ids, rows = setup.options.connections, setup.pictures.class_ids, []
    with setup.serve() as server:
        full = ask_each(server, setup.requests(FULL_DEPTH), connections)
        for point in setup.certificate.points:
            query = f"max_disagreement={point.max_disagreement}"
            early = ask_each(server, setup.requests(query), connections)
            row = {
                "max_disagreement": point.max_disagreement,
                "bound": point.bound,
                "observed": point.observed,
                "disagreement": disagreement(early, classes(full)),
                "accuracy": accuracy(early, class_ids),
                "compute": mean_compute(early),
                "certified_compute": point.compute,
                "exit_mix": exit_mix(early, len(point.exit_mix)),
            }
            rows.append(row)
            say(f"{query}: {row['disagreement']:.2%} disagree")
    return {
        "pictures": len(setup.pictures),
        "delta": setup.certificate.delta,
        "certified_on": setup.certificate.pictures,
        "full_depth_accuracy": accuracy(full, class_ids),
        "rows": rows,
    }


def section(document: Document) -> str:
    """The promises, and the table."""
    columns = {
        "promised": "{max_disagreement:.1%}",
        "bound": "{bound:.2%}",
        "seen when certified": "{observed:.2%}",
        "served": "{disagreement:.2%}",
        "accuracy": "{accuracy:.2%}",
        "compute": "{compute:.1%}",
        "exit mix, %": "{exit_mix:.0f}",
    }
    rows = document["rows"]
    fulfilled = sum(row["disagreement"] <= row["max_disagreement"] for row in rows)
    promises = (
        f"{fulfilled} of {len(rows)} promises were kept on {{pictures:,}} test pictures; each was certified on "
        f"{{certified_on:,}} others and holds with probability {1 - document['delta']:.0%} over their draw. "
        "Full depth: accuracy {full_depth_accuracy:.2%}."
    )
    how = "Each picture once for each promise, {pictures:,} in all. {served}."
    return section_of(document, promises, table(columns, rows), how)
