"""The options of `offramp train`, `evaluate` and `calibrate`: each declared once for flag, environment and help.

The command line derives `--peak-rate` and `OFFRAMP_PEAK_RATE` from a field named `peak_rate`. Imports no torch, so
that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[
    str,
    typer.Argument(help="cifar10, cifar100, or a folder of pictures: one sub-folder a class.", metavar="DATASET"),
]
BundlePath = Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")]
DataRoot = Annotated[Path, typer.Option(help="Where the CIFAR files lie, and folders that are not found as given.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes the first GPU there is.")]
PrecisionName = Annotated[
    str,
    typer.Option(help="auto, fp32 or bf16 (autocast); auto is bf16 where the device computes it natively."),
]
Workers = Annotated[
    int, typer.Option(min=0, max=256, help="Decoding processes, for folders too large for memory; 0: none.")
]


@dataclass(frozen=True)
class TrainOptions:
    """Options of `offramp train`; None leaves a value to the recipe or the data set."""

    dataset: Dataset
    output: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log, TensorBoard files and bundle.")]
    data_root: DataRoot = Path("data")
    architecture: Annotated[str, typer.Option(help="resnet18, resnet50, resnext50_32x4d, …")] = "resnet18"
    width: Annotated[int, typer.Option(min=4, max=512, help="Channels of the first stage; 64 is the papers'.")] = 64
    input_size: Annotated[
        int | None,
        typer.Option(min=16, max=1024, help="Side of the input in pixels; default 32 for CIFAR, else 64."),
    ] = None
    recipe: Annotated[str, typer.Option(help="journal (the paper's 250 epochs) or short (CPU hours).")] = "short"
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of the run; default: the recipe's.")] = None
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures a step; default: the recipe's.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate; default: the recipe's.")] = None
    alpha: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Weight of distillation; 0 with --beta 0: deep supervision."),
    ] = None
    beta: Annotated[float | None, typer.Option(min=0, help="Weight of the feature term; 0 for none.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and augmentation.")] = 0
    device: Device = "auto"
    precision: PrecisionName = "auto"
    workers: Workers = 4
    name: Annotated[str | None, typer.Option(help="The model's name; default: data set and architecture.")] = None
    resume: Annotated[bool, typer.Option(help="Continue the run in --output where its checkpoint ends.")] = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `offramp evaluate`."""

    bundle: BundlePath
    dataset: Dataset
    data_root: DataRoot = Path("data")
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json and evaluation.png; default: none written."),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 256
    device: Device = "auto"
    precision: PrecisionName = "fp32"
    workers: Workers = 4


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of `offramp calibrate`."""

    bundle: BundlePath
    dataset: Dataset
    data_root: DataRoot = Path("data")
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy the default threshold may lose against full depth.")
    ] = 0.005
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 256
    device: Device = "auto"
    workers: Workers = 4
