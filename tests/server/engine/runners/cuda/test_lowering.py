"""The lowered network answers as the one it was made of, for every family of backbones and kind of head."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offramp.models.backbones import BACKBONES
from offramp.models.config import HeadKind, ModelConfig
from offramp.models.heads import HEADS
from offramp.models.layers import DepthwiseConv
from offramp.models.multi_exit import MultiExitNet
from offramp.server.engine.runners.cuda.lowering import (
    WholeLinear,
    cast_weights,
    choose_precision,
    fold_batch_norms,
    folded,
    largest_value,
    native_precisions,
)

CPU = torch.device("cpu")
# One name of each family, and what else has blocks of its own.
FAMILIES = {architecture.build: name for name, architecture in reversed(BACKBONES.items())}.values()
ARCHITECTURES = sorted({*FAMILIES, "resnet50", "resnext50_32x4d", "preact_resnet50", "seresnet50"})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lived_in(net: nn.Module) -> nn.Module:
    """Batch norms as after a training: nothing at its default, so that a wrong fold shows."""
    generator = torch.Generator().manual_seed(0)
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor, low, high in (
            (norm.weight, 0.5, 1.5),
            (norm.bias, -0.5, 0.5),
            (norm.running_mean, -0.5, 0.5),
            (norm.running_var, 0.5, 2.0),
        ):
            if tensor is not None:
                tensor.data.uniform_(low, high, generator=generator)
    return net.eval()


def make_net(architecture: str, head: HeadKind = "journal") -> MultiExitNet:
    torch.manual_seed(0)
    width = max(8, BACKBONES[architecture].standard_width // 4)
    net = lived_in(MultiExitNet(ModelConfig(architecture, 10, width=width, input_size=32, head=head)))
    assert isinstance(net, MultiExitNet)
    return net


def norms_in(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def answers(net: MultiExitNet) -> torch.Tensor:
    """Logits (K, B, classes) as served: stage by stage, features channels-last."""
    x_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x_BCHW, logits = x_BCHW.to(memory_format=torch.channels_last), []
    with torch.inference_mode():
        for stage in range(1, net.num_exits + 1):
            x_BCHW, logits_BC = net.run_stage(stage, x_BCHW)
            logits.append(logits_BC)
    return torch.stack(logits)


def check_folded(net: MultiExitNet) -> MultiExitNet:
    copied, wanted_KBC = folded(net, CPU), answers(net)
    scale = float(wanted_KBC.abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(answers(copied), wanted_KBC, rtol=0, atol=1e-5 * scale)
    return copied


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_answers_as_before_with_fewer_norms(architecture):
    net = make_net(architecture)
    before = norms_in(net)
    copied = check_folded(net)
    assert norms_in(copied) < before
    assert norms_in(net) == before


@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_head_answers_as_before(head):
    copied = check_folded(make_net("resnet18", head))
    # Left are the norm of the journal's mask, behind a ReLU, and SCAN's behind a transposed convolution.
    assert norms_in(copied) == {"journal": 3, "scan": 3, "light": 0}[head]


class Net(nn.Module):
    """A convolution and a norm, put together in some way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.convolution = nn.Conv2d(3, 3, 3, padding=1, bias=way == "with a bias")
        self.norm = nn.BatchNorm2d(3, affine=way != "without weights", track_running_stats=way != "without statistics")
        if way == "of another class":
            self.convolution = Biasless(3, 3, 3, padding=1, bias=False)
        if way == "with a hook":
            # As spectral norm does: the weight is no parameter but made anew before each call.
            self.made = self.convolution.weight.data
            del self.convolution.weight
            self.convolution.register_forward_pre_hook(self.make)

    def make(self, convolution: nn.Conv2d, inputs: object) -> None:
        convolution.__dict__["weight"] = self.made

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW: torch.Tensor = self.convolution(x_BCHW)
        match self.way:
            case "read twice":
                return self.norm(y_BCHW) + y_BCHW
            case "read in a list":
                return torch.cat([y_BCHW, self.norm(y_BCHW)])
            case "changed in between":
                y_BCHW.relu_()
            case "a convolution run twice":
                return self.norm(y_BCHW) + self.convolution(y_BCHW)
            case "a norm run twice":
                return self.norm(y_BCHW) + self.norm(x_BCHW)
            case "a norm that is shared":
                assert self.norm.running_mean is not None
                return self.norm(y_BCHW) * self.norm.running_mean[:, None, None]
        normed: torch.Tensor = self.norm(y_BCHW)
        return normed


