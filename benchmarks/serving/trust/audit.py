"""The audit: how soon it notices a broken promise, and that it raises no alarm for a kept one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import Columns, Document, fill, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.pictures import Pixels, as_png
from benchmarks.harness.requests import predictions
from benchmarks.harness.results import say
from benchmarks.harness.server import Server
from benchmarks.options import parse_names
from benchmarks.serving.answers import (
    FULL_DEPTH,
    Answer,
    ask_each,
    classes,
    disagreement,
    mean_compute,
    read_metrics,
    total,
)
from benchmarks.serving.trust.corruptions import CORRUPTIONS, corrupt
from benchmarks.serving.trust.setup import TrustSetup
from offramp.models.bundle import save_bundle
from offramp.models.certificate import CertifiedPoint

ON_ALARM = ("report", "tighten", "full-depth")

# Pictures number `start` to `stop` of an endless stream.
Source = Callable[[int, int], Pixels]


def repeat(images_NHWC: Pixels) -> Source:
    """The test pictures over and over."""
    return lambda start, stop: images_NHWC.take(range(start, stop), axis=0, mode="wrap")


@dataclass(frozen=True)
class AuditState:
    """Metrics of an audit. alarm: whether the promise's alarm rings; evidence: against the promise."""

    audited: int
    disagreed: int
    alarm: bool
    evidence: float


@dataclass(frozen=True)
class StreamEnd:
    """The end of a stream: after so many pictures, by the alarm or because all were sent."""

    pictures: int
    watched: AuditState
    most_evidence: float


@dataclass(frozen=True)
class Stream:
    """Pictures from `source` to a server that audits, under the usual promise."""

    setup: TrustSetup
    server: Server
    source: Source

    def until_alarm(self, most: int) -> StreamEnd:
        """Send at most so many pictures; after each chunk, read whether the alarm rings."""
        most_evidence, stop = 0.0, 0
        while stop < most:
            start, stop = stop, min(stop + self.setup.options.chunk, most)
            self.early(start, stop)
            state = self.audit_state()
            most_evidence = max(most_evidence, state.evidence)
            if state.alarm:
                break
        return StreamEnd(stop, state, most_evidence)

    def early(self, start: int, stop: int) -> list[Answer]:
        """Answers under the promise to pictures number `start` to `stop`, numbered from 0."""
        return self._ask(f"max_disagreement={self.setup.usual}", start, stop)

    def compared(self, start: int, stop: int) -> dict[str, float]:
        """Compute under the promise, and disagreement with the same pictures at full depth."""
        early, full = self.early(start, stop), classes(self._ask(FULL_DEPTH, start, stop))
        return {"disagreement": disagreement(early, full), "compute": mean_compute(early)}

    def audit_state(self) -> AuditState:
        """The audit's metrics."""
        samples, promise = read_metrics(self.server.get("/metrics")), f"{self.setup.usual:g}"
        return AuditState(
            int(total(samples, "offramp_audited_samples_total")),
            int(total(samples, "offramp_audit_disagreements_total")),
            total(samples, "offramp_audit_alarm", promise=promise) > 0.0,
            total(samples, "offramp_audit_evidence", promise=promise),
        )

    def _ask(self, query: str, start: int, stop: int) -> list[Answer]:
        png = as_png(self.source(start, stop), compress_level=1)
        return ask_each(self.server, predictions(png, query), self.setup.options.connections)


