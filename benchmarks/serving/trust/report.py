"""The tables of `offramp bench trust`, from the parts of its result file."""

from __future__ import annotations

from benchmarks.harness.figures import Columns, Document, fill, section, table

COLUMNS: dict[str, Columns] = {
    "trust-certified": {
        "promised": "{max_disagreement:.1%}",
        "bound": "{bound:.2%}",
        "seen when certified": "{observed:.2%}",
        "served": "{disagreement:.2%}",
        "accuracy": "{accuracy:.2%}",
        "compute": "{compute:.1%}",
        "exit mix, %": "{exit_mix:.0f}",
    },
    "trust-audit-cost": {
        "audited": "{share:.0%}",
        "pictures/s": "{throughput:.0f}",
        "against none": "{ratio:.3f×}",
        "p99, ms": "{p99_ms:.1f}",
    },
    "trust-brownout": {
        "brownout": "{way}",
        "in time/s": "{goodput:.0f}",
        "refused": "{refused[median]:.1%}",
        "p50, ms": "{p50_ms:.0f}",
        "p99, ms": "{p99_ms:.0f}",
        "disagreement": "{disagreement[median]:.2%}",
        "compute": "{compute[median]:.1%}",
        "exit mix, %": "{exit_mix:.0f}",
        "reasons": lambda row: ", ".join(f"{name} {share:.0%}" for name, share in row["reasons"].items()),
        "failed": "{failed}",
    },
    "trust-privacy": {
        "server": "{way}",
        "p50 alone, ms": "{p50_ms:.2f}",
        "p99 alone, ms": "{p99_ms:.2f}",
        "pictures/s": "{throughput:.0f}",
        "against off": "{ratio:.2f×}",
        "AUROC, once": "{auroc_once:.3f}",
        "AUROC, repeated": "{auroc_repeated:.3f}",
    },
    "trust-attack": {
        "limit": "{way}",
        "honest p50, ms": "{honest_p50_ms:.1f}",
        "honest p99, ms": "{honest_p99_ms:.1f}",
        "honest in time/s": "{honest_goodput:.0f}",
        "honest refused": "{honest_refused[median]:.1%}",
        "attacker refused": "{attacker_refused[median]:.1%}",
        "attacker, GMAC/s": "{attacker_gmacs_per_s:.1f}",
        "attacker's share": "{attacker_share[median]:.0%}",
        "failed": "{failed}",
    },
}
DEPTH = {
    "query": "`{query}`",
    "pictures": "{pictures}",
    "compute": "{compute:.1%}",
    "exit mix, %": "{exit_mix:.0f}",
    "accuracy": "{accuracy:.1%}",
}
REACTIONS: Columns = {
    "on alarm": "{on_alarm}",
    "rang": lambda row: "yes" if row["alarm"] else "no",
    "true disagreement": "{disagreement:.2%}",
    "compute": "{compute:.1%}",
}


def trust_section(document: Document) -> str:
    """The tables of one part."""
    name = document["benchmark"]
    if name == "trust-audit":
        return audit_section(document)
    blocks = [table(COLUMNS[name], document["rows"]), HOW[name] + " {served}."]
    if name == "trust-certified":
        fulfilled = sum(row["disagreement"] <= row["max_disagreement"] for row in document["rows"])
        blocks.insert(0, CERTIFIED.format(fulfilled=fulfilled, rows=len(document["rows"]), sure=1 - document["delta"]))
    if name == "trust-brownout":
        blocks.insert(1, describe_course(document["course"]))
    if name == "trust-attack":
        blocks[:0] = [ATTACKED, table(DEPTH, document["depth"])]
    return section(document, *blocks)


