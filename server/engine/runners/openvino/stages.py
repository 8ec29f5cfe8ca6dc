"""A bundle's stages as OpenVINO networks, converted in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import openvino as ov
import torch
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn

from offramp.models.bundle import Bundle
from offramp.models.preprocess import normalize
from offramp.server.engine.runners.failures import sentence
from offramp.server.engine.runners.openvino.rewrites import rewrite


class StageModule(nn.Module):
    """A whole step of stage k: normalisation, stage, head and calibration.

    inputs: uint8 (B, H, W, 3) at stage 1, else features (B, H, W, C), in OpenVINO's own order of channels.
    accumulated_BC: only if exit k has an ensemble weight above 0. Returns calibrated probabilities (B, classes) and,
    before the last stage, accumulated logits and features.
    """

    def __init__(self, bundle: Bundle, stage: int) -> None:
        super().__init__()
        self.preprocessing, self.calibration, self.stage = bundle.preprocessing, bundle.calibration, stage
        self.body, self.head = bundle.net.stages[stage - 1], bundle.net.heads[stage - 1]
        self.is_last = stage == bundle.net.num_exits

    def forward(self, inputs: Tensor, accumulated_BC: Tensor | None = None) -> tuple[Tensor, ...]:
        """Run the stage."""
        features = self.body(normalize(inputs, self.preprocessing) if self.stage == 1 else inputs.permute(0, 3, 1, 2))
        _, logits_BC = self.head(features)
        accumulated_BC = self.calibration.accumulate(self.stage, accumulated_BC, logits_BC)
        probabilities_BC = self.calibration.probabilities(self.stage, accumulated_BC)
        return (probabilities_BC,) if self.is_last else (probabilities_BC, accumulated_BC, features.permute(0, 2, 3, 1))


def convert_stages(bundle: Bundle) -> list[ov.Model]:
    """Every stage as an OpenVINO network for any batch size, with the inputs and outputs of StageModule in float32.

    Raises ValueError if OpenVINO cannot convert a stage.
    """
    size, num_exits = bundle.preprocessing.size, bundle.net.cpu().eval().num_exits
    networks = []
    # Two pictures: a tracer may take a batch size of one for a constant.
    inputs: tuple[Tensor, ...] = (torch.zeros(2, size, size, 3, dtype=torch.uint8),)
    for stage in range(1, num_exits + 1):
        module = StageModule(bundle, stage).eval()
        networks.append(_converted(module, inputs, f"stage {stage}"))
        if stage < num_exits:
            accumulated, features = (torch.zeros(2, *shape) for shape in row_shapes(networks[-1])[1:])
            inputs = (features, accumulated) if bundle.calibration.ensemble_weights[stage] else (features,)
    return networks


class WholeModule(nn.Module):
    """All stages in a row: uint8 (B, H, W, 3) -> calibrated probabilities (B, classes) of the last exit."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.stages = nn.ModuleList(StageModule(bundle, stage) for stage in range(1, bundle.net.num_exits + 1))
        self.ensemble_weights = bundle.calibration.ensemble_weights

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor]:
        """Run all stages and heads."""
        inputs: tuple[Tensor, ...] = (pictures_BHWC,)
        for weight, stage in zip(self.ensemble_weights[1:], self.stages[:-1], strict=True):
            _, accumulated_BC, features = stage(*inputs)
            inputs = (features, accumulated_BC) if weight else (features,)
        (probabilities_BC,) = self.stages[-1](*inputs)
        return (probabilities_BC,)


def convert_whole(bundle: Bundle) -> ov.Model:
    """All stages as one network, for benchmarks: the cost of the split, and other servers."""
    size = bundle.preprocessing.size
    bundle.net.cpu().eval()
    inputs = (torch.zeros(2, size, size, 3, dtype=torch.uint8),)
    return _converted(WholeModule(bundle).eval(), inputs, "the whole network")


def with_features(network: ov.Model, feature_type: ov.Type) -> ov.Model:
    """The stage with features of that type as input and output."""
    ends = PrePostProcessor(network)
    if not is_first(network):
        ends.input(0).tensor().set_element_type(feature_type)
    if not is_last(network):
        ends.output(2).tensor().set_element_type(feature_type)
    return ends.build()


def is_first(stage: ov.Model) -> bool:
    """Whether the input is pictures."""
    return bool(stage.input(0).get_element_type() == ov.Type.u8)


def is_last(stage: ov.Model) -> bool:
    """Whether the only output is probabilities."""
    return len(stage.outputs) == 1


def sized(network: ov.Model, batch_size: int) -> ov.Model:
    """A copy of the network for one batch size."""
    copied = network.clone()
    _reshape(copied, [list(port.get_partial_shape())[1:] for port in network.inputs], batch_size)
    return copied


def row_shapes(stage: ov.Model) -> list[tuple[int, ...]]:
    """The shape of one sample in each output.

    Read from a copy with a fixed batch size: without one, OpenVINO may not know all sizes after a reshape.
    """
    return [tuple(port.get_shape())[1:] for port in sized(stage, 2).outputs]


def _reshape(network: ov.Model, row_shapes: Sequence[Sequence[Any]], batch_size: int) -> None:
    """Set the batch size of the inputs, -1 for any. row_shapes: of one sample, for each input."""
    network.reshape({index: [batch_size, *shape] for index, shape in enumerate(row_shapes)})


def _converted(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> ov.Model:
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns that mean and deviation of the pixels become constants, as they should.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # torch recommends torch.export, which takes seconds for each stage.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            # No second trace as a check: the answers of the whole runner are compared with the reference.
            traced = torch.jit.trace(module, inputs, check_trace=False)
            # `openvino.convert_model` does the same in ten times the time, and reports its use to its makers.
            frontend = FrontEndManager().load_by_framework("pytorch")
            # A variable, since it must live until the network is converted.
            decoder = TorchScriptPythonDecoder(traced, example_input=inputs)
            network = frontend.convert(frontend.load(decoder))
            row_shapes = [tensor.shape[1:] for tensor in inputs]
            # One batch size first: the rewrites need height and width.
            _reshape(network, row_shapes, 2)
            rewrite(network)
            _reshape(network, row_shapes, -1)
        except (RuntimeError, OpConversionFailure) as error:
            raise ValueError(
                f"OpenVINO cannot convert {name}: {sentence(error)}; serve this network with --runner torch"
            ) from error
    return network
