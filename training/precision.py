"""The number type of training: float32, or bfloat16 under autocast."""

from __future__ import annotations

import torch

from offramp.models.device import has_bfloat16

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The autocast type. "auto" is bfloat16 when the device computes it natively, else float32.

    Raises ValueError for a name other than auto, float32 and bfloat16.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown: give one of {', '.join(PRECISIONS)}")
    if dtype := PRECISIONS[name]:
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if capabilities.get("avx512_bf16") else torch.float32
