"""The options of `offramp train`, `evaluate` and `calibrate`: each declared once for flag, environment and help.

The command line derives `--peak-rate` and `OFFRAMP_PEAK_RATE` from a field named `peak_rate`. Imports no torch, so
that `--help` answers at once.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

Dataset = Annotated[
    str,
    typer.Argument(
        help="cifar10, cifar100, or a folder of pictures (one sub-folder a class).",
        metavar="DATASET",
    ),
]
BundlePath = Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")]
DataRoot = Annotated[Path, typer.Option(help="Where the CIFAR files lie, and folders that are not found as given.")]
Backbones = Annotated[
    str, typer.Option(help="Networks of your own: a Python file or module, or several with commas between.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes the first GPU there is.")]
PrecisionName = Annotated[
    str,
    typer.Option(help="auto, float32 or bfloat16 (autocast); auto is bfloat16 where the device computes it natively."),
]
CalibrationSize = Annotated[
    int | None,
    typer.Option(min=1, help="Pictures held out of train to calibrate and certify; default: 5000 of CIFAR, else 10 %."),
]
KeepExits = Annotated[bool, typer.Option(help="Keep all exits, also those that cost more than they save.")]
Workers = Annotated[
    int, typer.Option(min=0, max=256, help="Decoding processes, for folders too large for memory; 0: none.")
]


@dataclass(frozen=True)
class TrainOptions:
    """Options of `offramp train`; None leaves a value to the recipe or the data set."""

    dataset: Dataset
    output: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log, TensorBoard files and bundle.")]
    data_root: DataRoot = Path("data")
    calibration_size: CalibrationSize = None
    architecture: Annotated[
        str | None, typer.Option(help="resnet18, vgg19_bn, mobilenetv2, …; default: resnet18, or --start-from's.")
    ] = None
    backbones: Backbones = ""
    width: Annotated[
        int | None,
        typer.Option(min=4, max=512, help="Channels of the stem; default: the architecture's, 64 for ResNets."),
    ] = None
    input_size: Annotated[
        int | None,
        typer.Option(min=16, max=1024, help="Side of the input in pixels; default 32 for CIFAR, else 64."),
    ] = None
    head: Annotated[
        str | None,
        typer.Option(help="Head of the early stages: journal (default), scan or light."),
    ] = None
    exits: Annotated[
        str | None, typer.Option(help="Stages that have an exit, such as 2,4; default: all of the architecture.")
    ] = None
    keep_exits: KeepExits = False
    start_from: Annotated[
        Path | None,
        typer.Option(help="A bundle to go on from, network and weights; other classes get new classifiers."),
    ] = None
    prune: Annotated[
        float | None,
        typer.Option(help="Keep this share of --start-from's multiply-adds, in (0, 1): whole channels go, exits stay."),
    ] = None
    method: Annotated[
        str,
        typer.Option(help="What the exits learn from: baseline (no exits), dsn (labels), byot, scan, journal or ours."),
    ] = "journal"
    alpha: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of the teacher's answer; default: the method's.")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="Temperature of distillation; default: the method's.")] = (
        None
    )
    beta: Annotated[
        float | None, typer.Option(min=0, help="Weight of the feature term; default: the method's; 0 for none.")
    ] = None
    feature_term: Annotated[
        str | None,
        typer.Option(help="Its students: code (all but the deepest), comment (all but the shallowest), all or off."),
    ] = None
    teacher: Annotated[
        Path | None, typer.Option(help="A bundle that teaches as well: knowledge distillation from another network.")
    ] = None
    teacher_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the loss that is the bundle's answer.")
    ] = 0.5
    teacher_temperature: Annotated[float, typer.Option(min=0.1, max=100, help="Temperature of its answer.")] = 4.0
    recipe: Annotated[
        str, typer.Option(help="journal (the paper's 250 epochs), short and fast (CPU hours) or imagenet.")
    ] = "short"
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of the run; default: the recipe's.")] = None
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures a step; default: the recipe's.")] = None
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Parts in which a batch is computed, for memory that holds no whole one.")
    ] = None
    optimizer: Annotated[str | None, typer.Option(help="sgd or muon; default: the recipe's.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate; default: the recipe's.")] = None
    muon_rate: Annotated[float | None, typer.Option(help="Muon's peak rate; default: the recipe's.")] = None
    backbone_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the run that trains the deepest exit alone.")
    ] = None
    ema: Annotated[
        float | None, typer.Option(min=0, max=1, help="Keep averaged weights, with this decay a step; 0: as trained.")
    ] = None
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.1, help="Minutes between checkpoints; one more at the end, and on Ctrl-C.")
    ] = 10.0
    policy: Annotated[
        str | None, typer.Option(help="Learned augmentation: none, auto, auto_imagenet, rand or trivial.")
    ] = None
    cutout: Annotated[int | None, typer.Option(min=0, help="Side of the hidden square in pixels; 0: none.")] = None
    erase: Annotated[float | None, typer.Option(min=0, max=1, help="Probability of random erasing.")] = None
    mixup: Annotated[float | None, typer.Option(min=0, help="Alpha of mixup, such as 0.2; 0: none.")] = None
    cutmix: Annotated[float | None, typer.Option(min=0, help="Alpha of CutMix, such as 1; 0: none.")] = None
    smoothing: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of each label spread over all classes, such as 0.1.")
    ] = None
    sync_bn: Annotated[bool, typer.Option(help="Batch norm over the pictures of all processes (torchrun).")] = False
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
    backbones: Backbones = ""
    data_root: DataRoot = Path("data")
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json and evaluation.png; default: none written."),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 256
    device: Device = "auto"
    precision: PrecisionName = "float32"
    workers: Workers = 4


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of `offramp calibrate`."""

    bundle: Annotated[Path, typer.Argument(help="The bundle's folder; it is replaced.", metavar="BUNDLE")]
    dataset: Dataset
    backbones: Backbones = ""
    data_root: DataRoot = Path("data")
    calibration_size: CalibrationSize = None
    unseen: Annotated[
        bool,
        typer.Option(help="None of the data set's pictures trained this bundle: its own hold-out does not matter."),
    ] = False
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy the default threshold may lose against full depth.")
    ] = 0.005
    max_disagreement: Annotated[
        str, typer.Option(help="Shares of answers that may differ from full depth's, to certify thresholds for.")
    ] = "0.005,0.01,0.02,0.05,0.1"
    keep_exits: KeepExits = False
    costs: Annotated[
        Path | None,
        typer.Option(help="Step costs as a server measured them (its cost profile, JSON); default: measured here."),
    ] = None
    cost_batch_size: Annotated[int, typer.Option(min=1, help="Batch size that milliseconds are of.")] = 32
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for calibration.json and calibration.png beside the bundle; default: none."),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 256
    device: Device = "auto"
    workers: Workers = 4


def recorded_command(name: str, options: Any) -> str:
    """The command that makes it anew, wherever its options came from: all that differ from the defaults.

    Without --data-root and --resume, which say where and how often something ran, not what was made.
    """
    words = ["offramp", name]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.default is MISSING and field.name in ("dataset", "bundle"):
            words.append(str(value))
        elif field.name not in ("data_root", "resume", "checkpoint_minutes") and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)
