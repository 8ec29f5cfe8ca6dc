"""Pruning: whole channels leave, all exits stay, and what is left is the network that the library cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.models.backbones import BACKBONES, Architecture
from offramp.models.backbones.backbone import Backbone
from offramp.models.bundle import Bundle, load_bundle, rounded, save_bundle
from offramp.models.config import HeadKind, ModelConfig
from offramp.models.cost import count_cost
from offramp.models.exit_policy import Calibration
from offramp.models.heads import HEADS
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.training.prune import TOLERANCE, PruneError, _rebuild, prune

torch_pruning = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (the prune extra)")

# One network of each family, and grouped convolutions beside.
FAMILIES = (
    "resnet18", "resnext50_32x4d", "seresnet18", "preact_resnet18", "wrn16_2", "pyramidnet110_a48", "densenet100_12",
    "vgg11_bn", "mobilenetv2", "shufflenetv2_x0_5",
)  # fmt: skip
SIZE = 16


def lived_in(architecture: str, width: int = 4, **others: Any) -> MultiExitNet:
    """Random weights, batch norms with statistics, scales and biases of their own."""
    torch.manual_seed(0)
    net = MultiExitNet(ModelConfig(architecture, 3, width, SIZE, **others)).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    return net


def layer_of(net: MultiExitNet, name: str) -> Any:
    return net.get_submodule(name)


def pictures(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def logits(net: MultiExitNet) -> list[Tensor]:
    with torch.no_grad():
        answers: list[Tensor] = net(pictures()).logits
    return answers


def remaining_share(net: MultiExitNet, pruned: MultiExitNet) -> float:
    """Share of full depth's multiply-adds that pruning leaves."""
    return count_cost(pruned.config).sequential_multiply_adds[-1] / count_cost(net.config).sequential_multiply_adds[-1]


def test_every_family_is_tried() -> None:
    assert {BACKBONES[name].build for name in FAMILIES} == {architecture.build for architecture in BACKBONES.values()}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_is_pruned_and_comes_back_from_a_bundle(architecture: str, tmp_path: Path) -> None:
    net = lived_in(architecture, 16 if architecture.startswith("resnext") else 4)
    pruned = prune(net, 0.6)
    assert remaining_share(net, pruned) == pytest.approx(0.6, abs=TOLERANCE)
    assert count_cost(pruned.config).total_parameters == sum(parameter.numel() for parameter in pruned.parameters())
    assert [tuple(z.shape) for z in logits(pruned)] == [(4, 3)] * net.num_exits
    assert {p.dtype for p in pruned.parameters()} == {torch.float32}
    assert not pruned.training

    calibration = Calibration.neutral(net.num_exits)
    bundle = Bundle("a", "1", pruned.config, Preprocessing(SIZE), ("a", "b", "c"), calibration, 1.0, pruned)
    save_bundle(bundle, tmp_path / "bundle", "card")
    assert all(map(torch.equal, logits(load_bundle(tmp_path / "bundle").net), logits(rounded(pruned))))


@pytest.mark.parametrize(
    ("architecture", "stem"),
    [("resnet18", "stages.0.0.0"), ("mobilenetv2", "stages.0.0"), ("densenet100_12", "stages.0.0")],
)
def test_the_rebuild_network_equals_to_the_bit_what_the_library_cut(architecture: str, stem: str) -> None:
    net = lived_in(architecture)
    cut = deepcopy(net)
    graph = torch_pruning.DependencyGraph().build_dependency(
        cut, pictures(), forward_fn=lambda model, x: model(x).logits, verbose=False
    )
    for name in (stem, "heads.1.reduce.0.1"):
        graph.get_pruning_group(layer_of(cut, name), torch_pruning.prune_conv_out_channels, idxs=[1]).prune()
    rebuilt = _rebuild(net.config, cut)
    assert len(rebuilt.config.shapes) > 5
    assert all(map(torch.equal, logits(rebuilt), logits(cut)))


def test_the_least_important_channels_leave() -> None:
    net, faint = lived_in("resnet18"), [1, 4, 6, 7]
    block = layer_of(net, "stages.1.1")
    with torch.no_grad():
        for weight in (block.conv1.weight, block.bn1.weight, block.conv2.weight.transpose(0, 1)):
            weight[faint] *= 1e-3
    remaining = layer_of(prune(net, 0.9), "stages.1.1.bn1").weight.tolist()
    assert len(remaining) == 4
    assert set(remaining) == set(block.bn1.weight.tolist()) - set(block.bn1.weight[faint].tolist())


def test_backbone_and_heads_both_shrink_and_classes_stay() -> None:
    net = lived_in("resnet18", width=8)
    pruned = prune(net, 0.5)
    before, after = count_cost(net.config), count_cost(pruned.config)
    assert all(map(int.__lt__, after.stage_multiply_adds, before.stage_multiply_adds))
    assert all(map(int.__lt__, after.head_multiply_adds, before.head_multiply_adds))
    assert [layer_of(pruned, f"heads.{k}.classifier").out_features for k in range(4)] == [3] * 4


@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_head_is_pruned(head: HeadKind) -> None:
    net = lived_in("resnet18", width=8, head=head)
    pruned = prune(net, 0.5)
    assert remaining_share(net, pruned) == pytest.approx(0.5, abs=TOLERANCE)
    shrunk = {name for name, _ in pruned.config.shapes}
    for part in ("stages", "heads"):
        assert {name.split(".")[1] for name in shrunk if name.startswith(part)} == {"0", "1", "2", "3"}
    assert {"stages.0.0.0", "stages.1.0.shortcut.0", "stages.2.0.shortcut.0", "stages.3.0.shortcut.0"} <= shrunk


