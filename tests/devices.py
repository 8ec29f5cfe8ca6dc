"""What a test runs on: the CPU, and a GPU where there is one; and how its pictures lie in memory."""

import numpy as np
import pytest
import torch

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])

# How far a probability in float32 may be from the reference's on the CPU: a GPU sums in another order.
TOLERANCES = {"cpu": 1e-5, "cuda": 1e-4}


def assert_near(given: np.ndarray, wanted: np.ndarray, device: torch.device) -> None:
    """Probabilities of a runner on that device, and the reference's on the CPU."""
    np.testing.assert_allclose(given, wanted, rtol=0, atol=TOLERANCES[device.type])
