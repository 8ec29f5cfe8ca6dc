"""What `offramp train`, `evaluate` and `calibrate` print, and the files that they keep beside a bundle."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import typer
from rich.console import Console
from rich.markdown import Markdown

from training.evaluate import Evaluation
from training.finish import Finished
from training.report import exits_table, overthinking_table, plot, thresholds_table, write_evaluation
from training.trust_report import (
    any_threshold_table,
    certificate_table,
    choices_table,
    confidence_sentence,
    plot_trust,
    shortfall_sentence,
    threshold_sentence,
    verdict_sentence,
    write_trust,
)


def show_evaluation(evaluation: Evaluation) -> None:
    """Every exit and every threshold, as tables."""
    show_tables(exits_table(evaluation), overthinking_table(evaluation), thresholds_table(evaluation))


def show_trust(made: Finished) -> None:
    """Which exits pay, what is certified, and what a promise that is not would take."""
    if made.verdict.choices:
        show_tables(choices_table(made.verdict.choices))
    typer.echo(verdict_sentence(made.verdict))
    if certificate := made.trust.certificate:
        show_tables(certificate_table(certificate, made.on_test), any_threshold_table(certificate))
    for missed in made.trust.missed:
        typer.secho(shortfall_sentence(missed), fg="yellow", err=True)
    for sentence in filter(None, (confidence_sentence(made.bundle), threshold_sentence(made.bundle))):
        typer.echo(sentence)


def show_tables(*tables: str) -> None:
    """Markdown, drawn where a person reads along."""
    text = "\n\n".join(filter(None, tables))
    console = Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        typer.echo(text)


def keep_whole(bundle: Path) -> Path:
    """A copy of a bundle beside it, before exits are taken from it; where it lies."""
    for number in itertools.count(1):
        copy = bundle.with_name(f"{bundle.name}.before" + (f"-{number}" if number > 1 else ""))
        if not copy.exists():
            shutil.copytree(bundle, copy)
            return copy
    raise AssertionError("there is always another number")


def keep_trust(made: Finished, folder: Path) -> None:
    """`folder/calibration.json`, and the plot where matplotlib is there."""
    write_trust(made.bundle, made.trust, made.verdict, folder)
    if not made.trust.fronts:
        typer.echo(f"{folder}/calibration.json written")
        return
    try:
        plot_trust(made.trust, made.bundle.name, folder / "calibration.png")
        typer.echo(f"{folder}/calibration.json and calibration.png written")
    except ModuleNotFoundError:
        typer.echo(f"{folder}/calibration.json written; for the plot install matplotlib (pip install 'offramp[train]')")


def keep_evaluation(evaluation: Evaluation, name: str, folder: Path) -> None:
    """`folder/evaluation.json`, and the plot where matplotlib is there."""
    write_evaluation(evaluation, folder)
    try:
        plot(evaluation, name, folder / "evaluation.png")
        typer.echo(f"{folder}/evaluation.json and evaluation.png written")
    except ModuleNotFoundError:
        typer.echo(f"{folder}/evaluation.json written; for the plot install matplotlib (pip install 'offramp[train]')")
