"""What a network costs, counted on the model itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from models.config import ModelConfig
from models.cost import count_cost
from models.multi_exit import MultiExitNet

PAPER = ModelConfig("resnet18", num_classes=100)


def test_resnet18_on_cifar_costs_what_the_paper_says() -> None:
    cost = count_cost(PAPER)
    assert round(cost.backbone_multiply_adds / 1e6, 1) == 555.5
    assert round(cost.backbone_parameters / 1e6, 2) == 11.22
    assert [round(share, 3) for share in cost.sequential_over_backbone] == [0.297, 0.555, 0.806, 1.048]


def test_first_stage_and_last_head_equal_a_count_by_hand() -> None:
    cost = count_cost(PAPER)
    pixels = 32 * 32
    assert cost.stage_multiply_adds[0] == pixels * (27 * 64 + 4 * 9 * 64 * 64)
    assert cost.stage_parameters[0] == 27 * 64 + 4 * 9 * 64 * 64 + 5 * 2 * 64
    assert cost.head_multiply_adds[-1] == 512 * 100
    assert cost.head_parameters[-1] == 512 * 100 + 100


def test_depthwise_convolutions_cost_their_groups_share() -> None:
    # Head 3 at width 4, 8x8 features of 16 channels: attention to 4x4, then one SepConv to 32 channels, classifier.
    cost = count_cost(ModelConfig("resnet18", num_classes=10, width=4))
    attention = 16 * (9 * 16 + 16 * 16 + 9 * 16 + 16 * 16)
    reduce = 16 * (9 * 16 + 16 * 16 + 9 * 16 + 16 * 32)
    assert cost.head_multiply_adds[2] == attention + reduce + 32 * 10


def test_totals_are_sums_over_stages_and_heads() -> None:
    cost = count_cost(ModelConfig("resnet50", num_classes=10, width=8))
    net = MultiExitNet(ModelConfig("resnet50", num_classes=10, width=8))
    assert cost.total_parameters == sum(parameter.numel() for parameter in net.parameters())
    assert cost.total_parameters == cost.backbone_parameters + sum(cost.head_parameters[:-1])
    everything = sum(cost.stage_multiply_adds) + sum(cost.head_multiply_adds)
    assert cost.sequential_multiply_adds[-1] == everything
    assert cost.backbone_multiply_adds == everything - sum(cost.head_multiply_adds[:-1])
    sequential = (0, *cost.sequential_multiply_adds)
    steps = [after - before for before, after in pairwise(sequential)]
    assert steps == [s + h for s, h in zip(cost.stage_multiply_adds, cost.head_multiply_adds, strict=True)]
    assert cost.compute == tuple(spent / everything for spent in cost.sequential_multiply_adds)
    assert cost.compute[-1] == 1.0


def test_counting_leaves_torch_as_it_was() -> None:
    random_state = torch.get_rng_state()
    count_cost(ModelConfig("resnet18", num_classes=10, width=4))
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.empty(1).device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), random_state)


def test_count_is_the_same_under_another_default_device() -> None:
    config = ModelConfig("resnet18", num_classes=10, width=4)
    with torch.device("meta"):
        assert count_cost(config) == count_cost(config)
        inside = count_cost(config)
    assert inside == count_cost(config)


# Parameters of the same networks in torchvision, 1000 classes.
TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
}


@pytest.mark.parametrize("architecture", TORCHVISION)
def test_imagenet_networks_have_the_published_parameter_counts(architecture: str) -> None:
    cost = count_cost(ModelConfig(architecture, num_classes=1000, input_size=224))
    assert cost.backbone_parameters == TORCHVISION[architecture]


@pytest.mark.parametrize(("architecture", "giga"), [("resnet18", 1.814), ("resnet50", 4.089)])
def test_imagenet_networks_have_the_published_multiply_adds(architecture: str, giga: float) -> None:
    cost = count_cost(ModelConfig(architecture, num_classes=1000, input_size=224))
    assert cost.backbone_multiply_adds / 1e9 == pytest.approx(giga, abs=5e-4)
