"""Streams of pictures through a server that audits, until its alarm rings or they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.harness.pictures import Pixels, as_png
from benchmarks.harness.server import Server
from benchmarks.serving.answers import FULL_DEPTH, Answer, ask_each, classes, read_metrics, total
from benchmarks.serving.trust.corruptions import corrupt
from benchmarks.serving.trust.setup import Setup, encode_all

# Pictures number `start` to `stop` of an endless stream.
Source = Callable[[int, int], Pixels]


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
    """Pictures from `source` to a server under the contract `promise`."""

    setup: Setup
    server: Server
    promise: float
    source: Source

    def until_alarm(self, most: int) -> StreamEnd:
        """Send at most so many pictures; after each chunk, look whether the alarm rings."""
        most_evidence = 0.0
        for start, stop in chunks(most, self.setup.options.chunk):
            self.under_contract(start, stop)
            state = self.audit_state()
            most_evidence = max(most_evidence, state.evidence)
            if state.alarm:
                break
        return StreamEnd(stop, state, most_evidence)

    def under_contract(self, start: int, stop: int) -> list[Answer]:
        """Answers now to pictures number `start` to `stop`, numbered from 0."""
        return self._ask(f"max_disagreement={self.promise}", start, stop)

    def at_full_depth(self, start: int, stop: int) -> dict[int, int]:
        """Classes of the same pictures, numbered from 0."""
        return classes(self._ask(FULL_DEPTH, start, stop))

    def audit_state(self) -> AuditState:
        """The audit's metrics."""
        samples, promise = read_metrics(self.server.get("/metrics")), f"{self.promise:g}"
        return AuditState(
            int(total(samples, "offramp_audited_samples_total")),
            int(total(samples, "offramp_audit_disagreements_total")),
            total(samples, "offramp_audit_alarm", promise=promise) > 0.0,
            total(samples, "offramp_audit_evidence", promise=promise),
        )

    def _ask(self, query: str, start: int, stop: int) -> list[Answer]:
        requests = encode_all(query, as_png(self.source(start, stop), compress_level=1))
        return ask_each(self.server, requests, self.setup.options.connections)


def repeat(images_NHWC: Pixels) -> Source:
    """The test pictures over and over."""
    return lambda start, stop: images_NHWC.take(range(start, stop), axis=0, mode="wrap")


def corrupt_stream(source: Source, kind: str, severity: int) -> Source:
    """The same pictures corrupted, each with randomness of its own."""
    return lambda start, stop: corrupt(source(start, stop), kind, severity, first=start)


def chunks(most: int, size: int) -> Iterator[tuple[int, int]]:
    """(0, size), (size, 2 * size), … up to `most`."""
    return ((start, min(start + size, most)) for start in range(0, most, size))