def measure(setup: TrustSetup) -> dict[str, Any]:
    """A clean stream, corrupted ones, clean ones under a wrong certificate, and what the alarm changes for these."""
    options, clean = setup.options, repeat(setup.pictures.images_NHWC)
    looser = setup.certificate.points[setup.promises.index(setup.usual) + 1 :]
    wrong = {point.max_disagreement: save_wrong_bundle(setup, point) for point in looser}
    audited = ("--audit-share", str(options.audit_share))

    def corrupted(kind: str, severity: int) -> dict[str, Any]:
        # Each picture is corrupted by its number in the stream.
        worse: Source = lambda start, stop: corrupt(clean(start, stop), kind, severity, first=start)  # noqa: E731
        return {"kind": kind, "severity": severity, **broken(worse)}

    def broken(source: Source, model: Path | None = None) -> dict[str, Any]:
        with setup.serve(*audited, model=model) as server:
            stream = Stream(setup, server, source)
            row = {**asdict(stream.until_alarm(options.stream)), **stream.compared(0, options.truth)}
        say(f"stream: {row}")
        return row

    def reaction(model: Path, on_alarm: str) -> dict[str, Any]:
        with setup.serve(*audited, "--audit-on-alarm", on_alarm, model=model) as server:
            stream = Stream(setup, server, clean)
            end = stream.until_alarm(options.stream)
            after = stream.compared(end.pictures, end.pictures + options.truth)
        return {"on_alarm": on_alarm, "alarm": end.watched.alarm, **after}

    with setup.serve(*audited) as server:
        end = Stream(setup, server, clean).until_alarm(options.clean)
    say(f"clean: {end}")
    kinds, severities = parse_names("kinds", options.kinds, CORRUPTIONS), [*map(int, options.severities.split(","))]
    return {
        "promise": setup.usual,
        "audit_share": options.audit_share,
        "chunk": options.chunk,
        "stream": options.stream,
        "compared": options.truth,
        "clean": end,
        "corrupted": [corrupted(kind, severity) for kind in kinds for severity in severities],
        "wrong_certificate": [{"of": of, **broken(clean, model)} for of, model in wrong.items()],
        "reactions": [reaction(model, on_alarm) for model in [*wrong.values()][-1:] for on_alarm in ON_ALARM],
    }


def save_wrong_bundle(setup: TrustSetup, point: CertifiedPoint) -> Path:
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


STREAM: Columns = {
    "true disagreement": "{disagreement:.2%}",
    "kept": lambda row: "yes" if row["disagreement"] <= row["promise"] else "no",
    "compute": "{compute:.1%}",
    "alarm": lambda row: "rings" if row["watched"]["alarm"] else fill("silent, evidence {watched[evidence]:,.0f}", row),
    "pictures": "{pictures:,}",
    "audited": "{watched[audited]:,}",
}
REACTION: Columns = {
    "on alarm": "{on_alarm}",
    "rang": lambda row: "yes" if row["alarm"] else "no",
    "true disagreement": "{disagreement:.2%}",
    "compute": "{compute:.1%}",
}


def section(document: Document) -> str:
    """The clean stream, corrupted ones, a wrong certificate, and what an alarm changes."""
    alarm = "an alarm" if document["clean"]["watched"]["alarm"] else "no alarm"
    corrupted, wrong = (
        [{**row, "promise": document["promise"]} for row in document[name]]
        for name in ("corrupted", "wrong_certificate")
    )
    return section_of(
        document,
        "Clean: {clean[pictures]:,} pictures, {clean[watched][audited]:,} audited, {clean[watched][disagreed]:,} "
        f"disagreed: {alarm}; evidence at the end {{clean[watched][evidence]:,.0f}}, at most "
        "{clean[most_evidence]:,.0f}; the alarm rings at 1,000,000.",
        "Corrupted pictures, of the severities of CIFAR-100-C:",
        table({"corruption": "{kind}", "severity": "{severity}", **STREAM}, corrupted),
        "Clean pictures under a wrong certificate: {promise:.1%} promised for the thresholds of a looser contract:",
        table({"thresholds of": "{of:.1%}", **STREAM}, wrong),
        "What an alarm changes under the last wrong certificate, by `--audit-on-alarm`; pictures after the alarm:",
        table(REACTION, document["reactions"]),
        "Promise {promise:.1%}; audited: a random {audit_share:.0%}. A stream ends with the alarm, which is read every "
        "{chunk} pictures, or after {stream:,}. True disagreement and compute: of {compared:,} pictures. {served}.",
    )
