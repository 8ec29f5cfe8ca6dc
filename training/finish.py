"""From trained weights to a bundle: calibrate on held-out pictures, evaluate on test for the card, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import numpy as np

from models.bundle import Bundle, load_bundle, rounded, save_bundle
from models.cost import count_cost
from models.device import device_errors, hardware
from models.exit_policy import Calibration
from models.folder import printable
from training.answers import Answers, Outcome, outcomes
from training.build import bundle_name
from training.card import card
from training.contracts import Certifying
from training.data import Batches
from training.evaluate import Evaluation, calibrated, collect_logits, evaluate
from training.exits import with_exits, without_exits
from training.held_out import HeldOut
from training.run import Run
from training.stage_costs import StageCosts, measure_stage_costs
from training.trust import ExitVerdict, Trust, Wishes, division, establish, judge

BATCH_SIZE = 256


def today() -> str:
    """The date in UTC, ISO 8601."""
    return datetime.now(UTC).date().isoformat()


@dataclass(frozen=True)
class Finished:
    """A bundle that is calibrated anew, and all that there is to report of it.

    evaluation: on test. on_test: what the certificate's points did on the test pictures, which certified nothing.
    """

    bundle: Bundle
    evaluation: Evaluation
    trust: Trust
    verdict: ExitVerdict
    on_test: tuple[Outcome, ...]

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return card(self.bundle, self.evaluation, self.trust, self.verdict, self.on_test)


def finish(run: Run, command: str, keep_exits: bool = True, timed: bool = False) -> tuple[Bundle, Evaluation]:
    """Calibrate, evaluate and write `output/bundle`; `finished` has more to tell of it."""
    made = finished(run, command, keep_exits, timed)
    return made.bundle, made.evaluation


@device_errors("--resume continues behind the last epoch", "--resume continues behind the last epoch")
def finished(run: Run, command: str, keep_exits: bool, timed: bool) -> Finished:
    """Calibrate, certify, evaluate and write `output/bundle`.

    keep_exits: also those that do not pay. timed: measure the milliseconds of every stage, for the bundle's readers.
    Weights, calibration and threshold come from train and calibration pictures alone; what was measured on test is
    reported beside them, in the card and in `exits` and `operating_points`.
    """
    trainer, splits = run.trainer, run.splits
    device = trainer.device
    net = rounded(trainer.result).to(device)

    def batches(part: str) -> Batches:
        dataset = getattr(splits, part)
        return Batches(dataset, BATCH_SIZE, device, shuffle=False, drop_last=False, workers=run.options.workers)

    made = {
        "data": splits.source,
        "train_pictures": len(splits.train),
        "held_out": HeldOut.of(splits).as_json(),
        "method": asdict(trainer.method),
        "recipe": asdict(trainer.recipe),
        "seed": trainer.seed,
        "precision": str(trainer.dtype).removeprefix("torch."),
        "hours": round(sum(report.seconds for report in trainer.history) / 3600, 3),
        "hardware": hardware(device),
        "command": printable(command),
    }
    if trainer.teacher is not None:
        teacher = trainer.teacher
        made["teacher"] = f"{teacher.bundle.name} ({teacher.weight:g} of the loss, T = {teacher.temperature:g})"
    if run.options.start_from is not None:
        made["start_from"] = load_bundle(run.options.start_from).name
    if trainer.world.size > 1:
        made["processes"] = trainer.world.size
        made["command"] = f"torchrun --nproc-per-node {trainer.world.size} -m {command}"
    bundle = Bundle(
        name=bundle_name(run.options),
        version="1",
        config=net.config,
        preprocessing=run.preprocessing,
        labels=splits.class_names,
        calibration=Calibration.neutral(net.num_exits),
        threshold=1.0,
        net=net,
        training=made,
    )
    costs = measure_stage_costs(net, device) if timed else None
    wishes = Wishes(today(), keep_exits=keep_exits)
    made_bundle = recalibrated(bundle, batches("calibration"), batches("test"), wishes, splits.source, costs)
    save_bundle(made_bundle.bundle, run.options.output / "bundle", made_bundle.card)
    return made_bundle


def recalibrated(
    bundle: Bundle, held_out: Batches, test: Batches, wishes: Wishes, source: str, costs: StageCosts | None = None
) -> Finished:
    """The bundle with calibration, default threshold and certificate from `held_out`, and its report on `test`.

    Where exits do not pay, its network comes back without them. source: where the pictures come from, in words. costs:
    of the network's stages; where exits go, heads have to be timed apart.
    """
    cost, net = count_cost(bundle.config), bundle.net.to(held_out.device)
    outputs = collect_logits(net, held_out, bundle.preprocessing)
    on_test = collect_logits(net, test, bundle.preprocessing)
    parts = division(np.asarray(outputs.labels_N), outputs.num_exits, wishes.promises)
    verdict = judge(outputs, cost, bundle.config, parts, wishes)
    if verdict.num_dropped:
        net = without_exits(net, verdict.exits)
        cost = count_cost(net.config)
        outputs, on_test = with_exits(outputs, verdict.exits), with_exits(on_test, verdict.exits)
        costs = costs and costs.with_exits(verdict.exits)

    def proving(answers: Answers) -> Certifying:
        return Certifying(answers, source, held_out.dataset.subset(parts.prove_M).fingerprint(), wishes.date)

    trust = establish(outputs, cost, parts, wishes, proving, costs)
    evaluation = evaluate(on_test, trust.calibration, cost)
    fitted_on = {
        "data": source,
        "pictures": len(held_out.dataset),
        "searched": len(parts.search_M),
        "certified": len(parts.prove_M),
        "tolerance": wishes.tolerance,
    }
    fitted = replace(
        bundle,
        config=net.config,
        calibration=trust.calibration,
        threshold=trust.point.threshold,
        net=net.cpu(),
        exits=tuple(asdict(exit) for exit in evaluation.exits),
        operating_points=tuple(asdict(point) for point in evaluation.operating_points),
        fronts=trust.fronts,
        training={**bundle.training, "calibration": fitted_on},
        certificate=trust.certificate,
    )
    points = trust.certificate.points if trust.certificate else ()
    answers = Answers.of(calibrated(on_test, trust.calibration), on_test.labels_N)
    return Finished(fitted, evaluation, trust, verdict, tuple(outcomes(answers, [p.thresholds for p in points])))