def audit_section(document: Document) -> str:
    """The clean stream, corrupted ones, a wrong certificate, and what an alarm changes."""
    promise = document["promise"]
    stream: Columns = {
        "true disagreement": "{disagreement:.2%}",
        "kept": lambda row: "yes" if row["disagreement"] <= promise else "no",
        "compute": "{compute:.1%}",
        "alarm": lambda row: (
            "rings" if row["watched"]["alarm"] else fill("silent, evidence {watched[evidence]:,.0f}", row)
        ),
        "pictures": "{pictures:,}",
        "audited": "{watched[audited]:,}",
    }
    alarm = "an alarm" if document["clean"]["watched"]["alarm"] else "no alarm"
    return section(
        document,
        "Clean: {clean[pictures]:,} pictures, {clean[watched][audited]:,} audited, {clean[watched][disagreed]:,} "
        f"disagreed: {alarm}; evidence at the end {{clean[watched][evidence]:,.0f}}, at most "
        "{clean[most_evidence]:,.0f}; the alarm rings at 1,000,000.",
        "Corrupted pictures, of the severities of CIFAR-100-C:",
        table({"corruption": "{kind}", "severity": "{severity}", **stream}, document["corrupted"]),
        "Clean pictures under a wrong certificate: {promise:.1%} promised for the thresholds of a looser contract:",
        table({"thresholds of": "{of:.1%}", **stream}, document["wrong_certificate"]),
        "What an alarm changes under the last wrong certificate, by `--audit-on-alarm`; pictures after the alarm:",
        table(REACTIONS, document["reactions"]),
        "Promise {promise:.1%}; audited: a random {audit_share:.0%}. A stream ends with the alarm, which is read every "
        "{chunk} pictures, or after {stream:,}. True disagreement and compute: of {compared:,} pictures. {served}.",
    )


def describe_course(course: Document) -> str:
    """Levels of the brownout over the time of an overload."""
    levels = ", ".join(f"{each['level']} at {each['from_s']:.1f} s" for each in course["levels"])
    back = course["recovered_s"]
    recovery = "did not return to 0 in the time watched" if back is None else f"returned to 0 {back:.1f} s after it"
    return (
        f"Levels over one overload of {course['over_s']:.1f} s and light load after it: {levels}. The level {recovery}."
    )


CERTIFIED = (
    "{fulfilled} of {rows} promises were kept on {{pictures:,}} test pictures; each was certified on "
    "{{certified_on:,}} others and holds with probability {sure:.0%} over their draw. Full depth: accuracy "
    "{{full_depth_accuracy:.2%}}."
)
ATTACKED = (
    "{pictures} test pictures, each changed by at most {attack[reach]:g} of 255, {attack[steps]} steps of gradient "
    "descent with the network's own weights."
)
HOW = {
    "trust-certified": "Each picture once for each promise, {pictures:,} in all.",
    "trust-audit-cost": (
        "Closed loops of {connections} connections, {seconds} s each, at max_disagreement {promise}; median "
        "(least–most) of {rounds_each} rounds by turns, ratios in rounds."
    ),
    "trust-brownout": (
        "Poisson arrivals at {overload:g} times the {capacity:.0f} pictures/s that max_disagreement {asked} allows; "
        "requests with degrade_to {degrade_to}; --max-wait-s {max_wait_s}, --brownout-wait-s {brownout_wait_s}; at "
        "most {connections} connections. In time: within {objective_s:g} s. Median (least–most) of {rounds_each} "
        "rounds of {seconds} s by turns."
    ),
    "trust-privacy": (
        "Threshold {threshold:g}. Alone: {alone} pictures, one after the other; {first} of them leave at exit 1, "
        "{last} at the last. AUROC: how well the time of one answer, or the median over {rounds_each} rounds, "
        "separates the two; 0.5 is not at all. Throughput: closed loops of {connections} connections, {seconds} s "
        "each. Median (least–most) of {rounds_each} rounds by turns."
    ),
    "trust-attack": (
        "max_disagreement {promise}. The attacker sends {attack_load:g} times the {capacity:.0f} attacked pictures/s "
        "that the server can answer, over {attack_connections} connections; the honest client {honest_load:g} times, "
        "of the same pictures unchanged. Poisson arrivals. Limits: {client_gmacs_per_s:.1f} billion multiply-adds/s "
        "with --client-burst-s {client_burst_s:g}; deep share {client_deep_share:g}. In time: within {objective_s:g} "
        "s. Median (least–most) of {rounds_each} rounds of {seconds} s by turns."
    ),
}
