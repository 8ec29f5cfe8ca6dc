"""What a network costs, counted on the model itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from offramp.models.backbones import standard_width
from offramp.models.config import HeadKind, ModelConfig
from offramp.models.cost import _WORK, NetworkCost, count_cost, network_cost
from offramp.models.multi_exit import MultiExitNet

aten = torch.ops.aten
PAPER = ModelConfig("resnet18", num_classes=100)


def backbone_parameters(cost: NetworkCost) -> int:
    """Parameters of the plain network: every stage and the last head."""
    return sum(cost.stage_parameters) + cost.head_parameters[-1]


def over_backbone(cost: NetworkCost) -> list[float]:
    """Sequential cost relative to the plain network."""
    return [spent / cost.backbone_multiply_adds for spent in cost.sequential_multiply_adds]


def test_resnet18_on_cifar_costs_what_the_paper_says() -> None:
    cost = count_cost(PAPER)
    assert round(cost.backbone_multiply_adds / 1e6, 1) == 555.5
    assert round(backbone_parameters(cost) / 1e6, 2) == 11.22
    assert [round(share, 3) for share in over_backbone(cost)] == [0.297, 0.555, 0.806, 1.048]


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


def test_transposed_convolutions_cost_a_kernel_for_each_input() -> None:
    # SCAN's head 3 at width 4: 16 channels at 8x8; mask down to 4x4 and up again; 8 channels; to 4x4; 32 channels.
    cost = count_cost(ModelConfig("resnet18", num_classes=10, width=4, head="scan"))
    attention = 16 * 9 * 16 * 16 + 16 * 16 * 16 * 16
    reduce = 64 * 16 * 8 + 16 * 4 * 8 * 8 + 16 * 8 * 32
    assert cost.head_multiply_adds[2] == attention + reduce + 32 * 10


# What all exits together add to the backbone, CIFAR-100.
HEAD_SHARES: list[tuple[str, HeadKind, float]] = [
    ("resnet18", "journal", 0.048),
    ("resnet18", "scan", 0.214),
    ("resnet18", "light", 0.002),
    ("resnet50", "journal", 0.315),
    ("resnet50", "light", 0.003),
    ("mobilenetv2", "journal", 0.099),
    ("mobilenetv2", "light", 0.004),
    ("shufflenetv2_x0_5", "journal", 0.461),
    ("shufflenetv2_x0_5", "light", 0.048),
]


@pytest.mark.parametrize(("architecture", "head", "share"), HEAD_SHARES)
def test_heads_cost_their_share_of_the_backbone(architecture: str, head: HeadKind, share: float) -> None:
    cost = count_cost(ModelConfig(architecture, 100, standard_width(architecture), head=head))
    assert over_backbone(cost)[-1] - 1 == pytest.approx(share, abs=6e-4)


def test_light_heads_cost_a_large_picture_no_more_than_a_small_one() -> None:
    small, large = (count_cost(ModelConfig("resnet50", 10, input_size=size, head="light")) for size in (32, 96))
    assert large.head_multiply_adds == small.head_multiply_adds


@pytest.mark.parametrize("head", ["journal", "scan", "light"])
def test_a_network_that_is_there_costs_what_one_that_is_not_does(head: HeadKind) -> None:
    config = ModelConfig("resnet18", num_classes=10, width=8, head=head)
    net = MultiExitNet(config).eval()
    assert network_cost(net) == network_cost(net) == count_cost(config)


class Tokens(nn.Module):
    """A functional convolution to 8 channels, attention as a module and as a call, and a product back to C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, channels, 1, 1))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.back = nn.Parameter(torch.ones(8, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        tokens_BND = F.conv2d(x_BCHW, self.weight).flatten(2).mT
        tokens_BND, _ = self.attention(tokens_BND, tokens_BND, tokens_BND, need_weights=False)
        tokens_BND = F.scaled_dot_product_attention(tokens_BND, tokens_BND, tokens_BND)
        return (tokens_BND @ self.back).mT.unflatten(2, x_BCHW.shape[2:])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_functional_convolutions_and_attention_count_as_modules_do(device: str) -> None:
    net = MultiExitNet(ModelConfig("resnet18", num_classes=10, width=4)).eval()
    before = network_cost(net).stage_multiply_adds
    net.stages[2] = nn.Sequential(net.stages[2], Tokens(16))
    after = network_cost(net.to(device)).stage_multiply_adds
    pixels, products = 8 * 8, 2 * 64 * 64 * 8
    own = pixels * 16 * 8 + (pixels * 4 * 8 * 8 + products) + products + pixels * 8 * 16
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 0, own, 0]


def test_totals_are_sums_over_stages_and_heads() -> None:
    cost = count_cost(ModelConfig("resnet50", num_classes=10, width=8))
    net = MultiExitNet(ModelConfig("resnet50", num_classes=10, width=8))
    assert cost.total_parameters == sum(parameter.numel() for parameter in net.parameters())
    assert cost.total_parameters == backbone_parameters(cost) + sum(cost.head_parameters[:-1])
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


# Parameters of the same networks with 1000 classes: torchvision; imgclsmob (pytorchcv) for seresnet and preact_resnet.
IMAGENET_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "densenet121": 7_978_856,
    "mobilenetv2": 3_504_872,
    "shufflenetv2_x0_5": 1_366_792,
    "shufflenetv2_x1_0": 2_278_604,
    "shufflenetv2_x1_5": 3_503_624,
    "shufflenetv2_x2_0": 7_393_996,
    "seresnet18": 11_778_592,
    "seresnet34": 21_958_868,
    "seresnet50": 28_088_024,
    "preact_resnet18": 11_687_848,
    "preact_resnet34": 21_796_008,
    "preact_resnet50": 25_549_480,
}


