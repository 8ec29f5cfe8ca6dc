"""Forward and backward of the heads' strided depthwise convolutions on the CPU, bfloat16 against float32.

    python -m benchmarks.depthwise --output benchmarks/results/depthwise.json

The evidence behind `models.heads.DepthwiseConv`. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

from models.device import hardware

# (channels, side, stride) of the depthwise convolutions in ResNet-18's heads at width 32, batch 128, 32x32 pictures.
SHAPES = ((32, 32, 2), (64, 16, 2), (128, 8, 2), (32, 16, 1), (64, 8, 1), (128, 4, 1))
BATCH = 128


def step(x_BCHW: torch.Tensor, weight_C133: torch.Tensor, stride: int) -> None:
    """One forward and backward pass."""
    y = F.conv2d(x_BCHW, weight_C133, stride=stride, padding=1, groups=len(weight_C133))
    y.backward(torch.ones_like(y))


def measure(channels: int, side: int, stride: int, dtype: torch.dtype) -> float:
    """Median milliseconds of a step."""
    x = torch.randn(BATCH, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, 3, 3, dtype=dtype)
    timer = Timer(
        "step(x, weight, stride)",
        globals={
            "step": step,
            "x": x.requires_grad_(),
            "weight": weight.requires_grad_(),
            "stride": stride,
        },
        num_threads=torch.get_num_threads(),
    )
    timer.timeit(3)
    return float(timer.timeit(10).median * 1e3)


def run(rounds: int) -> dict[str, Any]:
    """Interleaved rounds over all shapes; the median of each."""
    rows = []
    for channels, side, stride in SHAPES:
        times: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
        for _ in range(rounds):
            for dtype, measured in times.items():
                measured.append(measure(channels, side, stride, dtype))
        bf16_ms, fp32_ms = (statistics.median(times[dtype]) for dtype in (torch.bfloat16, torch.float32))
        rows.append(
            {
                "channels": channels,
                "side": side,
                "stride": stride,
                "bf16_ms": round(bf16_ms, 3),
                "fp32_ms": round(fp32_ms, 3),
                "bf16_over_fp32": round(bf16_ms / fp32_ms, 2),
            }
        )
    return {
        "benchmark": "depthwise",
        "batch": BATCH,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "hardware": hardware(torch.device("cpu")),
        "system": platform.platform(),
        "rows": rows,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    document = json.dumps(run(options.rounds), indent=2)
    if options.output:
        options.output.write_text(document + "\n")
    print(document)


if __name__ == "__main__":
    main()
