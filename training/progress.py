"""The display of a training run: a progress bar on a terminal, lines elsewhere, TensorBoard if it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from offramp.training.epoch import EpochReport, Progress
from offramp.training.run import Run


class Display:
    """Shows every step and epoch. bar: None without a terminal. board: None without TensorBoard."""

    def __init__(self, console: Console, bar: Bar | None, board: Any | None, epochs: int, done: int) -> None:
        self._console = console
        self._bar = bar
        self._board = board
        self._epochs = bar.add_task("all epochs", total=epochs, completed=done, speed="") if bar else None
        self._steps = bar.add_task("epoch", total=None, speed="") if bar else None

    def step(self, progress: Progress) -> None:
        """Move the bar."""
        if self._bar is None or self._steps is None or self._epochs is None:
            return
        speed, name = f"{progress.pictures / progress.seconds:,.0f} images/s", f"epoch {progress.epoch}"
        self._bar.update(self._steps, description=name, completed=progress.step, total=progress.steps, speed=speed)
        self._bar.update(self._epochs, completed=progress.epoch - 1 + progress.step / progress.steps)

    def epoch(self, report: EpochReport) -> None:
        """Print one line: loss, accuracy per exit on the calibration pictures, speed, time left."""
        accuracy = "  ".join(f"{share:.1%}" for share in report.accuracy)
        left_min = (report.epochs - report.epoch) * report.seconds / 60
        self._console.print(
            f"epoch {report.epoch:3}/{report.epochs}  loss {report.loss:7.3f}  exits {accuracy}  "
            f"{report.images_per_s:,.0f} images/s  {left_min:.0f} min left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if self._board is not None:
            for name in ("loss", "learning_rate", "images_per_s"):
                self._board.add_scalar(f"train/{name}", getattr(report, name), report.epoch)
            for exit, share in enumerate(report.accuracy, start=1):
                self._board.add_scalar(f"validation/accuracy_exit_{exit}", share, report.epoch)


@contextmanager
def progress_display(run: Run) -> Iterator[Display]:
    """The display of one run. Bar and TensorBoard file are closed at its end, also after an error."""
    console, trainer, board = Console(), run.trainer, open_board(run.options.output)
    epochs, done = trainer.recipe.epochs, trainer.epoch
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    try:
        if console.is_terminal:
            with Bar(*columns, console=console) as bar:
                yield Display(console, bar, board, epochs, done)
        else:
            yield Display(console, None, board, epochs, done)
    finally:
        if board is not None:
            board.close()


def open_board(folder: Path) -> Any | None:
    """A TensorBoard writer; None without the `train` extra."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
