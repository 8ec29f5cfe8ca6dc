"""Exits that cost more than they save go, and the network without them answers as before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.models.config import ModelConfig
from offramp.models.cost import NetworkCost, count_cost
from offramp.models.multi_exit import MultiExitNet
from offramp.training.certify.exits import (
    MIN_SAVING,
    best_choice,
    compare_exits,
    network_with_exits,
    sequential_cost,
    why_not_compared,
    with_exits,
)
from offramp.training.evaluate.evaluation import ExitLogits
from offramp.training.prune import prune


@pytest.mark.parametrize(
    ("architecture", "exits", "remaining"),
    [
        ("resnet18", (), (2, 4)),
        ("resnet18", (), (4,)),
        ("resnet18", (2, 3, 4), (1, 3)),
        ("mobilenetv2", (), (1, 3, 4)),
        ("shufflenetv2_x1_0", (), (2, 4)),
        ("densenet100_12", (), (1, 4)),
    ],
)
def test_the_network_with_fewer_exits_answers_as_before_at_those_that_stay(
    architecture: str, exits: tuple[int, ...], remaining: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = MultiExitNet(ModelConfig(architecture, 5, width=8, input_size=32, exits=exits)).eval()
    # Statistics that differ, so that exchanged layers would show.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.rand(2, module.num_features) + 0.5
    fewer = network_with_exits(net, remaining)
    x_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, after = net(x_BCHW).logits, fewer(x_BCHW).logits
    assert len(after) == len(remaining)
    for logits_BC, k in zip(after, remaining, strict=True):
        assert torch.equal(logits_BC, before[k - 1])
    cost = count_cost(net.config)
    assert sequential_cost(cost, remaining) == count_cost(fewer.config).sequential_multiply_adds


@pytest.fixture
def outputs() -> ExitLogits:
    """Three exits that are right on nearly all pictures, and say so."""
    labels_N = torch.arange(600) % 5
    truth_NC = 9.0 * F.one_hot(labels_N, 5).float()
    noise_KNC: Tensor = torch.randn(3, 600, 5, generator=torch.Generator().manual_seed(0))
    return ExitLogits(truth_NC + noise_KNC, labels_N)


def test_heads_that_cost_more_than_they_save_are_left_out(outputs: ExitLogits) -> None:
    choices = compare_exits(outputs, NetworkCost((10, 10, 80), (1, 60, 1), (1, 1, 1), (1, 1, 1)))
    assert [choice.exits for choice in choices] == [(1, 2, 3), (1, 3), (2, 3), (3,)]
    # All leave at exit 1, so exit 2 costs nothing: no reason to leave it out.
    assert best_choice(choices, 0.005).exits == (1, 2, 3)
    first_is_dear = compare_exits(outputs, NetworkCost((10, 10, 80), (60, 1, 1), (1, 1, 1), (1, 1, 1)))
    assert best_choice(first_is_dear, 0.005).exits == (2, 3)
    every_head_is_dear = compare_exits(outputs, NetworkCost((10, 10, 80), (200, 200, 1), (1, 1, 1), (1, 1, 1)))
    assert best_choice(every_head_is_dear, 0.005).exits == (3,)


def test_costs_are_over_full_depth_of_all_exits_without_the_other_heads(outputs: ExitLogits) -> None:
    choices = {c.exits: c for c in compare_exits(outputs, NetworkCost((10, 10, 80), (5, 5, 10), (1, 1, 1), (1, 1, 1)))}
    assert choices[(3,)].compute == pytest.approx(110 / 120)
    assert choices[(1, 2, 3)].compute == pytest.approx(15 / 120, abs=0.03)
    assert choices[(2, 3)].compute == pytest.approx(25 / 120, abs=0.03)


def test_a_small_gain_or_one_that_loses_accuracy_keeps_all_exits(outputs: ExitLogits) -> None:
    everything, *others = compare_exits(outputs, NetworkCost((10, 10, 80), (5, 5, 10), (1, 1, 1), (1, 1, 1)))
    little = replace(others[0], compute=everything.compute * (1 - MIN_SAVING / 2))
    much = replace(others[0], compute=everything.compute * (1 - 2 * MIN_SAVING))
    worse = replace(much, accuracy=everything.accuracy - 0.01)
    assert best_choice([everything, little], 0.005) is everything
    assert best_choice([everything, much], 0.005) is much
    assert best_choice([everything, worse], 0.005) is everything


def test_logits_of_kept_exits_are_taken(outputs: ExitLogits) -> None:
    fewer = with_exits(outputs, (1, 3))
    assert torch.equal(fewer.logits_KNC, outputs.logits_KNC[[0, 2]])


def test_pruned_networks_and_plain_ones_keep_their_exits() -> None:
    net = MultiExitNet(ModelConfig("resnet18", 3, width=4, input_size=16))
    assert why_not_compared(net.config, 4) == ""
    assert "pruned" in why_not_compared(prune(net, 0.7).config, 4)
    assert "one" in why_not_compared(net.config, 1)
    assert "choices" in why_not_compared(net.config, 9)
