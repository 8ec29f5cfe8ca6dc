"""After a step: who leaves with an answer, who goes on. Pure but for the samples' own progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.exit_policy import leaves
from server.engine.errors import EngineError, InferenceFailed
from server.engine.request import Answer, Progress, Sample, Visit
from server.engine.runners.runner import StepOutput


@dataclass(frozen=True)
class Decision:
    """What becomes of the samples of one step."""

    answers: list[tuple[Sample, Answer]] = field(default_factory=list)
    failures: list[tuple[Sample, EngineError]] = field(default_factory=list)
    survivors: list[Sample] = field(default_factory=list)

    def __add__(self, other: Decision) -> Decision:
        return Decision(self.answers + other.answers, self.failures + other.failures, self.survivors + other.survivors)


def decide(stage: int, samples: Sequence[Sample], output: StepOutput, start_s: float, end_s: float) -> Decision:
    """Compare each sample's confidence with its own contract; a sample without finite confidence has failed.

    start_s, end_s: when the step ran, on the engine's clock. Where it raises, no sample has been changed, so that
    the step can be run again.
    """
    class_id_B = output.probabilities_BC.argmax(axis=1)
    assert len(class_id_B) == len(samples), "a runner gives one row a sample"
    confidence_B = output.probabilities_BC[np.arange(len(samples)), class_id_B]
    limit_B = np.array([sample.contract.rule.limits[stage - 1] for sample in samples], dtype=np.float32)
    finite_B = np.isfinite(confidence_B)
    going_on = np.flatnonzero(finite_B & ~leaves(confidence_B, limit_B)).tolist()
    states = dict(zip(going_on, output.keep(going_on), strict=True))
    decision = Decision()
    rows = zip(samples, class_id_B.tolist(), confidence_B.tolist(), finite_B.tolist(), strict=True)
    for row, (sample, class_id, confidence, is_finite) in enumerate(rows):
        if not is_finite:
            failure = InferenceFailed(f"stage {stage} gave no finite probabilities for this picture")
            decision.failures.append((sample, failure))
            continue
        visit = Visit(stage, class_id, confidence)
        sample.progress = _further(sample, visit, output.probabilities_BC[row], start_s, end_s)
        if row in states:
            sample.state, sample.enqueued_s = states[row], end_s
            decision.survivors.append(sample)
        else:
            decision.answers.append((sample, sample.answer(sample.contract.rule.reason(stage, confidence), end_s)))
    return decision


def _further(
    sample: Sample, visit: Visit, probabilities_C: npt.NDArray[np.float32], start_s: float, end_s: float
) -> Progress:
    before = sample.progress
    # Copied, because a row that is only a view keeps those of all batch-mates alive.
    return Progress(
        visited=(*(before.visited if before else ()), visit),
        probabilities_C=probabilities_C.copy(),
        queue_s=(before.queue_s if before else 0.0) + start_s - sample.enqueued_s,
        inference_s=(before.inference_s if before else 0.0) + end_s - start_s,
    )
