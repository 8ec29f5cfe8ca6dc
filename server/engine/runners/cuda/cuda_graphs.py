"""CudaGraphRunner: every step one CUDA graph over static buffers. The default on GPUs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.models.bundle import Bundle
from offramp.models.preprocess import Preprocessing, normalize
from offramp.server.engine.errors import EngineError
from offramp.server.engine.runners.cuda.buckets import buckets
from offramp.server.engine.runners.cuda.capture import Capture, CudaGraphs, Eager, Work
from offramp.server.engine.runners.cuda.lowering import (
    cast_weights,
    choose_precision,
    folded,
    largest_value,
    native_precisions,
)
from offramp.server.engine.runners.cuda.slots import PADDING_ROW, Slot, SlotPool
from offramp.server.engine.runners.failures import device_lost, first_cause, sentence
from offramp.server.engine.runners.runner import StepOutput


class CaptureFailed(EngineError):
    """A stage that cannot be captured; the message says which, why and what to do."""


@dataclass(frozen=True)
class Boundary:
    """What lies between two stages: features (row, H, W, C) and accumulated logits (row, classes), on the device."""

    pool: SlotPool
    features_SHWC: Tensor
    accumulated_SC: Tensor


@dataclass(frozen=True)
class Buffers:
    """What host and device exchange in a step; the host's side is pinned, so that the graph copies it by itself.

    pictures_BHWC: uint8. rows_2B: int64; the rows to read, after them the rows to write. probabilities_BC: float32.
    """

    host_pictures_BHWC: Tensor
    pictures_BHWC: Tensor
    host_rows_2B: Tensor
    rows_2B: Tensor
    host_probabilities_BC: Tensor


class CudaGraphRunner:
    """Steps as CUDA graphs, one for each stage and batch bucket, with one wait of the host for each step.

    Features and accumulated logits stay in static tensors between the stages, one row a sample; what a sample carries
    is a Slot, the right to its row. A graph copies rows and pictures from pinned memory, gathers its batch by index,
    runs stage and head, scatters the results by index and copies the probabilities to the host.

    max_samples: maximum number of samples in flight, as the engine's; static memory is held for so many after each
    stage but the last. precision: "auto", "float16", "bfloat16" or "float32", for features and convolutions;
    classifiers, accumulated logits and probabilities are float32. For float32 TF32 must be off, as for TorchRunner.
    capture: how work is recorded; CUDA graphs on a GPU, done anew each time on a CPU, which is for tests.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        *,
        max_samples: int = 1024,
        precision: str = "auto",
        capture: Capture | None = None,
    ) -> None:
        self.device = device
        self.preprocessing = bundle.preprocessing
        self.calibration = bundle.calibration
        self.net = folded(bundle.net, device)
        largest = largest_value(
            self.net, normalize(extreme_pictures(bundle.preprocessing.size), bundle.preprocessing).to(device)
        )
        self.dtype = choose_precision(precision, native_precisions(device), largest)
        cast_weights(self.net, self.dtype)
        self.boundaries: tuple[Boundary, ...] = ()
        self._num_classes = bundle.config.num_classes
        self._max_samples = max_samples
        self._capture = capture or (CudaGraphs(device) if device.type == "cuda" else Eager())
        self._scale_C, self._shift_C = scale_and_shift(bundle.preprocessing, device)
        self._buckets: tuple[int, ...] = ()
        self._buffers: Buffers
        self._replays: dict[tuple[int, int], Work] = {}

    @property
    def num_stages(self) -> int:
        """K, the stages of the bundle's network."""
        return int(self.net.num_exits)

    @property
    def precision(self) -> str:
        """The name of the type that features and convolutions have."""
        return str(self.dtype).removeprefix("torch.")

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        """Stage 1..K over uint8 (H, W, 3) pictures (stage 1) or Slots, with one host synchronisation.

        Raises ValueError for a batch or states that do not fit, OutOfSlots where more samples are in flight than the
        runner was made for; nobody's features have been touched then. Raises DeviceLost.
        """
        count = len(states)
        if not 1 <= count <= self._largest:
            raise ValueError(
                f"a batch of {count} is out of range: this runner is warmed up for 1 to {self._largest}; "
                "call warm_up with the largest batch size"
            )
        bucket = self._buckets[bisect_left(self._buckets, count)]
        slots = self.boundaries[stage - 1].pool.take(count) if stage < self.num_stages else []
        self._fill(stage, states, slots, bucket)
        with device_lost():
            self._replays[stage, bucket]()
            self._capture.wait()
        probabilities_BC = self._buffers.host_probabilities_BC.numpy()[:count].copy()
        return StepOutput(probabilities_BC, _hand_out_once(slots) if slots else _nothing_follows)

    def warm_up(self, max_batch_size: int) -> None:
        """Allocate all static memory and capture every graph, for batches up to max_batch_size.

        For the engine's thread, before the first step: states from before are of no use after. Raises CaptureFailed.
        """
        self._buckets, self._replays = buckets(max_batch_size), {}
        self._capture.reset()
        self.boundaries = self._make_boundaries(max_batch_size)
        self._buffers = self._make_buffers(max_batch_size)
        # One sample first, which is cheap: a network that cannot be captured shows at once. Then from the largest down,
        # so that the smaller ones find room in the memory that it needed.
        for bucket in (self._buckets[0], *reversed(self._buckets[1:])):
            for stage in range(1, self.num_stages + 1):
                self._replays[stage, bucket] = self._captured(stage, bucket)
        for replay in self._replays.values():
            replay()
            self._capture.wait()

    @property
    def _largest(self) -> int:
        return self._buckets[-1] if self._buckets else 0

    def _captured(self, stage: int, bucket: int) -> Work:
        try:
            return self._capture.capture(self._work(stage, bucket))
        except RuntimeError as error:
            raise CaptureFailed(
                f"stage {stage} cannot be captured as a CUDA graph for {bucket} samples: "
                f"{sentence(first_cause(error))}; where memory is short, give a smaller --max-queue or "
                "--max-batch-size; where the network's own code waits for the GPU or makes tensors of Python numbers, "
                "give --runner torch"
            ) from error

    def _fill(self, stage: int, states: Sequence[Any], slots: Sequence[Slot], bucket: int) -> None:
        """Write what the graph reads into pinned memory."""
        count = len(states)
        rows_2B = self._buffers.host_rows_2B.numpy()[: 2 * bucket]
        rows_2B[:] = PADDING_ROW
        if slots:
            rows_2B[bucket : bucket + count] = [slot.row for slot in slots]
        if stage == 1:
            pictures_BHWC = self._buffers.host_pictures_BHWC.numpy()[:count]
            wanted = pictures_BHWC.shape[1:]
            if any(picture.shape != wanted or picture.dtype != np.uint8 for picture in states):
                raise ValueError(f"pictures must be uint8 {wanted}: prepare them with the bundle's preprocessing")
            # In one go: np.stack would make a view of each first.
            np.concatenate(states, out=pictures_BHWC.reshape(-1, *wanted[1:]))
        else:
            if not self.boundaries[stage - 2].pool.owns(states):
                raise ValueError(f"stage {stage} takes slots that stage {stage - 1} gave since the last warm-up")
            rows_2B[:count] = [state.row for state in states]

    def _work(self, stage: int, bucket: int) -> Work:
        """One step over static buffers, as it is captured: fixed shapes, no wait, nothing from the host but copies."""
        buffers = self._buffers
        host_rows_2B, rows_2B = buffers.host_rows_2B[: 2 * bucket], buffers.rows_2B[: 2 * bucket]
        from_B, to_B = rows_2B[:bucket], rows_2B[bucket:]
        after = self.boundaries[stage - 1] if stage < self.num_stages else None
        host_probabilities_BC = buffers.host_probabilities_BC[:bucket]

        @torch.inference_mode()
        def work() -> None:
            rows_2B.copy_(host_rows_2B, non_blocking=True)
            x_BCHW, accumulated_BC = self._first_input(bucket) if stage == 1 else self._gathered(stage, from_B)
            with self._autocast():
                features_BCHW, logits_BC = self.net.run_stage(stage, x_BCHW)
            accumulated_BC = self.calibration.accumulate(stage, accumulated_BC, logits_BC)
            probabilities_BC = self.calibration.probabilities(stage, accumulated_BC)
            host_probabilities_BC.copy_(probabilities_BC, non_blocking=True)
            if after:
                features_BHWC = features_BCHW.permute(0, 2, 3, 1).to(self.dtype)
                after.features_SHWC.index_copy_(0, to_B, features_BHWC)
                after.accumulated_SC.index_copy_(0, to_B, accumulated_BC)

        return work

    def _first_input(self, bucket: int) -> tuple[Tensor, None]:
        pictures_BHWC = self._buffers.pictures_BHWC[:bucket]
        pictures_BHWC.copy_(self._buffers.host_pictures_BHWC[:bucket], non_blocking=True)
        x_BHWC = torch.addcmul(self._shift_C, pictures_BHWC.float(), self._scale_C)
        return x_BHWC.to(self.dtype).permute(0, 3, 1, 2), None

    def _gathered(self, stage: int, from_B: Tensor) -> tuple[Tensor, Tensor]:
        front = self.boundaries[stage - 2]
        x_BCHW = front.features_SHWC.index_select(0, from_B).permute(0, 3, 1, 2)
        return x_BCHW, front.accumulated_SC.index_select(0, from_B)

    def _autocast(self) -> torch.autocast:
        # Without its cache: what it would keep lies in a graph's memory.
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else None, enabled, cache_enabled=False)

    def _make_boundaries(self, max_batch_size: int) -> tuple[Boundary, ...]:
        side = self.preprocessing.size
        x_BCHW = torch.zeros(1, 3, side, side, dtype=self.dtype, device=self.device)
        boundaries = []
        for stage in range(1, self.num_stages):
            with torch.inference_mode(), self._autocast():
                x_BCHW, _ = self.net.run_stage(stage, x_BCHW)
            boundaries.append(self._make_boundary(stage, x_BCHW.permute(0, 2, 3, 1).shape[1:], max_batch_size))
        return tuple(boundaries)

    def _make_boundary(self, stage: int, shape_HWC: torch.Size, max_batch_size: int) -> Boundary:
        rows = 1 + self._max_samples + max_batch_size
        try:
            features_SHWC = torch.zeros(rows, *shape_HWC, dtype=self.dtype, device=self.device)
            accumulated_SC = torch.zeros(rows, self._num_classes, device=self.device)
        except RuntimeError as error:
            raise CaptureFailed(
                f"there is no memory for {rows} samples of {shape_HWC.numel() * self.dtype.itemsize} bytes after "
                f"stage {stage}: give a smaller --max-queue or --max-batch-size ({sentence(error)})"
            ) from error
        return Boundary(SlotPool(stage, self._max_samples, max_batch_size), features_SHWC, accumulated_SC)

    def _make_buffers(self, max_batch_size: int) -> Buffers:
        side, pinned = self.preprocessing.size, self.device.type == "cuda"
        pictures_BHWC = torch.zeros(max_batch_size, side, side, 3, dtype=torch.uint8, pin_memory=pinned)
        rows_2B = torch.full((2 * max_batch_size,), PADDING_ROW, dtype=torch.int64, pin_memory=pinned)
        return Buffers(
            host_pictures_BHWC=pictures_BHWC,
            pictures_BHWC=torch.zeros_like(pictures_BHWC, device=self.device),
            host_rows_2B=rows_2B,
            rows_2B=torch.zeros_like(rows_2B, device=self.device),
            host_probabilities_BC=torch.zeros(max_batch_size, self._num_classes, pin_memory=pinned),
        )


