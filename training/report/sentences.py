"""Sentences about a calibration, for the model card and the console."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from offramp.models.bundle import Bundle
from offramp.models.exit_policy import Calibration
from offramp.training.certify.calibrate import threshold_pictures
from offramp.training.certify.calibration_result import SEARCH_SHARE, CalibrationFacts, CalibrationResult, ExitSelection
from offramp.training.certify.exits import MIN_SAVING, REFERENCE_DISAGREEMENT
from offramp.training.certify.promises import Shortfall

if TYPE_CHECKING:
    from offramp.training.finish import CalibratedBundle


def held_out_to_search(searching: int) -> int:
    """Number of held-out pictures of which so many search."""
    return ceil(searching / SEARCH_SHARE)


def held_out_to_certify(certifying: int) -> int:
    """Number of held-out pictures of which so many certify."""
    return ceil(certifying / (1.0 - SEARCH_SHARE))


def selection_sentence(selection: ExitSelection) -> str:
    """Which exits pay, and which stay."""
    if not selection.choices:
        return f"The network keeps its exits: {selection.why_kept}."
    all_exits, best = selection.choices[0], min(selection.choices, key=lambda choice: choice.compute)
    gain = 1.0 - best.compute / all_exits.compute
    cheapest = (
        f"With exits {', '.join(map(str, best.exits))} alone the network would cost {gain:.1%} less at "
        f"{REFERENCE_DISAGREEMENT:.0%} disagreement, and be right on {best.accuracy:.2%} instead of "
        f"{all_exits.accuracy:.2%}"
        if gain > 0.0
        else "No choice of fewer exits is cheaper"
    )
    if selection.num_dropped:
        exits = ", ".join(map(str, selection.exits))
        return f"Exits that do not pay were switched off: {exits} of {len(all_exits.exits)} stay, renumbered from 1."
    if selection.why_kept:
        return f"{cheapest}; all exits stay: {selection.why_kept}."
    reason = f"it takes more than {MIN_SAVING:.0%}, and no loss of accuracy, to go without one"
    return f"{cheapest}; all exits stay, as {reason}."


def confidence_sentence(bundle: Bundle, facts: CalibrationFacts) -> str:
    """Why the bundle's confidences are not calibrated; empty when they are."""
    if bundle.calibration != Calibration.neutral(bundle.net.num_exits):
        return ""
    return (
        f"Confidences are the network's own: {facts.searched:,} held-out pictures do not show that temperatures help."
    )


def threshold_sentence(bundle: Bundle, facts: CalibrationFacts) -> str:
    """Where the default threshold comes from, and how many pictures a lower one needs; empty for a single exit."""
    if bundle.net.num_exits == 1:
        return ""
    searched, lost = facts.searched, f"at most {100 * facts.tolerance:g} % of accuracy"
    needed = threshold_pictures(facts.tolerance)
    if needed is not None and searched >= needed:
        return (
            f"The default threshold is {bundle.threshold:g}: the cheapest that lost {lost} on the {searched:,} "
            "held-out pictures that fitted it."
        )
    more = f"{needed:,} (hold out {held_out_to_search(needed):,}) do" if needed else "no number of pictures does"
    return (
        f"The default threshold is {bundle.threshold:g}, full depth: {searched:,} held-out pictures do not tell which "
        f"early answers lose {lost}; {more}."
    )


def shortfall_sentence(missed: Shortfall) -> str:
    """How many pictures would prove a promise that is not proven."""

    def held_out(pictures: int) -> str:
        return f"{pictures:,} (hold out {held_out_to_certify(pictures):,})"

    sentence = (
        f"a disagreement of {100 * missed.promise:g} % is not certified: {missed.pictures:,} pictures can certify; "
        f"{held_out(missed.needed)} would do if none disagreed"
    )
    if missed.observed is None:
        return sentence
    more = missed.needed_as_observed
    would = "no number of pictures would do" if more is None else f"{held_out(more)} would do"
    return f"{sentence}; at the {missed.observed:.2%} observed at the most careful thresholds {would}"


def closing_sentences(finished: CalibratedBundle) -> list[str]:
    """Accuracy of full depth, what the default threshold saves, what is certified, and the options that give more.

    A network with one exit has the first sentence alone.
    """
    evaluation, bundle, result = finished.evaluation, finished.bundle, finished.result
    full, facts = evaluation.operating_points[-1], result.facts
    sentences = [f"Full depth is right on {full.accuracy:.2%} of {evaluation.pictures:,} test pictures."]
    if bundle.net.num_exits == 1:
        return sentences
    needed = threshold_pictures(facts.tolerance)
    if needed is not None and facts.searched < needed:
        sentences.append(
            f"The default threshold is {bundle.threshold:g}, full depth: {facts.pictures:,} held-out pictures are too "
            f"few for a lower one; --calibration-size {held_out_to_search(needed)} is enough."
        )
    else:
        sentences.append(
            f"The default threshold {bundle.threshold:g} is right on {result.point.accuracy:.2%} of the held-out "
            f"pictures and saves {1 - result.point.compute:.0%} of the multiply-adds."
        )
    return [*sentences, _certified_sentence(result)]


def _certified_sentence(result: CalibrationResult) -> str:
    promises = (
        [f"{100 * point.max_disagreement:g} %" for point in result.certificate.points] if result.certificate else []
    )
    sentence = (
        f"Certified: at most {', '.join(promises)} of the answers differ from full depth's, as max_disagreement asks."
        if promises
        else f"Nothing is certified: {result.facts.pictures:,} held-out pictures are too few."
    )
    by_promise = sorted(result.missed, key=lambda missed: missed.promise)
    if not by_promise:
        return sentence
    options = [
        f"--calibration-size {held_out_to_certify(missed.needed)} certifies {100 * missed.promise:g} %"
        for missed in dict.fromkeys((by_promise[-1], by_promise[0]))
    ]
    return f"{sentence} If no answer differs, {' and '.join(options)}."
