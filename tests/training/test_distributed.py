"""Several processes on one network: two of them, over gloo, equal one with the doubled batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.training.distributed import CpuSyncBatchNorm, World, join_processes, synchronized_batch_norm
from tests.project import PROJECT, PYTHONPATH

Start = Callable[..., dict[str, Any]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs distributed_run.py in so many processes and gives what the leader saved."""

    def run(
        processes: int, batch_size: int, synchronized: bool = True, accumulate: int = 1, method: str = "ours"
    ) -> dict[str, Any]:
        output = tmp_path / f"{processes}-{batch_size}-{synchronized}-{accumulate}-{method}.pt"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        script = ["tests/training/distributed_run.py", str(output), str(batch_size)]
        arguments = [*script, "sync" if synchronized else "own", str(accumulate), method]
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), *arguments],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        saved: dict[str, Any] = torch.load(output, weights_only=True)
        return saved

    return run


def largest_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    return max(
        (tensor.float() - second["net"][name].float()).abs().max().item() for name, tensor in first["net"].items()
    )


def test_two_processes_equal_one_with_the_doubled_batch(start: Start) -> None:
    alone, together = start(1, 16), start(2, 8)
    assert together["steps"] == alone["steps"] == [1, 2, 3]
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert largest_difference(alone, together) < 5e-4
    assert together["accuracy"][-1] == pytest.approx(alone["accuracy"][-1], abs=1e-6)
    # The same without common statistics: the difference above is no accident of a blunt measure.
    assert largest_difference(alone, start(2, 8, synchronized=False)) > 1e-2


def test_gradients_of_a_batch_in_parts_travel_too(start: Start) -> None:
    # distributed_run.py itself compares the weights of the processes.
    # The journal's adapters, a backbone phase without gradients for the shallow heads, Muon and averaged weights too.
    assert start(2, 8, synchronized=False, accumulate=2, method="journal")["steps"] == [1, 2, 3]


def test_a_batch_norm_that_does_more_is_not_replaced() -> None:
    class NormAndRelu(nn.BatchNorm2d):
        pass

    net = MultiExitNet(ModelConfig("resnet18", 3, width=4, input_size=16))
    for strange in (NormAndRelu(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, momentum=None)):
        net.stages[0][0][1] = strange  # type: ignore[index]
        with pytest.raises(
            ValueError, match=r"stages.0.0.1 is a .* that cannot be synchronised: --sync-bn knows plain"
        ):
            synchronized_batch_norm(net, torch.device("cpu"))


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes("cpu") as (world, device):
        assert (world, device) == (World(0, 1), torch.device("cpu"))
        assert world.leader
        value = torch.tensor(3.0)
        assert world.mean(value) is value


def test_one_gpu_is_not_shared_by_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match="device 'cuda:0' is one GPU, and torchrun started 2 processes: give cuda or"),
        join_processes("cuda:0"),
    ):
        pass


def test_synchronised_batch_norm_keeps_names_values_and_evaluation() -> None:
    torch.manual_seed(0)
    net = MultiExitNet(ModelConfig("resnet18", 3, width=4, input_size=16)).eval()
    x_BCHW = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = net(x_BCHW).logits
        names = list(net.state_dict())
        made = synchronized_batch_norm(net, torch.device("cpu"))
        assert all(map(torch.equal, made(x_BCHW).logits, before))
    assert list(made.state_dict()) == names
    norms = [module for module in made.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {type(norm) for norm in norms} == {CpuSyncBatchNorm}