@pytest.mark.parametrize("architecture", IMAGENET_PARAMETERS)
def test_imagenet_networks_have_the_published_parameter_counts(architecture: str) -> None:
    cost = count_cost(ModelConfig(architecture, 1000, standard_width(architecture), input_size=224))
    assert backbone_parameters(cost) == IMAGENET_PARAMETERS[architecture]


@pytest.mark.parametrize(
    ("architecture", "giga"),
    [
        ("resnet18", 1.814),
        ("resnet50", 4.089),
        ("densenet121", 2.834),
        ("mobilenetv2", 0.301),
        ("shufflenetv2_x1_0", 0.145),
    ],
)
def test_imagenet_networks_have_the_published_multiply_adds(architecture: str, giga: float) -> None:
    cost = count_cost(ModelConfig(architecture, 1000, standard_width(architecture), input_size=224))
    assert cost.backbone_multiply_adds / 1e9 == pytest.approx(giga, abs=5e-4)


# Parameters on CIFAR-100: imgclsmob (pytorchcv).
CIFAR_PARAMETERS = {
    "wrn28_10": 36_536_884,
    "densenet100_12": 800_032,
    "pyramidnet110_a48": 1_778_556,
    "pyramidnet110_a84": 3_913_536,
    "pyramidnet110_a270": 28_511_307,
}


@pytest.mark.parametrize("architecture", CIFAR_PARAMETERS)
def test_cifar_networks_have_the_published_parameter_counts(architecture: str) -> None:
    cost = count_cost(ModelConfig(architecture, 100, standard_width(architecture)))
    assert backbone_parameters(cost) == CIFAR_PARAMETERS[architecture]


# Millions of multiply-adds and of parameters on CIFAR-100, by width: chenyaofo/pytorch-cifar-models.
LIGHT_CIFAR_NETWORKS = [
    ("mobilenetv2", 16, 28.08, 0.82),
    ("mobilenetv2", 24, 59.43, 1.48),
    ("mobilenetv2", 32, 88.09, 2.35),
    ("shufflenetv2_x0_5", 24, 10.99, 0.44),
    ("shufflenetv2_x1_0", 24, 45.09, 1.36),
    ("shufflenetv2_x1_5", 24, 94.35, 2.58),
    ("shufflenetv2_x2_0", 24, 188.00, 5.55),
]


@pytest.mark.parametrize(("architecture", "width", "multiply_adds", "parameters"), LIGHT_CIFAR_NETWORKS)
def test_light_cifar_networks_have_the_published_cost(
    architecture: str, width: int, multiply_adds: float, parameters: float
) -> None:
    cost = count_cost(ModelConfig(architecture, 100, width))
    assert cost.backbone_multiply_adds / 1e6 == pytest.approx(multiply_adds, abs=0.006)
    assert backbone_parameters(cost) / 1e6 == pytest.approx(parameters, abs=0.006)


# Millions of parameters on CIFAR-10: the paper's table.
@pytest.mark.parametrize(("architecture", "millions"), [("wrn40_2", 2.2), ("wrn40_4", 8.9), ("wrn28_10", 36.5)])
def test_wide_resnets_have_the_papers_parameters(architecture: str, millions: float) -> None:
    cost = count_cost(ModelConfig(architecture, 10, standard_width(architecture)))
    assert backbone_parameters(cost) / 1e6 == pytest.approx(millions, abs=0.05)


