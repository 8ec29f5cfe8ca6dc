"""TorchRunner: the reference, on every device. Tests compare the fast runners with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.models.bundle import Bundle
from offramp.models.preprocess import normalize
from offramp.server.engine.runners.all_stages import black_pictures, run_all_stages
from offramp.server.engine.runners.failures import device_lost
from offramp.server.engine.runners.runner import StepOutput


@dataclass(frozen=True)
class StageState:
    """The state of a sample between stages: features (H, W, C) and accumulated logits (classes), on the device."""

    features_HWC: Tensor
    accumulated_C: Tensor


class TorchRunner:
    """Steps in eager torch, float32 and channels-last, on the CPU or a GPU.

    TF32 must be off: its rounding depends on the algorithm, and so on the batch size. The switch belongs to the whole
    process; `models.device.choose_device` sets it.
    """

    precision = "float32"

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self.device = device
        self.preprocessing = bundle.preprocessing
        self.calibration = bundle.calibration
        self.net = bundle.net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def num_stages(self) -> int:
        """K, the stages of the bundle's network."""
        return int(self.net.num_exits)

    @torch.inference_mode()
    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        """Stage 1..K over uint8 (H, W, 3) pictures (stage 1) or StageStates. Raises DeviceLost."""
        with device_lost():
            return self._run(stage, states)

    def _run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        accumulated_BC: Tensor | None = None
        if stage == 1:
            pictures_BHWC = torch.from_numpy(np.stack(states)).to(self.device)
            x_BCHW = normalize(pictures_BHWC, self.preprocessing)
        else:
            x_BCHW = torch.stack([state.features_HWC for state in states]).permute(0, 3, 1, 2)
            accumulated_BC = torch.stack([state.accumulated_C for state in states])
        features_BCHW, logits_BC = self.net.run_stage(stage, x_BCHW)
        accumulated_BC = self.calibration.accumulate(stage, accumulated_BC, logits_BC)
        probabilities_BC = self.calibration.probabilities(stage, accumulated_BC)

        features_BHWC = features_BCHW.permute(0, 2, 3, 1)

        def keep(rows: Sequence[int]) -> list[StageState]:
            # Copied: a view would keep the rows of answered samples alive.
            with device_lost():
                return [StageState(features_BHWC[row].clone(), accumulated_BC[row].clone()) for row in rows]

        return StepOutput(probabilities_BC.cpu().numpy(), keep)

    def warm_up(self, max_batch_size: int) -> None:
        """Run every stage at batch 1 and at the largest batch."""
        for batch_size in {1, max_batch_size}:
            for _ in run_all_stages(self, black_pictures(self.preprocessing.size, batch_size)):
                pass
