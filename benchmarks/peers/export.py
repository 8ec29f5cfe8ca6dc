"""A bundle as OpenVINO files, so that every peer serves the very weights of ours and needs no torch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor, nn

from benchmarks.peers.network import DESCRIPTION, WHOLE, stage_file
from models.bundle import Bundle
from models.preprocess import normalize

EXAMPLE_BATCH = 2


class Stage(nn.Module):
    """Stage 1..K as one graph: pictures or (features, accumulated logits) -> (features, accumulated, probabilities)."""

    def __init__(self, bundle: Bundle, stage: int) -> None:
        super().__init__()
        self.net = bundle.net
        self.preprocessing, self.calibration, self.stage = bundle.preprocessing, bundle.calibration, stage

    def inputs(self, features_BCHW: Tensor, accumulated_BC: Tensor) -> tuple[Tensor, ...]:
        """What this stage takes of the one before: without the logits so far where its exit carries none."""
        is_ensemble = self.calibration.carries[self.stage - 1] > 0
        return (features_BCHW, accumulated_BC) if is_ensemble else (features_BCHW,)

    def forward(self, x: Tensor, accumulated_BC: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.stage == 1:
            x = normalize(x, self.preprocessing)
        features_BCHW, logits_BC = self.net.run_stage(self.stage, x)
        summed_BC = self.calibration.accumulate(self.stage, accumulated_BC, logits_BC)
        return features_BCHW, summed_BC, self.calibration.probabilities(self.stage, summed_BC)


class Whole(nn.Module):
    """All stages at full depth: uint8 (B, H, W, 3) -> calibrated probabilities of the last exit (B, classes)."""

    def __init__(self, stages: list[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, pictures_BHWC: Tensor) -> Tensor:
        later: list[Stage]
        first, *later = self.stages  # type: ignore[assignment]
        features_BCHW, accumulated_BC, probabilities_BC = first(pictures_BHWC)
        for stage in later:
            features_BCHW, accumulated_BC, probabilities_BC = stage(*stage.inputs(features_BCHW, accumulated_BC))
        return probabilities_BC


@torch.no_grad()
def export(bundle: Bundle, folder: Path) -> None:
    """Write the whole network, each stage, and what a peer must know of them, into `folder`."""
    bundle.net.eval().to("cpu")
    size = bundle.preprocessing.size
    stages = [Stage(bundle, stage).eval() for stage in range(1, bundle.net.num_exits + 1)]
    pictures_BHWC = torch.zeros(EXAMPLE_BATCH, size, size, 3, dtype=torch.uint8)
    _convert(Whole(stages).eval(), (pictures_BHWC,), folder / WHOLE)
    inputs: tuple[Tensor, ...] = (pictures_BHWC,)
    for number, stage in enumerate(stages, start=1):
        _convert(stage, inputs, folder / stage_file(number))
        features_BCHW, accumulated_BC, _ = stage(*inputs)
        if number < len(stages):
            inputs = stages[number].inputs(features_BCHW, accumulated_BC)
    description: dict[str, Any] = {
        "name": bundle.name,
        "size": size,
        "crop_fraction": bundle.preprocessing.crop_fraction,
        "labels": bundle.labels,
        "num_exits": len(stages),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description))


def _convert(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    with warnings.catch_warnings():
        # OpenVINO takes what the older of torch's tracers gives; mean and deviation of the pixels become constants.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # Its own check compares graphs by their text, in which the names of modules shared by two graphs differ.
        traced = torch.jit.trace(module, inputs, check_trace=False)
    shapes = [openvino.PartialShape([-1, *tensor.shape[1:]]) for tensor in inputs]
    network = openvino.convert_model(traced, example_input=inputs, input=shapes)
    openvino.save_model(network, path, compress_to_fp16=False)
