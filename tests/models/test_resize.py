"""A pruned network comes back from its description alone, and a description of nonsense is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from offramp.models.bundle import DESCRIPTION, Bundle, BundleError, load_bundle, rounded, save_bundle
from offramp.models.config import LayerShapes, ModelConfig
from offramp.models.cost import count_cost
from offramp.models.layers import DepthwiseConv
from offramp.models.multi_exit import MultiExitNet
from offramp.models.resize import changed_shapes, for_classes, outputs, resize, weight_shapes

WHOLE = ModelConfig("resnet18", num_classes=3, width=4)
# One channel fewer inside a block, two fewer inside an attention module, three fewer in front of a classifier.
SHAPES: LayerShapes = (
    ("stages.0.1.conv1", (3, 4, 3, 3)),
    ("stages.0.1.bn1", (3,)),
    ("stages.0.1.conv2", (4, 3, 3, 3)),
    ("heads.1.attention.down.1", (6, 8, 1, 1)),
    ("heads.1.attention.down.2", (6,)),
    ("heads.1.attention.down.4", (6, 1, 3, 3)),
    ("heads.1.attention.down.5", (8, 6, 1, 1)),
    ("heads.2.reduce.0.5", (29, 16, 1, 1)),
    ("heads.2.reduce.0.6", (29,)),
    ("heads.2.classifier", (3, 29)),
)
PRUNED = replace(WHOLE, shapes=SHAPES)


def layer_of(net: MultiExitNet, name: str) -> Any:
    return net.get_submodule(name)


def test_a_network_is_built_with_the_shapes_of_its_description() -> None:
    torch.manual_seed(0)
    net = MultiExitNet(PRUNED)
    assert changed_shapes(weight_shapes(MultiExitNet(WHOLE)), weight_shapes(net)) == SHAPES
    assert net.embedding_sizes == (32, 32, 29, 32)
    block, depthwise = layer_of(net, "stages.0.1"), layer_of(net, "heads.1.attention.down.4")
    assert (block.conv1.in_channels, block.conv1.out_channels, block.bn1.num_features) == (4, 3, 3)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (6, 6, 6)
    assert block.bn1.running_var.tolist() == block.bn1.weight.tolist() == [1.0, 1.0, 1.0]
    net.train()
    loss = torch.stack([z.square().mean() for z in net(torch.randn(4, 3, 32, 32)).logits]).sum()
    loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_fresh_weights_are_drawn_for_the_size_they_have() -> None:
    torch.manual_seed(0)
    behind: LayerShapes = (("stages.3.1.bn1", (64,)), ("stages.3.1.conv2", (512, 64, 3, 3)))
    net = MultiExitNet(replace(WHOLE, width=64, shapes=(("stages.3.1.conv1", (64, 512, 3, 3)), *behind)))
    expected = (2 / (64 * 9)) ** 0.5
    assert layer_of(net, "stages.3.1.conv1").weight.std().item() == pytest.approx(expected, rel=0.02)


def test_a_pruned_network_is_counted_as_it_is() -> None:
    before, after = count_cost(WHOLE), count_cost(PRUNED)
    fewer = [a - b for a, b in zip(before.stage_multiply_adds, after.stage_multiply_adds, strict=True)]
    assert fewer == [32 * 32 * 9 * (4 + 4), 0, 0, 0]
    # Head 2's attention works on 8x8; head 3's last 1x1 on 4x4.
    assert before.head_multiply_adds[1] - after.head_multiply_adds[1] == 8 * 8 * (8 * 2 + 9 * 2 + 2 * 8)
    assert before.head_multiply_adds[2] - after.head_multiply_adds[2] == 4 * 4 * 16 * 3 + 3 * 3
    assert after.total_parameters == sum(parameter.numel() for parameter in MultiExitNet(PRUNED).parameters())


def test_a_pruned_bundle_comes_back_to_the_bit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MultiExitNet(PRUNED).eval()
    bundle = replace(tiny_bundle, config=PRUNED, net=net)
    save_bundle(bundle, tmp_path / "bundle", "card")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.config == PRUNED
    assert replace(loaded, net=net) == bundle
    x_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert all(map(torch.equal, loaded.net(x_BCHW).logits, rounded(net)(x_BCHW).logits))


def test_a_description_survives_json() -> None:
    stored = json.loads(json.dumps(asdict(PRUNED)))
    assert stored["shapes"][0] == ["stages.0.1.conv1", [3, 4, 3, 3]]
    assert asdict(WHOLE)["shapes"] == ()


def test_transposed_convolutions_are_resized_in_their_own_order() -> None:
    layer = nn.ConvTranspose2d(8, 6, 4, stride=2)
    resize(nn.Sequential(layer), (("0", (7, 5, 4, 4)),))
    assert (layer.in_channels, layer.out_channels, outputs(layer)) == (7, 5, 5)
    assert layer(torch.randn(1, 7, 2, 2)).shape == (1, 5, 6, 6)


def test_grouped_convolutions_keep_their_groups_and_depthwise_ones_stay_depthwise() -> None:
    convolutions = [nn.Conv2d(8, 16, 1, groups=4), nn.Conv2d(16, 16, 1, groups=16), DepthwiseConv(16, stride=1)]
    net = nn.Sequential(*convolutions)
    resize(net, (("0", (12, 1, 1, 1)), ("1", (12, 1, 1, 1)), ("2", (12, 1, 3, 3))))
    assert [(c.in_channels, c.out_channels, c.groups) for c in convolutions] == [(4, 12, 4), (12, 12, 12), (12, 12, 12)]
    assert net(torch.randn(1, 4, 5, 5)).shape == (1, 12, 5, 5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("stages.9.conv1", (3, 4, 3, 3)), "'stages.9.conv1' is no layer of the network that can be resized"),
        (("stages.0.0.2", (3,)), "'stages.0.0.2' is no layer of the network that can be resized"),
        (("", (3,)), "'' is no layer of the network"),
        (("stages.0.1.conv1", (5, 4, 3, 3)), r"of shape \[5, 4, 3, 3\]; the unpruned network has \[4, 4, 3, 3\]"),
        (("stages.0.1.conv1", (10**12, 4, 3, 3)), "cannot have weights of shape"),
        (("stages.0.1.conv1", (3, 4, 1, 1)), "fewer channels of the same kernel"),
        (("stages.0.1.conv1", (3, 4)), "cannot have weights of shape"),
        (("stages.0.1.conv1", (0, 4, 3, 3)), "cannot have weights of shape"),
        (("stages.0.1.bn1", (-1,)), "cannot have weights of shape"),
        (("heads.3.classifier", ()), "cannot have weights of shape"),
        (("stages.0.1.conv1", (3, 4, 3, 3)), "shapes do not fit together: "),
        (("stages.0.0.0", (4, 2, 3, 3)), "shapes do not fit together: "),
        (("heads.3.classifier", (2, 32)), "shapes leave a classifier without its 3 classes"),
    ],
)
def test_shapes_that_make_no_network_are_refused(
    shape: tuple[str, tuple[int, ...]], message: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        MultiExitNet(replace(WHOLE, shapes=(shape,)))
    save_bundle(tiny_bundle, tmp_path / "bundle", "card")
    path = tmp_path / "bundle" / DESCRIPTION
    description = json.loads(path.read_text())
    description["config"]["shapes"] = [shape]
    path.write_text(json.dumps(description))
    with pytest.raises(BundleError, match=f"{DESCRIPTION}: .*{message}"):
        load_bundle(tmp_path / "bundle")


def test_groups_that_channels_do_not_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="'0' has 4 groups, which 10 channels do not fill evenly"):
        resize(nn.Sequential(nn.Conv2d(8, 16, 1, groups=4)), (("0", (10, 1, 1, 1)),))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, "shapes is a NoneType"),
        ({}, "shapes is a dict"),
        (("stages.0.0.0",), "'stages.0.0.0' is no pair"),
        ((("stages.0.0.0", 3),), "is no pair"),
        (((1, (3,)),), "is no pair"),
        ((("stages.0.0.0", ("3",)),), "is no pair"),
        ((("a", (3,)), ("a", (2,))), "names a layer twice"),
    ],
)
def test_a_description_that_is_no_list_of_shapes_is_refused(shapes: LayerShapes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig("resnet18", 3, shapes=shapes)


def test_lists_nested_without_end_are_refused(saved_bundle: Path) -> None:
    path = saved_bundle / DESCRIPTION
    description = json.loads(path.read_text())
    description["config"]["shapes"] = "HERE"
    path.write_text(json.dumps(description).replace('"HERE"', "[" * 900 + "]" * 900))
    with pytest.raises(BundleError, match=r"config\.shapes.* is nested deeper than 32 levels: flatten it"):
        load_bundle(saved_bundle)


def test_a_pruned_network_can_be_given_other_classes() -> None:
    net = MultiExitNet(for_classes(PRUNED, 7))
    assert [layer_of(net, f"heads.{k}.classifier").out_features for k in range(4)] == [7] * 4
    assert net.embedding_sizes == (32, 32, 29, 32)
    assert for_classes(WHOLE, 7) == replace(WHOLE, num_classes=7)
