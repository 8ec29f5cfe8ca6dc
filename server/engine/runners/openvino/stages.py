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
    """Stage k of a bundle with all that belongs to a step: (inputs, accumulated logits) -> what the engine needs.

    inputs: uint8 (B, H, W, 3) at stage 1, features (B, H, W, C) after that. accumulated_BC: only where exit k carries.
    Gives calibrated probabilities (B, classes) and, before the last stage, accumulated logits and features.

    Channels come last on the way from stage to stage, as OpenVINO computes: so nothing is rearranged there.
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
    """Every stage as an OpenVINO network that takes any batch size; inputs and outputs are StageModule's, in float32.

    Raises ValueError where OpenVINO cannot convert a stage.
    """
    size, num_exits = bundle.preprocessing.size, bundle.net.cpu().eval().num_exits
    networks = []
    # Two pictures: a tracer may take the size of a batch of one for a constant.
    inputs: tuple[Tensor, ...] = (torch.zeros(2, size, size, 3, dtype=torch.uint8),)
    for stage in range(1, num_exits + 1):
        module = StageModule(bundle, stage).eval()
        networks.append(_converted(module, inputs, f"stage {stage}"))
        if stage < num_exits:
            accumulated, features = (torch.zeros(2, *shape) for shape in row_shapes(networks[-1])[1:])
            inputs = (features, accumulated) if bundle.calibration.carries[stage] else (features,)
    return networks


class WholeModule(nn.Module):
    """All stages in a row: uint8 (B, H, W, 3) -> calibrated probabilities (B, classes) of the last exit."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.stages = nn.ModuleList(StageModule(bundle, stage) for stage in range(1, bundle.net.num_exits + 1))
        self.carries = bundle.calibration.carries

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor]:
        """Run all stages and heads."""
        inputs: tuple[Tensor, ...] = (pictures_BHWC,)
        for carry, stage in zip(self.carries[1:], self.stages[:-1], strict=True):
            _, accumulated_BC, features = stage(*inputs)
            inputs = (features, accumulated_BC) if carry else (features,)
        (probabilities_BC,) = self.stages[-1](*inputs)
        return (probabilities_BC,)


def convert_whole(bundle: Bundle) -> ov.Model:
    """All stages as one network: what splitting it costs is measured against, and what peers serve."""
    size = bundle.preprocessing.size
    bundle.net.cpu().eval()
    inputs = (torch.zeros(2, size, size, 3, dtype=torch.uint8),)
    return _converted(WholeModule(bundle).eval(), inputs, "the whole network")


def with_features(network: ov.Model, feature_type: ov.Type) -> ov.Model:
    """The stage, taking and giving features of that type."""
    ends = PrePostProcessor(network)
    if not is_first(network):
        ends.input(0).tensor().set_element_type(feature_type)
    if not is_last(network):
        ends.output(2).tensor().set_element_type(feature_type)
    return ends.build()


def is_first(stage: ov.Model) -> bool:
    """Whether it takes pictures."""
    return bool(stage.input(0).get_element_type() == ov.Type.u8)


def is_last(stage: ov.Model) -> bool:
    """Whether it gives probabilities alone."""
    return len(stage.outputs) == 1


def sized(network: ov.Model, batch_size: int) -> ov.Model:
    """A copy of the network for one batch size."""
    copied = network.clone()
    _reshape(copied, [list(one.get_partial_shape())[1:] for one in network.inputs], batch_size)
    return copied


def row_shapes(stage: ov.Model) -> list[tuple[int, ...]]:
    """The shape of one sample's part of each output.

    Read off a copy of a fixed batch size: behind a reshape OpenVINO may lose a size that depends on no batch.
    """
    return [tuple(one.get_shape())[1:] for one in sized(stage, 2).outputs]


def _reshape(network: ov.Model, row_shapes: Sequence[Sequence[Any]], batch_size: int) -> None:
    """Give the inputs these shapes of one sample and this batch size, -1 for any."""
    network.reshape({index: [batch_size, *shape] for index, shape in enumerate(row_shapes)})


def _converted(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> ov.Model:
    with torch.no_grad(), warnings.catch_warnings():
        # Mean and deviation of the pixels become constants: they are.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # torch would have us use torch.export, which takes seconds for each stage.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            # Not checked by tracing it once more: the runner is held to the reference as a whole.
            traced = torch.jit.trace(module, inputs, check_trace=False)
            # Not `openvino.convert_model`: it does the same ten times slower, and reports its use to OpenVINO's makers.
            frontend = FrontEndManager().load_by_framework("pytorch")
            # Named, because it has to live until the network is converted, and OpenVINO does not hold it.
            decoder = TorchScriptPythonDecoder(traced, example_input=inputs)
            network = frontend.convert(frontend.load(decoder))
            row_shapes = [tensor.shape[1:] for tensor in inputs]
            # For one batch size first: a rewrite wants to know height and width.
            _reshape(network, row_shapes, 2)
            rewrite(network)
            _reshape(network, row_shapes, -1)
        except (RuntimeError, OpConversionFailure) as error:
            raise ValueError(
                f"OpenVINO cannot convert {name}: {sentence(error)}; serve this network with --runner torch"
            ) from error
    return network