class Biasless(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, padding=self.padding)


@pytest.mark.parametrize(
    ("way", "folded"),
    [
        ("plain", 1),
        ("with a bias", 1),
        ("without weights", 1),
        ("without statistics", 0),
        ("read twice", 0),
        ("read in a list", 0),
        ("changed in between", 0),
        ("a convolution run twice", 0),
        ("a norm run twice", 0),
        ("a norm that is shared", 0),
        ("of another class", 0),
        ("with a hook", 0),
    ],
)
def test_only_a_norm_that_alone_reads_a_convolution_is_folded(way, folded):
    torch.manual_seed(0)
    net, x_BCHW = lived_in(Net(way)), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = net(x_BCHW)
        assert fold_batch_norms(net, x_BCHW) == folded
        torch.testing.assert_close(net(x_BCHW), wanted, rtol=0, atol=1e-5)
    assert norms_in(net) == 1 - folded


def test_convolutions_get_half_the_bits_and_classifiers_and_norms_keep_all():
    dtype = torch.bfloat16
    copied = folded(make_net("densenet100_12"), CPU)
    cast_weights(copied, dtype)
    kinds: dict[type, set] = {}
    for module in copied.modules():
        for parameter in module.parameters(recurse=False):
            kinds.setdefault(type(module), set()).add(parameter.dtype)
    # Depthwise convolutions compute in float32 on a CPU.
    assert kinds == {
        nn.Conv2d: {dtype},
        DepthwiseConv: {torch.float32},
        nn.BatchNorm2d: {torch.float32},
        WholeLinear: {torch.float32},
    }
    assert all(
        parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in copied.parameters()
        if parameter.dim() == 4
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        _, logits_BC = copied.run_stage(1, torch.zeros(1, 3, 32, 32, dtype=dtype))
    assert logits_BC.dtype == torch.float32


AMPERE, TURING = ("float16", "bfloat16", "float32"), ("float16", "float32")


@pytest.mark.parametrize(
    ("name", "native", "largest", "dtype"),
    [
        ("auto", native_precisions(CPU), 1.0, torch.float32),
        ("auto", AMPERE, 100.0, torch.float16),
        ("auto", AMPERE, 10_000.0, torch.bfloat16),
        ("auto", TURING, 10_000.0, torch.float32),
        ("float16", AMPERE, 10_000.0, torch.float16),
        ("bfloat16", AMPERE, 1.0, torch.bfloat16),
        ("float32", TURING, 1.0, torch.float32),
    ],
)
def test_precision_follows_the_device_and_what_the_network_needs(name, native, largest, dtype):
    assert choose_precision(name, native, largest) == dtype


def test_precisions_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="precision 'int4' is unknown: give auto, float32, bfloat16, float16"):
        choose_precision("int4", AMPERE, 1.0)
    with pytest.raises(
        ValueError, match="precision 'bfloat16' is not there on this device: give auto, float16, float32"
    ):
        choose_precision("bfloat16", TURING, 1.0)


def test_the_largest_value_is_found_inside_the_network_too():
    up, down = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    up.weight.data.fill_(-50.0)
    down.weight.data.fill_(0.01)
    net = nn.Sequential(up, nn.Sequential(down))
    assert largest_value(net, torch.full((1, 1, 2, 2), 3.0)) == pytest.approx(150.0)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_weight_that_is_larger_than_all_that_is_computed_counts():
    net = nn.Conv2d(1, 1, 1, bias=False)
    net.weight.data.fill_(-70_000.0)
    assert largest_value(net, torch.full((1, 1, 2, 2), 0.001)) == 70_000.0
