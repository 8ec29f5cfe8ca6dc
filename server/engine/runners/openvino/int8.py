"""Stages in eight-bit integers: ranges learnt from pictures, by NNCF's post-training quantisation."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

# Of features and accumulated logits, which are learnt from together.
BATCH_SIZE = 32


def quantize_stages(stages: Sequence[ov.Model], pictures: Sequence[npt.NDArray[np.uint8]]) -> list[ov.Model]:
    """Stages whose convolutions and matrix products compute in eight-bit integers; inputs and outputs stay as they are.

    stages: as `convert_stages` gives them, with features of float32. pictures: uint8 (H, W, 3), like those to come; 300
    of them tell the ranges well. Each stage learns from what the stages before it make of these in float32. Weights:
    a scale a channel; activations: one a tensor. Raises ValueError without pictures, and where NNCF is not installed.
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
        carries = len(following.inputs) == 2
        batches = [[one[2].copy(), one[1].copy()] if carries else [one[2].copy()] for one in outputs]
    return quantized


def _nncf() -> Any:
    # Before it is imported: it reports its use to its makers otherwise.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise ValueError("precision 'int8' needs NNCF: pip install 'offramp[int8]'") from error
    # It tells of every step on the way.
    nncf.set_log_level(logging.ERROR)
    return nncf
