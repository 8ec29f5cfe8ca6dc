"""What a load run asks for: the job, and from it the requests and their times. Pure, and the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, product


@dataclass(frozen=True)
class Job:
    """One run of the load generator.

    url: of the server, without a path. pictures_folder: as `benchmarks.pictures` writes it.
    thresholds: every picture is asked for at each of them, in an order drawn from `seed`.
    connections: most requests in flight.
    duration_s: measured seconds, after `warmup_s` seconds of the same load; None: each pair of picture and
        threshold once, without warm-up.
    rate: None is a closed loop, in which a connection asks anew as soon as it is answered; a number is an open
        loop of Poisson arrivals a second, whatever the answers take.
    """

    url: str
    pictures_folder: str
    thresholds: tuple[float, ...]
    connections: int
    seed: int = 0
    warmup_s: float = 0.0
    duration_s: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and (self.duration_s is None or not 0.0 < self.rate < float("inf")):
            raise ValueError(
                f"rate {self.rate} needs to be above 0, finite, and to have a duration (now {self.duration_s})"
            )

    @property
    def total_s(self) -> float:
        """Warm-up and measured time; infinite where pictures are sent once each."""
        return float("inf") if self.duration_s is None else self.warmup_s + self.duration_s


@dataclass(frozen=True)
class Planned:
    """One request to make. at_s: when, in seconds from the start; None as soon as a connection is free."""

    picture: int
    threshold: float
    at_s: float | None = None


def poisson_arrivals(rate: float, duration_s: float, seed: int) -> list[float]:
    """Times within [0, duration_s) of a Poisson process of `rate` arrivals a second; the same for the same seed."""
    draw, at_s, arrivals = random.Random(seed), 0.0, []
    while (at_s := at_s + draw.expovariate(rate)) < duration_s:
        arrivals.append(at_s)
    return arrivals


def plan(job: Job, num_pictures: int) -> Iterator[Planned]:
    """The job's requests in order: endless for a timed closed loop."""
    pairs = list(product(range(num_pictures), job.thresholds))
    random.Random(job.seed).shuffle(pairs)
    if job.rate is not None:
        for at_s, (picture, threshold) in zip(
            poisson_arrivals(job.rate, job.total_s, job.seed), cycle(pairs), strict=False
        ):
            yield Planned(picture, threshold, at_s)
    else:
        for picture, threshold in pairs if job.duration_s is None else cycle(pairs):
            yield Planned(picture, threshold)
