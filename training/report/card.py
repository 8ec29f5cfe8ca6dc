"""The model card of a calibrated bundle, Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offramp.models.bundle import Bundle
from offramp.models.cost import count_cost
from offramp.training.certify.calibration_result import CalibrationFacts, CalibrationResult, ExitSelection
from offramp.training.evaluate.evaluation import Evaluation
from offramp.training.evaluate.predictions import ThresholdCounts
from offramp.training.report.sentences import (
    confidence_sentence,
    selection_sentence,
    shortfall_sentence,
    threshold_sentence,
)
from offramp.training.report.tables import (
    any_threshold_table,
    certificate_table,
    choices_table,
    exits_table,
    overthinking_table,
    thresholds_table,
)


def card(
    bundle: Bundle,
    evaluation: Evaluation,
    result: CalibrationResult,
    selection: ExitSelection,
    on_test: Sequence[ThresholdCounts],
) -> str:
    """Facts, accuracy and promises of the bundle. on_test: counts of the certified thresholds on the test pictures."""
    config, cost = bundle.config, count_cost(bundle.config)
    several = len(evaluation.exits) > 1
    exits = "One exit, at its end: the plain network."
    if several:
        places = f" after stages {', '.join(map(str, config.exits))}" if config.exits else ""
        exits = f"{len(evaluation.exits)} exits{places}, after Zhang, Bao, Ma (TPAMI 2022)."
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

{_early_exits(bundle, evaluation, result.facts) if several else ""}{_promises(result, on_test) if several else ""}\
{_exits_that_pay(selection) if several or selection.choices else ""}## How it was made

{_facts(bundle.training)}
- temperatures: {", ".join(map(str, bundle.calibration.temperatures))}
- carries: {", ".join(map(str, bundle.calibration.ensemble_weights))}
"""


def _early_exits(bundle: Bundle, evaluation: Evaluation, facts: CalibrationFacts) -> str:
    return f"""## Right early, wrong late

{overthinking_table(evaluation)}

## Thresholds

{" ".join(filter(None, (threshold_sentence(bundle, facts), confidence_sentence(bundle, facts))))}

{thresholds_table(evaluation)}

"""


def _promises(result: CalibrationResult, on_test: Sequence[ThresholdCounts]) -> str:
    certificate = result.certificate
    missed = "".join(f"- {shortfall_sentence(shortfall)}\n" for shortfall in result.missed)
    missed += "\n" if missed else ""
    if certificate is None:
        return f"""## What is promised

Nothing: too few pictures were held out to prove anything of the early answers.

{missed}"""
    return f"""## What is promised

An early answer may differ from the one that the whole network would have given. How often is proven here, for traffic
like the {certificate.pictures:,} held-out pictures that prove it; they trained nothing and chose no threshold. With
the thresholds of a row, at most the promised share of answers differs. Each row is wrong with a chance of at most
{certificate.delta:.0%}, because these pictures are a random sample. On pictures of another kind (another
camera, noise, other things) nothing is promised; nor is full depth always right.

Observed: what differed on the certifying pictures; bound: its upper confidence bound, were these thresholds the only
ones tried. Accuracy lost: that of full depth less that of the early answers; its bound is wrong with a chance of at
most {certificate.delta:.0%}, whichever thresholds were chosen. The last two columns are of the test pictures, which
proved nothing.

{certificate_table(certificate, on_test) if on_test else "No early exit is proven to keep any promise."}

{missed}With one threshold of your own at every exit, at most these shares differ, for all thresholds at once:

{any_threshold_table(certificate)}

The certificate is `{certificate.calibration_id}`, its pictures' SHA-256 `{certificate.fingerprint}`.

"""


def _exits_that_pay(selection: ExitSelection) -> str:
    table = f"\n{choices_table(selection.choices)}\n" if selection.choices else ""
    return f"""## Exits that pay

{selection_sentence(selection)}
{table}
"""


def _facts(values: dict[str, Any]) -> str:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items())
        lines.append(f"- {name.replace('_', ' ')}: {value}")
    return "\n".join(lines)
