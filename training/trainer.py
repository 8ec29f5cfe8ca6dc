"""Trainer: one self-distillation run, epoch by epoch, resumable to the same result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.multi_exit import MultiExitNet
from models.preprocess import Preprocessing, normalize
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.data import Batches
from training.losses import self_distillation_loss
from training.recipes import Recipe

Precision = Literal["auto", "fp32", "bf16"]

# Far apart, so that no two (seed, epoch) pairs of ordinary runs share a random stream.
EPOCHS_PER_SEED = 100_003


@dataclass(frozen=True)
class Progress:
    """Where an epoch stands: reported after every step."""

    epoch: int
    step: int
    steps: int
    pictures: int
    seconds: float


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch (1-based): mean training loss, validation accuracy per exit (0..1), speed."""

    epoch: int
    epochs: int
    learning_rate: float
    loss: float
    accuracy: tuple[float, ...]
    seconds: float
    images_per_s: float


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The autocast type: "auto" is bfloat16 where the device computes it natively, float32 elsewhere."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if capabilities.get("avx512_bf16") else torch.float32


class Trainer:
    """Trains `net` by `recipe` on `train`, watching `validation`, with a checkpoint after every epoch.

    All randomness is a function of (seed, epoch), so a resumed run takes the very steps of an uninterrupted one.
    `identity` is stored in the checkpoint: a run can only be resumed as what it was.
    """

    def __init__(
        self,
        net: MultiExitNet,
        recipe: Recipe,
        train: Batches,
        validation: Batches,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        checkpoint: Path,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = recipe
        self.train = train
        self.validation = validation
        self.preprocessing = preprocessing
        self.device = device
        self.dtype = dtype
        self.seed = seed
        self.checkpoint = checkpoint
        self.identity = {
            "recipe": asdict(recipe),
            "model": asdict(net.config),
            "seed": seed,
            **(identity or {}),
        }
        width = net.embedding_sizes[-1]
        exits = recipe.feature_exits if recipe.beta else ()
        if any(not 1 <= exit < net.num_exits for exit in exits):
            raise ValueError(f"feature_exits {exits} is out of range: give exits of 1 to {net.num_exits - 1}")
        # Linear layers of the feature term, used in training only.
        self.adapters = nn.ModuleList(nn.Linear(width, width) for _ in exits).to(device)
        self.optimizer = build_optimizer([net, self.adapters], recipe)
        self.epoch = 0
        self.history: list[EpochReport] = []

    def fit(
        self,
        on_epoch: Callable[[EpochReport], None] = lambda report: None,
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Train the epochs that are left."""
        if self.epoch == 0:
            self.save()
        while self.epoch < self.recipe.epochs:
            report = self.train_epoch(on_step)
            self.history.append(report)
            self.epoch += 1
            self.save()
            on_epoch(report)

    def train_epoch(self, on_step: Callable[[Progress], None]) -> EpochReport:
        """One walk over the training set, then the validation accuracy of every exit."""
        seed = self.seed * EPOCHS_PER_SEED + self.epoch
        generator = torch.Generator(self.device).manual_seed(seed)
        steps, pictures, start = len(self.train), 0, time.monotonic()
        total_loss = torch.zeros((), device=self.device)
        self.net.train()
        for step, (images_BHWC, labels_B) in enumerate(self.train.epoch(seed)):
            rate = self.recipe.learning_rate_at((self.epoch + step / steps) / self.recipe.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total_loss += self.train_step(images_BHWC, labels_B, generator)
            pictures += len(labels_B)
            on_step(Progress(self.epoch + 1, step + 1, steps, pictures, time.monotonic() - start))
        mean_loss = total_loss.item() / steps
        seconds = time.monotonic() - start
        if not torch.isfinite(total_loss):
            raise ValueError(
                f"the loss became {mean_loss} in epoch {self.epoch + 1}: lower --learning-rate, or use --precision fp32"
            )
        return EpochReport(
            epoch=self.epoch + 1,
            epochs=self.recipe.epochs,
            learning_rate=rate,
            loss=mean_loss,
            accuracy=accuracy_per_exit(self.net, self.validation, self.preprocessing, self.dtype),
            seconds=seconds,
            images_per_s=pictures / seconds,
        )

    def train_step(self, images_BHWC: Tensor, labels_B: Tensor, generator: torch.Generator) -> Tensor:
        """One optimiser step on a uint8 batch; the detached loss."""
        images_BHWC = self.recipe.augmentation(images_BHWC.permute(0, 3, 1, 2), generator).permute(0, 2, 3, 1)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits, embeddings = self.net(normalize(images_BHWC, self.preprocessing))
            exits = self.recipe.feature_exits if self.recipe.beta else ()
            adapted = [
                adapter(embeddings[exit - 1]).float() for adapter, exit in zip(self.adapters, exits, strict=True)
            ]
        loss = self_distillation_loss(
            [z.float() for z in logits],
            labels_B,
            temperature=self.recipe.temperature,
            alpha=self.recipe.alpha,
            beta=self.recipe.beta,
            adapted=adapted,
            teacher_embedding=embeddings[-1].float(),
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def save(self) -> None:
        """Write the checkpoint. Raises CheckpointError when the disk does not take it."""
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "history": [asdict(report) for report in self.history],
            "model": self.net.state_dict(),
            "adapters": self.adapters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(self.checkpoint, state)

    def resume(self) -> None:
        """Continue where the checkpoint ends. Raises CheckpointError when it belongs to another run."""
        state = load_checkpoint(self.checkpoint)
        try:
            self._check_identity(state["identity"])
            self.net.load_state_dict(state["model"])
            self.adapters.load_state_dict(state["adapters"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch = state["epoch"]
            self.history = [EpochReport(**{**r, "accuracy": tuple(r["accuracy"])}) for r in state["history"]]
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.checkpoint}: not a checkpoint of a training run ({type(error).__name__}: {error}); "
                "move it away and start the run again without --resume"
            ) from error

    def _check_identity(self, identity: dict[str, Any]) -> None:
        # The recipe last: other data change it too (its mean colour), and are the cause to name.
        for key, ours in reversed(self.identity.items()):
            theirs = identity.get(key)
            if theirs != ours:
                if isinstance(ours, dict) and isinstance(theirs, dict):
                    field = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
                    key, theirs, ours = f"{key} {field}", theirs.get(field), ours.get(field)
                raise CheckpointError(
                    f"{self.checkpoint}: was trained with {key} {theirs}, not {ours}; "
                    "give the same options to resume, or another --output to start anew"
                )


def build_optimizer(modules: list[nn.Module], recipe: Recipe) -> torch.optim.SGD:
    """Momentum SGD; without `decay_norms`, weight decay leaves biases and batch-norm parameters alone."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels},
        {"params": vectors, "weight_decay": recipe.weight_decay * recipe.decay_norms},
    ]
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


@torch.inference_mode()
def accuracy_per_exit(
    net: MultiExitNet, batches: Batches, preprocessing: Preprocessing, dtype: torch.dtype
) -> tuple[float, ...]:
    """Share of pictures (0..1) that each exit alone answers right, shallowest first."""
    net.eval()
    device = batches.device
    right = torch.zeros(net.num_exits, device=device)
    count = 0
    for images_BHWC, labels_B in batches.epoch():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = net(normalize(images_BHWC, preprocessing)).logits
        right += torch.stack([(z.argmax(dim=1) == labels_B).sum() for z in logits])
        count += len(labels_B)
    return tuple((right / count).tolist())
