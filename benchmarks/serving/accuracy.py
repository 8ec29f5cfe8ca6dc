"""Served answers against `offramp evaluate`: every test picture at every threshold.

The reference is computed here from the bundle, by the code of `offramp evaluate`, in float32. The server's exit
counters on /metrics must grow by exactly the answers that were received.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import typer

from benchmarks.harness.figures import Document, fill, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.pictures import TestPictures, read_test_pictures
from benchmarks.harness.provenance import provenance
from benchmarks.harness.requests import prediction
from benchmarks.harness.results import publish, say
from benchmarks.harness.server import Server, server_under_test
from benchmarks.options import AccuracyOptions, parse_thresholds
from benchmarks.serving.answers import Answer, accuracy, ask_each, describe_model, exit_mix, read_metrics
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle
from offramp.models.exit_policy import ExitRule, exits_taken
from offramp.training.build import check_labels
from offramp.training.data import Batches, load_splits
from offramp.training.evaluate.evaluation import calibrated, collect_logits

BATCH_SIZE = 256
# Batches of other sizes sum in another order: float32 confidences then differ in their last digits, never more.
ROUNDING = 1e-4
PRINTED = 10
DIFFERENCE = (
    "picture {picture} at threshold {threshold:g}: served exit {served_exit} class {served_class_id}, evaluated exit "
    "{evaluated_exit} class {evaluated_class_id}; {distance:.1e} from a tie"
)


@dataclass(frozen=True)
class Reference:
    """Calibrated confidence (N, K), class and runner-up's confidence at every exit, and the true classes (N)."""

    confidence_NK: npt.NDArray[np.float32]
    second_NK: npt.NDArray[np.float32]
    class_id_NK: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int64]

    def answers(self, threshold: float) -> list[Answer]:
        """The evaluated answer to each picture."""
        exits = exits_taken(self.confidence_NK, ExitRule.uniform(threshold, self.confidence_NK.shape[1])).tolist()
        return [Answer(n, int(self.class_id_NK[n, exit - 1]), exit, "", 0.0) for n, exit in enumerate(exits)]


@dataclass(frozen=True)
class Difference:
    """A picture whose served answer is not the evaluated one.

    distance: of the evaluated confidence from the threshold, at the shallower of the two exits; from the runner-up's
    confidence where only the class differs.
    """

    picture: int
    threshold: float
    served_exit: int
    evaluated_exit: int
    served_class_id: int
    evaluated_class_id: int
    distance: float


def run(options: AccuracyOptions) -> None:
    """Compare a server's answers with the evaluation of its bundle. Exits with status 1 when they do not agree."""
    bundle = load_bundle(options.model or EMBEDDED)
    reference = evaluate_bundle(bundle, options.dataset, options.data_root, options.pictures)
    pictures = read_test_pictures(options.dataset, options.data_root, options.pictures)
    with server_under_test(options.url, options.model, options.server_threads) as server:
        document = publish(options.output, compare(options, server, pictures, reference), section, ("differences",))
    for difference in document["differences"][:PRINTED]:
        say(fill(DIFFERENCE, difference))
    raise typer.Exit(0 if document["agrees"] else 1)


def evaluate_bundle(bundle: Bundle, dataset: str, data_root: Path, limit: int) -> Reference:
    """Run the first `limit` test pictures (0: all) through every exit on the CPU, in float32.

    Raises ValueError where the bundle's labels are not the data set's.
    """
    splits = load_splits(dataset, data_root, bundle.preprocessing)
    check_labels(bundle.labels, splits.class_names)
    subset = splits.test.subset(np.arange(min(limit or len(splits.test), len(splits.test))))
    batches = Batches(subset, BATCH_SIZE, torch.device("cpu"), shuffle=False, drop_last=False)
    outputs = collect_logits(bundle.net, batches, bundle.preprocessing)
    best = calibrated(outputs, bundle.calibration).topk(2, dim=2)
    return Reference(
        confidence_NK=best.values[:, :, 0].T.numpy(),
        second_NK=best.values[:, :, 1].T.numpy(),
        class_id_NK=best.indices[:, :, 0].T.numpy(),
        labels_N=outputs.labels_N.numpy(),
    )


def compare(options: AccuracyOptions, server: Server, pictures: TestPictures, reference: Reference) -> dict[str, Any]:
    """Send every picture at every threshold, mixed, and compare answers, evaluation and counters.

    Raises BenchmarkError where a request fails.
    """
    head, thresholds = provenance("accuracy", options), parse_thresholds(options.thresholds)
    pairs = list(product(range(len(pictures)), thresholds))
    random.Random(0).shuffle(pairs)
    requests = [prediction(pictures.png[n], f"threshold={threshold!r}").encoded() for n, threshold in pairs]
    model, _ = describe_model(server, requests[0])
    before = exit_counters(server.get("/metrics"))
    answers: dict[float, list[Answer]] = {threshold: [] for threshold in thresholds}
    for (n, threshold), answer in zip(pairs, ask_each(server, requests, options.connections), strict=True):
        answers[threshold].append(replace(answer, picture=n))
    counted = exit_counters(server.get("/metrics"))
    counted.subtract(before)
    answered = Counter(answer.exit for some in answers.values() for answer in some)
    different = {threshold: differences(answers[threshold], reference, threshold) for threshold in thresholds}
    every = [difference for some in different.values() for difference in some]
    sentences, agrees = conclude(every, answered, counted)
    return {
        **head,
        "served": model,
        "own_server": server.process is not None,
        "dataset": options.dataset,
        "pictures": len(pictures),
        "connections": options.connections,
        "agrees": agrees,
        "rows": [summarize(threshold, answers[threshold], reference, some) for threshold, some in different.items()],
        "answers_by_exit": {str(exit): count for exit, count in sorted(answered.items())},
        "counted_by_exit": {str(exit): count for exit, count in sorted(counted.items())},
        "conclusions": sentences,
        "differences": [vars(difference) for difference in every],
    }


