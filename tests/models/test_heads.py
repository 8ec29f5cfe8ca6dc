"""Attention modules and shallow classifiers."""

from __future__ import annotations

import pytest
import torch

from models.config import ModelConfig
from models.heads import Attention, DepthwiseConv, FinalHead, SepConv, ShallowHead
from models.multi_exit import MultiExitNet


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
