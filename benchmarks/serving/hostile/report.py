"""The tables of `offramp bench hostile`, from the parts of its result file."""

from __future__ import annotations

from benchmarks.harness.figures import Columns, Document, section, table

COLUMNS: dict[str, Columns] = {
    "hostile-attacks": {
        "attack": "{attack}",
        "frontends": "{frontends}",
        "quiet p99, ms": "{quiet[p99_ms]:.0f}",
        "p50 beside": "{during[p50_ms]:.0f}",
        "p99": "{during[p99_ms]:.0f}",
        "max": "{during[max_ms]:.0f}",
        "p99 against quiet": "{ratio:.1f×}",
        "not answered": lambda row: f"{sum(row['lost'].values())} of {row['sent']:,}",
        "MiB": "{peak_mib:,.0f}",
        "what the attacker got": "{answers}",
    },
    "hostile-overload": {
        "load": "{load}",
        "frontends": "{frontends}",
        "answers/s": "{goodput_per_s:.0f}",
        "of c": "{of_capacity:.2f×}",
        "p99 of answers, ms": "{p99_ms:.0f}",
        "refused": "{refused[median]:.0%}",
        "broken": "{broken[max]:.0f}",
        "/livez p99, ms": "{livez_p99_ms:.0f}",
        "max": "{livez_max_ms[max]:.0f}",
        "lost": "{livez_lost[max]:.0f}",
        "client, cores": "{load_cores:.2f}",
    },
    "hostile-fairness": {
        "honest client": "{load}",
        "frontends": "{frontends}",
        "answered": "{answered:.2%}",
        "p50, ms": "{p50_ms:.0f}",
        "p99, ms": "{p99_ms:.0f}",
        "broken": "{broken[max]:.0f}",
        "greedy client's answers/s": "{greedy_per_s:.0f}",
    },
    "hostile-faults": {
        "fault": "{fault}",
        "frontends": "{frontends}",
        "runs": "{runs}",
        "requests": "{requests:,}",
        "wrong": "{wrong:,}",
        "hung": "{hung:,}",
        "broken": "{broken:,}",
        "answers": "{statuses}",
        "longest wait, s": "{longest_s:.1f}",
        "red, s": "{red_s:.1f}",
        "green, s": "{green_s:.1f}",
        "end, s": "{end_s:.1f}",
        "exit status": "{exit_statuses}",
    },
    "hostile-mutants": {"answer": "{status}", "mutants": "{count:,}"},
}
HOW = {
    "hostile-attacks": (
        "A photograph of 320 × 240 pixels {photos_per_s:g} times a second from another address, timed from when it was "
        "due; {seconds:g} s quiet, then as long beside the attack. p99 against quiet: in the same round. Median "
        "(least–most) of {rounds_each} rounds. MiB: the most resident memory that the server's processes held."
    ),
    "hostile-overload": (
        "c: closed loop of {connections} connections, in the same round; then Poisson arrivals at 2 c and 5 c, timed "
        "from when they were due. Median (least–most) of {rounds_each} rounds of {seconds:g} s. Broken: most without "
        "an answer in a round. /livez: {probes_per_s:g} times a second, each on a connection of its own. Client: "
        "cores that the load generator took from the server."
    ),
    "hostile-fairness": (
        "An honest client of Poisson arrivals at {honest_share:.0%} of capacity, alone and beside another that keeps "
        "{connections} connections busy. Median (least–most) of {rounds_each} rounds of {seconds:g} s."
    ),
    "hostile-faults": (
        "{connections} connections in a closed loop; every other request has a deadline of {deadline_s:g} s. Wrong: "
        "another class or probability than a quiet server gives. Hung: no answer {grace_s:g} s after its deadline, or "
        "after {patience_s:g} s. Broken: the connection ended. Times: the longest wait; from the first signal to "
        "`/readyz` red; from the last to green; from the signal to the end of the process: median (least–most) of the "
        "runs."
    ),
    "hostile-mutants": "{mutants:,} mutants from number {first:,}, {per_s:.0f} a second.",
}


def hostile_section(document: Document) -> str:
    """The table of one part."""
    name, how = document["benchmark"], HOW[document["benchmark"]]
    if name != "hostile-mutants":
        return section(document, table(COLUMNS[name], document["rows"]), how)
    rows = [{"status": status, "count": count} for status, count in document["statuses"].items()]
    bad = ", ".join(f"{each['number']} ({each['answer']})" for each in document["bad"][:20]) or "none"
    failures = f"Failures of the server: {len(document['bad'])}, by number: {bad}. Servers that died: {{dead}}."
    return section(document, table(COLUMNS[name], rows), f"{how} {failures}")
