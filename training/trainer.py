"""Trainer: one self-distillation run, epoch by epoch, resumable to the same result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing, normalize
from offramp.training.augment.mixing import one_hot
from offramp.training.checkpoint import CheckpointError, check_identity, load_checkpoint, save_checkpoint
from offramp.training.data import Batches
from offramp.training.distributed import World
from offramp.training.epoch import EpochReport, EpochSoFar, Progress
from offramp.training.evaluate.evaluation import accuracy_per_exit
from offramp.training.losses import external_distillation_loss, feature_loss, self_distillation_loss
from offramp.training.methods import Method
from offramp.training.optimizers import Optimizers
from offramp.training.recipes import Recipe
from offramp.training.student import Student, StudentOutputs, feature_adapters
from offramp.training.teacher import ExternalTeacher
from offramp.training.whole_steps import WholeSteps

ALONE = World()


@dataclass(eq=False)
class Trainer:
    """Trains `net` by `method` and `recipe` on `train`, with the accuracy on `validation` after each epoch.

    All randomness is a function of (seed, epoch, step), so a resumed run takes the steps of an uninterrupted one.
    teacher: another network to learn from.
    checkpoint_s: seconds between checkpoints; one more is written at the end, and on Ctrl-C.
    world: the processes of the run, each with its own part of `train` and `validation`; the leader writes checkpoints.
    identity: values that must be equal for a run to resume, added to those of recipe, method and network.
    """

    net: MultiExitNet
    method: Method
    recipe: Recipe
    train: Batches
    validation: Batches
    preprocessing: Preprocessing
    _: KW_ONLY
    device: torch.device
    dtype: torch.dtype
    seed: int
    checkpoint: Path
    teacher: ExternalTeacher | None = None
    checkpoint_s: float = 600.0
    world: World = ALONE
    identity: dict[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        net, method, recipe, world = self.net, self.method, self.recipe, self.world
        self.net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        run = {"recipe": asdict(recipe), "method": asdict(method), "model": asdict(net.config), "seed": self.seed}
        self.identity = {**run, "processes": world.size, **self.identity}
        self.student = Student(self.net, feature_adapters(net, method).to(self.device), method)
        self.adapters = self.student.adapters
        self._parallel: DistributedDataParallel | None = None
        if world.size > 1:
            # The backbone phase leaves the shallow heads without gradients.
            unused = recipe.backbone_share > 0
            self._parallel = DistributedDataParallel(self.student, find_unused_parameters=unused)
        self._forward: Callable[[Tensor, bool], StudentOutputs] = self._parallel or self.student
        self.averaged: AveragedModel | None = None
        if recipe.ema:
            self.averaged = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        self.optimizers = Optimizers([net, self.adapters], recipe)
        self.epoch = 0
        self.history: list[EpochReport] = []
        self._begun = EpochSoFar()
        self._saved_at_s = self.clock()
        # Processes wait for one another inside a step, so none may delay its end.
        self._steps = WholeSteps(enabled=world.size == 1)

    @property
    def result(self) -> MultiExitNet:
        """The network of the bundle: with averaged weights if the recipe averages them."""
        if self.averaged is None:
            return self.net
        return cast(MultiExitNet, self.averaged.module)

    @property
    def done(self) -> str:
        """The progress of the run, in words."""
        steps = f" and {self._begun.steps} of {len(self.train)} steps" if self._begun.steps else ""
        return f"{self.epoch} of {self.recipe.epochs} epochs{steps}"

    def fit(
        self,
        on_epoch: Callable[[EpochReport], None] = lambda report: None,
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Train the epochs that are left. Ctrl-C (KeyboardInterrupt) leaves a checkpoint of all whole steps."""
        if self.epoch == 0 and not self._begun.steps:
            self.save()
        try:
            while self.epoch < self.recipe.epochs:
                report = self.train_epoch(on_step)
                with self._steps.step():
                    self.history.append(report)
                    self.epoch += 1
                    self._begun = EpochSoFar()
                if self._save_is_due or self.epoch == self.recipe.epochs:
                    self.save()
                on_epoch(report)
        except KeyboardInterrupt:
            if not self._steps.cut and math.isfinite(float(self._begun.loss)):
                self.save()
            raise

    @property
    def _save_is_due(self) -> bool:
        return self.clock() - self._saved_at_s >= self.checkpoint_s

    def train_epoch(self, on_step: Callable[[Progress], None]) -> EpochReport:
        """One pass over the training set, or the rest of it, then the validation accuracy of every exit."""
        steps, begun = len(self.train), self._begun
        start = self.clock() - begun.seconds
        loss, pictures = torch.tensor(float(begun.loss), device=self.device), begun.pictures
        self.net.train()
        batches = self.train.epoch(self._seed(self.epoch), begun.steps)
        for step, (images_BHWC, labels_B) in enumerate(batches, start=begun.steps):
            with self._steps.step():
                loss += self.world.mean(self._seeded_step(step, images_BHWC, labels_B))
                pictures += len(labels_B) * self.world.size
                seconds = self.clock() - start
                self._begun = EpochSoFar(step + 1, pictures, loss, seconds)
            if self._save_is_due and step + 1 < steps:
                self._check_finite(loss.item())
                self.save()
            on_step(Progress(self.epoch + 1, step + 1, steps, pictures, seconds))
        seconds = self.clock() - start
        self._check_finite(loss.item())
        return EpochReport(
            epoch=self.epoch + 1,
            epochs=self.recipe.epochs,
            learning_rate=self.recipe.learning_rate * self.recipe.rate_at(self._progress(steps - 1)),
            loss=loss.item() / steps,
            accuracy=accuracy_per_exit(self.result, self.validation, self.preprocessing, self.dtype, self.world.sum),
            seconds=seconds,
            images_per_s=pictures / seconds,
        )

    def _progress(self, step: int) -> float:
        """Share of the run (0..1) before a step of this epoch."""
        return (self.epoch + step / len(self.train)) / self.recipe.epochs

    def _seeded_step(self, step: int, images_BHWC: Tensor, labels_B: Tensor) -> Tensor:
        """The training step with this number within the epoch; its loss."""
        progress = self._progress(step)
        self.optimizers.set_rate(self.recipe.rate_at(progress))
        seed = self._seed(self.epoch, step + 1, *self._own_stream)
        generator = torch.Generator(self.device).manual_seed(seed)
        # Dropout and similar layers draw from torch's own generator.
        torch.manual_seed(seed)
        return self.train_step(images_BHWC, labels_B, generator, progress < self.recipe.backbone_share)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss became {loss} in epoch {self.epoch + 1}: lower --learning-rate, or use --precision float32"
            )

    def train_step(
        self, images_BHWC: Tensor, labels_B: Tensor, generator: torch.Generator, backbone_only: bool
    ) -> Tensor:
        """One optimiser step on a uint8 batch, in the recipe's number of parts; the detached loss."""
        images_BHWC, targets = self.augment(images_BHWC, labels_B, generator)
        parts = self.recipe.accumulate
        total = torch.zeros((), device=self.device)
        pieces = list(zip(images_BHWC.tensor_split(parts), targets.tensor_split(parts), strict=True))
        for number, (images, labels) in enumerate(pieces, start=1):
            # Processes exchange gradients once in a step, with its last part.
            with self._parallel.no_sync() if self._parallel and number < parts else nullcontext():
                loss = self.loss(images, labels, backbone_only) * (len(images) / len(images_BHWC))
                loss.backward()
            total += loss.detach()
        self.optimizers.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.net)
        return total

    def augment(self, images_BHWC: Tensor, labels_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The recipe's variation of a uint8 batch, and its targets: class numbers, or probabilities of mixed labels."""
        recipe = self.recipe
        images_BCHW, targets = recipe.augmentation(images_BHWC.permute(0, 3, 1, 2), generator), labels_B
        if recipe.smoothing or recipe.mixing.enabled:
            targets = one_hot(labels_B, self.net.config.num_classes, recipe.smoothing)
            images_BCHW, targets = recipe.mixing(images_BCHW, targets, generator)
        return images_BCHW.permute(0, 2, 3, 1), targets

    def loss(self, images_BHWC: Tensor, targets: Tensor, backbone_only: bool = False) -> Tensor:
        """The method's loss on augmented uint8 pictures; `backbone_only`: the loss of the deepest exit alone."""
        method = self.method
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits, students, embedding_BD = self._forward(normalize(images_BHWC, self.preprocessing), backbone_only)
            teacher_BC = self.teacher.logits(images_BHWC) if self.teacher else None
        logits = [z.float() for z in logits]
        loss = self_distillation_loss(
            logits,
            targets,
            alpha=method.alpha,
            temperature=method.temperature,
            scaled=method.scaled,
            teacher=method.teacher,
        )
        if students:
            features = feature_loss([f.float() for f in students], embedding_BD.float(), method.squared)
            # The norm is over all pictures of a step, and these are one part of one process.
            parts = self.recipe.accumulate * self.world.size
            loss = loss + method.beta * (parts if method.squared else parts**0.5) * features
        if self.teacher is not None and teacher_BC is not None:
            external = external_distillation_loss(logits, teacher_BC, self.teacher.temperature)
            loss = (1.0 - self.teacher.weight) * loss + self.teacher.weight * external
        return loss

    @property
    def _own_stream(self) -> tuple[int, ...]:
        """The part of the seed that differs between processes, for their augmentation."""
        return (self.world.rank,) if self.world.size > 1 else ()

    def _seed(self, *place: int) -> int:
        """One of 2^63 seeds for (epoch) or (epoch, step)."""
        return int(np.random.SeedSequence((self.seed, *place)).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def save(self) -> None:
        """Write the checkpoint. Raises CheckpointError when the disk is full or the folder cannot be written."""
        self._saved_at_s = self.clock()
        if not self.world.leader:
            return
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "begun": asdict(replace(self._begun, loss=float(self._begun.loss))),
            "history": [asdict(report) for report in self.history],
            "model": self.net.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "adapters": self.adapters.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }
        save_checkpoint(self.checkpoint, state)

    def resume(self) -> None:
        """Continue where the checkpoint ends. Raises CheckpointError when it belongs to another run."""
        state = load_checkpoint(self.checkpoint)
        try:
            check_identity(self.checkpoint, self.identity, state["identity"])
            self.net.load_state_dict(state["model"])
            self.adapters.load_state_dict(state["adapters"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            self.optimizers.load_state_dict(state["optimizers"])
            self.epoch = state["epoch"]
            self._begun = EpochSoFar(**state["begun"])
            self.history = [EpochReport(**{**r, "accuracy": tuple(r["accuracy"])}) for r in state["history"]]
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.checkpoint}: not a checkpoint of a training run ({type(error).__name__}: {error}); "
                "move it away and start the run again without --resume"
            ) from error
