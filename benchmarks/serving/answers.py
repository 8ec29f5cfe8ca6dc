"""Answers of a server to pictures, and how they compare with full depth and with the truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.harness.client import send_each
from benchmarks.harness.open_loop import Load, Sent
from benchmarks.harness.open_loop import latencies_ms as latencies_of
from benchmarks.harness.requests import predictions
from benchmarks.harness.server import Server

FULL_DEPTH = "threshold=1"


@dataclass(frozen=True)
class Answer:
    """One prediction. picture: the number of its request. compute: share of full depth's multiply-adds."""

    picture: int
    class_id: int
    exit: int
    reason: str
    compute: float
    confidence: float = 0.0


def read_answer(sent: Sent) -> Answer:
    """The answer in a body of status 200. Raises KeyError where the server hides the exit."""
    (read,) = json.loads(sent.body)["predictions"]
    return Answer(sent.number, *(read[name] for name in ("class_id", "exit", "exit_reason", "compute", "confidence")))


def read_answers(sent: Iterable[Sent]) -> list[Answer]:
    """The answers to those requests that have one."""
    return [read_answer(each) for each in sent if each.status == 200]


def ask_each(server: Server, requests: Sequence[bytes], connections: int) -> list[Answer]:
    """Send each request once; answers in the same order. Raises BenchmarkError where one fails."""
    load = Load(server.port, min(connections, len(requests)), host=server.host, bodies=True)
    return read_answers(send_each(load, enumerate(requests)).answers())


def latencies_ms(server: Server, png: Sequence[bytes], query: str) -> list[float]:
    """Latency of each picture, sent one after the other on one connection."""
    load = Load(server.port, 1, host=server.host)
    return latencies_of(send_each(load, enumerate(predictions(png, query))).answers())


def classes(answers: Iterable[Answer]) -> dict[int, int]:
    """The class of each picture."""
    return {answer.picture: answer.class_id for answer in answers}


def disagreement(early: Sequence[Answer], full: Mapping[int, int]) -> float:
    """Share of answers with another class than `full` has for their picture; 0 without answers."""
    return sum(answer.class_id != full[answer.picture] for answer in early) / max(1, len(early))


def accuracy(answers: Sequence[Answer], class_ids: Sequence[int]) -> float:
    """Share of right answers; 0 without answers. class_ids: the true ones by picture."""
    return sum(answer.class_id == class_ids[answer.picture] for answer in answers) / max(1, len(answers))


def mean_compute(answers: Sequence[Answer]) -> float:
    """Mean share of full depth's multiply-adds; 0 without answers."""
    return sum(answer.compute for answer in answers) / max(1, len(answers))


def exit_mix(answers: Sequence[Answer], num_exits: int) -> list[float]:
    """Shares that left at exit 1, 2, …"""
    counts = Counter(answer.exit for answer in answers)
    return [counts[exit] / max(1, len(answers)) for exit in range(1, num_exits + 1)]


def reasons(answers: Sequence[Answer]) -> dict[str, float]:
    """Shares that left for each reason."""
    counts = Counter(answer.reason for answer in answers)
    return {reason: count / len(answers) for reason, count in sorted(counts.items())}


def read_metrics(text: str) -> list[Sample]:
    """All samples in the text of /metrics, without the many of histograms."""
    lines = [line for line in text.splitlines() if "_bucket{" not in line]
    return [sample for family in text_string_to_metric_families("\n".join([*lines, ""])) for sample in family.samples]


def total(samples: Sequence[Sample], name: str, **labels: str) -> float:
    """Sum of the samples with that name and those labels."""
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


def describe_model(server: Server, request: bytes) -> tuple[str, int]:
    """Name and version of the model that answers a request, and its number of exits.

    Raises BenchmarkError where the answer is not 200.
    """
    (sent,) = send_each(Load(server.port, 1, host=server.host, bodies=True), [(0, request)]).answers()
    document = json.loads(sent.body)
    return f"{document['model']} {document['version']}", document["predictions"][0]["exits"]
