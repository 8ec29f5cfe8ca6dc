"""The options of `python -m benchmarks.hostile`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DataRoot, DatasetName, ModelPath, chosen
from benchmarks.server_costs import parse_counts

# For each part, the numbers of frontends that it is measured with.
PARTS = {"attacks": "0", "overload": "0", "fairness": "0,2", "faults": "0,2", "mutants": "0"}


@dataclass(frozen=True)
class HostileOptions:
    """Raises ValueError for an unknown part, and for numbers of frontends that are not numbers."""

    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    only: Annotated[
        str,
        typer.Option(help=f"Parts to measure, with commas between, of {', '.join(PARTS)}. Results of others are kept."),
    ] = ",".join(PARTS)
    frontends: Annotated[
        str, typer.Option(help="Numbers of frontends, with commas between. Default: 0; faults and fairness also 2.")
    ] = ""
    pictures: Annotated[int, typer.Option(min=2, help="Test pictures that are sent, over and over.")] = 256
    rounds: Annotated[int, typer.Option(min=1, help="How often each load is run, by turns.")] = 3
    seconds: Annotated[float, typer.Option(min=0.5, help="Measured seconds of each load.")] = 10.0
    attacks: Annotated[str, typer.Option(help="Names of attacks, with commas between. Default: all.")] = ""
    faults: Annotated[str, typer.Option(help="Names of faults, with commas between. Default: all.")] = ""
    repeats: Annotated[int, typer.Option(min=1, help="How often SIGTERM and SIGINT are sent, to a server each.")] = 20
    mutants: Annotated[int, typer.Option(min=1, help="Mutated requests.")] = 1_000_000
    first: Annotated[int, typer.Option(min=0, help="Number of the first mutant.")] = 0
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/hostile.json")

    def __post_init__(self) -> None:
        chosen("only", self.only, PARTS)
        if self.frontends:
            parse_counts(self.frontends)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts to measure."""
        return chosen("only", self.only, PARTS)

    def frontends_of(self, part: str) -> tuple[int, ...]:
        """Numbers of frontends that this part is measured with."""
        return parse_counts(self.frontends or PARTS[part])
