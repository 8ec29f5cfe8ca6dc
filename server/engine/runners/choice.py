"""Choose the runner of a bundle on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from offramp.models.bundle import Bundle
from offramp.server.engine.runners.checked import CheckedRunner, FastRunner
from offramp.server.engine.runners.failures import as_sentence
from offramp.server.engine.runners.runner import Runner
from offramp.server.engine.runners.torch_runner import TorchRunner

Picture = npt.NDArray[np.uint8]

# Kinds of device that a runner runs on.
DEVICES = {"torch": ("cpu", "cuda"), "openvino": ("cpu",), "cuda-graphs": ("cuda",)}


def choose_runner(
    bundle: Bundle,
    device: torch.device,
    name: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    max_samples: int = 1024,
    pictures: Sequence[Picture] = (),
) -> Runner:
    """The runner of that name; auto is OpenVINO on the CPU, CUDA graphs on a GPU.

    If a network does not run there, auto takes torch and logs why, at the latest during the warm-up. precision: auto is
    the fastest one that the device computes natively and that agrees with float32 on example pictures. threads: of one
    step on the CPU; 0 for all cores. max_samples: most in flight. pictures: uint8 (H, W, 3), only for int8. Raises
    ValueError if the device, the network or the installed packages do not allow the runner or the precision.
    """
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"precision 'int8' is for the CPU alone, not for {device}: give --device cpu")
    if name != "auto" and name not in DEVICES:
        raise ValueError(f"runner {name!r} is unknown: choose one of auto, {', '.join(DEVICES)}")
    if name != "auto" and device.type not in DEVICES[name]:
        raise ValueError(
            f"runner {name!r} does not run on {device}: give --device {DEVICES[name][0]}, or --runner auto"
        )
    if name == "torch":
        if precision not in ("auto", "float32"):
            raise ValueError(f"precision {precision!r} is not the torch runner's: it computes only in float32")
        with as_sentence("torch", "give --device cpu"):
            return TorchRunner(bundle, device)
    # The reference computes only in float32.
    falls_back = name == "auto" and precision in ("auto", "float32")
    on_gpu = device.type == "cuda"

    def make(chosen: str) -> FastRunner:
        chosen = chosen if precision == "auto" else precision
        if on_gpu:
            from offramp.server.engine.runners.cuda.cuda_graphs import CudaGraphRunner

            return CudaGraphRunner(bundle, device, max_samples=max_samples, precision=chosen)
        from offramp.server.engine.runners.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(bundle, chosen, threads, pictures)

    title = f"runner {'cuda-graphs' if on_gpu else 'openvino'!r}"
    return CheckedRunner(bundle, device, title, make, _precisions(device) if precision == "auto" else (), falls_back)


def _precisions(device: torch.device) -> tuple[str, ...]:
    if device.type != "cuda":
        return "bfloat16", "float32"
    from offramp.server.engine.runners.cuda.lowering import native_precisions

    return native_precisions(device)
