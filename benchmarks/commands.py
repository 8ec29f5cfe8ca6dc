"""The benchmarks as commands: `offramp bench NAME` and `offramp paper`, in a checkout of the source."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from benchmarks import options
from offramp.command import add_command

# By name: the options, the module with `run(options)`, and flags of an example.
COMMANDS: dict[str, tuple[type, str, str]] = {
    "thresholds": (options.ThresholdsOptions, "serving.thresholds", ""),
    "accuracy": (options.AccuracyOptions, "serving.accuracy", ""),
    "engine": (options.EngineOptions, "serving.engine", ""),
    "server-costs": (options.ServerCostsOptions, "serving.server_costs", ""),
    "trust": (options.TrustOptions, "serving.trust.setup", "--only audit,brownout"),
    "hostile": (options.HostileOptions, "serving.hostile.setup", "--only attacks"),
    "ray-proxy": (options.RayProxyOptions, "serving.ray_proxy", ""),
    "peers": (
        options.PeersOptions,
        "peers.bench",
        "--peers fastapi,litserve --picture-sets cifar --larger-model ''",
    ),
    "simulate": (options.SimulateOptions, "simulate.simulate", "--profile profile.json --clients 8,32,256"),
    "pipeline": (options.PipelineOptions, "training.pipeline", "photos --workers 0,4,8"),
    "paper": (options.PaperOptions, "training.paper", "--architectures resnet18 --seeds 0,1,2 --hours 8"),
}


def add_benchmarks(app: typer.Typer) -> None:
    """Add `bench` and `paper` to the offramp command."""
    bench = typer.Typer(help="Measure the server, its peers, and training.", no_args_is_help=True)
    for name, (options_type, module, example) in COMMANDS.items():
        group, command = (app, name) if name == "paper" else (bench, f"bench {name}")
        _add(group, name, options_type, module, f"offramp {command} {example}".strip())
    app.add_typer(bench, name="bench")


def _add(group: typer.Typer, name: str, options_type: type, module: str, example: str) -> None:
    def run(options: Any) -> None:
        import_module(f"benchmarks.{module}").run(options)

    run.__name__, run.__doc__ = name, f"{options_type.__doc__}\n\n{example}"
    add_command(group, options_type)(run)
