"""The engine without HTTP: how near full depth comes to a bare loop, and exits to what they could save at best.

    python -m benchmarks.engine --data-root data

Real test pictures through every variant in turn, round after round, so that what disturbs the machine disturbs all:
one network-wide OpenVINO graph over full batches; the runner's own steps over full batches without an engine; the
engine at each threshold. The ideal of a threshold is the sum over stages of the share of pictures that reach a stage
times the milliseconds that a picture costs there in full batches of that very round. Beside speed: how many
answers differ from the float32 reference's.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer

from benchmarks.command_line import command_line
from benchmarks.errors import BenchmarkError
from benchmarks.machine import plain_options, provenance
from benchmarks.options import DataRoot, DatasetName, ModelPath, Pictures, Thresholds, parse_thresholds
from benchmarks.stats import spread
from models.bundle import EMBEDDED, Bundle, load_bundle
from models.device import choose_device
from models.exit_policy import ExitRule, exits_taken
from server.engine.engine import Engine
from server.engine.profile import CostProfile, measure_profile
from server.engine.request import Contract
from server.engine.runners.agreement import probabilities
from server.engine.runners.checked import CheckedRunner, FastRunner
from server.engine.runners.choice import choose_runner
from server.engine.runners.runner import Runner
from server.engine.runners.torch_runner import TorchRunner
from server.engine.runners.walk import stage_seconds
from server.engine.stats import AuditReport, CancelStats, SampleStats, StepStats
from server.memory import freeze_heap
from training.build import check_labels
from training.data import ImageSet, load_splits
from training.data import Pictures as PictureSource

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EngineBenchOptions:
    """Options of `python -m benchmarks.engine`. Raises ValueError for thresholds that cannot be compared."""

    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    thresholds: Thresholds = "0,0.5,0.7,0.9,1"
    pictures: Pictures = 2000
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    runner: Annotated[str, typer.Option(help="auto, torch, openvino or cuda-graphs.")] = "auto"
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto"
    threads: Annotated[int, typer.Option(min=0, help="Threads of a step on the CPU; 0: all cores.")] = 0
    max_batch_size: Annotated[int, typer.Option(min=1, help="Most pictures in a step.")] = 32
    rounds: Annotated[int, typer.Option(min=1, help="How often each variant is measured, interleaved.")] = 5
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/engine.json")

    def __post_init__(self) -> None:
        if 1.0 not in parse_thresholds(self.thresholds):
            raise ValueError(f"thresholds {self.thresholds!r} lack 1, full depth, which the bare loop is compared with")


class Steps:
    """An observer that adds up what the steps took."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.busy_s = 0.0

    def profile(self, profile: CostProfile) -> None:
        """Known already."""

    def step(self, stats: StepStats) -> None:
        """One more step."""
        self.sizes.append(stats.batch_size)
        self.busy_s += stats.duration_s

    def sample(self, stats: SampleStats) -> None:
        """Counted by the caller."""

    def cancelled(self, stats: CancelStats) -> None:
        """Nobody cancels here."""

    def audited(self, report: AuditReport) -> None:
        """Not looked at."""

    def brownout(self, level: int) -> None:
        """There is none."""


