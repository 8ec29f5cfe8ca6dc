"""`python -m benchmarks.…`: an option dataclass becomes the command's flags and OFFRAMP_ environment variables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer


def command_line(options_type: type, run: Callable[[Any], int]) -> None:
    """Parse the command line into `options_type`, run, exit with the status `run` gives; ValueError is one line."""

    def call(**values: Any) -> None:
        try:
            status = run(options_type(**values))
        except ValueError as error:
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(1) from None
        raise typer.Exit(status)

    call.__doc__ = inspect.getdoc(run)
    call.__signature__ = inspect.signature(options_type, eval_str=True)  # type: ignore[attr-defined]
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(context_settings={"auto_envvar_prefix": "OFFRAMP", "help_option_names": ["-h", "--help"]})(call)
    app()
