"""The audit: how soon it notices a broken promise, that it raises no alarm for a kept one, and what it costs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import LoopFigures, closed_loop
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import interleaved, ratios, spread
from benchmarks.harness.results import say
from benchmarks.options import parse_names
from benchmarks.serving.answers import disagreement, mean_compute
from benchmarks.serving.trust.corruptions import CORRUPTIONS
from benchmarks.serving.trust.setup import LOAD_PICTURES, Setup
from benchmarks.serving.trust.streams import Source, Stream, StreamEnd, corrupt_stream, repeat
from offramp.models.bundle import save_bundle
from offramp.models.certificate import CertifiedPoint

ON_ALARM = ("report", "tighten", "full-depth")
SHARES = (0.0, 0.01, 0.1)


def measure_audit(setup: Setup) -> dict[str, Any]:
    """A clean stream, corrupted ones, clean ones under a wrong certificate, and what the alarm changes for these."""
    options, clean = setup.options, repeat(setup.pictures.images_NHWC)
    looser = setup.certificate.points[setup.promises.index(setup.usual) + 1 :]
    wrong = {point.max_disagreement: save_wrong_bundle(setup, point) for point in looser}
    return {
        "promise": setup.usual,
        "audit_share": options.audit_share,
        "chunk": options.chunk,
        "stream": options.stream,
        "compared": options.truth,
        "clean": stream_clean(setup, clean),
        "corrupted": [
            {"kind": kind, "severity": severity, **stream_broken(setup, corrupt_stream(clean, kind, severity))}
            for kind in parse_names("kinds", options.kinds, CORRUPTIONS)
            for severity in map(int, options.severities.split(","))
        ],
        "wrong_certificate": [{"of": of, **stream_broken(setup, clean, model)} for of, model in wrong.items()],
        "reactions": [
            measure_reaction(setup, clean, model, on_alarm) for model in [*wrong.values()][-1:] for on_alarm in ON_ALARM
        ],
    }


def save_wrong_bundle(setup: Setup, point: CertifiedPoint) -> Path:
    """A bundle whose certificate promises the usual disagreement for thresholds that are known to keep less.

    As if it was made for other traffic: corruption alone need not break a promise.
    """
    points = [
        replace(each, thresholds=point.thresholds) if each.max_disagreement == setup.usual else each
        for each in setup.certificate.points
    ]
    certificate = replace(setup.certificate, points=tuple(points))
    folder = setup.folder / f"thresholds-of-{point.max_disagreement}"
    save_bundle(replace(setup.bundle, certificate=certificate), folder, "For a benchmark: its certificate is wrong.")
    return folder


def stream_clean(setup: Setup, source: Source) -> StreamEnd:
    """The clean stream: whether there was an alarm, and the evidence for it."""
    options = setup.options
    with setup.serve("--audit-share", str(options.audit_share)) as server:
        end = Stream(setup, server, setup.usual, source).until_alarm(options.clean)
    say(f"clean: {end}")
    return end


def stream_broken(setup: Setup, source: Source, model: Path | None = None) -> dict[str, Any]:
    """One stream until the alarm, and its true disagreement under the contract."""
    options = setup.options
    with setup.serve("--audit-share", str(options.audit_share), model=model) as server:
        stream = Stream(setup, server, setup.usual, source)
        end = stream.until_alarm(options.stream)
        early = stream.under_contract(0, options.truth)
        true = disagreement(early, stream.at_full_depth(0, options.truth))
    say(f"stream: {end}, disagreement {true:.2%}")
    return {**vars(end), "disagreement": true, "compute": mean_compute(early)}


def measure_reaction(setup: Setup, source: Source, model: Path, on_alarm: str) -> dict[str, Any]:
    """Disagreement and compute of the pictures after the alarm."""
    options = setup.options
    flags = ("--audit-share", str(options.audit_share), "--audit-on-alarm", on_alarm)
    with setup.serve(*flags, model=model) as server:
        stream = Stream(setup, server, setup.usual, source)
        end = stream.until_alarm(options.stream)
        span = end.pictures, end.pictures + options.truth
        after = stream.under_contract(*span)
        full = stream.at_full_depth(*span)
    return {
        "on_alarm": on_alarm,
        "alarm": end.watched.alarm,
        "disagreement": disagreement(after, full),
        "compute": mean_compute(after),
    }


def measure_audit_cost(setup: Setup) -> dict[str, Any]:
    """Capacity under the usual contract by the share that is audited, by turns; the other servers are idle."""
    options = setup.options
    folder = setup.requests_folder(f"max_disagreement={setup.usual}", LOAD_PICTURES)
    loops: dict[float, list[LoopFigures]] = {share: [] for share in SHARES}
    with ExitStack() as stack:
        servers = {share: stack.enter_context(setup.serve("--audit-share", str(share))) for share in SHARES}
        for _, share in interleaved(SHARES, options.rounds):
            loops[share].append(closed_loop(servers[share], folder, options.connections, options.seconds))
            if loops[share][-1].errors:
                raise BenchmarkError(f"{loops[share][-1].errors} requests failed while audits were timed")
            say(f"audit share {share}: {loops[share][-1].throughput:.0f} pictures/s")
    return {
        "promise": setup.usual,
        "connections": options.connections,
        "seconds": options.seconds,
        "rounds_each": options.rounds,
        "rows": [summarize(share, loops) for share in SHARES],
        "rounds": [{"share": share, **vars(loop)} for share, some in loops.items() for loop in some],
    }


def summarize(share: float, loops: dict[float, list[LoopFigures]]) -> dict[str, Any]:
    """One share over all rounds; ratios to no audits within a round. loops: by share, in the order of the rounds."""
    throughput = [loop.throughput for loop in loops[share]]
    return {
        "share": share,
        "throughput": spread(throughput),
        "ratio": ratios(throughput, [loop.throughput for loop in loops[0.0]]),
        "p99_ms": spread(loop.p99_ms for loop in loops[share]),
    }
