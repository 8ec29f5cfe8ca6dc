"""The engine without HTTP: full depth against a bare loop, and exits against the most that they could save.

In each round every variant gets the same test pictures: one network-wide OpenVINO graph over full batches, the runner's
own steps over full batches, and the engine at each threshold. The ideal of a threshold is a sum over stages: the share
of pictures that reach a stage, times the milliseconds of a picture there in full batches of the same round. Besides:
how many answers differ from those of the float32 reference.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Document, ratios, spread, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import publish
from benchmarks.options import EngineOptions, parse_thresholds
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle
from offramp.models.device import choose_device
from offramp.models.exit_policy import ExitRule, exits_taken
from offramp.server.engine.engine import Engine
from offramp.server.engine.profile import CostProfile, measure_profile
from offramp.server.engine.request import Contract, ExitPlan
from offramp.server.engine.runners.agreement import probabilities
from offramp.server.engine.runners.all_stages import stage_seconds
from offramp.server.engine.runners.checked import CheckedRunner, FastRunner
from offramp.server.engine.runners.choice import choose_runner
from offramp.server.engine.runners.runner import Runner
from offramp.server.engine.runners.torch_runner import TorchRunner
from offramp.server.engine.stats import Event, StepStats
from offramp.server.memory import freeze_heap
from offramp.training.build import check_labels
from offramp.training.data import ImageSet, load_splits
from offramp.training.data import Pictures as PictureSource

Picture = npt.NDArray[np.uint8]
# Pictures from which int8 learns its ranges.
HELD_OUT = 300


def run(options: EngineOptions) -> None:
    """Measure engine against bare loop and ideal, and write the result file."""
    head = provenance("engine", options)
    if options.threads:
        torch.set_num_threads(options.threads)
    bundle, device = load_bundle(options.model or EMBEDDED), choose_device(options.device)
    splits = load_splits(options.dataset, options.data_root, bundle.preprocessing)
    check_labels(bundle.labels, splits.class_names)
    test = first_pictures(splits.test, options.pictures, options)
    pictures = list(test.images_NHWC)
    held_out = (
        list(first_pictures(splits.calibration, HELD_OUT, options).images_NHWC) if options.precision == "int8" else []
    )
    runner = choose_runner(bundle, device, options.runner, options.precision, options.threads, len(pictures), held_out)
    runner.warm_up(options.max_batch_size)
    runner = runner.chosen if isinstance(runner, CheckedRunner) else runner
    agreement, exits = compare(runner, TorchRunner(bundle, device), pictures, test.labels_N, options)
    # As the server does.
    freeze_heap()
    profile, rows = measure(bundle, runner, pictures, exits, options)
    document = {
        **head,
        "model": {"name": bundle.name, "version": bundle.version},
        "runner": describe(runner),
        "agreement": agreement,
        "profile": profile.to_dict(),
        "variants": rows,
    }
    publish(options.output, document, section, ("variants", "profile"))


def describe(runner: Runner) -> dict[str, str]:
    """The runner's class and precision."""
    assert isinstance(runner, FastRunner), "every runner names its precision"
    return {"kind": type(runner).__name__, "precision": runner.precision}


def first_pictures(pictures: PictureSource, number: int, options: EngineOptions) -> ImageSet:
    """The first pictures as the network takes them, and their classes; 0: all."""
    count = min(number or len(pictures), len(pictures))
    if options.max_batch_size > count:
        raise BenchmarkError(f"{count} pictures are too few: give at least max_batch_size, {options.max_batch_size}")
    chosen = pictures.subset(np.arange(count))
    if not isinstance(chosen, ImageSet):
        raise BenchmarkError(f"{options.dataset}: the engine is measured with cifar10 or cifar100")
    return chosen


