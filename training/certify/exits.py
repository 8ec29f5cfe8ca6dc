"""Which exits pay. Every picture that passes a head pays for it, so each choice of exits is compared as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, pairwise

from offramp.models.config import ModelConfig
from offramp.models.cost import NetworkCost
from offramp.models.multi_exit import MultiExitNet
from offramp.training.certify.calibrate import fit_calibration
from offramp.training.certify.search import NEVER, pareto_front, search
from offramp.training.evaluate.evaluation import ExitLogits, calibrated
from offramp.training.evaluate.predictions import ExitPredictions, count_at_thresholds

# The disagreement with its own full depth at which choices of exits are compared.
REFERENCE = 0.01
# Exits are left out when that makes the network cheaper by more than this share.
MARGIN = 0.02
# The number of choices doubles with each exit.
MOST_EXITS = 6


@dataclass(frozen=True)
class ExitChoice:
    """A network with these exits (1-based) alone, at its cheapest thresholds that disagree on at most REFERENCE.

    compute: mean multiply-adds, heads of other exits not counted, over full depth's of the network with all exits.
    accuracy: (0..1) there; full_accuracy: of its full depth.
    """

    exits: tuple[int, ...]
    compute: float
    accuracy: float
    full_accuracy: float


def compare_exits(outputs: ExitLogits, cost: NetworkCost) -> tuple[ExitChoice, ...]:
    """Every choice of exits that has the last, calibrated anew and searched on these pictures; all exits come first."""
    every, last = range(1, outputs.num_exits), outputs.num_exits
    choices = [(*early, last) for count in reversed(range(last)) for early in combinations(every, count)]
    full = cost.sequential_multiply_adds[-1]
    return tuple(_compare(with_exits(outputs, kept), sequential_cost(cost, kept), kept, full) for kept in choices)


def _compare(outputs: ExitLogits, sequential_K: Sequence[float], kept: tuple[int, ...], full: float) -> ExitChoice:
    answers = ExitPredictions.of(calibrated(outputs, fit_calibration(outputs)), outputs.labels_N)
    thresholds: tuple[float, ...] = (NEVER,) * (len(kept) - 1)
    if thresholds:
        front = pareto_front(search(answers), sequential_K)
        allowed = [point for point in front if point.disagreed <= REFERENCE * len(answers)]
        thresholds = allowed[-1].thresholds if allowed else thresholds
    (counts,) = count_at_thresholds(answers, [thresholds])
    full_accuracy = float(answers.right_NK[:, -1].mean())
    accuracy = full_accuracy + (counts.gained - counts.lost) / len(answers)
    return ExitChoice(kept, counts.mean_cost(sequential_K) / full, accuracy, full_accuracy)


def best_choice(choices: Sequence[ExitChoice], tolerance: float) -> ExitChoice:
    """The cheapest choice that loses at most `tolerance` of accuracy against all exits, where it gains over MARGIN."""
    everything = choices[0]
    accurate = [choice for choice in choices if choice.accuracy >= everything.accuracy - tolerance]
    best = min(accurate, key=lambda choice: choice.compute)
    return best if best.compute < (1.0 - MARGIN) * everything.compute else everything


def sequential_cost(cost: NetworkCost, kept: Sequence[int]) -> tuple[float, ...]:
    """What answering at each of these exits (1-based) costs in multiply-adds, other heads not counted."""
    stages = [sum(cost.stage_multiply_adds[before:after]) for before, after in pairwise((0, *kept))]
    heads = [cost.head_multiply_adds[k - 1] for k in kept]
    return tuple(accumulate(float(stage + head) for stage, head in zip(stages, heads, strict=True)))


def with_exits(outputs: ExitLogits, kept: Sequence[int]) -> ExitLogits:
    """The logits of these exits (1-based): leaving a head out changes none of the others."""
    return ExitLogits(outputs.logits_KNC[[k - 1 for k in kept]], outputs.labels_N)


def why_kept(config: ModelConfig, num_exits: int) -> str:
    """Why the exits of such a network are not compared; empty when they are."""
    if num_exits == 1:
        return "it has one"
    if config.shapes:
        return "its layers were pruned, and are stored under the names of their stages"
    return f"{num_exits} exits have too many choices" if num_exits > MOST_EXITS else ""


def without_exits(net: MultiExitNet, kept: Sequence[int]) -> MultiExitNet:
    """The same network with these exits (1-based, the last among them) alone: stages between them run as one.

    Weights are copied in the order of the backbone, which does not depend on the stages that its modules belong to.
    """
    assert not net.config.shapes
    assert kept[-1] == net.num_exits
    stages = net.config.exits or tuple(range(1, net.num_exits + 1))
    fewer = MultiExitNet(replace(net.config, exits=tuple(stages[k - 1] for k in kept)))
    names, tensors = list(fewer.stages.state_dict()), list(net.stages.state_dict().values())
    fewer.stages.load_state_dict(dict(zip(names, tensors, strict=True)))
    for head, k in zip(fewer.heads, kept, strict=True):
        head.load_state_dict(net.heads[k - 1].state_dict())
    return fewer.eval()