def run(options: EngineBenchOptions) -> int:
    """Measure engine against bare loop and ideal, and write the result file."""
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    bundle = load_bundle(options.model or EMBEDDED)
    pictures, labels_N = read_test(bundle, options)
    learnt_from = read_held_out(bundle, options) if options.precision == "int8" else []
    runner = choose_runner(
        bundle, device, options.runner, options.precision, options.threads, len(pictures), learnt_from
    )
    runner.warm_up(options.max_batch_size)
    runner = runner.chosen if isinstance(runner, CheckedRunner) else runner
    thresholds = parse_thresholds(options.thresholds)
    agreement, exits = compare(
        runner, TorchRunner(bundle, device), pictures, labels_N, thresholds, options.max_batch_size
    )
    # As the server does.
    freeze_heap()
    profile, rows = measure(bundle, runner, pictures, exits, options)
    result = {
        **provenance(),
        "benchmark": "engine",
        "options": plain_options(options),
        "model": {"name": bundle.name, "version": bundle.version},
        "runner": described(runner),
        "agreement": agreement,
        "profile": profile.to_dict(),
        "variants": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        typer.echo(json.dumps({key: value for key, value in row.items() if key != "sample_ms"}))
    typer.echo(f"written to {options.output}")
    return 0


def described(runner: Runner) -> dict[str, str]:
    """Which runner, and the type that it computes in."""
    assert isinstance(runner, FastRunner), "every runner names its precision"
    return {"kind": type(runner).__name__, "precision": runner.precision}


def read_test(bundle: Bundle, options: EngineBenchOptions) -> tuple[list[Picture], npt.NDArray[np.int64]]:
    """The first test pictures as the network takes them, and their classes."""
    splits = load_splits(options.dataset, options.data_root, bundle.preprocessing)
    check_labels(bundle.labels, splits.class_names)
    return first(splits.test, options.pictures, options)


def read_held_out(bundle: Bundle, options: EngineBenchOptions) -> list[Picture]:
    """Pictures that were held out of training, for int8 to learn its ranges from."""
    splits = load_splits(options.dataset, options.data_root, bundle.preprocessing)
    return first(splits.calibration, 300, options)[0]


def first(some: PictureSource, number: int, options: EngineBenchOptions) -> tuple[list[Picture], npt.NDArray[np.int64]]:
    """The first pictures and their classes; 0: all."""
    if options.max_batch_size > (number or len(some)):
        raise BenchmarkError(
            f"{number} pictures are out of range: give at least max_batch_size, {options.max_batch_size}"
        )
    chosen = some.subset(np.arange(min(number or len(some), len(some))))
    if not isinstance(chosen, ImageSet):
        raise BenchmarkError(f"{options.dataset}: the engine is measured with cifar10 or cifar100")
    return [np.ascontiguousarray(picture) for picture in chosen.images_NHWC], chosen.labels_N


def compare(
    runner: Runner,
    reference: Runner,
    pictures: Sequence[Picture],
    labels_N: npt.NDArray[np.int64],
    thresholds: Sequence[float],
    batch_size: int,
) -> tuple[dict[str, Any], dict[float, npt.NDArray[np.int64]]]:
    """What differs from the reference: probabilities, exits, labels; and the exits taken by the runner."""
    given_KNC, expected_KNC = (probabilities(one, pictures, batch_size) for one in (runner, reference))
    exits, rows, every_N = {}, [], np.arange(len(pictures))
    for threshold in thresholds:
        rule = ExitRule.uniform(threshold, runner.num_stages)
        taken, wanted = (exits_taken(one.max(axis=2).T, rule) for one in (given_KNC, expected_KNC))
        answers, wanted_answers = (
            one[at - 1, every_N].argmax(axis=1) for one, at in ((given_KNC, taken), (expected_KNC, wanted))
        )
        exits[threshold] = taken
        rows.append(
            {
                "threshold": threshold,
                "changed_exits": float((taken != wanted).mean()),
                "changed_labels": float((answers != wanted_answers).mean()),
                "accuracy": float((answers == labels_N).mean()),
                "reference_accuracy": float((wanted_answers == labels_N).mean()),
                "disagreement_with_full_depth": float((answers != given_KNC[-1].argmax(axis=1)).mean()),
            }
        )
    largest = float(np.abs(given_KNC - expected_KNC).max())
    return {"pictures": len(pictures), "largest_probability_difference": largest, "thresholds": rows}, exits


def measure(
    bundle: Bundle,
    runner: Runner,
    pictures: list[Picture],
    exits: dict[float, npt.NDArray[np.int64]],
    options: EngineBenchOptions,
) -> tuple[CostProfile, list[dict[str, Any]]]:
    """Milliseconds a picture of every variant in every round, and the ratios within the rounds."""
    size, batch_size = bundle.preprocessing.size, options.max_batch_size
    profile = measure_profile(runner, size, batch_size, time.monotonic, rounds=30, budget_s=10.0)
    bare: dict[str, Callable[[], float]] = {"steps": lambda: timed(lambda: probabilities(runner, pictures, batch_size))}
    if (whole := whole_graph(bundle, runner, batch_size)) is not None:
        batches = [
            np.stack(pictures[at : at + batch_size]) for at in range(0, len(pictures) - batch_size + 1, batch_size)
        ]
        # Full batches alone, and as if all pictures were in such.
        share = len(batches) * batch_size / len(pictures)
        bare["whole graph"] = lambda: timed(lambda: [whole(batch) for batch in batches]) / share
    variants: dict[str, list[float]] = {name: [] for name in [*bare, *map(str, exits)]}
    ideals: dict[float, list[float]] = {threshold: [] for threshold in exits}
    busy: dict[float, list[float]] = {threshold: [] for threshold in exits}
    for _ in range(options.rounds):
        for name, once in bare.items():
            variants[name].append(1e3 * once() / len(pictures))
        best_ms = full_batches_ms(runner, pictures, batch_size)
        for threshold in exits:
            seconds, steps = asyncio.run(through_engine(runner, profile, pictures, threshold, batch_size))
            variants[str(threshold)].append(1e3 * seconds / len(pictures))
            reach = [(exits[threshold] >= stage).mean() for stage in range(1, runner.num_stages + 1)]
            ideals[threshold].append(float(np.dot(reach, best_ms)))
            busy[threshold].append(steps.busy_s / seconds)
    rows: list[dict[str, Any]] = [{"variant": name, **figures(variants[name])} for name in bare]
    fastest = [min(times) for times in zip(*(variants[name] for name in bare), strict=True)]
    for threshold in exits:
        times = variants[str(threshold)]
        rows.append(
            {
                "variant": "engine",
                "threshold": threshold,
                "mean_exit": float(exits[threshold].mean()),
                **figures(times),
                "share_of_bare": ratios(fastest, times),
                "share_of_ideal": ratios(ideals[threshold], times),
                "times_full_depth": ratios(variants[str(1.0)], times),
                "share_of_time_in_steps": statistics.median(busy[threshold]),
            }
        )
    return profile, rows


def whole_graph(bundle: Bundle, runner: Runner, batch_size: int) -> Callable[[npt.NDArray[np.uint8]], object] | None:
    """All stages as one OpenVINO network, for a runner that computes stages so."""
    if described(runner)["kind"] != "OpenVinoRunner":
        return None
    # On a machine with a GPU it need not be installed.
    from server.engine.runners.openvino_runner import OpenVinoRunner
    from server.engine.runners.openvino_stages import convert_whole

    assert isinstance(runner, OpenVinoRunner)
    if runner.precision == "int8":
        return None
    compiled: Callable[[npt.NDArray[np.uint8]], object] = runner.compile(convert_whole(bundle), batch_size)
    return compiled


def full_batches_ms(runner: Runner, pictures: Sequence[Picture], batch_size: int) -> list[float]:
    """Milliseconds a picture of each stage: the median step of full batches, states kept."""
    times = []
    for at in range(0, len(pictures) - batch_size + 1, batch_size):
        times.append(stage_seconds(runner, pictures[at : at + batch_size], time.perf_counter))
    return [1e3 * statistics.median(one) / batch_size for one in zip(*times, strict=True)]


async def through_engine(
    runner: Runner, profile: CostProfile, pictures: list[Picture], threshold: float, batch_size: int
) -> tuple[float, Steps]:
    """Seconds from the first picture handed in to the last answer out."""
    steps = Steps()
    engine = Engine(runner, steps, max_batch_size=batch_size, max_samples=len(pictures), max_wait_s=3600)
    await engine.start(asyncio.get_running_loop(), lambda: profile)
    start_s = time.perf_counter()
    contract = Contract(ExitRule.uniform(threshold, runner.num_stages))
    await asyncio.gather(*engine.submit(pictures, contract))
    seconds = time.perf_counter() - start_s
    await engine.drain()
    return seconds, steps


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def figures(times_ms: list[float]) -> dict[str, Any]:
    """Of the rounds: median, extremes, and each."""
    return {
        "pictures_per_s": round(1e3 / statistics.median(times_ms), 1),
        "sample_ms_spread": asdict(spread(times_ms)),
        "sample_ms": times_ms,
    }


def ratios(reference_ms: Sequence[float], times_ms: Sequence[float]) -> dict[str, float]:
    """reference / time, round by round."""
    return asdict(spread([reference / time_ms for reference, time_ms in zip(reference_ms, times_ms, strict=True)]))


if __name__ == "__main__":
    command_line(EngineBenchOptions, run)
