"""Milliseconds of every stage and head for a picture: measured here, or read from a server's cost profile."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch

from offramp.models.device import hardware
from offramp.models.multi_exit import MultiExitNet

BATCH_SIZE = 32
ROUNDS = 15


@dataclass(frozen=True)
class StageCosts:
    """Milliseconds for a picture, in batches of `batch_size`.

    stages_ms, heads_ms: of each stage and head; no heads when the times of the stages include them. source: the
    hardware, or the file, in words.
    """

    batch_size: int
    stages_ms: tuple[float, ...]
    heads_ms: tuple[float, ...]
    source: str

    @property
    def sequential_ms(self) -> tuple[float, ...]:
        """Milliseconds of an answer at exit k: stages 1..k and all heads on the way."""
        heads_ms = self.heads_ms or (0.0,) * len(self.stages_ms)
        return tuple(accumulate(stage + head for stage, head in zip(self.stages_ms, heads_ms, strict=True)))

    def with_exits(self, exits: Sequence[int]) -> StageCosts | None:
        """Costs of the network that has these exits (1-based) alone; None without times of the heads."""
        if len(exits) == len(self.stages_ms):
            return self
        if not self.heads_ms:
            return None
        stages_ms = tuple(sum(self.stages_ms[before:after]) for before, after in pairwise((0, *exits)))
        return StageCosts(self.batch_size, stages_ms, tuple(self.heads_ms[k - 1] for k in exits), self.source)


@torch.inference_mode()
def measure_stage_costs(net: MultiExitNet, device: torch.device, batch_size: int = BATCH_SIZE) -> StageCosts:
    """Time every stage and head with PyTorch in float32 on `device`: the least of ROUNDS, after two to warm up.

    The least, because other work of the machine can only lengthen a time.
    """
    net = net.to(device).eval()
    size = net.config.input_size
    picture_BCHW = torch.zeros(batch_size, 3, size, size, device=device)
    rounds = [_round(net, picture_BCHW) for _ in range(ROUNDS + 2)][2:]
    least_ms = [1e3 * min(times) / batch_size for times in zip(*rounds, strict=True)]
    return StageCosts(batch_size, tuple(least_ms[0::2]), tuple(least_ms[1::2]), f"PyTorch, {hardware(device)}")


def _round(net: MultiExitNet, x_BCHW: torch.Tensor) -> list[float]:
    """Seconds of stage 1, head 1, stage 2, head 2, …"""
    times_s = []
    for stage, head in zip(net.stages, net.heads, strict=True):
        began_s = _now_s(x_BCHW.device)
        x_BCHW = stage(x_BCHW)
        staged_s = _now_s(x_BCHW.device)
        head(x_BCHW)
        times_s += [staged_s - began_s, _now_s(x_BCHW.device) - staged_s]
    return times_s


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read_stage_costs(path: Path, num_exits: int, batch_size: int = BATCH_SIZE) -> StageCosts:
    """Costs from a server's cost profile: a JSON file with "batch_sizes" and "measured_s".

    "measured_s" has a row for each stage, with a time for each batch size. Raises ValueError for a file without such a
    table, or for another network or batch size.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sizes = [int(size) for size in values["batch_sizes"]]
        rows = [[float(time_s) for time_s in row] for row in values["measured_s"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: no table of step costs ({type(error).__name__}: {error}); give a JSON file with batch_sizes and "
            "measured_s, as the server writes its cost profile"
        ) from error
    if len(rows) != num_exits or any(len(row) != len(sizes) for row in rows):
        raise ValueError(
            f"{path}: {len(rows)} rows of costs, the network has {num_exits} stages: give one row for each stage, with "
            "a time for each batch size"
        )
    if batch_size not in sizes:
        raise ValueError(f"{path}: batch size {batch_size} is not among its {sizes}: choose --cost-batch-size of these")
    at = sizes.index(batch_size)
    stages_ms = tuple(1e3 * row[at] / batch_size for row in rows)
    if not all(0.0 < time_ms < float("inf") for time_ms in stages_ms):
        raise ValueError(f"{path}: times {stages_ms} are out of range: give finite times above 0")
    return StageCosts(batch_size, stages_ms, (), path.name)
