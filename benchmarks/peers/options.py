"""The options of `offramp bench peers`: declared once for flag, environment and help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DataRoot, DatasetName, ModelPath, ServerThreads, parse_thresholds

PICTURE_SETS = ("cifar", "photos")


@dataclass(frozen=True)
class PeersOptions:
    """Options of `offramp bench peers`. Raises ValueError for lists that are none."""

    peers: Annotated[str, typer.Option(help="Peers to measure, separated by commas, or all.")] = "all"
    model: ModelPath = None
    picture_sets: Annotated[
        str, typer.Option(help="What this model is asked: cifar (PNG), photos (JPEG), both with a comma, or nothing.")
    ] = "cifar,photos"
    larger_model: Annotated[
        str,
        typer.Option(
            help="A larger network, measured on photographs: a bundle's folder, or an architecture of 224 pixels and "
            "1,000 classes that has learnt nothing, since only its speed is looked at; empty: none."
        ),
    ] = "resnet50"
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder or tar file of JPEG photographs; default: photos-caltech101.tar in the data root."),
    ] = None
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of each set; each is sent over and over.")] = 1000
    thresholds: Annotated[
        str,
        typer.Option(
            help="Ours is measured at each; default: 1 (exits off), the bundle's own, and the lowest at which at most "
            "1 % of the answers differ from the full depth's."
        ),
    ] = ""
    exit_mix: Annotated[
        str,
        typer.Option(
            help="The larger model's exits: shares of the pictures, separated by commas, that leave at exit 1, 2, …; "
            "default: those of the first model at the thresholds."
        ),
    ] = ""
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Clients of the closed loop.")] = 64
    rounds: Annotated[int, typer.Option(min=1, help="How often each pair of servers is measured, interleaved.")] = 3
    seconds: Annotated[int, typer.Option(min=1, help="Measured seconds of each server in each round.")] = 5
    warmup_seconds: Annotated[int, typer.Option(min=1, help="Seconds of the same load before those.")] = 2
    tune_seconds: Annotated[
        int, typer.Option(min=0, help="Seconds for which each of a peer's settings is tried; 0: only the first.")
    ] = 3
    load: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Open loop: share of the peer's capacity that both are sent.")
    ] = 0.7
    server_threads: ServerThreads = 0
    environments: Annotated[
        Path, typer.Option(help="Folder of the peers' environments; made there unless they are there already.")
    ] = Path(".peers")
    output: Annotated[Path, typer.Option(help="The JSON file to write; Markdown and plot go beside it.")] = Path(
        "benchmarks/results/peers.json"
    )

    def __post_init__(self) -> None:
        if self.thresholds and 1.0 not in parse_thresholds(self.thresholds):
            raise ValueError(f"thresholds {self.thresholds!r} lack 1, exits off, which every peer is compared with")
        wanted = self.picture_sets.split(",") if self.picture_sets else []
        if not set(wanted) <= set(PICTURE_SETS) or len(set(wanted)) != len(wanted):
            raise ValueError(f"picture_sets {self.picture_sets!r}: give some of {', '.join(PICTURE_SETS)}, each once")
        parse_mix(self.exit_mix)


def parse_mix(text: str) -> tuple[float, ...]:
    """ "0.5,0.3,0.2" -> (0.5, 0.3, 0.2); "" is none. Raises ValueError for what are no shares that sum to 1."""
    if not text:
        return ()
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"exit_mix {text!r}: give shares, separated by commas") from None
    if min(shares) < 0.0 or abs(sum(shares) - 1.0) > 0.01:
        raise ValueError(f"exit_mix {text!r}: give shares of 0 or more that sum to 1, one for each exit")
    return shares