def compare(
    runner: Runner,
    reference: Runner,
    pictures: Sequence[Picture],
    labels_N: npt.NDArray[np.int64],
    options: EngineOptions,
) -> tuple[dict[str, Any], dict[float, npt.NDArray[np.int64]]]:
    """Differences from the reference in probabilities, exits and labels; and the exits that the runner takes."""
    size, every_N = options.max_batch_size, np.arange(len(pictures))
    given_KNC, expected_KNC = (probabilities(each, pictures, size) for each in (runner, reference))
    exits, rows = {}, []
    for threshold in parse_thresholds(options.thresholds):
        rule = ExitRule.uniform(threshold, runner.num_stages)
        taken, expected = (exits_taken(p_KNC.max(axis=2).T, rule) for p_KNC in (given_KNC, expected_KNC))
        answers, expected_answers = (
            p_KNC[at - 1, every_N].argmax(axis=1) for p_KNC, at in ((given_KNC, taken), (expected_KNC, expected))
        )
        exits[threshold] = taken
        rows.append(
            {
                "threshold": threshold,
                "changed_exits": float((taken != expected).mean()),
                "changed_labels": float((answers != expected_answers).mean()),
                "accuracy": float((answers == labels_N).mean()),
                "reference_accuracy": float((expected_answers == labels_N).mean()),
                "disagreement_with_full_depth": float((answers != given_KNC[-1].argmax(axis=1)).mean()),
            }
        )
    largest = float(np.abs(given_KNC - expected_KNC).max())
    return {"pictures": len(pictures), "largest_probability_difference": largest, "thresholds": rows}, exits


@dataclass(frozen=True)
class EngineRound:
    """Milliseconds a picture in one round: each bare loop; by threshold, the engine and its ideal.

    in_steps: by threshold, the share of the engine's time that it spends in steps.
    """

    bare_ms: dict[str, float]
    engine_ms: dict[float, float]
    ideal_ms: dict[float, float]
    in_steps: dict[float, float]


def measure(
    bundle: Bundle,
    runner: Runner,
    pictures: list[Picture],
    exits: dict[float, npt.NDArray[np.int64]],
    options: EngineOptions,
) -> tuple[CostProfile, list[dict[str, Any]]]:
    """Milliseconds a picture of every variant in every round, and the ratios within the rounds."""
    count, batch_size = len(pictures), options.max_batch_size
    profile = measure_profile(runner, bundle.preprocessing.size, batch_size, time.monotonic, rounds=30, budget_s=10.0)
    # Name, work, and the share of the pictures that it computes.
    bare: list[tuple[str, Callable[[], object], float]] = [
        ("steps", lambda: probabilities(runner, pictures, batch_size), 1.0)
    ]
    if (whole := whole_graph(bundle, runner, batch_size)) is not None:
        batches = [np.stack(batch) for batch in full_batches(pictures, batch_size)]
        bare.append(("whole graph", lambda: [whole(batch) for batch in batches], len(batches) * batch_size / count))
    reach = {t: [(exits[t] >= stage).mean() for stage in range(1, runner.num_stages + 1)] for t in exits}

    def measure_round() -> EngineRound:
        bare_ms = {name: 1e3 * seconds(work) / share / count for name, work, share in bare}
        stage_ms = full_batches_ms(runner, pictures, batch_size)
        times_s = {t: asyncio.run(run_engine(runner, profile, pictures, t, batch_size)) for t in exits}
        return EngineRound(
            bare_ms,
            engine_ms={t: 1e3 * whole_s / count for t, (whole_s, _) in times_s.items()},
            ideal_ms={t: float(np.dot(reach[t], stage_ms)) for t in exits},
            in_steps={t: steps_s / whole_s for t, (whole_s, steps_s) in times_s.items()},
        )

    rounds = [measure_round() for _ in range(options.rounds)]
    fastest_ms = [min(each.bare_ms.values()) for each in rounds]
    rows: list[dict[str, Any]] = [
        {"variant": name, **speed([each.bare_ms[name] for each in rounds])} for name, _, _ in bare
    ]
    for t in exits:
        times_ms = [each.engine_ms[t] for each in rounds]
        row = {
            "variant": "engine",
            "threshold": t,
            "mean_exit": float(exits[t].mean()),
            **speed(times_ms),
            "share_of_bare": ratios(fastest_ms, times_ms),
            "share_of_ideal": ratios((each.ideal_ms[t] for each in rounds), times_ms),
            "times_full_depth": ratios((each.engine_ms[1.0] for each in rounds), times_ms),
            "share_of_time_in_steps": statistics.median(each.in_steps[t] for each in rounds),
        }
        rows.append(row)
    return profile, rows


