"""Brownout: twice the load that a contract can bear, with and without looser answers inside the contract."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import closed_loop
from benchmarks.harness.figures import Columns, Document, interleave, spread, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import MOST_FOR_SELECT, Load, ServiceFigures, run_load, service_figures, start_load
from benchmarks.harness.results import say
from benchmarks.harness.server import Server
from benchmarks.serving.answers import (
    FULL_DEPTH,
    ask_each,
    classes,
    disagreement,
    exit_mix,
    mean_compute,
    read_answers,
    read_metrics,
    reasons,
    total,
)
from benchmarks.serving.trust.setup import LOAD_PICTURES, TrustSetup

STRICT, LOOSE = 0.005, 0.1
OVERLOAD = 2.0
MAX_WAIT_S, BROWNOUT_WAIT_S = 0.5, 0.1
# A little more than the longest predicted wait at which the server admits a picture.
OBJECTIVE_S = 0.6
# Share of the capacity that is sent after the overload.
LIGHT_LOAD = 0.1
LOOK_EVERY_S = 0.2
WAYS = {"without": (), "with": ("--brownout-wait-s", str(BROWNOUT_WAIT_S))}


@dataclass(frozen=True)
class Level:
    """The brownout's level from `from_s` on, in seconds from the start of the overload."""

    from_s: float
    level: int


@dataclass(frozen=True)
class OverloadRound(ServiceFigures):
    """One round of overload, with what the answers were."""

    exit_mix: list[float]
    reasons: dict[str, float]
    disagreement: float
    compute: float


@dataclass(frozen=True)
class Overload:
    """What is sent. folder: the requests. full: classes at full depth. capacity: pictures a second."""

    setup: TrustSetup
    folder: Path
    full: dict[int, int]
    capacity: float

    def load(self, server: Server, share: float, duration_s: float, seed: int) -> Load:
        """Poisson arrivals at a share of the capacity."""
        warmup_s, rate = self.setup.options.warmup_seconds, share * self.capacity
        return Load(server.port, MOST_FOR_SELECT, duration_s, rate, warmup_s, timeout_s=10.0, bodies=True, seed=seed)

    def measure(self, server: Server, number: int) -> OverloadRound:
        """One round: latencies and answers."""
        seconds = self.setup.options.open_seconds
        sent = run_load(self.load(server, OVERLOAD, seconds, number), self.folder).measured()
        answers = read_answers(sent)
        return OverloadRound(
            **asdict(service_figures(sent, seconds, OBJECTIVE_S)),
            exit_mix=exit_mix(answers, self.setup.bundle.net.num_exits),
            reasons=reasons(answers),
            disagreement=disagreement(answers, self.full),
            compute=mean_compute(answers),
        )

    def course(self, server: Server) -> dict[str, Any]:
        """The level while an overload lasts, and under light load after it."""
        options, looks, ends_s = self.setup.options, list[tuple[float, int]](), list[float]()
        start_s = time.perf_counter()
        for share, seconds in ((OVERLOAD, options.open_seconds), (LIGHT_LOAD, options.recovery_seconds)):
            load = self.load(server, share, seconds, seed=len(ends_s))
            finish, until_s = start_load(load, self.folder), time.perf_counter() + load.length_s
            while time.perf_counter() < until_s:
                time.sleep(LOOK_EVERY_S)
                level = total(read_metrics(server.get("/metrics")), "offramp_brownout_level")
                looks.append((time.perf_counter() - start_s, int(level)))
            finish()
            ends_s.append(time.perf_counter() - start_s)
        levels = level_changes(looks)
        return {"over_s": ends_s[0], "levels": levels, "recovered_s": recovery_s(levels, ends_s[0])}


def measure(setup: TrustSetup) -> dict[str, Any]:
    """Interleaved rounds; then levels over the time of an overload and after it."""
    options, promises, count = setup.options, setup.promises, min(LOAD_PICTURES, len(setup.pictures))
    strict = STRICT if STRICT in promises else promises[0]
    loose = max(promise for promise in promises if promise <= max(LOOSE, promises[0]))
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(setup.serve("--max-wait-s", str(MAX_WAIT_S), *flags))
            for way, flags in WAYS.items()
        }
        full = classes(ask_each(servers["without"], setup.requests(FULL_DEPTH, count), options.connections))
        folder = setup.requests_folder(f"max_disagreement={strict}", count)
        loop = closed_loop(servers["without"], folder, options.connections, options.seconds, options.seconds)
        say(f"capacity at max_disagreement {strict}: {loop.throughput:.0f} pictures/s")
        folder = setup.requests_folder(f"max_disagreement={strict}&degrade_to={loose}", count)
        overload = Overload(setup, folder, full, loop.throughput)
        rounds = interleave({way: partial(overload.measure, servers[way]) for way in WAYS}, options.rounds)
        course = overload.course(servers["with"])
    return {
        "asked": strict,
        "degrade_to": loose,
        "capacity": overload.capacity,
        "overload": OVERLOAD,
        "max_wait_s": MAX_WAIT_S,
        "brownout_wait_s": BROWNOUT_WAIT_S,
        "objective_s": OBJECTIVE_S,
        "connections": MOST_FOR_SELECT,
        "seconds": options.open_seconds,
        "rounds_each": options.rounds,
        "rows": [{"way": way, **summarize(some)} for way, some in rounds.items()],
        "course": course,
        "rounds": rounds,
    }


def level_changes(looks: Sequence[tuple[float, int]]) -> list[Level]:
    """The looks at which the level was another than before."""
    return [Level(*next(same)) for _, same in groupby(looks, key=lambda look: look[1])]


def recovery_s(levels: Sequence[Level], over_s: float) -> float | None:
    """Seconds from the end of the overload until the level stayed at 0; None where it did not."""
    if not levels or levels[-1].level:
        return None
    return max(0.0, levels[-1].from_s - over_s)


def summarize(rounds: Sequence[OverloadRound]) -> dict[str, Any]:
    """One way over all rounds: medians and extremes; mixes are means."""
    names = ("answered_per_s", "goodput", "refused", "p50_ms", "p99_ms", "disagreement", "compute")
    why = sorted({reason for each in rounds for reason in each.reasons})
    return {
        "offered_per_s": spread(each.offered_per_s for each in rounds).median,
        **spreads(rounds, *names),
        "failed": sum(each.failed for each in rounds),
        "exit_mix": [sum(column) / len(rounds) for column in zip(*(each.exit_mix for each in rounds), strict=True)],
        "reasons": {reason: sum(each.reasons.get(reason, 0.0) for each in rounds) / len(rounds) for reason in why},
    }


def section(document: Document) -> str:
    """The table, and the levels over the time of an overload."""
    columns: Columns = {
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
    }
    course, end = document["course"], "returned to 0 {course[recovered_s]:.1f} s after it"
    if course["recovered_s"] is None:
        end = "did not return to 0 in the time watched"
    levels = ", ".join(f"{each['level']} at {each['from_s']:.1f} s" for each in course["levels"])
    text = f"Levels over one overload of {{course[over_s]:.1f}} s and light load after it: {levels}. The level {end}."
    how = (
        "Poisson arrivals at {overload:g} times the {capacity:.0f} pictures/s that max_disagreement {asked} allows; "
        "requests with degrade_to {degrade_to}; --max-wait-s {max_wait_s}, --brownout-wait-s {brownout_wait_s}; at "
        "most {connections} connections. In time: within {objective_s:g} s. Median (least–most) of {rounds_each} "
        "interleaved rounds of {seconds} s. {served}."
    )
    return section_of(document, table(columns, document["rows"]), text, how)
