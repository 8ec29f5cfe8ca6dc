"""A short run for tests/training/test_distributed.py, alone or as one of torchrun's processes; saves the end state.

python -m torch.distributed.run --nproc-per-node 2 tests/training/distributed_run.py OUT.pt BATCH SYNC ACCUMULATE METHOD
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.training.augment.augmentation import Augmentation
from offramp.training.data import Batches
from offramp.training.distributed import join_processes, synchronized_batch_norm
from offramp.training.methods import METHODS
from offramp.training.recipes import short
from offramp.training.trainer import Trainer
from tests.training.conftest import coloured


def main(output: Path, batch_size: int, synchronized: bool, accumulate: int, method: str) -> None:
    """An epoch of ResNet-18, width 4, on 48 pictures; only the leader writes."""
    torch.set_num_threads(1)
    recipe = replace(
        short(1),
        augmentation=Augmentation(crop_padding=0, flip=False),
        batch_size=batch_size,
        learning_rate=0.02,
        accumulate=accumulate,
    )
    if method == "journal":
        recipe = replace(recipe, backbone_share=0.5, optimizer="muon", ema=0.5)
    with join_processes("cpu") as (world, device):
        torch.manual_seed(0)
        net = MultiExitNet(ModelConfig("resnet18", 3, width=4, input_size=16))
        pictures = coloured(48, seed=0)
        trainer = Trainer(
            synchronized_batch_norm(net, device) if synchronized and world.size > 1 else net,
            METHODS[method],
            recipe,
            Batches(pictures, batch_size, device, True, True, 0, world.rank, world.size),
            Batches(coloured(13, seed=1), 5, device, False, False, 0, world.rank, world.size),
            Preprocessing(16),
            device=device,
            dtype=torch.float32,
            seed=0,
            checkpoint=output.with_suffix(".checkpoint"),
            world=world,
        )
        steps: list[int] = []
        trainer.fit(on_step=lambda progress: steps.append(progress.step))
        # Gradients have travelled: all processes hold the same weights.
        mine = torch.cat([parameter.detach().flatten() for parameter in trainer.net.parameters()])
        assert torch.equal(world.mean(mine), mine)
        if world.leader:
            losses = [report.loss for report in trainer.history]
            state = {"net": trainer.result.state_dict(), "losses": losses, "steps": steps}
            torch.save({**state, "accuracy": [r.accuracy for r in trainer.history]}, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "sync", int(sys.argv[4]), sys.argv[5])
