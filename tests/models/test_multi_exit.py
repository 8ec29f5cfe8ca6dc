"""Every architecture builds, answers at every exit and learns everywhere, in stages and as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from offramp.models.backbones import BACKBONES
from offramp.models.bundle import Bundle, load_bundle, rounded, save_bundle
from offramp.models.config import HeadKind, ModelConfig, Stem
from offramp.models.cost import count_cost
from offramp.models.exit_policy import Calibration
from offramp.models.heads import HEADS
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing

# The narrowest widths that the groups of each network allow.
WIDTHS = {"resnext50_32x4d": 16, "resnext101_32x8d": 8}
STEMS: list[tuple[Stem, int]] = [("cifar", 32), ("imagenet", 64)]
# One network of each kind, for slower tests.
KINDS = [
    "resnet50",
    "seresnet18",
    "preact_resnet50",
    "wrn16_2",
    "pyramidnet110_a48",
    "densenet100_12",
    "vgg11_bn",
    "mobilenetv2",
    "shufflenetv2_x0_5",
]


def narrow(architecture: str, stem: Stem, input_size: int) -> ModelConfig:
    return ModelConfig(architecture, 5, WIDTHS.get(architecture, 4), input_size, stem)


def stages_of(architecture: str) -> int:
    return 3 if architecture.startswith("wrn") else 5 if architecture.startswith("vgg") else 4


def by_stages(net: MultiExitNet, x_BCHW: Tensor) -> list[Tensor]:
    logits = []
    for stage in range(1, net.num_exits + 1):
        x_BCHW, logits_BC = net.run_stage(stage, x_BCHW)
        logits.append(logits_BC)
    return logits


def check_from_building_to_bundle(config: ModelConfig, exits: int, path: Path) -> None:
    """Check that stages give the whole forward, shapes and cost are right, and a bundle gives the network back."""
    torch.manual_seed(0)
    net = MultiExitNet(config).eval()
    assert net.num_exits == exits
    x_BCHW = torch.randn(2, 3, config.input_size, config.input_size)

    with torch.no_grad():
        outputs = net(x_BCHW)
        assert all(map(torch.equal, outputs.logits, by_stages(net, x_BCHW)))
        assert [tuple(logits.shape) for logits in outputs.logits] == [(2, 5)] * exits
        assert [tuple(embedding.shape) for embedding in outputs.embeddings] == [(2, d) for d in net.embedding_sizes]
        assert all(torch.isfinite(logits).all() for logits in outputs.logits)

    cost = count_cost(config)
    assert min(cost.stage_multiply_adds + cost.head_multiply_adds) > 0
    assert cost.total_parameters == sum(parameter.numel() for parameter in net.parameters())

    bundle = Bundle(
        "net",
        "1",
        config,
        Preprocessing(config.input_size),
        tuple("abcde"),
        Calibration.neutral(exits),
        threshold=0.8,
        net=net,
    )
    save_bundle(bundle, path, "card")
    loaded, expected = load_bundle(path).net.state_dict(), rounded(net).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def check_every_parameter_learns(config: ModelConfig) -> None:
    torch.manual_seed(0)
    net = MultiExitNet(config).train()
    x_BCHW, labels_B = torch.randn(4, 3, config.input_size, config.input_size), torch.tensor([0, 1, 2, 3])
    loss = torch.stack([nn.functional.cross_entropy(z, labels_B) for z in net(x_BCHW).logits]).sum()
    loss.backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize(("stem", "input_size"), STEMS)
@pytest.mark.parametrize("architecture", BACKBONES)
def test_every_architecture_works_from_building_to_bundle(
    architecture: str, stem: Stem, input_size: int, tmp_path: Path
) -> None:
    config = narrow(architecture, stem, input_size)
    check_from_building_to_bundle(config, stages_of(architecture), tmp_path / "bundle")


@pytest.mark.parametrize(("stem", "input_size"), STEMS)
@pytest.mark.parametrize("architecture", BACKBONES)
def test_every_parameter_of_every_architecture_learns(architecture: str, stem: Stem, input_size: int) -> None:
    check_every_parameter_learns(narrow(architecture, stem, input_size))


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"journal"}))
@pytest.mark.parametrize("architecture", ["resnet18", "wrn16_2", "vgg11_bn", "mobilenetv2", "shufflenetv2_x0_5"])
def test_every_head_fits_networks_of_three_four_and_five_stages(
    architecture: str, head: HeadKind, tmp_path: Path
) -> None:
    config = replace(narrow(architecture, "cifar", 32), head=head)
    check_from_building_to_bundle(config, stages_of(architecture), tmp_path / "bundle")
    check_every_parameter_learns(config)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("architecture", "exits"), [("resnet18", (2, 4)), ("vgg11_bn", (1, 3, 5)), ("wrn16_2", (3,))])
def test_a_subset_of_the_exits_is_a_network_too(
    architecture: str, exits: tuple[int, ...], head: HeadKind, tmp_path: Path
) -> None:
    config = replace(narrow(architecture, "cifar", 32), exits=exits, head=head)
    check_from_building_to_bundle(config, len(exits), tmp_path / "bundle")
    check_every_parameter_learns(config)
    whole, some = count_cost(replace(config, exits=())), count_cost(config)
    assert some.backbone_multiply_adds == whole.backbone_multiply_adds
    assert some.head_multiply_adds[:-1] == tuple(whole.head_multiply_adds[k - 1] for k in exits[:-1])


@pytest.mark.parametrize("exit", [1, 2, 3, 4])
def test_an_exits_loss_reaches_its_own_head_and_the_stages_before_it_only(exit: int) -> None:
    torch.manual_seed(0)
    net = MultiExitNet(ModelConfig("resnet18", 5, width=4)).train()
    logits_BC = net(torch.randn(4, 3, 32, 32)).logits[exit - 1]
    nn.functional.cross_entropy(logits_BC, torch.tensor([0, 1, 2, 3])).backward()
    reached = {
        ".".join(name.split(".")[:2]) for name, p in net.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached == {f"heads.{exit - 1}"} | {f"stages.{k}" for k in range(exit)}


def test_unknown_architecture_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"'resnet81' is unknown: did you mean 'resnet18'\? choose one of .*resnet152"):
        MultiExitNet(ModelConfig("resnet81", 10))


def test_unknown_architecture_far_from_all_gets_no_wild_guess() -> None:
    with pytest.raises(ValueError, match=r"'zzz' is unknown: choose one of"):
        MultiExitNet(ModelConfig("zzz", 10))


@pytest.mark.parametrize(("input_size", "stem"), [(16, "cifar"), (96, "cifar"), (97, "imagenet"), (224, "imagenet")])
def test_stem_follows_the_input_size(input_size: int, stem: Stem) -> None:
    config = ModelConfig("resnet18", 10, input_size=input_size)
    assert config.stem == stem
    other: Stem = "imagenet" if stem == "cifar" else "cifar"
    assert replace(config, stem=other).stem == other


@pytest.mark.parametrize("input_size", [16, 17, 33, 45, 97])
@pytest.mark.parametrize("architecture", KINDS)
def test_odd_input_sizes_work_at_every_exit(architecture: str, input_size: int) -> None:
    net = MultiExitNet(ModelConfig(architecture, 3, width=4, input_size=input_size)).eval()
    with torch.no_grad():
        assert all(z.shape == (1, 3) for z in net(torch.randn(1, 3, input_size, input_size)).logits)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("input_size", "stem"), [(16, "imagenet"), (21, "imagenet"), (19, "cifar")])
@pytest.mark.parametrize("architecture", ["vgg11_bn", "mobilenetv2", "densenet121"])
def test_every_head_takes_features_smaller_than_its_strides(
    architecture: str, input_size: int, stem: Stem, head: HeadKind
) -> None:
    net = MultiExitNet(replace(narrow(architecture, stem, input_size), head=head)).eval()
    with torch.no_grad():
        assert all(z.shape == (1, 5) for z in net(torch.randn(1, 3, input_size, input_size)).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "num_classes 1 is out of range: give 2 to 100000"),
        ({"width": 3}, "width 3 is out of range: give 4 to 512"),
        ({"width": 513}, "width 513 is out of range: give 4 to 512"),
        ({"input_size": 15}, "input_size 15 is out of range.*16 to 1024"),
        ({"input_size": 1025}, "input_size 1025 is out of range.*16 to 1024"),
        ({"stem": "resnet"}, "stem 'resnet' is unknown: choose 'cifar', 'imagenet' or 'auto'"),
    ],
)
def test_config_refuses_what_no_network_can_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ModelConfig("resnet18", 10), **changes)