def extreme_pictures(size: int) -> Tensor:
    """Black, white, half of each, and noise: uint8 (4, size, size, 3), to see how large a network's values get."""
    pictures_BHWC = torch.zeros(4, size, size, 3, dtype=torch.uint8)
    pictures_BHWC[1], pictures_BHWC[2, : size // 2] = 255, 255
    pictures_BHWC[3].random_(0, 256, generator=torch.Generator().manual_seed(0))
    return pictures_BHWC


def scale_and_shift(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `normalize` does, as pixel * scale + shift for each colour; read off its answers for black and for white.

    `normalize` itself copies its constants to the device, which no graph can capture.
    """
    black_and_white_BHWC = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 1, 3)
    black_C, white_C = normalize(black_and_white_BHWC, preprocessing).reshape(2, 3).to(device)
    return (white_C - black_C) / 255.0, black_C


def _hand_out_once(slots: list[Slot]) -> Callable[[Sequence[int]], Sequence[Slot]]:
    """A function that returns the slots of the rows that go on, and frees the others. Called once."""

    def keep(rows: Sequence[int]) -> Sequence[Slot]:
        kept = [slots[row] for row in rows]
        slots.clear()
        return kept

    return keep


def _nothing_follows(rows: Sequence[int]) -> Sequence[None]:
    """Behind the last stage."""
    return [None] * len(rows)
