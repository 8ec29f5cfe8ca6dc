"""Console output of `offramp train`, `evaluate` and `calibrate`, and the files they write beside a bundle."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.markdown import Markdown

from offramp.training.evaluate.evaluation import Evaluation
from offramp.training.finish import CalibratedBundle
from offramp.training.report.plots import plot_calibration, plot_evaluation
from offramp.training.report.sentences import (
    closing_sentences,
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
    short_exits_table,
    thresholds_table,
    write_calibration,
    write_evaluation,
)


def show_training(calibrated: CalibratedBundle) -> None:
    """Print accuracy and cost of each exit, the default threshold and the certificate."""
    show_tables(short_exits_table(calibrated.evaluation))
    if calibrated.selection.num_dropped:
        typer.echo(selection_sentence(calibrated.selection))
    for sentence in closing_sentences(calibrated):
        typer.echo(sentence)


def show_evaluation(evaluation: Evaluation) -> None:
    """Print every exit and every threshold, as tables."""
    show_tables(exits_table(evaluation), overthinking_table(evaluation), thresholds_table(evaluation))


def show_calibration(calibrated: CalibratedBundle) -> None:
    """Print which exits pay, what is certified, and what each missed promise needs."""
    selection, result = calibrated.selection, calibrated.result
    if selection.choices:
        show_tables(choices_table(selection.choices))
    typer.echo(selection_sentence(selection))
    if certificate := result.certificate:
        show_tables(certificate_table(certificate, calibrated.on_test), any_threshold_table(certificate))
    for missed in result.missed:
        typer.secho(shortfall_sentence(missed), fg="yellow", err=True)
    for sentence in (confidence_sentence, threshold_sentence):
        if text := sentence(calibrated.bundle, result.facts):
            typer.echo(text)


def show_tables(*tables: str) -> None:
    """Print Markdown tables, rendered on a terminal."""
    text = "\n\n".join(filter(None, tables))
    console = Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        typer.echo(text)


def copy_bundle(bundle: Path) -> Path:
    """Copy a bundle beside itself, before it loses exits; the copy's path."""
    for number in itertools.count(1):
        copy = bundle.with_name(f"{bundle.name}.before" + (f"-{number}" if number > 1 else ""))
        if not copy.exists():
            shutil.copytree(bundle, copy)
            return copy
    raise AssertionError("there is always another number")


def write_calibration_files(calibrated: CalibratedBundle, folder: Path) -> None:
    """Write `folder/calibration.json`, and the plot when matplotlib is installed."""
    result, title = calibrated.result, calibrated.bundle.name
    write_calibration(calibrated.bundle, result, calibrated.selection, folder)
    if result.fronts is None:
        typer.echo(f"{folder}/calibration.json written")
    else:
        fronts, certificate = result.fronts, result.certificate
        _plot(folder, "calibration", lambda path: plot_calibration(fronts, certificate, title, path))


def write_evaluation_files(evaluation: Evaluation, name: str, folder: Path) -> None:
    """Write `folder/evaluation.json`, and the plot when matplotlib is installed."""
    write_evaluation(evaluation, folder)
    _plot(folder, "evaluation", lambda path: plot_evaluation(evaluation, name, path))


def _plot(folder: Path, name: str, draw: Callable[[Path], None]) -> None:
    try:
        draw(folder / f"{name}.png")
        typer.echo(f"{folder}/{name}.json and {name}.png written")
    except ModuleNotFoundError:
        typer.echo(f"{folder}/{name}.json written; for the plot install matplotlib (pip install 'offramp[train]')")
