"""Properties of each kind of network: sizes and widths of its stages, its blocks, the widths that it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from offramp.models.backbones import standard_width
from offramp.models.backbones.mobilenet import InvertedResidual
from offramp.models.backbones.pyramidnet import PyramidBlock
from offramp.models.backbones.resnet import SqueezeExcitation
from offramp.models.backbones.shufflenet import ShuffleUnit
from offramp.models.config import ModelConfig, Stem
from offramp.models.layers import Projection
from offramp.models.multi_exit import MultiExitNet


@pytest.mark.parametrize(("architecture", "width"), [("resnet50", 64), ("wrn28_10", 16), ("mobilenetv2", 32)])
def test_standard_width_is_the_papers(architecture: str, width: int) -> None:
    assert standard_width(architecture) == width


def test_standard_width_of_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'mobilenet_v2' is unknown: did you mean 'mobilenetv2'\?"):
        standard_width("mobilenet_v2")


@pytest.mark.parametrize(("architecture", "multiple"), [("resnext50_32x4d", 16), ("resnext101_32x8d", 8)])
def test_resnext_refuses_a_width_that_its_groups_do_not_divide(architecture: str, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"width 12 does not fit {architecture}.*multiple of {multiple}$"):
        MultiExitNet(ModelConfig(architecture, 10, width=12))
    MultiExitNet(ModelConfig(architecture, 10, width=multiple))


def test_densenet_refuses_a_width_that_it_cannot_halve() -> None:
    with pytest.raises(ValueError, match=r"width 13 does not fit densenet121: its layers grow by half.*even number"):
        MultiExitNet(ModelConfig("densenet121", 10, width=13))


@pytest.mark.parametrize("width", [4, 5, 9, 23])
@pytest.mark.parametrize("architecture", ["mobilenetv2", "shufflenetv2_x1_0", "pyramidnet110_a48", "seresnet50"])
def test_families_that_round_their_channels_take_every_width(architecture: str, width: int) -> None:
    net = MultiExitNet(ModelConfig(architecture, 3, width)).eval()
    with torch.no_grad():
        assert all(z.shape == (1, 3) for z in net(torch.randn(1, 3, 32, 32)).logits)


@pytest.mark.parametrize(
    ("architecture", "stem", "sides"),
    [
        ("resnet18", "cifar", [64, 32, 16, 8]),
        ("resnet18", "imagenet", [16, 8, 4, 2]),
        ("wrn16_2", "cifar", [64, 32, 16]),
        ("densenet100_12", "cifar", [64, 32, 16, 16]),
        ("pyramidnet110_a48", "cifar", [64, 64, 32, 16]),
        ("vgg11_bn", "cifar", [32, 16, 8, 4, 2]),
        ("vgg11_bn", "imagenet", [32, 16, 8, 4, 2]),
        ("mobilenetv2", "cifar", [64, 32, 16, 8]),
        ("mobilenetv2", "imagenet", [16, 8, 4, 2]),
        ("shufflenetv2_x0_5", "cifar", [32, 16, 16, 8]),
        ("shufflenetv2_x0_5", "imagenet", [8, 4, 4, 2]),
    ],
)
def test_stages_have_the_papers_feature_sizes(architecture: str, stem: Stem, sides: list[int]) -> None:
    net = MultiExitNet(ModelConfig(architecture, 2, width=4, input_size=64, stem=stem)).eval()
    x_BCHW, seen = torch.randn(1, 3, 64, 64), []
    for stage in net.stages:
        x_BCHW = stage(x_BCHW)
        seen.append(x_BCHW.shape[2])
    assert seen == sides


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [
        ("resnet18", [64, 128, 256, 512]),
        ("preact_resnet50", [256, 512, 1024, 2048]),
        ("wrn28_10", [160, 320, 640]),
        ("densenet100_12", [120, 108, 150, 342]),
        ("pyramidnet110_a270", [61, 106, 196, 286]),
        ("vgg19_bn", [64, 128, 256, 512, 512]),
        ("mobilenetv2", [24, 32, 96, 1280]),
        ("shufflenetv2_x1_0", [116, 232, 232, 1024]),
    ],
)
def test_stages_have_the_papers_channels(architecture: str, channels: list[int]) -> None:
    with torch.device("meta"):
        net = MultiExitNet(ModelConfig(architecture, 2, standard_width(architecture))).eval()
        x_BCHW, seen = torch.empty(1, 3, 32, 32), []
        for stage in net.stages:
            x_BCHW = stage(x_BCHW)
            seen.append(x_BCHW.shape[1])
    assert seen == channels


def test_shuffle_units_interleave_what_they_keep_with_what_they_work_on() -> None:
    unit = ShuffleUnit(6).eval()
    x_BCHW = torch.randn(2, 6, 4, 4)
    y_BCHW = unit(x_BCHW)
    assert torch.equal(y_BCHW[:, 0::2], x_BCHW[:, :3])
    assert torch.equal(y_BCHW[:, 1::2], unit.branch(x_BCHW[:, 3:]))


def test_pyramid_blocks_carry_their_input_on_and_fill_the_new_channels_from_zero() -> None:
    block = PyramidBlock(3, 5, stride=2).eval()
    nn.init.zeros_(block.bn3.weight)
    x_BCHW = torch.arange(48.0).reshape(1, 3, 4, 4)
    y_BCHW = block(x_BCHW)
    assert torch.equal(y_BCHW[:, :3], nn.functional.avg_pool2d(x_BCHW, 2))
    assert not y_BCHW[:, 3:].any()


def test_mobile_blocks_have_a_shortcut_only_where_the_shapes_agree() -> None:
    x_BCHW = torch.randn(1, 8, 4, 4)
    for out_channels, stride, carried in [(8, 1, True), (8, 2, False), (16, 1, False)]:
        block = InvertedResidual(8, out_channels, stride, expansion=6).eval()
        assert torch.equal(block(x_BCHW), x_BCHW + block.layers(x_BCHW) if carried else block.layers(x_BCHW))


def test_squeeze_and_excitation_weighs_channels_by_all_channels_averages() -> None:
    gate = SqueezeExcitation(8).eval()
    x_BCHW = torch.randn(2, 8, 3, 3)
    weight_BC = (gate(x_BCHW) / x_BCHW).mean(dim=(2, 3))
    hidden_B4 = (x_BCHW.mean(dim=(2, 3)) @ gate.squeeze.weight.T + gate.squeeze.bias).relu()
    torch.testing.assert_close(weight_BC, (hidden_B4 @ gate.excite.weight.T + gate.excite.bias).sigmoid())


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_shortcut_trains_as_the_convolution_that_it_is(stride: int, size: int) -> None:
    torch.manual_seed(0)
    projection, x_BCHW = Projection(3, 5, stride), torch.randn(2, 3, size, size)
    plain = nn.Conv2d(3, 5, 1, stride=stride, bias=False)
    plain.load_state_dict(projection.state_dict())
    first, second = x_BCHW.clone().requires_grad_(), x_BCHW.clone().requires_grad_()
    torch.testing.assert_close(projection(first), plain(second))
    projection(first).square().sum().backward()
    plain(second).square().sum().backward()
    torch.testing.assert_close(first.grad, second.grad)
    torch.testing.assert_close(projection.weight.grad, plain.weight.grad)
    with torch.no_grad():
        assert torch.equal(projection(x_BCHW), plain(x_BCHW))
