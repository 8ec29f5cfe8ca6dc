"""After a step: who leaves with an answer, who goes on. Pure but for the samples' own progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.exit_policy import ExitReason, leaves
from server.engine.audit import AuditStats
from server.engine.errors import EngineError, InferenceFailed
from server.engine.request import Answer, Sample, Step
from server.engine.runners.runner import StepOutput


@dataclass(frozen=True)
class Decision:
    """What becomes of the samples of one step. audited: of those answered, who goes on for the audit."""

    answers: list[tuple[Sample, Answer]] = field(default_factory=list)
    failures: list[tuple[Sample, EngineError]] = field(default_factory=list)
    survivors: list[Sample] = field(default_factory=list)
    audited: list[Sample] = field(default_factory=list)

    def __add__(self, other: Decision) -> Decision:
        return Decision(
            self.answers + other.answers,
            self.failures + other.failures,
            self.survivors + other.survivors,
            self.audited + other.audited,
        )


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
    going_on, leaving = (rows_B.nonzero()[0].tolist() for rows_B in (goes_on_B, ~goes_on_B))
    step = Step(stage, class_id_B.tolist(), confidence_B.tolist(), probabilities_BC, start_s, end_s)
    audited = [row for row in leaving if samples[row].audited and _leaves_by_choice(samples[row], step, row)]
    states = [*output.keep([*going_on, *audited])]
    decision = Decision()
    for row, state in zip(going_on, states[: len(going_on)], strict=True):
        sample = samples[row]
        sample.state, sample.trail = state, (*sample.trail, (step, row))
        decision.survivors.append(sample)
    for row, state in zip(audited, states[len(going_on) :], strict=True):
        sample = samples[row]
        sample.state, sample.answered = state, step.visit(row)
        decision.audited.append(sample)
    for row in leaving:
        sample = samples[row]
        if not finite_B[row]:
            failure = InferenceFailed(f"stage {stage} gave no finite probabilities for this picture")
            decision.failures.append((sample, failure))
            continue
        sample.trail = (*sample.trail, (step, row))
        decision.answers.append((sample, sample.answer(_reason(sample, step, row), end_s)))
    return decision


def compare(stage: int, samples: Sequence[Sample], output: StepOutput) -> list[AuditStats]:
    """An audit's step: the samples go on, or have come to full depth and are compared with what clients were told."""
    if stage < len(samples[0].contract.rule.limits):
        for sample, state in zip(samples, output.keep(range(len(samples))), strict=True):
            sample.state = state
        return []
    class_ids = output.probabilities_BC.argmax(axis=1).tolist()
    finite_B = np.isfinite(output.probabilities_BC.max(axis=1)).tolist()
    return [
        # Where full depth names no class, a client would have been told so: that is no disagreement.
        _compared(sample, class_id) if finite else agrees(stage, sample)
        for sample, class_id, finite in zip(samples, class_ids, finite_B, strict=True)
    ]


def agrees(num_stages: int, sample: Sample) -> AuditStats:
    """Of an audited sample that there is nothing to compare of: it went to full depth itself, or came to nothing."""
    return _audit_stats(num_stages, False, sample)


def _compared(sample: Sample, class_id: int) -> AuditStats:
    assert sample.answered is not None, "only what was answered is audited"
    return _audit_stats(sample.answered.exit, class_id != sample.answered.class_id, sample)


def _audit_stats(exit: int, disagreed: bool, sample: Sample) -> AuditStats:
    promise = sample.contract.promise
    if promise is None:
        return AuditStats(exit, disagreed, None, certified=False, ticket=sample.audited)
    return AuditStats(exit, disagreed, promise.max_disagreement, promise.certified, sample.audited)


def _leaves_by_choice(sample: Sample, step: Step, row: int) -> bool:
    """Early, and because it was confident enough: what no contract's bound on depth has cut short."""
    confidence, rule = step.confidences[row], sample.contract.rule
    # Not finite is not confident.
    return rule.reason(step.stage, confidence) is ExitReason.CONFIDENT


def _reason(sample: Sample, step: Step, row: int) -> ExitReason:
    confidence = step.confidences[row]
    reason = sample.contract.rule.reason(step.stage, confidence)
    if sample.rung <= 0 or sample.asked is None or reason is not ExitReason.CONFIDENT:
        return reason
    stays = np.float32(confidence) < sample.asked.limits[step.stage - 1]
    return ExitReason.BROWNOUT if stays else reason
