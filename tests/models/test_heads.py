"""Attention modules and shallow classifiers."""

from __future__ import annotations

import pytest
import torch

from offramp.models.config import ModelConfig
from offramp.models.heads import (
    Attention,
    FinalHead,
    LightHead,
    ScanAttention,
    ScanHead,
    SepConv,
    ShallowHead,
)
from offramp.models.layers import DepthwiseConv
from offramp.models.multi_exit import MultiExitNet


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 8, 13])
def test_mask_has_the_features_shape_and_never_hides_more_than_half(side: int) -> None:
    torch.manual_seed(0)
    features_BCHW = torch.randn(6, 8, side, side) * 3
    mask_BCHW = Attention(8).train()(features_BCHW)
    assert mask_BCHW.shape == features_BCHW.shape
    assert mask_BCHW.min() >= 0.5
    assert mask_BCHW.max() < 1.0
    assert mask_BCHW.max() > 0.5


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 9), (1, 1)])
def test_odd_feature_sizes_pass_through_a_whole_head(height: int, width: int) -> None:
    head = ShallowHead([8, 16, 32], num_classes=4).eval()
    embedding_BD, logits_BC = head(torch.randn(2, 8, height, width))
    assert embedding_BD.shape == (2, 32)
    assert logits_BC.shape == (2, 4)


def test_sepconv_halves_rounding_up() -> None:
    assert SepConv(4, 6).eval()(torch.randn(1, 4, 7, 8)).shape == (1, 6, 4, 4)


def test_head_is_classifier_of_the_masked_reduced_average() -> None:
    torch.manual_seed(0)
    head = ShallowHead([8, 16], num_classes=4).eval()
    features_BCHW = torch.randn(2, 8, 6, 6)
    reduced_BCHW = head.reduce(features_BCHW * head.attention(features_BCHW))
    embedding_BD, logits_BC = head(features_BCHW)
    assert torch.equal(embedding_BD, reduced_BCHW.mean(dim=(2, 3)))
    assert torch.equal(logits_BC, embedding_BD @ head.classifier.weight.T + head.classifier.bias)


def test_final_head_is_average_pool_and_linear() -> None:
    head = FinalHead(3, 2)
    embedding_BD, logits_BC = head(torch.arange(24.0).reshape(2, 3, 2, 2))
    assert embedding_BD.tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]
    assert torch.equal(logits_BC, head.classifier(embedding_BD))


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13])
def test_scan_mask_has_the_features_shape_and_can_hide_nearly_all(side: int) -> None:
    torch.manual_seed(0)
    attention = ScanAttention(8).train()
    features_BCHW = torch.randn(6, 8, side, side)
    mask_BCHW = attention(features_BCHW)
    assert mask_BCHW.shape == features_BCHW.shape
    assert 0.0 < mask_BCHW.min() < 0.4
    assert 0.6 < mask_BCHW.max() < 1.0


def test_scan_head_is_classifier_of_the_masked_features_shrunk_in_one_step() -> None:
    torch.manual_seed(0)
    head = ScanHead([8, 16, 32, 64], num_classes=4).eval()
    features_BCHW = torch.randn(2, 8, 16, 16)
    embedding_BD, logits_BC = head(features_BCHW)
    narrow_BCHW = head.narrow(features_BCHW * head.attention(features_BCHW))
    assert narrow_BCHW.shape == (2, 16, 16, 16)
    shrunk_BCHW = head.shrink(narrow_BCHW)
    assert shrunk_BCHW.shape == (2, 64, 2, 2)
    assert torch.equal(embedding_BD, shrunk_BCHW.mean(dim=(2, 3)))
    assert torch.equal(logits_BC, embedding_BD @ head.classifier.weight.T + head.classifier.bias)


def test_scan_bottleneck_has_128_channels_in_the_papers_networks_and_fewer_in_narrow_ones() -> None:
    widths = [ScanHead([64, last], 2).narrow[0].out_channels for last in (2048, 512, 256, 16)]
    assert widths == [128, 128, 64, 4]


def test_scan_head_reads_the_rim_of_features_that_its_stride_does_not_divide() -> None:
    torch.manual_seed(0)
    head = ScanHead([8, 16, 32], num_classes=4).eval()
    # A mask of halves: the one way left to the embedding is through the strided convolution.
    torch.nn.init.zeros_(head.attention.up.weight)
    features_BCHW = torch.randn(1, 8, 5, 5)
    before_BD = head(features_BCHW)[0]
    for row, column in [(4, 0), (0, 4)]:
        changed_BCHW = features_BCHW.clone()
        changed_BCHW[:, :, row, column] += 10.0
        assert not torch.equal(head(changed_BCHW)[0], before_BD)


def test_light_head_mixes_channels_between_two_average_pools() -> None:
    torch.manual_seed(0)
    head = LightHead([6, 16], num_classes=3).eval()
    features_BCHW = torch.randn(2, 6, 8, 8)
    embedding_BD, logits_BC = head(features_BCHW)
    pooled_BCHW = torch.nn.functional.avg_pool2d(features_BCHW, 2)
    torch.testing.assert_close(embedding_BD, head.mix(pooled_BCHW).mean(dim=(2, 3)))
    assert embedding_BD.shape == (2, 16)
    assert embedding_BD.min() >= 0
    assert torch.equal(logits_BC, embedding_BD @ head.classifier.weight.T + head.classifier.bias)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 4), (5, 9)])
def test_light_head_takes_features_of_any_size(height: int, width: int) -> None:
    head = LightHead([8, 512], num_classes=4).eval()
    embedding_BD, logits_BC = head(torch.randn(2, 8, height, width))
    assert embedding_BD.shape == (2, 128)
    assert logits_BC.shape == (2, 4)


def test_backbone_goes_on_with_unmasked_features() -> None:
    torch.manual_seed(0)
    net = MultiExitNet(ModelConfig("resnet18", 3, width=4)).eval()
    x_BCHW = torch.randn(2, 3, 32, 32)
    features_BCHW, _ = net.run_stage(1, x_BCHW)
    assert torch.equal(features_BCHW, net.stages[0](x_BCHW))
    before = net(x_BCHW).logits
    with torch.no_grad():
        for parameter in net.heads[0].parameters():
            parameter.mul_(-3)
    after = net(x_BCHW).logits
    assert not torch.equal(before[0], after[0])
    assert all(map(torch.equal, before[1:], after[1:]))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution_stays_float32_under_cpu_autocast(stride: int) -> None:
    torch.manual_seed(0)
    layer, x_BCHW = DepthwiseConv(4, stride), torch.randn(2, 4, 5, 5)
    plain_BCHW = layer(x_BCHW)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.linear(torch.ones(1, 4), torch.ones(2, 4)).dtype == torch.bfloat16
        auto_BCHW = layer(x_BCHW)
        from_half_BCHW = layer(x_BCHW.bfloat16())
    assert auto_BCHW.dtype == from_half_BCHW.dtype == torch.float32
    assert torch.equal(auto_BCHW, plain_BCHW)
    assert torch.equal(from_half_BCHW, layer(x_BCHW.bfloat16().float()))
