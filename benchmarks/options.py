"""The options of benchmarks: declared once for flag, environment and help.

The command line derives `--server-threads` and `OFFRAMP_SERVER_THREADS` from a field named `server_threads`. Imports
neither torch nor an HTTP library, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option(help="A running server, such as http://127.0.0.1:8000; default: start an own one on a free port."),
]
ModelPath = Annotated[
    Path | None, typer.Option(help="The bundle's folder, for the own server; default: the embedded model.")
]
DatasetName = Annotated[str, typer.Option(help="cifar10 or cifar100; its test pictures are sent as PNG.")]
DataRoot = Annotated[Path, typer.Option(help="Where the CIFAR files lie.")]
Thresholds = Annotated[str, typer.Option(help="Thresholds to compare, separated by commas; 1 is exits off.")]
Pictures = Annotated[int, typer.Option(min=0, help="Send only the first test pictures, this many; 0: all.")]
ServerThreads = Annotated[
    int, typer.Option(min=0, max=1024, help="Threads of the own server's network on the CPU; 0: torch decides.")
]


def chosen(option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    """Names with commas between. Raises ValueError that names an unknown one."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} {', '.join(unknown)}: choose of {', '.join(known)}")
    return names


def parse_thresholds(text: str) -> tuple[float, ...]:
    """ "0,0.5,1" -> (0.0, 0.5, 1.0). Raises ValueError for anything that is no list of different numbers in [0, 1]."""
    try:
        thresholds = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"thresholds {text!r}: give numbers in [0, 1], separated by commas") from None
    if not all(0.0 <= threshold <= 1.0 for threshold in thresholds):
        raise ValueError(f"thresholds {text!r} are out of range: give numbers in [0, 1]")
    if len(set(thresholds)) != len(thresholds):
        raise ValueError(f"thresholds {text!r}: give each number once")
    return thresholds


@dataclass(frozen=True)
class BenchOptions:
    """Options of `offramp bench thresholds`. Raises ValueError for thresholds that cannot be compared."""

    url: Url = None
    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    thresholds: Thresholds = "0,0.5,0.8,0.95,1"
    pictures: Pictures = 2000
    connections: Annotated[int, typer.Option(min=1, max=512, help="Clients of the closed loop.")] = 32
    rounds: Annotated[int, typer.Option(min=1, help="How often each threshold is measured, interleaved.")] = 4
    seconds: Annotated[float, typer.Option(min=0.1, help="Measured seconds of each threshold in each round.")] = 5.0
    warmup_seconds: Annotated[float, typer.Option(min=0, help="Seconds of the same load before those.")] = 1.0
    rate: Annotated[
        float,
        typer.Option(min=0, help="Poisson arrivals a second of the open loop; 0: 70 % of the capacity at threshold 1."),
    ] = 0.0
    server_threads: ServerThreads = 0
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/thresholds.json")

    def __post_init__(self) -> None:
        if 1.0 not in parse_thresholds(self.thresholds):
            raise ValueError(f"thresholds {self.thresholds!r} lack 1, exits off, which all others are compared with")


@dataclass(frozen=True)
class AccuracyOptions:
    """Options of `python -m benchmarks.accuracy`."""

    url: Url = None
    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    thresholds: Thresholds = "0,0.5,0.8,0.95,1"
    pictures: Pictures = 0
    connections: Annotated[int, typer.Option(min=1, max=512, help="Requests in flight.")] = 64
    server_threads: ServerThreads = 0
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/accuracy.json")

    def __post_init__(self) -> None:
        parse_thresholds(self.thresholds)


@dataclass(frozen=True)
class PaperOptions:
    """Options of `offramp paper`. Raises ValueError for lists that are none."""

    dataset: Annotated[str, typer.Option(help="cifar10, cifar100, or a folder of pictures.")] = "cifar100"
    data_root: DataRoot = Path("data")
    runs: Annotated[Path, typer.Option(help="Folder of the runs; what is finished there is not trained again.")] = Path(
        "runs/paper"
    )
    architectures: Annotated[str, typer.Option(help="Networks, separated by commas.")] = "resnet18"
    width: Annotated[int | None, typer.Option(min=4, help="Channels of the stem; default: the architecture's.")] = None
    input_size: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Side of the input in pixels; default 32 for CIFAR, else 64.")
    ] = None
    head: Annotated[str, typer.Option(help="Head of the early stages: journal, scan or light.")] = "journal"
    methods: Annotated[str, typer.Option(help="Methods to compare, separated by commas.")] = "baseline,dsn,journal,ours"
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; three at least to tell methods apart.")] = (
        "0,1,2"
    )
    recipe: Annotated[str, typer.Option(help="Length, schedule and augmentation, the same for every method.")] = "fast"
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of each run; default: the recipe's.")] = None
    hours: Annotated[
        float, typer.Option(min=0, help="Stop training after this long; the next call goes on. 0: when all is done.")
    ] = 0.0
    backbones: Annotated[
        str, typer.Option(help="Python files or modules with networks of one's own, separated by commas.")
    ] = ""
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes the first GPU there is.")] = "auto"
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16 (autocast).")] = "auto"
    output: Annotated[Path, typer.Option(help="The JSON file to write; Markdown and plot go beside it.")] = Path(
        "benchmarks/results/paper.json"
    )

    def __post_init__(self) -> None:
        for name in ("architectures", "methods", "seeds"):
            words = getattr(self, name).split(",")
            if not all(words) or len(set(words)) != len(words):
                raise ValueError(f"{name} {getattr(self, name)!r}: give each once, separated by commas")
        if not all(seed.isdecimal() for seed in self.seeds.split(",")):
            raise ValueError(f"seeds {self.seeds!r}: give whole numbers, separated by commas")
