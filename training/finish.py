"""From trained weights to a bundle: calibrate on held-out pictures, evaluate on test for the card, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from offramp.models.bundle import Bundle, rounded, save_bundle
from offramp.models.cost import count_cost
from offramp.models.device import device_errors, hardware
from offramp.models.exit_policy import Calibration
from offramp.models.pictures.folder import printable
from offramp.training.certify.calibration_result import (
    CalibrationOptions,
    CalibrationResult,
    ExitSelection,
    calibrate_and_certify,
    choose_exits,
    division,
)
from offramp.training.certify.exits import network_with_exits, with_exits
from offramp.training.certify.held_out import HeldOut
from offramp.training.certify.stage_costs import StageCosts, measure_stage_costs
from offramp.training.data import Batches
from offramp.training.evaluate.evaluation import Evaluation, collect_logits, evaluate, predictions_of
from offramp.training.evaluate.predictions import ThresholdCounts, count_at_thresholds
from offramp.training.methods import Method
from offramp.training.recipes import Recipe
from offramp.training.report.card import card
from offramp.training.run import Run

BATCH_SIZE = 256


def today() -> str:
    """The date in UTC, ISO 8601."""
    return datetime.now(UTC).date().isoformat()


@dataclass(frozen=True)
class TrainingRecord:
    """How a bundle was trained.

    data: the data set and its split, in words. train_pictures: number of pictures that trained the weights.
    held_out: the pictures held out of train. precision: number type of training. hours: duration of training.
    command: the command that makes the bundle again. teacher, start_from: other bundles that the run learnt from.
    processes: number of processes, None for one.
    """

    data: str
    train_pictures: int
    held_out: HeldOut
    method: Method
    recipe: Recipe
    seed: int
    precision: str
    hours: float
    hardware: str
    command: str
    teacher: str | None = None
    start_from: str | None = None
    processes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values for the bundle's description, without fields that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class CalibratedBundle:
    """A calibrated bundle and its report.

    evaluation: of the test pictures. on_test: counts of the certified thresholds on the test pictures, which certify
    nothing.
    """

    bundle: Bundle
    evaluation: Evaluation
    result: CalibrationResult
    selection: ExitSelection
    on_test: tuple[ThresholdCounts, ...]

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return card(self.bundle, self.evaluation, self.result, self.selection, self.on_test)


@device_errors("--resume continues after the last epoch", "--resume continues after the last epoch")
def finish(run: Run, command: str, keep_exits: bool = True, timed: bool = False) -> CalibratedBundle:
    """Calibrate, certify, evaluate and write `output/bundle`.

    keep_exits: keep exits that do not pay. timed: measure the milliseconds of every stage, for the bundle's readers.
    Weights, calibration and threshold come from train and calibration pictures alone. Test pictures only give figures:
    in the card, in `exits` and in `operating_points`.
    """
    trainer, splits = run.trainer, run.splits
    device, processes = trainer.device, trainer.world.size
    net = rounded(trainer.result).to(device)
    batches = partial(Batches, batch_size=BATCH_SIZE, device=device, workers=run.options.workers)
    teacher, start = trainer.teacher, run.sources.start
    record = TrainingRecord(
        data=splits.source,
        train_pictures=len(splits.train),
        held_out=HeldOut.of(splits),
        method=trainer.method,
        recipe=trainer.recipe,
        seed=trainer.seed,
        precision=str(trainer.dtype).removeprefix("torch."),
        hours=round(sum(report.seconds for report in trainer.history) / 3600, 3),
        hardware=hardware(device),
        command=f"torchrun --nproc-per-node {processes} -m {command}" if processes > 1 else printable(command),
        teacher=None
        if teacher is None
        else f"{teacher.bundle.name} ({teacher.weight:g} of the loss, T = {teacher.temperature:g})",
        start_from=None if start is None else start.name,
        processes=processes if processes > 1 else None,
    )
    bundle = Bundle(
        name=run.name,
        version="1",
        config=net.config,
        preprocessing=run.preprocessing,
        labels=splits.class_names,
        calibration=Calibration.neutral(net.num_exits),
        threshold=1.0,
        net=net,
        training=record.as_json(),
    )
    costs = measure_stage_costs(net, device) if timed else None
    options = CalibrationOptions(today(), keep_exits=keep_exits)
    finished = recalibrate(bundle, batches(splits.calibration), batches(splits.test), options, splits.source, costs)
    save_bundle(finished.bundle, run.options.output / "bundle", finished.card)
    return finished


def recalibrate(
    bundle: Bundle,
    held_out: Batches,
    test: Batches,
    options: CalibrationOptions,
    source: str,
    costs: StageCosts | None = None,
) -> CalibratedBundle:
    """The bundle with calibration, default threshold and certificate from `held_out`, and its report on `test`.

    Its network has only the exits that pay. source: where the pictures come from, in words. costs: of the network's
    stages; a network that loses exits keeps them only with separate times of the heads.
    """
    cost, net = count_cost(bundle.config), bundle.net.to(held_out.device)
    outputs = collect_logits(net, held_out, bundle.preprocessing)
    on_test = collect_logits(net, test, bundle.preprocessing)
    parts = division(np.asarray(outputs.labels_N), outputs.num_exits, options.promises)
    selection = choose_exits(outputs, cost, bundle.config, parts, options)
    if selection.num_dropped:
        net = network_with_exits(net, selection.exits)
        cost = count_cost(net.config)
        outputs, on_test = with_exits(outputs, selection.exits), with_exits(on_test, selection.exits)
        costs = costs and costs.with_exits(selection.exits)
    fingerprint = held_out.dataset.subset(parts.prove_M).fingerprint()
    result = calibrate_and_certify(outputs, cost, parts, options, costs, source, fingerprint)
    evaluation = evaluate(on_test, result.calibration, cost)
    certificate = result.certificate
    calibrated_bundle = replace(
        bundle,
        config=net.config,
        calibration=result.calibration,
        threshold=result.point.threshold,
        net=net.cpu(),
        exits=tuple(asdict(exit) for exit in evaluation.exits),
        operating_points=tuple(asdict(point) for point in evaluation.operating_points),
        fronts=result.fronts.as_json() if result.fronts else {},
        training={**bundle.training, "calibration": asdict(result.facts)},
        certificate=certificate,
    )
    points = certificate.points if certificate else ()
    counts = count_at_thresholds(predictions_of(on_test, result.calibration), [point.thresholds for point in points])
    return CalibratedBundle(calibrated_bundle, evaluation, result, selection, tuple(counts))
