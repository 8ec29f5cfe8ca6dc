"""From an options dataclass to a command: its fields become flags and OFFRAMP_ environment variables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer


def add_command(group: typer.Typer, options_type: type) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Make `run(options)` a command of the group. A ValueError, OSError or ImportError becomes one line and exit 1."""

    def decorate(run: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(**values: Any) -> None:
            try:
                run(options_type(**values))
            except (ValueError, OSError, ImportError) as error:
                # Such as a full disk, a missing file or an extra that is not installed.
                typer.secho(f"offramp {run.__name__}: {error}", fg="red", err=True)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                typer.secho("stopped", err=True)
                raise typer.Exit(130) from None

        call.__doc__ = run.__doc__
        call.__signature__ = _signature(options_type)  # type: ignore[attr-defined]
        # Without short_help, the list of commands cuts the first sentence off.
        group.command(run.__name__, short_help=(run.__doc__ or "").partition("\n")[0])(call)
        return run

    return decorate


def _signature(options_type: type) -> inspect.Signature:
    signature = inspect.signature(options_type, eval_str=True)
    for name, parameter in signature.parameters.items():
        (declared,) = parameter.annotation.__metadata__
        if declared.envvar is None and not isinstance(declared, typer.models.ArgumentInfo):
            declared.envvar = f"OFFRAMP_{name.upper()}"
    return signature