# Millions of multiply-adds on CIFAR-10: imgclsmob, which counts batch norms too, and so a little more.
@pytest.mark.parametrize(
    ("architecture", "published"),
    [("wrn28_10", 5246.98), ("densenet100_12", 298.45), ("pyramidnet110_a270", 4730.60)],
)
def test_large_cifar_networks_have_the_published_cost_but_for_their_norms(architecture: str, published: float) -> None:
    cost = count_cost(ModelConfig(architecture, 10, standard_width(architecture)))
    assert 0.96 < cost.backbone_multiply_adds / 1e6 / published < 1


# Millions on CIFAR-100: chenyaofo/pytorch-cifar-models, with two more layers of 512 in front of the last.
@pytest.mark.parametrize(
    ("architecture", "multiply_adds", "parameters"),
    [
        ("vgg11_bn", 153.34, 9.80),
        ("vgg13_bn", 228.84, 9.99),
        ("vgg16_bn", 313.77, 15.30),
        ("vgg19_bn", 398.71, 20.61),
    ],
)
def test_vgg_has_the_published_cost_but_for_the_layers_that_it_leaves_out(
    architecture: str, multiply_adds: float, parameters: float
) -> None:
    cost = count_cost(ModelConfig(architecture, 100))
    layers = 2 * 512 * 512
    assert (cost.backbone_multiply_adds + layers) / 1e6 == pytest.approx(multiply_adds, abs=0.006)
    # Ours have no biases in front of the batch norms: up to 5504 parameters.
    assert (backbone_parameters(cost) + layers + 2 * 512) / 1e6 == pytest.approx(parameters, abs=0.011)


@pytest.mark.parametrize("architecture", ["vgg11_bn", "seresnet18", "shufflenetv2_x1_0", "densenet121"])
def test_half_the_width_is_less_than_half_the_cost(architecture: str) -> None:
    standard = standard_width(architecture)
    half, full = (count_cost(ModelConfig(architecture, 10, width)) for width in (standard // 2, standard))
    assert half.backbone_multiply_adds < 0.5 * full.backbone_multiply_adds
    assert backbone_parameters(half) < 0.5 * backbone_parameters(full)


@pytest.mark.parametrize("input_size", [32, 320])
def test_a_bounded_count_is_the_same_count(input_size: int) -> None:
    net = MultiExitNet(ModelConfig("resnet18", 10, width=4, input_size=input_size)).eval()
    assert network_cost(net, is_bounded=True) == network_cost(net)


def test_what_takes_too_much_is_refused_before_it_is_run() -> None:
    for width in (32, 68):
        # Of width 68, the very first layer has more values than a layer may have.
        net = MultiExitNet(ModelConfig("resnet18", 10, width, input_size=1024, stem="cifar")).eval()
        with pytest.raises(ValueError, match="more than 64 billion multiply-adds, or a layer more than 67 million va"):
            network_cost(net, is_bounded=True)


def test_a_network_too_deep_is_refused_though_each_of_its_layers_is_small() -> None:
    net = MultiExitNet(ModelConfig("resnet18", 10, width=256, input_size=256, stem="cifar")).eval()
    with pytest.raises(ValueError, match="more than 64 billion"):
        network_cost(net, is_bounded=True)


def test_a_layer_with_too_many_values_is_refused_though_the_network_computes_little() -> None:
    net = MultiExitNet(ModelConfig("mobilenetv2", 10, width=24, input_size=1024, stem="cifar", head="light")).eval()
    assert network_cost(net.to("meta")).sequential_multiply_adds[-1] < 64e9
    with pytest.raises(ValueError, match="or a layer more than 67 million values"):
        network_cost(net, is_bounded=True)


OPERATIONS: list[tuple[Any, list[Any]]] = [
    (
        aten.convolution,
        [torch.ones(2, 4, 9, 8), torch.ones(6, 2, 3, 2), None, [2, 1], [1, 0], [1, 3], False, [0, 0], 2],
    ),
    (aten.convolution, [torch.ones(2, 4, 9, 8), torch.ones(4, 3, 3, 2), None, [2, 3], [1, 0], [2, 1], True, [1, 2], 2]),
    (aten.addmm, [torch.ones(5), torch.ones(2, 3), torch.ones(3, 5)]),
    (aten.bmm, [torch.ones(4, 2, 3), torch.ones(4, 3, 5)]),
]


@pytest.mark.parametrize(("operation", "arguments"), OPERATIONS)
def test_the_work_of_an_operation_is_known_before_it_runs(operation: Any, arguments: list[Any]) -> None:
    multiply_adds, values = _WORK[operation](*arguments)
    output = operation(*arguments)
    assert values == output.numel()
    # torch counts a multiply-add as two operations.
    assert 2 * multiply_adds == flop_registry[operation](*arguments, out_val=output)
