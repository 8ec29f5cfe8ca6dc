"""The `offramp` command: train, evaluate, calibrate, serve, predict, bench and paper.

Options are declared once, as fields of frozen dataclasses; a field `peak_rate` becomes the flag `--peak-rate` and the
environment variable `OFFRAMP_PEAK_RATE`. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

# The first process of a container ignores SIGTERM without a handler. It is set here, before the slow imports.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

import typer

from offramp.command import add_command
from offramp.server.predict_options import PredictOptions
from offramp.server.settings import Settings
from offramp.training.options import CalibrateOptions, EvaluateOptions, TrainOptions, recorded_command

app = typer.Typer(
    no_args_is_help=True,
    # Plain help, since rich's table cuts long names off.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"offramp {version('offramp')}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Multi-exit image classifiers, trained by self-distillation and served so that an easy image leaves early."""


command = partial(add_command, app)


@command(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train a self-distilled multi-exit network and write its bundle.

    offramp train cifar100 --data-root data --width 32 --epochs 45 --output runs/cifar100

    offramp train photos/ --input-size 64 --output runs/photos  # photos/CLASS/*.jpg

    offramp train photos/ --input-size 64 --output runs/photos --resume
    """
    from offramp.models.backbones.plugins import load_backbones
    from offramp.training.distributed import join_processes
    from offramp.training.finish import finish
    from offramp.training.lock import lock_folder
    from offramp.training.progress import progress_display
    from offramp.training.report.console import show_training, write_evaluation_files
    from offramp.training.run import prepare
    from offramp.training.run import train as train_run

    load_backbones(options.backbones)
    with ExitStack() as lock:
        with join_processes(options.device) as (world, device):
            # Locked before anything is read, until the bundle is written.
            if world.leader and not lock.enter_context(lock_folder(options.output)):
                raise ValueError(f"another process is training into {options.output}: give another --output")
            run = prepare(options, world, device)
            if not world.leader:
                train_run(run)
                return
            typer.echo(f"{run.splits.source}; {len(run.splits.train):,} pictures to train on, {device}")
            if options.resume:
                typer.echo(f"resuming: {run.trainer.done} are done")
            try:
                with progress_display(run) as display:
                    train_run(run, display.epoch, display.step)
            except KeyboardInterrupt:
                typer.echo(
                    f"\nstopped in epoch {run.trainer.epoch + 1}; continue with the same command and --resume", err=True
                )
                raise typer.Exit(130) from None
        # Exits that --exits names stay.
        keep_exits = options.keep_exits or bool(options.exits)
        finished = finish(run, recorded_command("train", options), keep_exits, timed=True)
    folder = options.output / "bundle"
    show_training(finished)
    write_evaluation_files(finished.evaluation, finished.bundle.name, options.output)
    typer.echo(f"All tables are in {folder}/README.md. To serve the bundle: offramp serve --model {folder}")


@command(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Accuracy, cost and exit mix of a bundle on a data set's test pictures.

    offramp evaluate runs/cifar100/bundle cifar100 --data-root data --output runs/cifar100/evaluation
    """
    from offramp.models.backbones.plugins import load_backbones
    from offramp.models.bundle import load_bundle
    from offramp.models.device import choose_device, device_errors
    from offramp.training.build import check_labels
    from offramp.training.data import Batches, load_splits
    from offramp.training.evaluate.evaluation import collect_logits
    from offramp.training.evaluate.evaluation import evaluate as evaluate_logits
    from offramp.training.precision import resolve_precision
    from offramp.training.report.console import show_evaluation, write_evaluation_files

    load_backbones(options.backbones)
    bundle = load_bundle(options.bundle)
    device = choose_device(options.device)
    splits = load_splits(options.dataset, options.data_root, bundle.preprocessing)
    check_labels(bundle.labels, splits.class_names)
    batches = Batches(splits.test, options.batch_size, device, shuffle=False, drop_last=False, workers=options.workers)
    dtype = resolve_precision(options.precision, device)
    with device_errors("lower --batch-size"):
        outputs = collect_logits(bundle.net.to(device), batches, bundle.preprocessing, dtype)
    evaluation = evaluate_logits(outputs, bundle.calibration, bundle.cost)
    show_evaluation(evaluation)
    if options.output:
        write_evaluation_files(evaluation, bundle.name, options.output)


@command(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> None:
    """Calibrate a bundle anew and certify its early answers, on pictures held out of a data set's train part.

    offramp calibrate runs/cifar100/bundle cifar100 --data-root data --output runs/cifar100/calibration
    """
    from offramp.models.backbones.plugins import load_backbones
    from offramp.models.bundle import load_bundle, save_bundle
    from offramp.models.device import choose_device, device_errors
    from offramp.training.build import check_labels
    from offramp.training.certify.calibration_result import CalibrationOptions, shares
    from offramp.training.certify.held_out import HeldOut, calibration_size, check_held_out, check_unseen
    from offramp.training.certify.stage_costs import measure_stage_costs, read_stage_costs
    from offramp.training.data import Batches, load_splits
    from offramp.training.finish import recalibrate, today
    from offramp.training.report.console import copy_bundle, show_calibration, show_evaluation, write_calibration_files

    load_backbones(options.backbones)
    bundle = load_bundle(options.bundle)
    aims = CalibrationOptions(today(), options.tolerance, shares(options.max_disagreement), options.keep_exits)
    recorded = None if options.unseen else HeldOut.required(bundle.training)
    size = calibration_size(recorded, options.calibration_size)
    splits = load_splits(options.dataset, options.data_root, bundle.preprocessing, size)
    check_labels(bundle.labels, splits.class_names)
    check_held_out(recorded, splits)
    if options.unseen:
        check_unseen(bundle.training, splits)
    device = choose_device(options.device)

    def batches(dataset: Any) -> Batches:
        return Batches(dataset, options.batch_size, device, shuffle=False, drop_last=False, workers=options.workers)

    costs = (
        read_stage_costs(options.costs, bundle.net.num_exits, options.cost_batch_size)
        if options.costs
        else measure_stage_costs(bundle.net, device, options.cost_batch_size)
    )
    held_out, test = batches(splits.calibration), batches(splits.test)
    source = f"{splits.source}; none of them trained it, as its operator says" if options.unseen else splits.source
    with device_errors("lower --batch-size"):
        finished = recalibrate(bundle, held_out, test, aims, source, costs)
    if finished.selection.num_dropped:
        typer.echo(f"the bundle with all its exits is kept as {copy_bundle(options.bundle)}")
    bundle = finished.bundle
    save_bundle(bundle, options.bundle, finished.card)
    show_evaluation(finished.evaluation)
    show_calibration(finished)
    if options.output:
        write_calibration_files(finished, options.output)
    typer.echo(
        f"temperatures {list(bundle.calibration.temperatures)}, carries {list(bundle.calibration.ensemble_weights)}, "
        f"default threshold {bundle.threshold:g}; the bundle {options.bundle} is now the calibrated one"
    )


@command(Settings)
def serve(settings: Settings) -> None:
    """Serve bundles over HTTP.

    offramp serve                       # the embedded model on port 8000

    offramp serve --model runs/photos/bundle --port 9000

    curl --data-binary @cat.jpg 'http://127.0.0.1:8000/v1/predict?threshold=0.8'
    """
    from offramp.server.serve import end_process, run

    end_process(run(settings))


@command(PredictOptions)
def predict(options: PredictOptions) -> None:
    """Classify picture files without a server. Files without an answer are listed at the end, with exit status 1.

    offramp predict photo.jpg --threshold 0.8
    """
    from offramp.models.backbones.plugins import load_backbones
    from offramp.models.bundle import EMBEDDED, load_bundle
    from offramp.models.device import choose_device, device_errors
    from offramp.models.exit_policy import ExitRule
    from offramp.models.pictures.folder import printable
    from offramp.server.engine.errors import EngineError, InferenceFailed
    from offramp.server.engine.runners.torch_runner import TorchRunner
    from offramp.server.offline import answer_line, certified_thresholds
    from offramp.server.offline import predict as run
    from offramp.server.picture_files import read_picture

    load_backbones(options.backbones)
    bundle = load_bundle(options.model or EMBEDDED)
    with device_errors("give --device cpu"):
        runner = TorchRunner(bundle, choose_device(options.device))
    if options.max_disagreement is None:
        threshold = bundle.threshold if options.threshold is None else options.threshold
        rule = ExitRule.uniform(threshold, runner.num_stages)
    else:
        rule = ExitRule(certified_thresholds(bundle, options.max_disagreement))
    failures: list[str] = []
    for path in options.images:
        try:
            answer = run(runner, read_picture(path, bundle.preprocessing), rule)
        except InferenceFailed as error:
            failures.append(f"{printable(path)}: {error}")
            continue
        except ValueError as error:
            failures.append(str(error))
            continue
        except EngineError as error:
            raise ValueError(f"{printable(path)}: {error}") from error
        top = [(bundle.labels[class_id], probability) for class_id, probability in answer.ranking[: options.top_k]]
        facts = {"image": printable(path), "label": top[0][0], "confidence": top[0][1], "exit": answer.exit}
        facts |= {
            "exits": runner.num_stages,
            "exit_reason": answer.reason,
            "compute": bundle.cost.compute[answer.exit - 1],
        }
        typer.echo(json.dumps(facts | {"top_k": top}) if options.as_json else answer_line(facts, top))
    if failures:
        count = f"{len(failures)} of {len(options.images)} pictures have no answer\n"
        raise ValueError((count if len(options.images) > 1 else "") + "\n".join(failures))


SOURCE = Path(__file__).resolve().parent.parent


def _has_benchmarks() -> bool:
    """Whether this is the source tree: benchmarks are not installed, and other projects may have a folder so named."""
    if not (SOURCE / "pyproject.toml").exists():
        return False
    sys.path.append(str(SOURCE))
    spec = find_spec("benchmarks")
    return spec is not None and Path(spec.origin or "").resolve() == SOURCE / "benchmarks" / "__init__.py"


if _has_benchmarks():
    from benchmarks.commands import add_benchmarks

    add_benchmarks(app)


def main() -> None:
    """Entry point."""
    app()
