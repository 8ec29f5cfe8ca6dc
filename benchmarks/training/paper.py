"""`offramp paper`: the paper's comparison, trained anew: methods against each other, over seeds, within a time budget.

Every run has its own folder below `--runs`. A finished run is kept, an unfinished one is resumed, and one that another
process is training is skipped: the command may be started once for each device. The table is made of all finished runs
in that folder; `offramp train … --output RUNS/NAME` adds a variation that this command does not offer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import write
from benchmarks.options import PaperOptions
from benchmarks.training.paper_report import paper_plot, paper_section
from offramp.models.backbones import standard_width
from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import load_bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.training.epoch import EpochReport
from offramp.training.finish import finish
from offramp.training.lock import lock_folder
from offramp.training.methods import METHODS
from offramp.training.options import TrainOptions, recorded_command
from offramp.training.recipes import RECIPES
from offramp.training.report.tables import write_evaluation
from offramp.training.run import prepare, train


class OutOfTime(Exception):
    """The budget is spent; the checkpoints hold the training so far."""


@dataclass(frozen=True)
class PaperRow:
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


def plan_runs(options: PaperOptions) -> list[TrainOptions]:
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
    """Train unfinished runs, then write JSON, Markdown and plot of all finished ones."""
    head = provenance("paper", options)
    deadline_s = time.monotonic() + 3600 * options.hours if options.hours else float("inf")
    load_backbones(options.backbones)
    runs, failed, elsewhere = plan_runs(options), 0, 0
    try:
        for planned in runs:
            with lock_folder(planned.output) as mine:
                if (planned.output / "evaluation.json").exists():
                    continue
                if not mine:
                    elsewhere += 1
                    continue
                try:
                    train_one(planned, deadline_s)
                except ValueError as error:
                    # A run that diverged, or whose folder holds another run, does not prevent the table of the others.
                    failed += 1
                    print(f"{planned.output.name}: failed: {error}", flush=True)
    except OutOfTime:
        print(f"{options.hours:g} hours are over; the same command continues")
    finished = sorted(path.parent for path in options.runs.glob("*/evaluation.json"))
    rows = sorted(map(row_of, finished), key=_place)
    for row, following in pairwise(rows):
        if _place(row) == _place(following):
            raise BenchmarkError(
                f"{options.runs}: two runs of {row.network}, {row.method}, seed {row.seed}, look alike; move one away"
            )
    if not rows:
        raise BenchmarkError(f"no run of {len(runs)} is finished yet: give more --hours, or fewer --epochs")
    left = sum(planned.output not in finished for planned in runs)
    document = write(options.output, {**head, "rows": rows})
    options.output.with_suffix(".md").write_text(paper_section(document) + "\n")
    paper_plot(document, options.output.with_suffix(".png"))
    print(paper_section(document))
    others = f" ({elsewhere} of them in other processes: the last to end writes the whole table)" if elsewhere else ""
    print(f"{len(rows)} runs are finished, {left} are left{others}, {failed} failed")
    print(f"{options.output} written, with .md and .png beside it")


def train_one(options: TrainOptions, deadline_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Train one run to its evaluation. Raises OutOfTime at the end of the epoch that passes the deadline."""
    if clock() >= deadline_s:
        raise OutOfTime
    resumes = (options.output / "checkpoint.pt").exists()
    run = prepare(replace(options, resume=resumes))
    print(f"{options.output.name}: {'resumed' if resumes else 'begun'} at epoch {run.trainer.epoch + 1}", flush=True)

    def report_epoch(report: EpochReport) -> None:
        exits = " ".join(f"{share:.1%}" for share in report.accuracy)
        print(f"  epoch {report.epoch}/{report.epochs}: {exits}, {report.seconds:.0f} s", flush=True)
        if clock() >= deadline_s and report.epoch < report.epochs:
            run.trainer.save()
            raise OutOfTime

    train(run, report_epoch)
    evaluation = finish(run, recorded_command("train", options)).evaluation
    # Written last: the file marks a finished run.
    write_evaluation(evaluation, options.output)


def row_of(folder: Path) -> PaperRow:
    """The row of a finished run. Raises BenchmarkError when its files are of another form."""
    try:
        evaluation: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
        bundle = load_bundle(folder / "bundle")
        training, cost = bundle.training, count_cost(bundle.config)
        return PaperRow(
            network=_network(bundle.config),
            data=training["data"],
            recipe=training["recipe"]["name"],
            epochs=training["recipe"]["epochs"],
            batch_size=training["recipe"]["batch_size"],
            method=_method(training),
            seed=training["seed"],
            accuracy=tuple(exit["accuracy"] for exit in evaluation["exits"]),
            served=tuple(exit["ensemble_accuracy"] for exit in evaluation["exits"]),
            ensemble=evaluation["ensemble_accuracy"],
            parameters=cost.total_parameters,
            backbone_multiply_adds=cost.backbone_multiply_adds,
            sequential_multiply_adds=cost.sequential_multiply_adds,
            as_published_multiply_adds=cost.own_head_multiply_adds,
            hours=training["hours"],
            hardware=training["hardware"],
            command=training["command"],
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


def _method(training: dict[str, Any]) -> str:
    """The method's name, and the changed parts of method and recipe."""
    method = training["method"]
    recipe = asdict(RECIPES[training["recipe"]["name"]](training["recipe"]["epochs"]))
    usual = json.loads(json.dumps({**recipe, **asdict(METHODS[method["name"]])}))
    chosen = {**training["recipe"], **method}
    # The table's title has the batch size; the augmentation holds the data set's mean colour.
    compared = usual.keys() - {"name", "batch_size", "augmentation"}
    changes = [f"{name} {chosen[name]}" for name in usual if name in compared and chosen[name] != usual[name]]
    variation = {**training["recipe"]["augmentation"], "mean_colour": usual["augmentation"]["mean_colour"]}
    changes += [f"{name} {value}" for name, value in variation.items() if value != usual["augmentation"].get(name)]
    changes += [f"{name} {training[name]}" for name in ("teacher", "start_from") if training.get(name)]
    if training.get("processes", 1) > 1:
        changes.append(f"{training['processes']} processes")
    return ", ".join([method["name"], *changes])


def _place(row: PaperRow) -> tuple[str, str, str, int, int, int, str, int]:
    methods = list(METHODS)
    return (
        row.data, row.network, row.recipe, row.epochs, row.batch_size,
        methods.index(row.method.partition(",")[0]), row.method, row.seed,
    )  # fmt: skip
