"""What a test runs on: the CPU, and a GPU where there is one; and how its pictures lie in memory."""

import pytest
import torch

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