def summarize(
    threshold: float, answers: Sequence[Answer], reference: Reference, different: Sequence[Difference]
) -> dict[str, Any]:
    """One threshold: served beside evaluated."""
    evaluated, num_exits = reference.answers(threshold), reference.confidence_NK.shape[1]
    labels = reference.labels_N.tolist()
    return {
        "threshold": threshold,
        "accuracy": accuracy(answers, labels),
        "evaluated_accuracy": accuracy(evaluated, labels),
        "exit_mix": exit_mix(answers, num_exits),
        "evaluated_mix": exit_mix(evaluated, num_exits),
        "exits_differing": sum(d.served_exit != d.evaluated_exit for d in different),
        "labels_differing": sum(d.served_class_id != d.evaluated_class_id for d in different),
        "largest_confidence_difference": largest_confidence_difference(answers, reference),
    }


def differences(answers: Sequence[Answer], reference: Reference, threshold: float) -> list[Difference]:
    """Every answer to `threshold` whose exit or class is not the evaluated one."""
    evaluated, different = reference.answers(threshold), []
    for answer in answers:
        n, expected = answer.picture, evaluated[answer.picture]
        if answer.exit != expected.exit:
            shallower = min(answer.exit, expected.exit) - 1
            distance = abs(float(reference.confidence_NK[n, shallower]) - threshold)
        elif answer.class_id != expected.class_id:
            distance = float(reference.confidence_NK[n, answer.exit - 1] - reference.second_NK[n, answer.exit - 1])
        else:
            continue
        exits, class_ids = (answer.exit, expected.exit), (answer.class_id, expected.class_id)
        different.append(Difference(n, threshold, *exits, *class_ids, distance))
    return different


def largest_confidence_difference(answers: Sequence[Answer], reference: Reference) -> float:
    """Largest difference of served and evaluated confidence at the served exit; 0 without answers."""
    evaluated = (float(reference.confidence_NK[answer.picture, answer.exit - 1]) for answer in answers)
    return max((abs(answer.confidence - each) for answer, each in zip(answers, evaluated, strict=True)), default=0.0)


def exit_counters(metrics: str) -> Counter[int]:
    """`offramp_samples_total` by exit, from the text of /metrics."""
    counts: Counter[int] = Counter()
    for sample in read_metrics(metrics):
        if sample.name == "offramp_samples_total":
            counts[int(sample.labels["exit"])] += int(sample.value)
    return counts


def conclude(
    different: Sequence[Difference], answered: Mapping[int, int], counted: Mapping[int, int]
) -> tuple[list[str], bool]:
    """Sentences, and whether server and evaluation agree: only float32 rounding differs, and counters are exact."""
    worst = max((d.distance for d in different), default=0.0)
    if not different:
        answers = "Every answer has the exit and the class that the evaluation gives."
    elif worst <= ROUNDING:
        answers = (
            f"{len(different)} answers differ from the evaluation, all within {worst:.1e} of a tie: float32 rounding."
        )
    else:
        answers = f"{len(different)} answers differ from the evaluation, by up to {worst:.1e}: not rounding."
    exits = sorted({*answered, *counted})
    exact = all(answered.get(exit, 0) == counted.get(exit, 0) for exit in exits)
    received, grown = (", ".join(f"exit {k}: {by.get(k, 0):,}" for k in exits) for by in (answered, counted))
    if exact:
        counters = f"`offramp_samples_total` grew by exactly the answers received ({received})."
    else:
        counters = f"`offramp_samples_total` grew by {grown}, but the answers received are {received}."
    return [answers, counters], worst <= ROUNDING and exact


def section(document: Document) -> str:
    """The table: served beside evaluated."""
    columns = {
        "threshold": "{threshold:g}",
        "accuracy served": "{accuracy:.2%}",
        "evaluated": "{evaluated_accuracy:.2%}",
        "exit mix served": "{exit_mix:.2f}",
        "exit mix evaluated": "{evaluated_mix:.2f}",
        "exits ≠": "{exits_differing}",
        "labels ≠": "{labels_differing}",
        "confidence ≠": "{largest_confidence_difference:.1e}",
    }
    how = (
        "{served}; {pictures:,} {dataset} test pictures as PNG, each at every threshold, {connections} requests in "
        "flight, thresholds mixed. Exit mix in %. ≠: number of answers that differ; of confidences, the largest "
        "difference."
    )
    text = section_of(document, table(columns, document["rows"]), how)
    return "\n".join([f"{text}\n", *(f"- {sentence}" for sentence in document["conclusions"])])
