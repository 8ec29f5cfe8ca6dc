"""The benchmarks as commands: `offramp bench NAME` and `offramp paper`, in a checkout of the source."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from benchmarks import options
from offramp.command import add_command

# By name: options, module with a function `run(options)`, and help.
COMMANDS: dict[str, tuple[type, str, str]] = {
    "thresholds": (
        options.ThresholdsOptions,
        "serving.thresholds",
        "Throughput, latency and accuracy of a server by threshold, exits on against off. Needs wrk.",
    ),
    "accuracy": (
        options.AccuracyOptions,
        "serving.accuracy",
        "A server's answers against the evaluation of its bundle; exit status 1 when they do not agree.",
    ),
    "engine": (
        options.EngineOptions,
        "serving.engine",
        "The engine without HTTP, against a bare loop and against the most that exits can save.",
    ),
    "server-costs": (
        options.ServerCostsOptions,
        "serving.server_costs",
        "Readiness, one request alone, CPU, memory, and several frontends. Needs wrk.",
    ),
    "ray-proxy": (
        options.RayProxyOptions,
        "serving.ray_proxy",
        "Ray Serve's ways to a replica against one server. Needs wrk and the extra `ray`.",
    ),
    "trust": (
        options.TrustOptions,
        "serving.trust.parts",
        "Certified contracts, audits, brownout, privacy and slowdown attacks. Needs wrk.",
    ),
    "hostile": (
        options.HostileOptions,
        "serving.hostile.parts",
        "Attacks, overload, greedy clients, faults and mutated requests.",
    ),
    "peers": (
        options.PeersOptions,
        "peers.bench",
        "Offramp beside other servers: the same weights, pictures and machine. Needs wrk.",
    ),
    "simulate": (
        options.SimulateOptions,
        "simulate.simulate",
        "Scheduling policies by load, simulated with the server's own scheduler.",
    ),
    "pipeline": (
        options.PipelineOptions,
        "training.pipeline",
        "Pictures a second of the training's data pipeline alone, by form and number of decoding processes.",
    ),
    "paper": (
        options.PaperOptions,
        "training.paper",
        "Train networks by several methods over several seeds, and set the table beside the published figures.",
    ),
}

EXAMPLES = {
    "paper": ("--architectures resnet18 --seeds 0,1,2 --hours 8",),
    "peers": ("--peers fastapi,litserve --picture-sets cifar --larger-model ''",),
    "pipeline": ("photos --workers 0,4,8",),
    "simulate": ("--profile profile.json --clients 8,32,256",),
    "trust": ("--only audit,brownout",),
}


def add_benchmarks(app: typer.Typer) -> None:
    """Add `bench` and `paper` to the offramp command."""
    bench = typer.Typer(help="Measure the server, its peers, and training.", no_args_is_help=True)
    for name, (options_type, module, text) in COMMANDS.items():
        words = ["offramp", *(["paper"] if name == "paper" else ["bench", name]), *EXAMPLES.get(name, ())]
        _add(app if name == "paper" else bench, name, options_type, module, f"{text}\n\n{' '.join(words)}")
    app.add_typer(bench, name="bench")


def _add(group: typer.Typer, name: str, options_type: type, module: str, text: str) -> None:
    def run(options: Any) -> None:
        import_module(f"benchmarks.{module}").run(options)

    run.__name__, run.__doc__ = name, text
    add_command(group, options_type)(run)
