"""The `offramp` command: train, evaluate, calibrate, serve, predict, bench and paper.

Options are declared once, as fields of frozen dataclasses; a field `peak_rate` becomes the flag `--peak-rate` and the
environment variable `OFFRAMP_PEAK_RATE`. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any

# The first process of a container ignores a SIGTERM that it has no handler for. Set before the slow imports.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

import typer

from benchmarks.options import BenchOptions, PaperOptions
from benchmarks.peers.options import PeersOptions
from server.predict_options import PredictOptions
from server.settings import Settings
from training.options import CalibrateOptions, EvaluateOptions, TrainOptions, recorded_command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"offramp {version('offramp')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Multi-exit image classifiers, trained by self-distillation and served so that an easy image leaves early."""


bench = typer.Typer(help="Measure a server from outside: by threshold, or beside other servers.", no_args_is_help=True)
app.add_typer(bench, name="bench")


def command(options_type: type, group: typer.Typer = app) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Make `run(options)` a sub-command whose flags are the dataclass's fields; ValueError becomes one line, exit 1."""

    def decorate(run: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(**values: Any) -> None:
            try:
                run(options_type(**values))
            except (ValueError, OSError, ImportError) as error:
                # A disk that is full, a file that is not there, an extra that is not installed: their texts say which.
                typer.secho(f"offramp {run.__name__}: {error}", fg="red", err=True)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                typer.secho("stopped", err=True)
                raise typer.Exit(130) from None

        call.__doc__ = run.__doc__
        call.__signature__ = _signature(options_type)  # type: ignore[attr-defined]
        group.command(run.__name__)(call)
        return run

    return decorate


def _signature(options_type: type) -> inspect.Signature:
    signature = inspect.signature(options_type, eval_str=True)
    for name, parameter in signature.parameters.items():
        (declared,) = parameter.annotation.__metadata__
        if declared.envvar is None and not isinstance(declared, typer.models.ArgumentInfo):
            declared.envvar = f"OFFRAMP_{name.upper()}"
    return signature


@command(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train a self-distilled multi-exit network and write its bundle.

    offramp train cifar100 --data-root data --width 32 --epochs 45 --output runs/cifar100

    offramp train photos/ --input-size 64 --output runs/photos      # photos/<class>/*.jpg

    offramp train photos/ --input-size 64 --output runs/photos --resume
    """
    from models.backbones.plugins import load_backbones
    from training.claim import claimed
    from training.distributed import joined
    from training.finish import finished
    from training.progress import progress_display
    from training.run import prepare
    from training.run import train as train_run
    from training.shown import keep_evaluation, show_evaluation, show_trust

    load_backbones(options.backbones)
    with joined(options.device) as (world, device):
        run = prepare(options, world, device)
        if not world.leader:
            train_run(run)
            return
        typer.echo(f"{run.splits.source}; {len(run.splits.train):,} pictures to train on, {device}")
        if options.resume:
            typer.echo(f"resuming: {run.trainer.done} are done")
        try:
            with claimed(options.output) as mine, progress_display(run) as display:
                if not mine:
                    raise ValueError(f"another process is training into {options.output}: give another --output")
                train_run(run, display.epoch, display.step)
        except KeyboardInterrupt:
            typer.echo(
                f"\nstopped in epoch {run.trainer.epoch + 1}; continue with the same command and --resume", err=True
            )
            raise typer.Exit(130) from None
    # Exits that were asked for by name stay.
    made = finished(run, recorded_command("train", options), options.keep_exits or bool(options.exits), timed=True)
    bundle = made.bundle
    show_evaluation(made.evaluation)
    show_trust(made)
    folder = options.output / "bundle"
    keep_evaluation(made.evaluation, bundle.name, options.output)
    typer.echo(f"default threshold {bundle.threshold:g}; serve it: offramp serve --model {folder}")


@command(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Accuracy, cost and exit mix of a bundle on a data set's test pictures.

    offramp evaluate runs/cifar100/bundle cifar100 --data-root data --output runs/cifar100/evaluation
    """
    from models.backbones.plugins import load_backbones
    from models.bundle import load_bundle
    from models.device import choose_device, device_errors
    from training.build import check_labels
    from training.data import Batches, load_splits
    from training.evaluate import collect_logits
    from training.evaluate import evaluate as judge
    from training.precision import resolve_precision
    from training.shown import keep_evaluation, show_evaluation

    load_backbones(options.backbones)
    bundle = load_bundle(options.bundle)
    device = choose_device(options.device)
    splits = load_splits(options.dataset, options.data_root, bundle.preprocessing)
    check_labels(bundle.labels, splits.class_names)
    batches = Batches(splits.test, options.batch_size, device, shuffle=False, drop_last=False, workers=options.workers)
    dtype = resolve_precision(options.precision, device)
    with device_errors("lower --batch-size"):
        outputs = collect_logits(bundle.net.to(device), batches, bundle.preprocessing, dtype)
    evaluation = judge(outputs, bundle.calibration, bundle.cost)
    show_evaluation(evaluation)
    if options.output:
        keep_evaluation(evaluation, bundle.name, options.output)


@command(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> None:
    """Calibrate a bundle anew and certify its early answers, on pictures held out of a data set's train part.

    offramp calibrate runs/cifar100/bundle cifar100 --data-root data --output runs/cifar100/calibration
    """
    from models.backbones.plugins import load_backbones
    from models.bundle import load_bundle, save_bundle
    from models.device import choose_device, device_errors
    from training.build import check_labels
    from training.data import Batches, load_splits
    from training.finish import recalibrated, today
    from training.held_out import HeldOut, calibration_size, check_held_out, check_unseen
    from training.shown import keep_trust, keep_whole, show_evaluation, show_trust
    from training.stage_costs import measure_stage_costs, read_stage_costs
    from training.trust import Wishes, shares

    load_backbones(options.backbones)
    bundle = load_bundle(options.bundle)
    wishes = Wishes(today(), options.tolerance, shares(options.max_disagreement), options.keep_exits)
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
        made = recalibrated(bundle, held_out, test, wishes, source, costs)
    if made.verdict.num_dropped:
        typer.echo(f"the bundle with all its exits is kept as {keep_whole(options.bundle)}")
    bundle = made.bundle
    save_bundle(bundle, options.bundle, made.card)
    show_evaluation(made.evaluation)
    show_trust(made)
    if options.output:
        keep_trust(made, options.output)
    typer.echo(
        f"temperatures {list(bundle.calibration.temperatures)}, carries {list(bundle.calibration.carries)}, "
        f"default threshold {bundle.threshold:g}; the bundle {options.bundle} is now the calibrated one"
    )


@command(Settings)
def serve(settings: Settings) -> None:
    """Serve bundles over HTTP.

    offramp serve                                              # the embedded CIFAR-100 model on port 8000

    offramp serve --model runs/photos/bundle --port 9000

    curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/v1/predict?threshold=0.8'
    """
    from server.serve import end_process, run

    end_process(run(settings))


@command(PredictOptions)
def predict(options: PredictOptions) -> None:
    """Classify picture files without a server. Files without an answer are listed at the end, with exit status 1.

    offramp predict photo.jpg --threshold 0.8
    """
    from models.backbones.plugins import load_backbones
    from models.bundle import EMBEDDED, load_bundle
    from models.device import choose_device, device_errors
    from models.exit_policy import ExitRule
    from models.folder import printable
    from server.engine.errors import EngineError, InferenceFailed
    from server.engine.runners.torch_runner import TorchRunner
    from server.offline import answer_line, certified_thresholds
    from server.offline import predict as run
    from server.picture_files import read_picture

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


@command(BenchOptions, bench)
def thresholds(options: BenchOptions) -> None:
    """Throughput, latency and accuracy of a server by threshold, exits on against off.

    offramp bench thresholds --data-root data
    """
    from benchmarks.thresholds import run

    run(options)


@command(PeersOptions, bench)
def peers(options: PeersOptions) -> None:
    """Throughput and latency beside other servers: the same weights, pictures and machine, by turns.

    offramp bench peers --data-root data      # makes their environments in .peers/ first; needs wrk

    offramp bench peers --data-root data --peers fastapi,litserve --picture-sets cifar --larger-model ''
    """
    from benchmarks.peers.bench import run

    run(options)


@command(PaperOptions)
def paper(options: PaperOptions) -> None:
    """Train networks by several methods over several seeds, and set the table beside the published figures.

    offramp paper --data-root data --architectures resnet18 --seeds 0,1,2 --hours 8
    """
    from benchmarks.paper import run

    run(options)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
