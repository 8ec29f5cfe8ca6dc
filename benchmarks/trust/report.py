"""The tables of `benchmarks.trust`, one section a part, each from its part of the result file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figures import provenance, shares, table, with_extremes

Document = Mapping[str, Any]


def certified_section(document: Document) -> str:
    """Promised beside served."""
    rows = [
        [
            f"{row['max_disagreement']:.1%}",
            f"{row['bound']:.2%}",
            f"{row['observed']:.2%}",
            f"{row['disagreement']:.2%}",
            f"{row['accuracy']:.2%}",
            f"{row['compute']:.1%}",
            shares(row["exit_mix"], ".0f"),
        ]
        for row in document["rows"]
    ]
    kept = sum(row["disagreement"] <= row["max_disagreement"] for row in document["rows"])
    told = (
        f"{kept} of {len(rows)} promises were kept on {document['pictures']:,} test pictures; each was certified on "
        f"{document['certified_on']:,} others and holds with probability {1 - document['delta']:.0%} over their draw. "
        f"Full depth: accuracy {document['full_depth_accuracy']:.2%}."
    )
    head = "promised | bound | seen when certified | served | accuracy | compute | exit mix, %"
    how = f"Each picture once for each promise, {document['pictures']:,} in all."
    return _section(document, told, table(head, rows), how)


def audit_section(document: Document) -> str:
    """The clean stream, corrupted ones, a wrong certificate, and what an alarm changes."""
    promise, kept = document["promise"], document["clean"]
    watched = kept["watched"]
    first = (
        f"Clean: {kept['pictures']:,} pictures, {watched['audited']:,} audited, {watched['disagreed']:,} disagreed: "
        f"{'an alarm' if watched['alarm'] else 'no alarm'}; evidence at the end {watched['evidence']:,.0f}, at most "
        f"{kept['most_evidence']:,.0f}; the alarm rings at 1,000,000."
    )
    corrupted = [[row["kind"], str(row["severity"]), *_watched(row, promise)] for row in document["corrupted"]]
    wrong = [[f"{row['of']:.1%}", *_watched(row, promise)] for row in document["wrong_certificate"]]
    reactions = [
        [row["on_alarm"], "yes" if row["alarm"] else "no", f"{row['disagreement']:.2%}", f"{row['compute']:.1%}"]
        for row in document["reactions"]
    ]
    how = (
        f"Promise {promise:.1%}; audited: a random {document['audit_share']:.0%}. Streams end with the alarm, looked "
        f"for every {document['chunk']} pictures, or after {document['stream']:,}. True disagreement and compute: of "
        f"{document['compared']:,} pictures."
    )
    columns = "true disagreement | kept | compute | alarm | pictures | audited"
    return _section(
        document,
        first,
        "Corrupted pictures, of the severities of CIFAR-100-C:",
        table(f"corruption | severity | {columns}", corrupted),
        f"Clean pictures under a wrong certificate: {promise:.1%} promised for the thresholds of a looser contract:",
        table(f"thresholds of | {columns}", wrong),
        "What an alarm changes under the last of these, by `--audit-on-alarm`; pictures after the alarm:",
        table("on alarm | rang | true disagreement | compute", reactions),
        how,
    )


def _watched(row: Document, promise: float) -> list[str]:
    watched = row["watched"]
    rang = "rings" if watched["alarm"] else f"silent, evidence {watched['evidence']:,.0f}"
    kept = "yes" if row["disagreement"] <= promise else "no"
    figures = [f"{row['pictures']:,}", f"{watched['audited']:,}"]
    return [f"{row['disagreement']:.2%}", kept, f"{row['compute']:.1%}", rang, *figures]


def audit_cost_section(document: Document) -> str:
    """Throughput by the share audited."""
    rows = [
        [
            f"{row['share']:.0%}",
            with_extremes(row["throughput"], ".0f"),
            with_extremes(row["ratio"], ".3f", "×"),
            with_extremes(row["p99_ms"], ".1f"),
        ]
        for row in document["rows"]
    ]
    how = (
        f"Closed loops of {document['connections']} connections, {document['seconds']} s each, at max_disagreement "
        f"{document['promise']}; median (least–most) of {document['rounds_each']} rounds by turns, ratios in rounds."
    )
    return _section(document, table("audited | pictures/s | against none | p99, ms", rows), how)


def brownout_section(document: Document) -> str:
    """Overload with and without."""
    rows = [
        [
            row["way"],
            with_extremes(row["goodput"], ".0f"),
            f"{100 * row['refused']['median']:.1f} %",
            with_extremes(row["p50_ms"], ".0f"),
            with_extremes(row["p99_ms"], ".0f"),
            f"{row['disagreement']['median']:.2%}",
            f"{row['compute']['median']:.1%}",
            shares(row["exit_mix"], ".0f"),
            ", ".join(f"{name} {share:.0%}" for name, share in row["reasons"].items()),
            str(row["failed"]),
        ]
        for row in document["rows"]
    ]
    course = document["course"]
    levels = ", ".join(f"{one['level']} at {one['from_s']:.1f} s" for one in course["levels"])
    back = course["recovered_s"]
    recovery = "was not back at 0 in the time watched" if back is None else f"was back at 0 {back:.1f} s after it"
    told = (
        f"Levels over one overload of {course['over_s']:.1f} s and light load after it: {levels}. The level {recovery}."
    )
    how = (
        f"Poisson arrivals at {document['overload']:g} times the {document['capacity']:.0f} pictures/s that "
        f"max_disagreement {document['asked']} allows; requests with degrade_to {document['degrade_to']}; "
        f"--max-wait-s {document['max_wait_s']}, --brownout-wait-s {document['brownout_wait_s']}; at most "
        f"{document['connections']} connections. In time: within {document['objective_s']:g} s. Median (least–most) of "
        f"{document['rounds_each']} rounds of {document['seconds']} s by turns."
    )
    head = (
        "brownout | in time/s | refused | p50, ms | p99, ms | disagreement | compute | exit mix, % | reasons | failed"
    )
    return _section(document, table(head, rows), told, how)


def privacy_section(document: Document) -> str:
    """Cost, and what times tell."""
    rows = [
        [
            row["way"],
            with_extremes(row["p50_ms"], ".2f"),
            with_extremes(row["p99_ms"], ".2f"),
            with_extremes(row["throughput"], ".0f"),
            with_extremes(row["ratio"], ".2f", "×"),
            *("–" if row[name] is None else f"{row[name]:.3f}" for name in ("auroc_once", "auroc_repeated")),
        ]
        for row in document["rows"]
    ]
    how = (
        f"Threshold {document['threshold']:g}. Alone: {document['alone']} pictures, one after the other; "
        f"{document['first']} of them leave at exit 1, {document['last']} at the last. AUROC: how well the time of one "
        f"answer, or the median over {document['rounds_each']} rounds, tells these two apart; 0.5 is not at all. "
        f"Throughput: closed loops of {document['connections']} connections, {document['seconds']} s each. Median "
        f"(least–most) of {document['rounds_each']} rounds by turns."
    )
    head = "server | p50 alone, ms | p99 alone, ms | pictures/s | against off | AUROC, once | AUROC, repeated"
    return _section(document, table(head, rows), how)


def attack_section(document: Document) -> str:
    """Depth, then both clients."""
    depth = [
        [
            f"`{row['query']}`",
            row["pictures"],
            f"{row['compute']:.1%}",
            shares(row["exit_mix"], ".0f"),
            f"{row['accuracy']:.1%}",
        ]
        for row in document["depth"]
    ]
    rows = [
        [
            row["way"],
            with_extremes(row["honest_p50_ms"], ".1f"),
            with_extremes(row["honest_p99_ms"], ".1f"),
            with_extremes(row["honest_goodput"], ".0f"),
            f"{row['honest_refused']['median']:.1%}",
            f"{row['attacker_refused']['median']:.1%}",
            with_extremes(row["attacker_gmacs_per_s"], ".1f"),
            f"{row['attacker_share']['median']:.0%}",
            str(row["failed"]),
        ]
        for row in document["rows"]
    ]
    attack = document["attack"]
    how_made = (
        f"{document['pictures']} test pictures, each changed by at most {attack['reach']:g} of 255, "
        f"{attack['steps']} steps of gradient descent with the network's own weights."
    )
    how = (
        f"max_disagreement {document['promise']}. The attacker sends {document['attack_load']:g} times the "
        f"{document['capacity']:.0f} attacked pictures/s that the server can answer, over "
        f"{document['attack_connections']} connections; the honest client {document['honest_load']:g} "
        f"times, of the same pictures unchanged. Poisson arrivals. "
        f"Limits: {document['client_gmacs_per_s']:.1f} billion multiply-adds/s with --client-burst-s "
        f"{document['client_burst_s']:g}; deep share {document['client_deep_share']:g}. In time: within "
        f"{1000 * document['objective_s']:.0f} ms. Median (least–most) of {document['rounds_each']} rounds of "
        f"{document['seconds']} s by turns."
    )
    head = (
        "limit | honest p50, ms | honest p99, ms | honest in time/s | honest refused | attacker refused "
        "| attacker, GMAC/s | attacker's share | failed"
    )
    depth_head = "asked for | pictures | compute | exit mix, % | accuracy"
    return _section(document, how_made, table(depth_head, depth), table(head, rows), how)


TRUST_SECTIONS = {
    "trust-certified": certified_section,
    "trust-audit": audit_section,
    "trust-audit-cost": audit_cost_section,
    "trust-brownout": brownout_section,
    "trust-privacy": privacy_section,
    "trust-attack": attack_section,
}


def _section(document: Document, *blocks: str) -> str:
    *rest, last = blocks
    return "\n\n".join([*rest, f"{last} {document['served']}. {provenance(document)}"])
