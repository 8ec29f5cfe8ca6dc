"""`offramp paper`: the paper's comparison, trained anew: methods against each other, over seeds, within a time budget.

Every run has its own folder below `--runs`. A finished run stays as it is, an unfinished one is resumed, and one that
another process trains is skipped: the command may be started once for each device. The table has all finished runs of
that folder; `offramp train … --output RUNS/NAME` adds a variation that this command does not offer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import publish, say
from benchmarks.options import PaperOptions
from benchmarks.training.paper_report import Row, paper_section
from offramp.models.backbones import standard_width
from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import load_bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.models.preprocess import Preprocessing
from offramp.training.build import build_method, build_recipe
from offramp.training.epoch import EpochReport
from offramp.training.finish import finish
from offramp.training.lock import lock_folder
from offramp.training.methods import METHODS
from offramp.training.options import TrainOptions, recorded_command
from offramp.training.recipes import RECIPES
from offramp.training.report.tables import write_evaluation
from offramp.training.run import prepare, train

SAME_FOR_ALL = ("data_root", "input_size", "head", "backbones", "recipe", "epochs", "device", "precision")
# Rows that agree in these stand in one table.
COMPARABLE = ("data", "network", "recipe", "epochs", "batch_size")


class OutOfTime(Exception):
    """The budget is spent; the checkpoints hold the training so far."""


def plan_runs(options: PaperOptions) -> list[TrainOptions]:
    """Every run, seeds outermost, so that a budget that ends early leaves the methods equally far.

    Raises ValueError for an unknown architecture, method or recipe.
    """
    data = Path(options.dataset).resolve().name
    head = "" if options.head == "journal" else f"-{options.head}"
    same = {name: getattr(options, name) for name in SAME_FOR_ALL}
    runs = []
    lists = (options.seeds, options.architectures, options.methods)
    for seed, architecture, method in product(*(words.split(",") for words in lists)):
        width = options.width or standard_width(architecture)
        run = TrainOptions(
            options.dataset, options.runs, architecture=architecture, width=width, method=method, seed=int(seed), **same
        )
        build_method(run)
        epochs = build_recipe(run, Preprocessing(32)).epochs
        name = f"{data}-{architecture}-w{width}{head}-{run.recipe}{epochs}-{method}-s{run.seed}"
        runs.append(replace(run, output=options.runs / name, epochs=epochs))
    return runs


def run(options: PaperOptions) -> None:
    """Train unfinished runs, then write the result file of all finished ones and print the tables."""
    head = provenance("paper", options)
    deadline_s = time.monotonic() + 3600 * options.hours if options.hours else float("inf")
    load_backbones(options.backbones)
    runs, failed, elsewhere = plan_runs(options), 0, 0
    try:
        for planned in runs:
            with lock_folder(planned.output) as is_free:
                if (planned.output / "evaluation.json").exists():
                    continue
                if not is_free:
                    elsewhere += 1
                    continue
                try:
                    train_one(planned, deadline_s)
                except ValueError as error:
                    # A run that diverged, or whose folder holds another run, does not prevent the table of the others.
                    failed += 1
                    say(f"{planned.output.name}: failed: {error}")
    except OutOfTime:
        say(f"{options.hours:g} hours are over; the same command continues")
    finished = sorted(path.parent for path in options.runs.glob("*/evaluation.json"))
    if not finished:
        raise BenchmarkError(f"no run of {len(runs)} is finished yet: give more --hours, or fewer --epochs")
    left = sum(planned.output not in finished for planned in runs)
    others = f" ({elsewhere} of them in other processes: the last to end writes the whole table)" if elsewhere else ""
    rows = read_rows(options.runs, finished)
    publish(options.output, {**head, "rows": rows}, paper_section, without=("rows",))
    say(f"{len(finished)} runs are finished, {left} are left{others}, {failed} failed")


def train_one(options: TrainOptions, deadline_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Train one run to its evaluation. Raises OutOfTime at the end of the epoch that passes the deadline."""
    if clock() >= deadline_s:
        raise OutOfTime
    resumes = (options.output / "checkpoint.pt").exists()
    run = prepare(replace(options, resume=resumes))
    say(f"{options.output.name}: {'resumed' if resumes else 'begun'} at epoch {run.trainer.epoch + 1}")

    def report_epoch(report: EpochReport) -> None:
        exits = " ".join(f"{share:.1%}" for share in report.accuracy)
        say(f"  epoch {report.epoch}/{report.epochs}: {exits}, {report.seconds:.0f} s")
        if clock() >= deadline_s and report.epoch < report.epochs:
            run.trainer.save()
            raise OutOfTime

    train(run, report_epoch)
    evaluation = finish(run, recorded_command("train", options)).evaluation
    # Written last: the file marks a finished run.
    write_evaluation(evaluation, options.output)


