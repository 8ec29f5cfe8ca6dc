"""After a step: which samples leave with an answer, and which go on. Pure, but for the progress of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from offramp.models.exit_policy import ExitReason, may_leave
from offramp.server.engine.errors import EngineError, InferenceFailed
from offramp.server.engine.request import Answer, Sample, Step
from offramp.server.engine.runners.runner import StepOutput


@dataclass
class Decision:
    """What becomes of the samples of one step."""

    answers: list[tuple[Sample, Answer]] = field(default_factory=list)
    failures: list[tuple[Sample, EngineError]] = field(default_factory=list)
    survivors: list[Sample] = field(default_factory=list)

    def __add__(self, other: Decision) -> Decision:
        return Decision(self.answers + other.answers, self.failures + other.failures, self.survivors + other.survivors)


def decide(stage: int, samples: Sequence[Sample], output: StepOutput, start_s: float, end_s: float) -> Decision:
    """Compare each sample's confidence with its own rule. A sample without finite confidence has failed.

    start_s, end_s: times of the step on the engine's clock. If it raises, no sample has changed, and the step can run
    again.
    """
    probabilities_BC = output.probabilities_BC
    assert len(probabilities_BC) == len(samples), "a runner gives one row a sample"
    class_id_B = probabilities_BC.argmax(axis=1)
    confidence_B = probabilities_BC[np.arange(len(samples)), class_id_B]
    limit_B = np.array([sample.plan.rule.limits[stage - 1] for sample in samples], dtype=np.float32)
    finite_B = np.isfinite(confidence_B)
    goes_on_B = finite_B & ~may_leave(confidence_B, limit_B)
    going_on, leaving = (rows_B.nonzero()[0].tolist() for rows_B in (goes_on_B, ~goes_on_B))
    step = Step(stage, class_id_B.tolist(), confidence_B.tolist(), probabilities_BC, start_s, end_s)
    states = [*output.keep(going_on)]
    decision = Decision()
    for row, state in zip(going_on, states, strict=True):
        sample = samples[row]
        sample.state, sample.trail = state, (*sample.trail, (step, row))
        decision.survivors.append(sample)
    for row in leaving:
        sample = samples[row]
        if not finite_B[row]:
            failure = InferenceFailed(f"stage {stage} gave no finite probabilities for this picture")
            decision.failures.append((sample, failure))
            continue
        sample.trail = (*sample.trail, (step, row))
        decision.answers.append((sample, sample.answer(_reason(sample, stage, step.confidences[row]), end_s)))
    return decision


def _reason(sample: Sample, stage: int, confidence: float) -> ExitReason:
    reason, contract = sample.plan.rule.reason(stage, confidence), sample.contract
    if reason is not ExitReason.CONFIDENT or sample.plan is contract.asked or sample.plan not in contract.looser:
        return reason
    would_stay = np.float32(confidence) < contract.asked.rule.limits[stage - 1]
    return ExitReason.BROWNOUT if would_stay else reason
