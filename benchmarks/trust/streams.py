"""Streams of pictures through a server that audits, until its alarm rings or they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.corruptions import corrupted
from benchmarks.trust.answers import Answer, ask_each, read_metrics, total
from benchmarks.trust.setting import FULL_DEPTH, Listening, Pixels, Setting, as_png, encoded, metrics_of

# Pictures number `start` to `stop` of an endless stream.
Source = Callable[[int, int], Pixels]


@dataclass(frozen=True)
class Watched:
    """How an audit stands. alarm: whether that of the promise rings; evidence: against it."""

    audited: int
    disagreed: int
    alarm: bool
    evidence: float


@dataclass(frozen=True)
class Streamed:
    """How a stream ended: after so many pictures, with the alarm or because that was all of it."""

    pictures: int
    watched: Watched
    most_evidence: float


@dataclass(frozen=True)
class Stream:
    """Pictures from `source` to a server under the contract `promise`."""

    setting: Setting
    server: Listening
    promise: float
    source: Source

    def until_alarm(self, most: int) -> Streamed:
        """Send at most so many pictures; after each chunk, look whether the alarm rings."""
        most_evidence = 0.0
        for start, stop in chunks(most, self.setting.options.chunk):
            self.under_contract(start, stop)
            watched = self.look()
            most_evidence = max(most_evidence, watched.evidence)
            if watched.alarm:
                break
        return Streamed(stop, watched, most_evidence)

    def under_contract(self, start: int, stop: int) -> list[Answer]:
        """Pictures number `start` to `stop`, as they are answered now, counted from 0."""
        return self._ask(f"max_disagreement={self.promise}", start, stop)

    def at_full_depth(self, start: int, stop: int) -> dict[int, int]:
        """The classes of the same pictures, counted from 0."""
        return {one.picture: one.class_id for one in self._ask(FULL_DEPTH, start, stop)}

    def look(self) -> Watched:
        """At the audit's metrics."""
        found, promise = read_metrics(metrics_of(self.server)), f"{self.promise:g}"
        return Watched(
            int(total(found, "offramp_audited_samples_total")),
            int(total(found, "offramp_audit_disagreements_total")),
            total(found, "offramp_audit_alarm", promise=promise) > 0.0,
            total(found, "offramp_audit_evidence", promise=promise),
        )

    def _ask(self, query: str, start: int, stop: int) -> list[Answer]:
        requests = encoded(query, as_png(self.source(start, stop)))
        return ask_each(self.server.port, requests, self.setting.options.connections)


def clean(images_NHWC: Pixels) -> Source:
    """The test pictures over and over."""
    return lambda start, stop: images_NHWC.take(range(start, stop), axis=0, mode="wrap")


def corrupting(source: Source, kind: str, severity: int) -> Source:
    """The same pictures corrupted, by chance anew each time."""
    return lambda start, stop: corrupted(source(start, stop), kind, severity, first=start)


def chunks(most: int, size: int) -> Iterator[tuple[int, int]]:
    """(0, size), (size, 2 * size), … up to `most`."""
    return ((start, min(start + size, most)) for start in range(0, most, size))
