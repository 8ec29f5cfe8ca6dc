"""After a step: who leaves with an answer, who goes on. Pure but for the samples' own progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.exit_policy import leaves
from server.engine.errors import EngineError, InferenceFailed
from server.engine.request import Answer, Sample, Step
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
    probabilities_BC = output.probabilities_BC
    assert len(probabilities_BC) == len(samples), "a runner gives one row a sample"
    class_id_B = probabilities_BC.argmax(axis=1)
    confidence_B = probabilities_BC[np.arange(len(samples)), class_id_B]
    limit_B = np.array([sample.contract.rule.limits[stage - 1] for sample in samples], dtype=np.float32)
    finite_B = np.isfinite(confidence_B)
    goes_on_B = finite_B & ~leaves(confidence_B, limit_B)
    going_on = goes_on_B.nonzero()[0].tolist()
    states = [*output.keep(going_on)]
    step = Step(stage, class_id_B.tolist(), confidence_B.tolist(), probabilities_BC, start_s, end_s)
    decision = Decision()
    for row, state in zip(going_on, states, strict=True):
        sample = samples[row]
        sample.state, sample.trail = state, (*sample.trail, (step, row))
        decision.survivors.append(sample)
    for row in (~goes_on_B).nonzero()[0].tolist():
        sample = samples[row]
        if not finite_B[row]:
            failure = InferenceFailed(f"stage {stage} gave no finite probabilities for this picture")
            decision.failures.append((sample, failure))
            continue
        sample.trail = (*sample.trail, (step, row))
        reason = sample.contract.rule.reason(stage, step.confidences[row])
        decision.answers.append((sample, sample.answer(reason, end_s)))
    return decision
