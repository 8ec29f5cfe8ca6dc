"""The options of `offramp train`, `evaluate` and `calibrate`, each declared once with its range, help and default.

The command line derives `--peak-rate` and `OFFRAMP_PEAK_RATE` from a field named `peak_rate`. This module imports
no torch, so that `--help` is fast.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

Dataset = Annotated[
    str, Argument(help="cifar10, cifar100, or a folder of pictures (one sub-folder per class).", metavar="DATASET")
]
BundlePath = Annotated[Path, Argument(help="The bundle's folder.", metavar="BUNDLE")]
DataRoot = Annotated[Path, Option(help="Folder of the CIFAR files, and of a data set that is not found as given.")]
Backbones = Annotated[str, Option(help="Networks of your own: Python files or modules, separated by commas.")]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N; auto: the first GPU, else the CPU.")]
PrecisionName = Annotated[
    str, Option(help="auto, float32 or bfloat16 (autocast); auto: bfloat16 where the device computes it natively.")
]
CalibrationSize = Annotated[
    int | None,
    Option(min=1, help="Training pictures held out to calibrate and certify. Default: 5000 for CIFAR, else 10 %."),
]
KeepExits = Annotated[bool, Option(help="Keep all exits, also an exit that costs more than it saves.")]
Workers = Annotated[
    int, Option(min=0, max=256, help="Processes that decode pictures, for folders larger than memory; 0: none.")
]


@dataclass(frozen=True)
class TrainOptions:
    """Options of `offramp train`; None: the value comes from the recipe or the data set."""

    dataset: Dataset
    output: Annotated[Path, Option(help="Folder of the run, for checkpoint, log, TensorBoard files and bundle.")]
    data_root: DataRoot = Path("data")
    calibration_size: CalibrationSize = None
    architecture: Annotated[
        str | None, Option(help="resnet18, vgg19_bn, mobilenetv2, … Default: resnet18, or that of --start-from.")
    ] = None
    backbones: Backbones = ""
    width: Annotated[
        int | None,
        Option(min=4, max=512, help="Channels of the stem. Default: the architecture's, such as 64 for ResNets."),
    ] = None
    input_size: Annotated[
        int | None, Option(min=16, max=1024, help="Side of the input, in pixels. Default: 32 for CIFAR, else 64.")
    ] = None
    head: Annotated[str | None, Option(help="Head of the early exits: journal (default), scan or light.")] = None
    exits: Annotated[str | None, Option(help="Stages that have an exit, such as 2,4. Default: all.")] = None
    keep_exits: KeepExits = False
    start_from: Annotated[
        Path | None,
        Option(help="Bundle whose network and weights the run starts with; other classes get new classifiers."),
    ] = None
    prune: Annotated[
        float | None,
        Option(help="Share of the multiply-adds of --start-from to keep, in (0, 1). Removes whole channels, no exits."),
    ] = None
    method: Annotated[
        str, Option(help="What exits learn from: baseline (no early exits), dsn (labels), byot, scan, journal or ours.")
    ] = "journal"
    alpha: Annotated[
        float | None, Option(min=0, max=1, help="Weight of the teacher's answer. Default: the method's.")
    ] = None
    temperature: Annotated[float | None, Option(help="Temperature of distillation. Default: the method's.")] = None
    beta: Annotated[float | None, Option(min=0, help="Weight of the feature term; 0: none. Default: the method's.")] = (
        None
    )
    feature_term: Annotated[
        str | None,
        Option(
            help="Early exits in the feature term: code (all but the deepest), comment (all but the first), all, off."
        ),
    ] = None
    teacher: Annotated[Path | None, Option(help="Bundle that teaches all exits too: knowledge distillation.")] = None
    teacher_weight: Annotated[float, Option(min=0, max=1, help="Share of the loss that comes from --teacher.")] = 0.5
    teacher_temperature: Annotated[float, Option(min=0.1, max=100, help="Temperature of the answer of --teacher.")] = (
        4.0
    )
    recipe: Annotated[
        str, Option(help="journal (the paper's 250 epochs), short or fast (hours on a CPU), or imagenet.")
    ] = "short"
    epochs: Annotated[int | None, Option(min=1, help="Number of epochs. Default: the recipe's.")] = None
    batch_size: Annotated[int | None, Option(min=2, help="Pictures per step. Default: the recipe's.")] = None
    accumulate: Annotated[
        int | None, Option(min=1, help="Number of parts of a batch, computed one after another to save memory.")
    ] = None
    optimizer: Annotated[str | None, Option(help="sgd or muon. Default: the recipe's.")] = None
    learning_rate: Annotated[float | None, Option(help="Peak learning rate. Default: the recipe's.")] = None
    muon_rate: Annotated[float | None, Option(help="Peak learning rate of Muon. Default: the recipe's.")] = None
    backbone_share: Annotated[
        float | None, Option(min=0, max=1, help="Share of the run that trains only the deepest exit, at the start.")
    ] = None
    ema: Annotated[
        float | None,
        Option(min=0, max=1, help="Decay per step of averaged weights, which the bundle then holds; 0: no averaging."),
    ] = None
    checkpoint_minutes: Annotated[
        float, Option(min=0.1, help="Minutes between checkpoints. Another one is written at the end and on Ctrl-C.")
    ] = 10.0
    policy: Annotated[str | None, Option(help="Learned augmentation: none, auto, auto_imagenet, rand or trivial.")] = (
        None
    )
    cutout: Annotated[int | None, Option(min=0, help="Side of the hidden square of Cutout, in pixels; 0: none.")] = None
    erase: Annotated[float | None, Option(min=0, max=1, help="Probability of random erasing.")] = None
    mixup: Annotated[float | None, Option(min=0, help="Alpha of mixup, such as 0.2; 0: none.")] = None
    cutmix: Annotated[float | None, Option(min=0, help="Alpha of CutMix, such as 1; 0: none.")] = None
    smoothing: Annotated[
        float | None, Option(min=0, max=1, help="Share of each label that is spread over all classes, such as 0.1.")
    ] = None
    sync_bn: Annotated[bool, Option(help="Take batch-norm statistics over all processes of torchrun.")] = False
    seed: Annotated[
        int, Option(min=0, help="Seed of the first weights, the order of pictures and the augmentation.")
    ] = 0
    device: Device = "auto"
    precision: PrecisionName = "auto"
    workers: Workers = 4
    name: Annotated[str | None, Option(help="Name of the model. Default: data set and architecture.")] = None
    resume: Annotated[bool, Option(help="Continue the run in --output from its checkpoint.")] = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `offramp evaluate`."""

    bundle: BundlePath
    dataset: Dataset
    backbones: Backbones = ""
    data_root: DataRoot = Path("data")
    output: Annotated[Path | None, Option(help="Folder for evaluation.json and evaluation.png. Default: no files.")] = (
        None
    )
    batch_size: Annotated[int, Option(min=1, help="Pictures per batch.")] = 256
    device: Device = "auto"
    precision: PrecisionName = "float32"
    workers: Workers = 4


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of `offramp calibrate`."""

    bundle: Annotated[Path, Argument(help="The bundle's folder; the command replaces it.", metavar="BUNDLE")]
    dataset: Dataset
    backbones: Backbones = ""
    data_root: DataRoot = Path("data")
    calibration_size: CalibrationSize = None
    unseen: Annotated[
        bool, Option(help="No picture of the data set has trained this bundle: hold out pictures anew.")
    ] = False
    tolerance: Annotated[
        float, Option(min=0, max=1, help="Largest loss of accuracy at the default threshold, against full depth.")
    ] = 0.005
    max_disagreement: Annotated[
        str, Option(help="Promises to certify: largest shares of answers that differ from the answer at full depth.")
    ] = "0.005,0.01,0.02,0.05,0.1"
    keep_exits: KeepExits = False
    costs: Annotated[
        Path | None, Option(help="JSON file of step costs that a server measured. Default: measured here.")
    ] = None
    cost_batch_size: Annotated[int, Option(min=1, help="Batch size at which milliseconds are measured.")] = 32
    output: Annotated[
        Path | None, Option(help="Folder for calibration.json and calibration.png. Default: no files.")
    ] = None
    batch_size: Annotated[int, Option(min=1, help="Pictures per batch.")] = 256
    device: Device = "auto"
    workers: Workers = 4


def recorded_command(name: str, options: Any) -> str:
    """The command that repeats a run: all options that differ from their defaults.

    Without --data-root, --resume and --checkpoint-minutes, which do not change the result.
    """
    words = ["offramp", name]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.default is MISSING and field.name in ("dataset", "bundle"):
            words.append(str(value))
        elif field.name not in ("data_root", "resume", "checkpoint_minutes") and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)
