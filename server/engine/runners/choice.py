"""Which runner a bundle gets on a device."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle
from server.engine.runners.agreement import largest_difference
from server.engine.runners.runner import Runner
from server.engine.runners.torch_runner import TorchRunner

logger = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]

# Kinds of device that a runner runs on.
DEVICES = {"torch": ("cpu", "cuda"), "openvino": ("cpu",), "cuda-graphs": ("cuda",)}

# Where a probability differs by more than this from the reference's, a lower precision is not this network's. In the
# same precision only sums in another order may differ; more is another network than the one that was converted.
LARGEST_DIFFERENCES = {"bfloat16": 0.1, "float32": 1e-3}


def choose_runner(
    bundle: Bundle,
    device: torch.device,
    name: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    max_samples: int = 1024,
    pictures: Sequence[Picture] = (),
) -> Runner:
    """The runner of that name; auto is the fastest that is right: OpenVINO on the CPU, CUDA graphs on a GPU.

    Where auto finds that a network does not fit its first choice, it takes torch and logs why. precision: auto is
    the fastest that the device computes in natively; on the CPU it has to agree with float32 on trial pictures.
    threads: of one step on the CPU, 0 for all cores. max_samples: most in flight. pictures: uint8 (H, W, 3), for int8
    alone. Raises ValueError for a runner or precision that the device, the network or what is installed does not
    allow.
    """
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"precision 'int8' is for the CPU alone, not for {device}: give --device cpu")
    if name == "auto":
        return _best(bundle, device, precision, threads, max_samples, pictures)
    if name not in DEVICES:
        raise ValueError(f"runner {name!r} is unknown: choose one of auto, {', '.join(DEVICES)}")
    if device.type not in DEVICES[name]:
        raise ValueError(
            f"runner {name!r} does not run on {device}: give --device {DEVICES[name][0]}, or --runner auto"
        )
    if name == "torch":
        if precision not in ("auto", "float32"):
            raise ValueError(f"precision {precision!r} is not the torch runner's: it computes in float32 alone")
        return TorchRunner(bundle, device)
    if name == "openvino":
        return _openvino(bundle, precision, threads, pictures)
    from server.engine.runners.cuda_graphs import CudaGraphRunner

    return CudaGraphRunner(bundle, device, max_samples=max_samples, precision=precision)


def _best(
    bundle: Bundle, device: torch.device, precision: str, threads: int, max_samples: int, pictures: Sequence[Picture]
) -> Runner:
    name = "cuda-graphs" if device.type == "cuda" else "openvino"
    try:
        return choose_runner(bundle, device, name, precision, threads, max_samples, pictures)
    except (ValueError, ImportError) as error:
        if precision != "auto":
            raise
        logger.warning("%s runs in plain torch: %s", bundle.name, error)
        return TorchRunner(bundle, device)


def _openvino(bundle: Bundle, precision: str, threads: int, pictures: Sequence[Picture]) -> Runner:
    from server.engine.runners.openvino_runner import OpenVinoRunner

    runner = OpenVinoRunner(bundle, precision, threads, pictures)
    if precision != "auto":
        return runner
    reference = TorchRunner(bundle, torch.device("cpu"))
    difference = largest_difference(runner, reference, bundle.preprocessing.size)
    # Not "more than": it may be no number.
    if runner.precision != "float32" and not difference <= LARGEST_DIFFERENCES[runner.precision]:
        logger.warning(
            "%s runs in float32: in %s its probabilities differ by %.2f", bundle.name, runner.precision, difference
        )
        runner = OpenVinoRunner(bundle, "float32", threads)
        difference = largest_difference(runner, reference, bundle.preprocessing.size)
    if not difference <= LARGEST_DIFFERENCES[runner.precision]:
        raise ValueError(
            f"OpenVINO computes another network than this: probabilities differ by {difference:.3g} in "
            f"{runner.precision}; does its forward decide by what it is given? Serve it with --runner torch"
        )
    return runner
