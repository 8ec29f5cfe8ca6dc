"""`offramp paper`: the paper's comparison, trained anew: methods against each other, over seeds, within a time budget.

Every run has its own folder below `--runs`. What is finished is kept, what was cut short is resumed; a run that another
process of the same command is training is left to it, so that the command may be started once for each device. The
table is made of all finished runs in that folder, whoever trained them: a variation that this command does not offer is
one `offramp train … --output RUNS/NAME` away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.machine import provenance
from benchmarks.options import PaperOptions
from benchmarks.paper_report import paper_plot, paper_section
from models.backbones import standard_width
from models.backbones.plugins import load_backbones
from models.bundle import load_bundle
from models.config import ModelConfig
from models.cost import count_cost
from training.claim import claimed
from training.epoch import EpochReport
from training.finish import finish
from training.methods import METHODS
from training.options import TrainOptions, recorded_command
from training.recipes import RECIPES
from training.report import write_evaluation
from training.run import prepare, train


class OutOfTime(Exception):
    """The budget is spent; what is trained so far lies in the checkpoints."""


@dataclass(frozen=True)
class Row:
    """One finished run. Accuracies are of the test pictures (0..1), by the last epoch's weights.

    accuracy: of each exit alone; served: of each exit with the visited exits' logits; ensemble: of the mean of all
    logits. cost figures: multiply-adds of one picture that answers at exit k, with all earlier heads (sequential) and
    with its own head only (as_published).
    """

    network: str
    data: str
    recipe: str
    epochs: int
    batch_size: int
    method: str
    seed: int
    accuracy: tuple[float, ...]
    served: tuple[float, ...]
    ensemble: float
    parameters: int
    backbone_multiply_adds: int
    sequential_multiply_adds: tuple[int, ...]
    as_published_multiply_adds: tuple[int, ...]
    hours: float
    hardware: str
    command: str


def planned(options: PaperOptions) -> list[TrainOptions]:
    """Every run, seeds outermost, so that a budget that ends early leaves the methods equally far."""
    architectures, methods = options.architectures.split(","), options.methods.split(",")
    if options.recipe not in RECIPES:
        raise ValueError(f"recipe {options.recipe!r} is unknown: choose one of {', '.join(RECIPES)}")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}")
    data = Path(options.dataset).resolve().name
    runs = []
    for seed in map(int, options.seeds.split(",")):
        for architecture in architectures:
            width = options.width or standard_width(architecture)
            epochs = options.epochs or RECIPES[options.recipe]().epochs
            for method in methods:
                head = "" if options.head == "journal" else f"-{options.head}"
                name = f"{data}-{architecture}-w{width}{head}-{options.recipe}{epochs}-{method}-s{seed}"
                runs.append(
                    TrainOptions(
                        options.dataset,
                        options.runs / name,
                        data_root=options.data_root,
                        architecture=architecture,
                        width=width,
                        input_size=options.input_size,
                        head=options.head,
                        backbones=options.backbones,
                        method=method,
                        recipe=options.recipe,
                        epochs=epochs,
                        seed=seed,
                        device=options.device,
                        precision=options.precision,
                    )
                )
    return runs


def run(options: PaperOptions) -> None:
    """Train what is not finished, then write JSON, Markdown and plot of all that is."""
    before = provenance()
    deadline_s = time.monotonic() + 3600 * options.hours if options.hours else float("inf")
    load_backbones(options.backbones)
    runs, failed, elsewhere = planned(options), 0, 0
    try:
        for wanted in runs:
            with claimed(wanted.output) as mine:
                if (wanted.output / "evaluation.json").exists():
                    continue
                if not mine:
                    elsewhere += 1
                    continue
                try:
                    train_one(wanted, deadline_s)
                except ValueError as error:
                    # One that diverged, or whose folder holds another run, does not keep the others from their table.
                    failed += 1
                    print(f"{wanted.output.name}: failed: {error}", flush=True)
    except OutOfTime:
        print(f"{options.hours:g} hours are over; the same command goes on from here")
    finished = sorted(path.parent for path in options.runs.glob("*/evaluation.json"))
    rows = sorted(map(row_of, finished), key=_place)
    for row, following in pairwise(rows):
        if _place(row) == _place(following):
            raise BenchmarkError(
                f"{options.runs}: two runs of {row.network}, {row.method}, seed {row.seed}, look alike; move one away"
            )
    if not rows:
        raise BenchmarkError(f"no run of {len(runs)} is finished yet: give more --hours, or fewer --epochs")
    left = sum(wanted.output not in finished for wanted in runs)
    document = {"benchmark": "paper", **before, "rows": [asdict(row) for row in rows]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(paper_section(document) + "\n")
    paper_plot(document, options.output.with_suffix(".png"))
    print(paper_section(document))
    others = f" ({elsewhere} of them with other processes: the last to end writes the whole table)" if elsewhere else ""
    print(f"{len(rows)} runs are finished, {left} are left{others}, {failed} failed")
    print(f"{options.output} written, with .md and .png beside it")


def train_one(options: TrainOptions, deadline_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """One run from where it stands to its evaluation. Raises OutOfTime at the end of the epoch that passes the time."""
    if clock() >= deadline_s:
        raise OutOfTime
    resumes = (options.output / "checkpoint.pt").exists()
    prepared = prepare(replace(options, resume=resumes))
    print(
        f"{options.output.name}: {'resumed' if resumes else 'begun'} at epoch {prepared.trainer.epoch + 1}", flush=True
    )

    def watch(report: EpochReport) -> None:
        exits = " ".join(f"{share:.1%}" for share in report.accuracy)
        print(f"  epoch {report.epoch}/{report.epochs}: {exits}, {report.seconds:.0f} s", flush=True)
        if clock() >= deadline_s and report.epoch < report.epochs:
            prepared.trainer.save()
            raise OutOfTime

    train(prepared, watch)
    _, evaluation = finish(prepared, recorded_command("train", options))
    # Last, and so the mark of a finished run.
    write_evaluation(evaluation, options.output)


def row_of(folder: Path) -> Row:
    """What a finished run says. Raises BenchmarkError when its files are of another form."""
    try:
        evaluation: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
        bundle = load_bundle(folder / "bundle")
        made, cost = bundle.training, count_cost(bundle.config)
        return Row(
            network=_network(bundle.config),
            data=made["data"],
            recipe=made["recipe"]["name"],
            epochs=made["recipe"]["epochs"],
            batch_size=made["recipe"]["batch_size"],
            method=_method(made),
            seed=made["seed"],
            accuracy=tuple(exit["accuracy"] for exit in evaluation["exits"]),
            served=tuple(exit["ensemble_accuracy"] for exit in evaluation["exits"]),
            ensemble=evaluation["ensemble_accuracy"],
            parameters=cost.total_parameters,
            backbone_multiply_adds=cost.backbone_multiply_adds,
            sequential_multiply_adds=cost.sequential_multiply_adds,
            as_published_multiply_adds=cost.own_head_multiply_adds,
            hours=made["hours"],
            hardware=made["hardware"],
            command=made["command"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{folder}: not a finished run of this version ({error!r}); move it away to train it again"
        ) from error


def _network(config: ModelConfig) -> str:
    head = "" if config.head == "journal" else f", {config.head} heads"
    # The plain network has its last exit only.
    exits = f", exits {config.exits}" if len(config.exits) > 1 else ""
    pruned = ", pruned" if config.shapes else ""
    return f"{config.architecture}, width {config.width}, {config.input_size} pixels{head}{exits}{pruned}"


def _method(made: dict[str, Any]) -> str:
    """The method's name, and what of it, or of the recipe's parts, was changed."""
    method = made["method"]
    recipe = asdict(RECIPES[made["recipe"]["name"]](made["recipe"]["epochs"]))
    usual = json.loads(json.dumps({**recipe, **asdict(METHODS[method["name"]])}))
    chosen = {**made["recipe"], **method}
    # The batch size stands in the table's title; the augmentation holds the data set's mean colour.
    told = usual.keys() - {"name", "batch_size", "augmentation"}
    changes = [f"{name} {chosen[name]}" for name in usual if name in told and chosen[name] != usual[name]]
    variation = {**made["recipe"]["augmentation"], "mean_colour": usual["augmentation"]["mean_colour"]}
    changes += [f"{name} {value}" for name, value in variation.items() if value != usual["augmentation"].get(name)]
    changes += [f"{name} {made[name]}" for name in ("teacher", "start_from") if made.get(name)]
    if made.get("processes", 1) > 1:
        changes.append(f"{made['processes']} processes")
    return ", ".join([method["name"], *changes])


def _place(row: Row) -> tuple[str, str, str, int, int, int, str, int]:
    methods = list(METHODS)
    return (
        row.data, row.network, row.recipe, row.epochs, row.batch_size,
        methods.index(row.method.partition(",")[0]), row.method, row.seed,
    )  # fmt: skip
