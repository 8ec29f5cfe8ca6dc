"""Rewrites of OpenVINO networks: the same numbers by other operations, and only where they fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from offramp.server.engine.runners.openvino.rewrites import rewrite

FEATURES_BCHW = np.random.default_rng(0).normal(size=(2, 6, 4, 8)).astype(np.float32)
# What OpenVINO gives as an operation's inputs and outputs.
Value: TypeAlias = ov.Output


def network(build: Callable[[Value], ov.Node], shape: list[int] | None = None) -> ov.Model:
    features = ops.parameter([-1, 6, 4, 8] if shape is None else shape, np.float32)
    return ov.Model([build(features.output(0))], [features])


def kinds(model: ov.Model) -> Counter[str]:
    return Counter(operation.get_type_name() for operation in model.get_ops())


def answer(model: ov.Model, features_BCHW: np.ndarray = FEATURES_BCHW) -> np.ndarray:
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(features_BCHW)[0]


def mean(axes: list[int], keep: bool) -> Callable[[Value], ov.Node]:
    return lambda features: ops.reduce_mean(features, ops.constant(axes, np.int64), keep)


def mask(features: Value) -> ov.Node:
    sizes = ops.constant([8, 16], np.int64)
    axes = ops.constant([2, 3], np.int64)
    larger = ops.interpolate(features, sizes, "linear_onnx", "sizes", axes=axes)
    return ops.sigmoid(larger)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2]])
def test_a_mean_over_height_and_width_becomes_a_pool(axes, keep):
    model = network(mean(axes, keep))
    expected = answer(model)
    rewrite(model)
    assert kinds(model)["AvgPool"] == 1
    assert kinds(model)["ReduceMean"] == 0
    assert answer(model).shape == expected.shape
    np.testing.assert_allclose(answer(model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axes", [[1], [2], [1, 2, 3], [0, 1]])
def test_any_other_mean_stays(axes):
    model = network(mean(axes, False))
    rewrite(model)
    assert kinds(model)["ReduceMean"] == 1
    assert kinds(model)["AvgPool"] == 0


@pytest.mark.parametrize("shape", [[-1, 6, -1, 8], [2, 6, 4]])
def test_a_mean_over_sizes_that_are_not_known_or_not_of_a_picture_stays(shape):
    model = network(mean([-2, -1], False), shape)
    rewrite(model)
    assert kinds(model)["ReduceMean"] == 1


def test_a_sigmoid_behind_an_interpolation_is_spelt_out():
    model = network(mask)
    expected = answer(model)
    rewrite(model)
    assert kinds(model)["Sigmoid"] == 0
    np.testing.assert_allclose(answer(model), expected, rtol=0, atol=1e-6)


def test_a_sigmoid_spelt_out_is_finite_far_from_zero():
    far = network(lambda features: mask(ops.multiply(features, ops.constant(1e4, np.float32)).output(0)))
    rewrite(far)
    assert np.isfinite(answer(far)).all()
    assert (answer(far).min(), answer(far).max()) == (0.0, 1.0)


def test_any_other_sigmoid_stays():
    model = network(lambda features: ops.sigmoid(features))
    rewrite(model)
    assert kinds(model)["Sigmoid"] == 1


def adaptive(sizes: list[int]) -> Callable[[Value], ov.Node]:
    return lambda features: ops.adaptive_avg_pool(features, ops.constant(sizes, np.int64))


@pytest.mark.parametrize("sizes", [[1, 1], [2, 4], [4, 8], [2, 2], [1, 4], [4, 1], [8, 8], [8, 16]])
def test_adaptive_pooling_with_equal_windows_becomes_pooling(sizes):
    model = network(adaptive(sizes))
    expected = answer(model)
    rewrite(model)
    assert kinds(model)["AdaptiveAvgPool"] == 0
    assert kinds(model)["AvgPool"] == 1
    assert answer(model).shape == expected.shape
    np.testing.assert_allclose(answer(model), expected, rtol=0, atol=1e-6)


def test_windows_that_are_not_equally_far_apart_are_picked_out():
    pictures = np.random.default_rng(0).normal(size=(2, 3, 14, 14)).astype(np.float32)
    model = network(adaptive([4, 4]), [-1, 3, 14, 14])
    expected = answer(model, pictures)
    rewrite(model)
    assert (kinds(model)["AvgPool"], kinds(model)["Gather"], kinds(model)["AdaptiveAvgPool"]) == (1, 2, 0)
    np.testing.assert_allclose(answer(model, pictures), expected, rtol=0, atol=1e-6)
    torch_says = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(pictures), 4).numpy()
    np.testing.assert_allclose(answer(model, pictures), torch_says, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sizes", "shape"), [([2, 5], None), ([4, 3], None), ([2, 2], [-1, 6, -1, 8])])
def test_any_other_adaptive_pooling_stays(sizes, shape):
    model = network(adaptive(sizes), shape)
    rewrite(model)
    assert kinds(model)["AdaptiveAvgPool"] == 1
    assert kinds(model)["AvgPool"] == 0
