"""The options of `python -m benchmarks.hostile`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DataRoot, DatasetName, ModelPath
from benchmarks.server_costs import parse_counts

# By part, how many frontends it is measured with.
PARTS = {"attacks": "0", "overload": "0", "fairness": "0,2", "faults": "0,2", "mutants": "0"}


@dataclass(frozen=True)
class HostileOptions:
    """Raises ValueError for a part there is not, and for numbers of frontends that are none."""

    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    only: Annotated[
        str, typer.Option(help=f"Of {', '.join(PARTS)}, those to measure, with commas between; others are kept.")
    ] = ",".join(PARTS)
    frontends: Annotated[
        str, typer.Option(help="Numbers of frontends, with commas between. Default: 0; faults and fairness also 2.")
    ] = ""
    pictures: Annotated[int, typer.Option(min=2, help="Test pictures that are sent, over and over.")] = 256
    rounds: Annotated[int, typer.Option(min=1, help="How often each load is run, by turns.")] = 3
    seconds: Annotated[float, typer.Option(min=0.5, help="Measured seconds of each load.")] = 10.0
    attacks: Annotated[str, typer.Option(help="Names of attacks, with commas between; none: all.")] = ""
    faults: Annotated[str, typer.Option(help="Names of faults, with commas between; none: all.")] = ""
    repeats: Annotated[int, typer.Option(min=1, help="How often SIGTERM and SIGINT are sent, to a server each.")] = 20
    mutants: Annotated[int, typer.Option(min=1, help="Mutated requests.")] = 1_000_000
    first: Annotated[int, typer.Option(min=0, help="Number of the first mutant.")] = 0
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/hostile.json")

    def __post_init__(self) -> None:
        unknown = [name for name in self.parts if name not in PARTS]
        if unknown:
            raise ValueError(f"only {', '.join(unknown)}: choose of {', '.join(PARTS)}")
        if self.frontends:
            parse_counts(self.frontends)

    @property
    def parts(self) -> tuple[str, ...]:
        """Those asked for."""
        return tuple(part.strip() for part in self.only.split(","))

    def frontends_of(self, part: str) -> tuple[int, ...]:
        """What this part is measured with."""
        return parse_counts(self.frontends or PARTS[part])