def test_wide_layers_keep_multiples_of_eight() -> None:
    net = prune(lived_in("resnet18", width=32), 0.5)
    channels = {c.out_channels for c in net.modules() if isinstance(c, nn.Conv2d)}
    assert {c % 8 for c in channels} == {0}


@pytest.mark.parametrize("keep", [0.9, 0.2])
def test_what_is_kept_is_what_was_asked_for(keep: float) -> None:
    net = lived_in("resnet18", width=16)
    assert remaining_share(net, prune(net, keep)) == pytest.approx(keep, abs=0.02)


def test_the_network_given_and_torchs_random_state_stay_as_they_are() -> None:
    net = lived_in("resnet18").train().requires_grad_(False)
    before, random_state = {name: t.clone() for name, t in net.state_dict().items()}, torch.get_rng_state()
    first, second = prune(net, 0.5), prune(net, 0.5)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert first.config == second.config
    assert all(map(torch.equal, logits(first), logits(second)))


def test_a_pruned_network_is_pruned_further() -> None:
    once = prune(lived_in("resnet18", width=8), 0.6)
    twice = prune(once, 0.5)
    assert remaining_share(once, twice) == pytest.approx(0.5, abs=TOLERANCE)
    assert set(dict(once.config.shapes)) <= set(dict(twice.config.shapes))


def test_a_network_with_chosen_exits_and_its_deepest_exit_alone_are_pruned() -> None:
    for exits in ((2, 4), (4,)):
        pruned = prune(lived_in("resnet18", exits=exits), 0.6)
        assert pruned.num_exits == len(exits)
        assert pruned.config.exits == exits


def test_fine_tuning_reaches_every_weight_and_lowers_the_loss() -> None:
    net = prune(lived_in("resnet18", width=8), 0.5).train()
    x_BCHW, labels_B = pictures(12), torch.arange(12) % 3
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9), []
    for _ in range(12):
        loss = torch.stack([nn.functional.cross_entropy(z, labels_B) for z in net(x_BCHW).logits]).sum()
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_share_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(PruneError, match=r"keep \S+ is out of range: give the share .* to keep, above 0 and below 1"):
        prune(lived_in("resnet18"), keep)


def test_a_share_that_cannot_be_met_names_the_nearest() -> None:
    with pytest.raises(
        PruneError, match=r"shufflenetv2_x0_5 of width 4 cannot keep 0.01 .* nearest that its channels allow is 0\.\d+"
    ):
        prune(lived_in("shufflenetv2_x0_5"), 0.01)


class Reordered(nn.Module):
    """An operation that puts channels elsewhere."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


Register = Callable[[Callable[[Tensor], Tensor], int], MultiExitNet]


@pytest.fixture
def reordering() -> Iterator[Register]:
    """A network with an operation between its stages, which makes `channels` of 16."""

    def register(operation: Callable[[Tensor], Tensor], channels: int) -> MultiExitNet:
        def build(config: ModelConfig) -> Backbone:
            first = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), Reordered(operation))
            second = (nn.Conv2d(channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
            return Backbone([nn.Sequential(*first), nn.Sequential(*second)], [channels, 16])

        BACKBONES["reordering"] = Architecture(build, 16)
        return lived_in("reordering")

    yield register
    del BACKBONES["reordering"]


@pytest.mark.parametrize(
    ("operation", "channels"),
    [
        (lambda x: torch.cat(x.split((4, 12), dim=1)[::-1], dim=1), 16),
        (lambda x: torch.stack((x, 2 * x), dim=2).flatten(1, 2), 32),
        (lambda x: nn.functional.pad(x, (0, 0, 0, 0, 3, 1)), 20),
        (lambda x: x.unflatten(1, (4, 4)).permute(0, 2, 1, 3, 4).flatten(1, 2), 16),
        (lambda x: x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2), 16),
        (lambda x: x.roll(3, 1), 16),
        (lambda x: x.flip(1), 16),
        (lambda x: x[:, [1, 3, 2, 0]], 4),
        (lambda x: x.repeat(1, 2, 1, 1), 32),
    ],
    ids=["split", "stack", "pad", "permute", "transpose", "roll", "flip", "index", "repeat"],
)
def test_channels_that_are_put_elsewhere_stay_and_the_others_are_pruned(
    operation: Callable[[Tensor], Tensor], channels: int, reordering: Register
) -> None:
    net = prune(reordering(operation, channels), 0.7)
    assert layer_of(net, "stages.0.0").out_channels < 16
    assert layer_of(net, "stages.0.3").out_channels == 16
    assert layer_of(net, "stages.1.0").in_channels == channels


def test_channels_that_a_slice_leaves_out_are_followed(reordering: Register) -> None:
    net = prune(reordering(lambda x: x[:, 2:], 14), 0.5)
    assert layer_of(net, "stages.1.0").in_channels == layer_of(net, "stages.0.3").out_channels - 2 < 14


def test_a_network_that_the_library_gets_wrong_is_refused(reordering: Register) -> None:
    with pytest.raises(PruneError, match=r"reordering cannot be pruned: .* its channels \(the wrong channels left\)"):
        prune(reordering(lambda x: x.cumsum(1), 16), 0.7)


def test_without_the_library_the_extra_is_named() -> None:
    # None in sys.modules makes an import fail as it does where the package is not installed.
    code = (
        "import sys; sys.modules['torch_pruning'] = None\n"
        "from offramp.models.config import ModelConfig\nfrom offramp.models.multi_exit import MultiExitNet\n"
        "from offramp.training.prune import prune\n"
        "try:\n    prune(MultiExitNet(ModelConfig('resnet18', 3, width=4)), 0.5)\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "pruning needs torch-pruning, which is not installed: pip install 'offramp[prune]'\n"
