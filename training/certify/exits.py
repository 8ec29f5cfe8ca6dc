"""Which exits save more than their heads cost.

A head costs time for every picture that passes it, so choices of exits are compared as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, pairwise

from offramp.models.config import ModelConfig
from offramp.models.cost import NetworkCost
from offramp.models.multi_exit import MultiExitNet
from offramp.training.certify.calibrate import fit_calibration
from offramp.training.certify.search import NEVER_THRESHOLD, pareto_front, search
from offramp.training.evaluate.evaluation import ExitLogits, predictions_of
from offramp.training.evaluate.predictions import count_at_thresholds

# Disagreement with the choice's own full depth at which choices of exits are compared.
REFERENCE_DISAGREEMENT = 0.01
# Exits are left out when that makes the network cheaper by more than this share.
MIN_SAVING = 0.02
# The number of choices doubles with each exit.
MOST_EXITS = 6


@dataclass(frozen=True)
class ExitChoice:
    """A network with these exits (1-based) alone, at its cheapest thresholds up to REFERENCE_DISAGREEMENT.

    compute: mean multiply-adds, without the heads of other exits, over full depth's of the network with all exits.
    accuracy: (0..1) at these thresholds; full_accuracy: at its full depth.
    """

    exits: tuple[int, ...]
    compute: float
    accuracy: float
    full_accuracy: float


def compare_exits(outputs: ExitLogits, cost: NetworkCost) -> tuple[ExitChoice, ...]:
    """Every choice of exits with the last one, calibrated anew and searched on these pictures; all exits come first."""
    every, last = range(1, outputs.num_exits), outputs.num_exits
    choices = [(*early, last) for count in reversed(range(last)) for early in combinations(every, count)]
    full = cost.sequential_multiply_adds[-1]
    return tuple(_compare(with_exits(outputs, exits), sequential_cost(cost, exits), exits, full) for exits in choices)


def _compare(outputs: ExitLogits, sequential_K: Sequence[float], exits: tuple[int, ...], full: float) -> ExitChoice:
    predictions = predictions_of(outputs, fit_calibration(outputs))
    thresholds: tuple[float, ...] = (NEVER_THRESHOLD,) * (len(exits) - 1)
    if thresholds:
        front = pareto_front(search(predictions), sequential_K)
        allowed = [point for point in front if point.disagreed <= REFERENCE_DISAGREEMENT * len(predictions)]
        thresholds = allowed[-1].thresholds if allowed else thresholds
    (counts,) = count_at_thresholds(predictions, [thresholds])
    accuracy = predictions.full_accuracy + (counts.gained - counts.lost) / len(predictions)
    return ExitChoice(exits, counts.mean_cost(sequential_K) / full, accuracy, predictions.full_accuracy)


def best_choice(choices: Sequence[ExitChoice], tolerance: float) -> ExitChoice:
    """The cheapest choice that loses at most `tolerance` of accuracy against all exits; all exits if it saves little.

    Little is a share of the cost below MIN_SAVING.
    """
    all_exits = choices[0]
    accurate = [choice for choice in choices if choice.accuracy >= all_exits.accuracy - tolerance]
    best = min(accurate, key=lambda choice: choice.compute)
    return best if best.compute < (1.0 - MIN_SAVING) * all_exits.compute else all_exits


def sequential_cost(cost: NetworkCost, exits: Sequence[int]) -> tuple[float, ...]:
    """Multiply-adds of an answer at each of these exits (1-based), without other heads."""
    stages = [sum(cost.stage_multiply_adds[before:after]) for before, after in pairwise((0, *exits))]
    heads = [cost.head_multiply_adds[k - 1] for k in exits]
    return tuple(accumulate(float(stage + head) for stage, head in zip(stages, heads, strict=True)))


def with_exits(outputs: ExitLogits, exits: Sequence[int]) -> ExitLogits:
    """The logits of these exits (1-based). No exit's logits depend on another exit's head."""
    return ExitLogits(outputs.logits_KNC[[k - 1 for k in exits]], outputs.labels_N)


def why_not_compared(config: ModelConfig, num_exits: int) -> str:
    """Why the exits of a network are not compared; empty when they are."""
    if num_exits == 1:
        return "it has one"
    if config.shapes:
        return "its layers were pruned, and are stored under the names of their stages"
    return f"{num_exits} exits have too many choices" if num_exits > MOST_EXITS else ""


def network_with_exits(net: MultiExitNet, exits: Sequence[int]) -> MultiExitNet:
    """The same network with these exits (1-based, the last among them) alone. Stages between them become one stage.

    Weights are copied in the order of the backbone, which does not depend on the division into stages.
    """
    assert not net.config.shapes
    assert exits[-1] == net.num_exits
    stages = net.config.exits or tuple(range(1, net.num_exits + 1))
    fewer = MultiExitNet(replace(net.config, exits=tuple(stages[k - 1] for k in exits)))
    names, tensors = list(fewer.stages.state_dict()), list(net.stages.state_dict().values())
    fewer.stages.load_state_dict(dict(zip(names, tensors, strict=True)))
    for head, k in zip(fewer.heads, exits, strict=True):
        head.load_state_dict(net.heads[k - 1].state_dict())
    return fewer.eval()