def read_rows(runs: Path, finished: list[Path]) -> list[Row]:
    """The rows of the finished runs, in the order of the tables. Raises BenchmarkError for two rows of one run."""

    def place(row: Row) -> list[Any]:
        method = list(METHODS).index(row["method"].partition(",")[0])
        return [*(row[name] for name in COMPARABLE), method, row["method"], row["seed"]]

    rows = sorted(map(row_of, finished), key=place)
    for row, following in pairwise(rows):
        if place(row) == place(following):
            raise BenchmarkError(
                f"{runs}: two runs of {row['network']}, {row['method']}, seed {row['seed']}, look alike; move one away"
            )
    return rows


def row_of(folder: Path) -> Row:
    """The row of a finished run. Raises BenchmarkError when its files are of another form.

    Accuracies are of the test pictures (0..1), by the last epoch's weights. accuracy: of each exit alone; served: of
    each exit with the visited exits' logits; ensemble: of the mean of all logits. Costs are multiply-adds of one
    picture that answers at exit k, with all earlier heads (sequential) and with its own head only (as_published).
    """
    try:
        evaluation = json.loads((folder / "evaluation.json").read_text())
        bundle = load_bundle(folder / "bundle")
        training, cost = bundle.training, count_cost(bundle.config)
        return {
            "network": _network(bundle.config),
            "data": training["data"],
            "recipe": training["recipe"]["name"],
            "epochs": training["recipe"]["epochs"],
            "batch_size": training["recipe"]["batch_size"],
            "method": _method(training),
            "accuracy": [exit["accuracy"] for exit in evaluation["exits"]],
            "served": [exit["ensemble_accuracy"] for exit in evaluation["exits"]],
            "ensemble": evaluation["ensemble_accuracy"],
            "parameters": cost.total_parameters,
            "backbone_multiply_adds": cost.backbone_multiply_adds,
            "sequential_multiply_adds": cost.sequential_multiply_adds,
            "as_published_multiply_adds": cost.own_head_multiply_adds,
            **{name: training[name] for name in ("seed", "hours", "hardware", "command")},
        }
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
    recipe, method = training["recipe"], training["method"]["name"]
    defaults = json.loads(json.dumps(_flat(asdict(RECIPES[recipe["name"]](recipe["epochs"])), asdict(METHODS[method]))))
    chosen = _flat(recipe, training["method"])
    changes = [f"{name} {chosen[name]}" for name in defaults if chosen[name] != defaults[name]]
    changes += [f"{name} {training[name]}" for name in ("teacher", "start_from") if training.get(name)]
    if training.get("processes", 1) > 1:
        changes.append(f"{training['processes']} processes")
    return ", ".join([method, *changes])


def _flat(recipe: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    values = {**recipe, **method, **recipe["augmentation"]}
    # The table's title has the batch size; the mean colour is the data set's.
    return {name: values[name] for name in values if name not in ("name", "augmentation", "batch_size", "mean_colour")}
