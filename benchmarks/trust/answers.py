"""What a server answered, picture by picture, and how that compares."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.errors import BenchmarkError
from benchmarks.peers.open_loop import OpenJob, Sent, send_all


@dataclass(frozen=True)
class Answer:
    """One prediction. picture: the number of its request. compute: the share of full depth's multiply-adds."""

    picture: int
    class_id: int
    exit: int
    reason: str
    compute: float


def read_answer(sent: Sent) -> Answer:
    """From a body of status 200; what keeps its exit to itself raises KeyError."""
    (told,) = json.loads(sent.body)["predictions"]
    return Answer(sent.number, told["class_id"], told["exit"], told["exit_reason"], told["compute"])


def answered(sent: Sequence[Sent]) -> list[Answer]:
    """Those that were answered."""
    return [read_answer(one) for one in sent if one.status == 200]


def ask_each(port: int, requests: Sequence[bytes], connections: int) -> list[Answer]:
    """Every request once, answers in the same order. Raises BenchmarkError where one fails."""
    sent = send_all(OpenJob(port, "", min(connections, len(requests))), requests).sent
    failed = [one for one in sent if one.status != 200]
    if failed:
        raise BenchmarkError(f"{len(failed)} of {len(sent)} requests failed: {failed[0].status} {failed[0].body[:300]}")
    return sorted(map(read_answer, sent), key=lambda answer: answer.picture)


def disagreement(early: Sequence[Answer], full: Mapping[int, int]) -> float:
    """The share of answers with another class than `full` has for their picture; 0 of none."""
    return sum(one.class_id != full[one.picture] for one in early) / max(1, len(early))


def accuracy(answers: Sequence[Answer], labels: Sequence[int]) -> float:
    """The share of right answers; 0 of none."""
    return sum(one.class_id == labels[one.picture] for one in answers) / max(1, len(answers))


def mean_compute(answers: Sequence[Answer]) -> float:
    """Of full depth's multiply-adds; 0 of none."""
    return sum(one.compute for one in answers) / max(1, len(answers))


def exit_mix(answers: Sequence[Answer], num_exits: int) -> list[float]:
    """The share that left at exit 1, 2, …"""
    counts = Counter(one.exit for one in answers)
    return [counts[exit] / max(1, len(answers)) for exit in range(1, num_exits + 1)]


def reasons(answers: Sequence[Answer]) -> dict[str, float]:
    """The share that left for each reason."""
    counts = Counter(one.reason for one in answers)
    return {reason: count / len(answers) for reason, count in sorted(counts.items())}


def read_metrics(text: str) -> list[Sample]:
    """All samples in the text of /metrics, but for histograms, of which there are many."""
    lines = [line for line in text.splitlines() if "_bucket{" not in line]
    return [one for family in text_string_to_metric_families("\n".join([*lines, ""])) for one in family.samples]


def total(samples: Sequence[Sample], name: str, **labels: str) -> float:
    """The sum of the samples of that name and with those labels."""
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())
