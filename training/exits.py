"""Which exits pay: a head costs time also where nobody leaves, so each choice of exits is judged as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, pairwise

from models.config import ModelConfig
from models.cost import NetworkCost
from models.multi_exit import MultiExitNet
from training.answers import Answers, outcomes
from training.calibrate import fit_calibration
from training.evaluate import ExitLogits, calibrated
from training.search import NEVER, pareto_front, search

# The disagreement with its own full depth at which choices of exits are compared.
REFERENCE = 0.01
# Exits are left out where that makes the network cheaper by more than this share.
MARGIN = 0.02
# Choices double with each exit.
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


def judge_exits(outputs: ExitLogits, cost: NetworkCost) -> tuple[ExitChoice, ...]:
    """Every choice of exits that has the last, calibrated anew and searched on these pictures; all exits come first."""
    every, last = range(1, outputs.num_exits), outputs.num_exits
    choices = [(*early, last) for count in reversed(range(last)) for early in combinations(every, count)]
    full = cost.sequential_multiply_adds[-1]
    return tuple(_judge(with_exits(outputs, kept), sequential_cost(cost, kept), kept, full) for kept in choices)


def _judge(outputs: ExitLogits, sequential_K: Sequence[float], kept: tuple[int, ...], full: float) -> ExitChoice:
    answers = Answers.of(calibrated(outputs, fit_calibration(outputs)), outputs.labels_N)
    thresholds: tuple[float, ...] = (NEVER,) * (len(kept) - 1)
    if thresholds:
        front = pareto_front(search(answers), sequential_K)
        allowed = [point for point in front if point.disagreed <= REFERENCE * len(answers)]
        thresholds = allowed[-1].thresholds if allowed else thresholds
    (found,) = outcomes(answers, [thresholds])
    full_accuracy = float(answers.right_NK[:, -1].mean())
    accuracy = full_accuracy + (found.gained - found.lost) / len(answers)
    return ExitChoice(kept, found.mean_cost(sequential_K) / full, accuracy, full_accuracy)


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
    """Why the exits of such a network are not judged; empty where they are."""
    if num_exits == 1:
        return "it has one"
    if config.shapes:
        return "its layers were pruned, and are stored under the names of their stages"
    return f"{num_exits} exits have too many choices" if num_exits > MOST_EXITS else ""


def without_exits(net: MultiExitNet, kept: Sequence[int]) -> MultiExitNet:
    """The same network with these exits (1-based, the last among them) alone: stages between them run as one.

    Weights are handed over by their order, which is the backbone's, whatever stages its modules are joined to.
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