def whole_graph(bundle: Bundle, runner: Runner, batch_size: int) -> Callable[[Picture], object] | None:
    """All stages as one OpenVINO network, for a runner that computes stages so; not in int8."""
    if describe(runner)["kind"] != "OpenVinoRunner":
        return None
    # On a machine with a GPU it need not be installed.
    from offramp.server.engine.runners.openvino.runner import OpenVinoRunner
    from offramp.server.engine.runners.openvino.stages import convert_whole

    assert isinstance(runner, OpenVinoRunner)
    if runner.precision == "int8":
        return None
    compiled: Callable[[Picture], object] = runner.compile(convert_whole(bundle), batch_size)
    return compiled


def full_batches(pictures: Sequence[Picture], batch_size: int) -> list[Sequence[Picture]]:
    """The pictures in full batches; the rest is left out."""
    return [pictures[at : at + batch_size] for at in range(0, len(pictures) - batch_size + 1, batch_size)]


def full_batches_ms(runner: Runner, pictures: Sequence[Picture], batch_size: int) -> list[float]:
    """Milliseconds a picture of each stage: the median step of full batches, states kept."""
    times = [stage_seconds(runner, batch, time.perf_counter) for batch in full_batches(pictures, batch_size)]
    return [1e3 * statistics.median(stage) / batch_size for stage in zip(*times, strict=True)]


async def run_engine(
    runner: Runner, profile: CostProfile, pictures: list[Picture], threshold: float, batch_size: int
) -> tuple[float, float]:
    """Seconds from the first picture handed in to the last answer out, and seconds of them in steps."""
    steps_s: list[float] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepStats):
            steps_s.append(event.duration_s)

    engine = Engine(runner, observe, max_batch_size=batch_size, max_samples=len(pictures), max_wait_s=3600)
    await engine.start(asyncio.get_running_loop(), lambda: profile)
    start_s = time.perf_counter()
    contract = Contract(ExitPlan(ExitRule.uniform(threshold, runner.num_stages)))
    await asyncio.gather(*engine.submit(pictures, contract))
    whole_s = time.perf_counter() - start_s
    await engine.drain()
    return whole_s, sum(steps_s)


def seconds(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def speed(times_ms: list[float]) -> dict[str, Any]:
    """Median, extremes and single rounds of one variant."""
    pictures_per_s = round(1e3 / statistics.median(times_ms), 1)
    return {"pictures_per_s": pictures_per_s, "sample_ms_spread": spread(times_ms), "sample_ms": times_ms}


def section(document: Document) -> str:
    """The table: bare loops, then the engine at each threshold."""
    answers = {row["threshold"]: row for row in document["agreement"]["thresholds"]}
    no_engine = ("threshold", "share_of_bare", "share_of_ideal", "times_full_depth", "accuracy", "changed_exits")
    rows = [
        row | {"variant": f"{row['variant']}, bare", **dict.fromkeys(no_engine)}
        if row["variant"] != "engine"
        else {**answers[row["threshold"]], **row}
        for row in document["variants"]
    ]
    columns = {
        "variant": "{variant}",
        "threshold": "{threshold:g}",
        "pictures/s": "{pictures_per_s:,.0f}",
        "of the bare loop": "{share_of_bare:.2f}",
        "of the ideal": "{share_of_ideal:.2f}",
        "against off": "{times_full_depth:.2f}",
        "accuracy": "{accuracy:.2%}",
        "changed exits": "{changed_exits:.2%}",
    }
    how = (
        "{model[name]} {model[version]}; {runner[kind]}, {runner[precision]}, batches of at most "
        "{options[max_batch_size]}; {agreement[pictures]:,} {options[dataset]} test pictures; median (least–most) of "
        "{options[rounds]} interleaved rounds."
    )
    return section_of(document, table(columns, rows), how)
