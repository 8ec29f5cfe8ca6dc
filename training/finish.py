"""From trained weights to a bundle: calibrate on held-out pictures, evaluate on test for the card, write."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from models.bundle import Bundle, load_bundle, rounded, save_bundle
from models.cost import count_cost
from models.device import hardware
from models.exit_policy import Calibration
from training.build import bundle_name
from training.calibrate import calibrate
from training.data import Batches
from training.evaluate import Evaluation, collect_logits, evaluate
from training.report import exits_table, overthinking_table, thresholds_table
from training.run import Run

# Accuracy (0..1) that the default threshold may lose against full depth, on the calibration pictures.
TOLERANCE = 0.005
BATCH_SIZE = 256


def finish(run: Run, command: str) -> tuple[Bundle, Evaluation]:
    """Calibrate, evaluate and write `output/bundle`.

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
        "method": asdict(trainer.method),
        "recipe": asdict(trainer.recipe),
        "seed": trainer.seed,
        "precision": str(trainer.dtype).removeprefix("torch."),
        "hours": round(sum(report.seconds for report in trainer.history) / 3600, 3),
        "hardware": hardware(device),
        "command": command,
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
    bundle, evaluation = recalibrated(bundle, batches("calibration"), batches("test"), TOLERANCE, splits.source)
    save_bundle(bundle, run.options.output / "bundle", card(bundle, evaluation))
    return bundle, evaluation


def recalibrated(
    bundle: Bundle, held_out: Batches, test: Batches, tolerance: float, source: str
) -> tuple[Bundle, Evaluation]:
    """The bundle with calibration and default threshold fitted on `held_out`, and its report on `test`.

    tolerance: accuracy (0..1) that the default threshold may lose. source: where the pictures come from, in words.
    """
    cost = count_cost(bundle.config)
    net = bundle.net.to(held_out.device)
    calibration, point = calibrate(collect_logits(net, held_out, bundle.preprocessing), cost, tolerance)
    evaluation = evaluate(collect_logits(net, test, bundle.preprocessing), calibration, cost)
    fitted_on = {"data": source, "pictures": len(held_out.dataset), "tolerance": tolerance}
    fitted = replace(
        bundle,
        calibration=calibration,
        threshold=point.threshold,
        net=net.cpu(),
        exits=tuple(asdict(exit) for exit in evaluation.exits),
        operating_points=tuple(asdict(point) for point in evaluation.operating_points),
        training={**bundle.training, "calibration": fitted_on},
    )
    return fitted, evaluation


def card(bundle: Bundle, evaluation: Evaluation) -> str:
    """The model card of a calibrated bundle, Markdown."""
    config, cost = bundle.config, count_cost(bundle.config)
    several = len(evaluation.exits) > 1
    exits = "One exit, at its end: the plain network."
    if several:
        behind = f" behind stages {', '.join(map(str, config.exits))}" if config.exits else ""
        exits = f"{len(evaluation.exits)} exits{behind}, after Zhang, Bao, Ma (TPAMI 2022)."
    return f"""# {bundle.name}, version {bundle.version}

{config.architecture}, width {config.width}, {config.stem} stem, {config.input_size}x{config.input_size} pixels, \
{config.num_classes} classes. {cost.total_parameters / 1e6:.2f} M parameters; full depth costs \
{cost.sequential_multiply_adds[-1] / 1e6:.1f} M multiply-adds, the plain backbone \
{cost.backbone_multiply_adds / 1e6:.1f} M. {exits}

## Accuracy per exit, {evaluation.pictures:,} test pictures

The last epoch's weights, as stored (float16 kernels); no test picture chose anything. "Served" adds the logits of the
exits visited before, which costs nothing. ECE: mean distance between confidence and accuracy, of
what is served. AUROC: the chance that a right answer is more confident than a wrong one. AURC: the share of wrong
answers among the most confident, averaged over all coverages.

{exits_table(evaluation)}

{_early_exits(bundle, evaluation) if several else ""}## How it was made

{_facts(bundle.training)}
- temperatures: {", ".join(map(str, bundle.calibration.temperatures))}
- carries: {", ".join(map(str, bundle.calibration.carries))}
"""


def _early_exits(bundle: Bundle, evaluation: Evaluation) -> str:
    tolerance = bundle.training["calibration"]["tolerance"]
    return f"""## Right early, wrong late

{overthinking_table(evaluation)}

## Thresholds

The default threshold is {bundle.threshold:g}: the cheapest that lost at most {tolerance:.1%} of accuracy on the
calibration pictures.

{thresholds_table(evaluation)}

"""


def _facts(values: dict[str, Any]) -> str:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items())
        lines.append(f"- {name.replace('_', ' ')}: {value}")
    return "\n".join(lines)
