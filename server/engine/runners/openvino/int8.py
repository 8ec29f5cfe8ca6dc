"""Stages in eight-bit integers: NNCF's post-training quantisation learns ranges from pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

# Samples that NNCF learns from together.
BATCH_SIZE = 32


def quantize_stages(stages: Sequence[ov.Model], pictures: Sequence[npt.NDArray[np.uint8]]) -> list[ov.Model]:
    """Stages whose convolutions and matrix products compute in eight-bit integers, with the same inputs and outputs.

    stages: from `convert_stages`, with features of float32. pictures: uint8 (H, W, 3), like those of later requests;
    300 are enough. Each stage learns from the float32 output of the stages before. Weights have a scale for each
    channel, activations one for each tensor. Raises ValueError without pictures or without NNCF.
    """
    if not pictures:
        raise ValueError("precision 'int8' learns its ranges from pictures: give some (--int8-pictures FOLDER)")
    nncf = _nncf()
    core = ov.Core()
    batches: list[Sequence[Any]] = [
        [np.stack(pictures[at : at + BATCH_SIZE])] for at in range(0, len(pictures), BATCH_SIZE)
    ]
    quantized = []
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        data = nncf.Dataset([tuple(batch) if len(batch) > 1 else batch[0] for batch in batches])
        quantized.append(nncf.quantize(stage, data, subset_size=len(batches)))
        if following is None:
            break
        compiled = core.compile_model(stage, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = [compiled(batch) for batch in batches]
        accumulates = len(following.inputs) == 2
        batches = [[output[2].copy(), *([output[1].copy()] if accumulates else [])] for output in outputs]
    return quantized


def _nncf() -> Any:
    # Must be set before the import, or NNCF reports its use to its makers.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise ValueError("precision 'int8' needs NNCF: pip install 'offramp[int8]'") from error
    # It logs every step.
    nncf.set_log_level(logging.ERROR)
    return nncf
