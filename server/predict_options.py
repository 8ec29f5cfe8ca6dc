"""The options of `offramp predict`. Imports no torch, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class PredictOptions:
    """Options of `offramp predict`."""

    images: Annotated[list[Path], typer.Argument(help="Picture files.", metavar="IMAGE")]
    model: Annotated[
        Path | None,
        typer.Option(help="The bundle's folder; default: the embedded model.", envvar="OFFRAMP_PREDICT_MODEL"),
    ] = None
    backbones: Annotated[
        str, typer.Option(help="Networks of your own: a Python file or module, or several with commas between.")
    ] = ""
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Answer at the first exit this confident; default: the bundle's.")
    ] = None
    max_disagreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Instead of a threshold: a certified promise, the share of answers that may differ.",
        ),
    ] = None
    top_k: Annotated[int, typer.Option(min=1, help="Classes to print.")] = 3
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a picture.")] = False

    def __post_init__(self) -> None:
        if self.threshold is not None and self.max_disagreement is not None:
            raise ValueError("threshold and max_disagreement contradict each other: give one")
