"""The audit: how soon a broken promise is noticed, that a kept one raises no alarm, and what it costs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.corruptions import CORRUPTIONS
from benchmarks.errors import BenchmarkError
from benchmarks.stats import spread
from benchmarks.thresholds import interleaved
from benchmarks.trust.answers import disagreement, mean_compute
from benchmarks.trust.setting import Setting, say
from benchmarks.trust.streams import Source, Stream, Streamed, clean, corrupting
from benchmarks.wrk import run_wrk
from models.bundle import save_bundle
from models.certificate import CertifiedPoint

ON_ALARM = ("report", "tighten", "full-depth")
SHARES = (0.0, 0.01, 0.1)
# Of the pictures that are sent over and over where only speed counts.
LOAD_PICTURES = 2000


def audit(setting: Setting) -> dict[str, Any]:
    """A clean stream, corrupted ones, clean ones under a wrong certificate, and what the alarm changes for these."""
    options = setting.options
    kinds = tuple(options.kinds.split(",")) if options.kinds else tuple(CORRUPTIONS)
    kept = clean(setting.pictures.images_NHWC)
    looser = setting.certificate.points[setting.promises.index(setting.usual) + 1 :]
    wrong = {point.max_disagreement: mislabelled(setting, point) for point in looser}
    return {
        "promise": setting.usual,
        "audit_share": options.audit_share,
        "chunk": options.chunk,
        "stream": options.stream,
        "compared": options.truth,
        "clean": asdict(unbroken(setting, kept)),
        "corrupted": [
            {"kind": kind, "severity": severity, **broken(setting, corrupting(kept, kind, severity))}
            for kind in kinds
            for severity in map(int, options.severities.split(","))
        ],
        "wrong_certificate": [{"of": of, **broken(setting, kept, model)} for of, model in wrong.items()],
        "reactions": [
            reaction(setting, kept, model, on_alarm) for model in [*wrong.values()][-1:] for on_alarm in ON_ALARM
        ],
    }


def mislabelled(setting: Setting, point: CertifiedPoint) -> Path:
    """A bundle whose certificate promises the usual disagreement for thresholds that are known to keep less.

    As where it was made for other traffic: corruption alone need not break a promise.
    """
    points = [
        replace(one, thresholds=point.thresholds) if one.max_disagreement == setting.usual else one
        for one in setting.certificate.points
    ]
    certificate = replace(setting.certificate, points=tuple(points))
    folder = setting.folder / f"thresholds-of-{point.max_disagreement}"
    save_bundle(replace(setting.bundle, certificate=certificate), folder, "For a benchmark: its certificate is wrong.")
    return folder


def unbroken(setting: Setting, source: Source) -> Streamed:
    """The clean stream: whether there was an alarm, and the evidence for it."""
    options = setting.options
    with setting.serve("--audit-share", str(options.audit_share)) as server:
        streamed = Stream(setting, server, setting.usual, source).until_alarm(options.clean)
    say(f"clean: {streamed}")
    return streamed


def broken(setting: Setting, source: Source, model: Path | None = None) -> dict[str, Any]:
    """One stream until the alarm, and its true disagreement under the contract."""
    options = setting.options
    with setting.serve("--audit-share", str(options.audit_share), model=model) as server:
        stream = Stream(setting, server, setting.usual, source)
        streamed = stream.until_alarm(options.stream)
        early = stream.under_contract(0, options.truth)
        true = disagreement(early, stream.at_full_depth(0, options.truth))
    found = {**asdict(streamed), "disagreement": true, "compute": mean_compute(early)}
    say(f"stream: {found}")
    return found


def reaction(setting: Setting, source: Source, model: Path, on_alarm: str) -> dict[str, Any]:
    """What is kept once the alarm rings: of the pictures after it."""
    options = setting.options
    flags = ("--audit-share", str(options.audit_share), "--audit-on-alarm", on_alarm)
    with setting.serve(*flags, model=model) as server:
        stream = Stream(setting, server, setting.usual, source)
        streamed = stream.until_alarm(options.stream)
        span = streamed.pictures, streamed.pictures + options.truth
        after = stream.under_contract(*span)
        full = stream.at_full_depth(*span)
    found = {"disagreement": disagreement(after, full), "compute": mean_compute(after)}
    say(f"on alarm {on_alarm}: {found}")
    return {"on_alarm": on_alarm, "alarm": streamed.watched.alarm, **found}


def audit_cost(setting: Setting) -> dict[str, Any]:
    """Capacity under the usual contract by the share that is audited, by turns; servers that are not asked are idle."""
    options = setting.options
    folder = setting.requests_folder(f"max_disagreement={setting.usual}", LOAD_PICTURES)
    rounds: list[dict[str, float]] = []
    with ExitStack() as stack:
        servers = {share: stack.enter_context(setting.serve("--audit-share", str(share))) for share in SHARES}
        for round, share in interleaved(SHARES, options.rounds):
            run_wrk(servers[share].port, folder, options.connections, 1)
            loop = run_wrk(servers[share].port, folder, options.connections, options.seconds)
            if loop.errors:
                raise BenchmarkError(f"{loop.errors} requests failed while audits were timed")
            rounds.append({"round": round, "share": share, "throughput": loop.throughput, "p99_ms": loop.p99_ms})
            say(f"audit share {share}: {loop.throughput:.0f} pictures/s")
    return {
        "promise": setting.usual,
        "connections": options.connections,
        "seconds": options.seconds,
        "rounds_each": options.rounds,
        "rows": [cost_row(share, rounds) for share in SHARES],
        "rounds": rounds,
    }


def cost_row(share: float, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """One share: its throughput, and that over no audit's in the same round."""
    none = {one["round"]: one["throughput"] for one in rounds if one["share"] == 0.0}
    ours = [one for one in rounds if one["share"] == share]
    return {
        "share": share,
        "throughput": asdict(spread([one["throughput"] for one in ours])),
        "ratio": asdict(spread([one["throughput"] / none[one["round"]] for one in ours])),
        "p99_ms": asdict(spread([one["p99_ms"] for one in ours])),
    }
