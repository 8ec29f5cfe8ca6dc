"""From trained weights to a bundle: calibrate on held-out pictures, evaluate on test for the card, write."""

from __future__ import annotations

from dataclasses import asdict, replace

from models.bundle import Bundle, rounded, save_bundle
from models.cost import NetworkCost, count_cost
from training.calibrate import calibrate
from training.data import Batches
from training.evaluate import Evaluation, collect_logits, evaluate
from training.report import exits_table, thresholds_table
from training.run import Run, bundle_name, hardware

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
    net = rounded(trainer.net).to(device)
    cost = count_cost(net.config)

    def batches(part: str) -> Batches:
        dataset = getattr(splits, part)
        return Batches(dataset, BATCH_SIZE, device, shuffle=False, drop_last=False, workers=run.options.workers)

    held_out = collect_logits(net, batches("calibration"), run.preprocessing)
    calibration, point = calibrate(held_out, cost, TOLERANCE)
    evaluation = evaluate(collect_logits(net, batches("test"), run.preprocessing), calibration, cost)
    facts = {
        "data": splits.source,
        "train_pictures": len(splits.train),
        "calibration_pictures": len(splits.calibration),
        "test_pictures": len(splits.test),
        "recipe": asdict(trainer.recipe),
        "seed": trainer.seed,
        "precision": str(trainer.dtype).removeprefix("torch."),
        "hours": round(sum(report.seconds for report in trainer.history) / 3600, 3),
        "hardware": hardware(),
        "command": command,
    }
    bundle = Bundle(
        name=bundle_name(run.options),
        version="1",
        config=net.config,
        preprocessing=run.preprocessing,
        labels=splits.class_names,
        calibration=calibration,
        threshold=point.threshold,
        net=net.cpu(),
        training=facts,
    )
    bundle = reported(bundle, evaluation)
    save_bundle(bundle, run.options.output / "bundle", card(bundle, evaluation, cost))
    return bundle, evaluation


def reported(bundle: Bundle, evaluation: Evaluation) -> Bundle:
    """The bundle with the evaluation's figures beside it."""
    return replace(
        bundle,
        exits=tuple(asdict(exit) for exit in evaluation.exits),
        operating_points=tuple(asdict(point) for point in evaluation.operating_points),
    )


def card(bundle: Bundle, evaluation: Evaluation, cost: NetworkCost) -> str:
    """The model card, Markdown."""
    facts = bundle.training
    config = bundle.config
    return f"""# {bundle.name}, version {bundle.version}

{config.architecture}, width {config.width}, {config.stem} stem, {config.input_size}x{config.input_size} pixels, \
{config.num_classes} classes. {cost.total_parameters / 1e6:.2f} M parameters; full depth costs \
{cost.sequential_multiply_adds[-1] / 1e6:.1f} M multiply-adds, the plain backbone \
{cost.backbone_multiply_adds / 1e6:.1f} M. Trained by self-distillation (Zhang, Bao, Ma, TPAMI 2022).

## Accuracy per exit, {evaluation.pictures:,} test pictures

The last epoch's weights, as stored (float16 kernels); no test picture chose anything. "Served" adds the logits of the
exits visited before, which costs nothing.

{exits_table(evaluation)}

## Thresholds

The default threshold is {bundle.threshold:g}: the cheapest that lost at most {TOLERANCE:.1%} of accuracy on the
calibration pictures.

{thresholds_table(evaluation)}

## How it was made

- data: {facts["data"]}
- pictures: {facts["train_pictures"]:,} trained on, {facts["calibration_pictures"]:,} for calibration
- recipe: `{facts["recipe"]["name"]}`, {facts["recipe"]["epochs"]} epochs, seed {facts["seed"]}, {facts["precision"]}
- time: {facts["hours"]:.2f} hours of training on {facts["hardware"]}
- command: `{facts["command"]}`
- calibration: temperatures {list(bundle.calibration.temperatures)}, carries {list(bundle.calibration.carries)}
"""


def recalibrated(bundle: Bundle, held_out: Batches, test: Batches, tolerance: float) -> tuple[Bundle, Evaluation]:
    """The bundle with calibration and default threshold fitted anew on `held_out`, and its report on `test`."""
    cost = count_cost(bundle.config)
    net = bundle.net.to(held_out.device)
    calibration, point = calibrate(collect_logits(net, held_out, bundle.preprocessing), cost, tolerance)
    evaluation = evaluate(collect_logits(net, test, bundle.preprocessing), calibration, cost)
    fitted = replace(bundle, calibration=calibration, threshold=point.threshold, net=net.cpu())
    return reported(fitted, evaluation), evaluation
