"""Several processes that train one network: their ranks, and batch norm over all their pictures.

`torchrun --nproc-per-node N -m offramp train …` starts them. Each takes its share of every step's pictures, and
DistributedDataParallel averages the gradients. Only the leader writes files and messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from offramp.models.device import choose_device
from offramp.models.multi_exit import MultiExitNet


@dataclass(frozen=True)
class World:
    """The processes of a run. rank: this one's number, 0..size-1; rank 0 is the leader."""

    rank: int = 0
    size: int = 1

    @property
    def leader(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' values."""
        return value if self.size == 1 else _sum(value)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of all processes' values."""
        return value if self.size == 1 else self.sum(value) / self.size


def _sum(own: Tensor) -> Tensor:
    total = own.clone()
    dist.all_reduce(total)
    return total


@contextmanager
def join_processes(device_name: str) -> Iterator[tuple[World, torch.device]]:
    """Connect to the other processes of torchrun, if it started this one. Each gets its own GPU when there are GPUs.

    Raises ValueError for one GPU and several processes, and for fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), choose_device(device_name)
        return
    if device_name.startswith("cuda:"):
        raise ValueError(f"device {device_name!r} is one GPU, and torchrun started {size} processes: give cuda or cpu")
    cuda = device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available())
    device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
        # All processes leave together. A process that ends at once can abort: a thread of gloo releases the last sum's
        # tensor and needs the interpreter for it. The barrier gives that thread time.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def synchronized_batch_norm(net: MultiExitNet, device: torch.device) -> MultiExitNet:
    """The same network with batch norm over the pictures of all processes.

    It is torch's SyncBatchNorm on GPUs, and `CpuSyncBatchNorm` on the CPU, for which torch has none. Names and values
    of all parameters stay. Raises ValueError for any other kind of batch norm, which would be lost.
    """
    for name, module in net.named_modules():
        known = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not (known and _is_plain(module)):
            raise ValueError(
                f"{name} is a {type(module).__name__} that cannot be synchronised: --sync-bn knows plain "
                "BatchNorm1d and BatchNorm2d with weights, statistics and a momentum; train without it"
            )
    if device.type == "cuda":
        converted: MultiExitNet = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return converted
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, CpuSyncBatchNorm.like(child))
    return net


def _is_plain(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


class _SumOverProcesses(torch.autograd.Function):
    """The sum of all processes' tensors; gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _sum(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return _sum(gradient)


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the pictures of all processes; (B, C, ...) -> the same shape."""

    @classmethod
    def like(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> CpuSyncBatchNorm:
        """A layer that shares the parameters and statistics of `norm`."""
        layer = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        layer._parameters, layer._buffers = norm._parameters, norm._buffers
        return layer.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept all shapes with channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all processes' pictures, and update the running statistics."""
        if not self.training:
            normalized: Tensor = super().forward(input)
            return normalized
        x = input.float()
        axes, shape = [axis for axis in range(x.ndim) if axis != 1], [1, -1] + [1] * (x.ndim - 2)
        count = torch.tensor([x.numel() / x.shape[1]])
        totals = _SumOverProcesses.apply(torch.cat([x.sum(axes), count]))  # type: ignore[no-untyped-call]
        total = totals[-1]
        mean_C = totals[:-1] / total
        # Squares of centred values: for large values with a small spread the difference of squares would be noise.
        centred = x - mean_C.view(shape)
        variance_C = _SumOverProcesses.apply((centred * centred).sum(axes)) / total  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * total / (total - 1), self.momentum)
            self.num_batches_tracked += 1
        scale_C = (variance_C + self.eps).rsqrt() * self.weight
        normalized = centred * scale_C.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)
