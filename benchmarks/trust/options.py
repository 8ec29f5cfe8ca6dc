"""The options of `python -m benchmarks.trust`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DataRoot, DatasetName, ModelPath, chosen

PARTS = ("certified", "audit", "audit-cost", "brownout", "privacy", "attack")


@dataclass(frozen=True)
class TrustOptions:
    """Raises ValueError for a part there is not."""

    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    only: Annotated[
        str, typer.Option(help=f"Of {', '.join(PARTS)}, those to measure, with commas between; others are kept.")
    ] = ",".join(PARTS)
    pictures: Annotated[int, typer.Option(min=0, help="Use the first test pictures alone, this many; 0: all.")] = 0
    connections: Annotated[int, typer.Option(min=1, max=512, help="Clients of closed loops.")] = 64
    rounds: Annotated[int, typer.Option(min=1, help="How often each load is run, by turns.")] = 3
    seconds: Annotated[int, typer.Option(min=1, help="Measured seconds of each closed loop.")] = 3
    open_seconds: Annotated[int, typer.Option(min=1, help="Measured seconds of each open loop.")] = 5
    warmup_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of the same load before those.")] = 1.0
    recovery_seconds: Annotated[int, typer.Option(min=1, help="Seconds of light load after an overload.")] = 8
    audit_share: Annotated[float, typer.Option(min=0.001, max=1, help="Of the pictures that are streamed.")] = 0.5
    stream: Annotated[int, typer.Option(min=1, help="Most pictures of one corrupted stream.")] = 6000
    chunk: Annotated[int, typer.Option(min=1, help="Pictures of a stream between two looks at the alarm.")] = 250
    truth: Annotated[int, typer.Option(min=1, help="Pictures of a stream that are compared with full depth.")] = 2000
    clean: Annotated[int, typer.Option(min=1, help="Pictures of the stream that is not corrupted.")] = 100_000
    kinds: Annotated[str, typer.Option(help="Corruptions, with commas between; none: all.")] = ""
    severities: Annotated[str, typer.Option(help="Of these, with commas between.")] = "1,2,3,4,5"
    alone: Annotated[int, typer.Option(min=1, help="Requests sent one after the other.")] = 300
    attacked: Annotated[int, typer.Option(min=1, help="Pictures that are made to go deep.")] = 512
    attack_steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 20
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/trust.json")

    def __post_init__(self) -> None:
        chosen("only", self.only, PARTS)
        if not all(part in {"1", "2", "3", "4", "5"} for part in self.severities.split(",")):
            raise ValueError(f"severities {self.severities!r}: give numbers from 1 to 5, with commas between")

    @property
    def parts(self) -> tuple[str, ...]:
        """Those asked for."""
        return chosen("only", self.only, PARTS)
