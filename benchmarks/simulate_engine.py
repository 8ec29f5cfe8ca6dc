"""The engine in this process, without HTTP, under closed and open loops: for the simulator to be compared with."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.engine import EngineBenchOptions, Picture, Steps, read_test
from benchmarks.simulate_agreement import Observed, agreement, alone_s, fitted
from benchmarks.simulate_fleet import Fleet
from benchmarks.simulate_load import mix_of_exits, poisson
from models.bundle import EMBEDDED, load_bundle
from models.device import choose_device
from models.exit_policy import ExitRule
from server.engine.engine import Engine
from server.engine.profile import CostProfile, measure_profile
from server.engine.request import Contract
from server.engine.runners.choice import choose_runner
from server.engine.runners.runner import Runner
from server.memory import freeze_heap

MAX_BATCH_SIZE = 32
THRESHOLDS = (0.5, 1.0)
CLIENTS = (1, 8, 32, 128)
# Open loops, as shares of what the closed loop of 32 clients reached.
FITTED_CLIENTS, SHARES = 32, (0.3, 0.6, 0.8)
PROFILE_ROUNDS = 10
ROUNDS = 3
# Of every loop, this share of its answers comes before the queues are as full as they will be.
WARM_UP_SHARE = 0.15

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """The step costs of this machine, the median of those before each loop; and the loops its engine went through."""

    profile: CostProfile
    loops: tuple[Observed, ...]


@dataclass(frozen=True)
class Asked:
    """An engine's runner, the pictures it is asked for, and for how long. picture_size: the side of its input."""

    runner: Runner
    pictures: Sequence[Picture]
    picture_size: int
    seconds: float


def measure_engine(data_root: Path, seconds: float) -> Measured:
    """The embedded model on this machine: what steps cost, then every loop for so many seconds."""
    options = EngineBenchOptions(data_root=data_root)
    bundle = load_bundle(EMBEDDED)
    pictures, _ = read_test(bundle, options)
    runner = choose_runner(bundle, choose_device(options.device))
    runner.warm_up(MAX_BATCH_SIZE)
    # As the server does.
    freeze_heap()
    return measure_loops(Asked(runner, pictures, bundle.preprocessing.size, seconds), THRESHOLDS)


def measure_loops(asked: Asked, thresholds: Sequence[float]) -> Measured:
    """Closed loops at each threshold, and open ones at shares of what those reached: medians of interleaved rounds."""
    rules = {threshold: ExitRule.uniform(threshold, asked.runner.num_stages) for threshold in thresholds}
    rounds: list[list[Observed]] = []
    rates: dict[float, float] = {}
    for _ in range(ROUNDS):
        loops = []
        for threshold, rule in rules.items():
            closed = [_on_a_precise_loop(_run(asked, rule, threshold, clients=clients)) for clients in CLIENTS]
            reached = rates.setdefault(threshold, closed[CLIENTS.index(FITTED_CLIENTS)].figures["throughput"])
            opened = [_on_a_precise_loop(_run(asked, rule, threshold, rate=share * reached)) for share in SHARES]
            loops += [*closed, *opened]
        rounds.append(loops)
    every = [one for loops in rounds for one in loops]
    return Measured(_median_profile(every), tuple(_median(same) for same in zip(*rounds, strict=True)))


def _median(rounds: Sequence[Observed]) -> Observed:
    """One loop from its rounds."""
    first = rounds[0]
    return replace(
        first,
        mix=replace(first.mix, shares=tuple(np.mean([one.mix.shares for one in rounds], axis=0).tolist())),
        figures={name: float(np.median([one.figures[name] for one in rounds])) for name in first.figures},
        request_s=float(np.median([one.request_s for one in rounds])),
        profile=_median_profile(rounds),
    )


def _median_profile(loops: Sequence[Observed]) -> CostProfile:
    profiles = [one.profile for one in loops if one.profile]
    costs_s = np.median([profile.measured_s for profile in profiles], axis=0).tolist()
    return replace(profiles[0], measured_s=tuple(map(tuple, costs_s)))


def engine_agreement(fleet: Fleet, loops: Sequence[Observed], seed: int = 0) -> dict[str, Any]:
    """One client tells what a step costs beyond its profile, one closed loop what it costs beside a busy event loop."""
    alone = next(one for one in loops if one.clients == 1)
    steps = sum(alone.mix.reaching)
    beyond_s = 1.0 / alone.figures["throughput"] - alone.request_s - alone_s(alone.profile or fleet.profile, alone.mix)
    fleet = replace(fleet, step_s=max(0.0, beyond_s / steps))
    fit = next(one for one in loops if one.clients == FITTED_CLIENTS)
    fleet = fitted(fleet, [fit], [0.0])
    return agreement(fleet, [alone, fit], [one for one in loops if one is not alone and one is not fit], seed)


def _on_a_precise_loop(work: Coroutine[Any, Any, Result]) -> Result:
    # select() waits to the microsecond; epoll rounds up to whole milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(work)


async def _run(asked: Asked, rule: ExitRule, threshold: float, *, clients: int = 0, rate: float = 0.0) -> Observed:
    """One loop through an engine of its own, which first measures what steps cost, on its own thread, as a server's."""
    engine = Engine(asked.runner, Steps(), max_batch_size=MAX_BATCH_SIZE, max_samples=1_000_000, max_wait_s=3600.0)
    profiles: list[CostProfile] = []

    def warm_up() -> CostProfile:
        size = asked.picture_size
        profiles.append(
            measure_profile(asked.runner, size, MAX_BATCH_SIZE, time.monotonic, rounds=PROFILE_ROUNDS, budget_s=2.0)
        )
        return profiles[0]

    await engine.start(asyncio.get_running_loop(), warm_up)
    contract, exits, answers = Contract(rule), [], []
    start_s, cpu_s = time.perf_counter(), time.thread_time()

    async def ask(number: int, due_s: float) -> None:
        (future,) = engine.submit([asked.pictures[number % len(asked.pictures)]], contract)
        exits.append((await future).exit)
        answers.append((due_s, time.perf_counter() - start_s))

    async def client(number: int) -> None:
        while (now_s := time.perf_counter() - start_s) < asked.seconds:
            await ask(number, now_s)
            number += clients

    async with asyncio.TaskGroup() as group:
        if clients:
            for number in range(clients):
                group.create_task(client(number))
        else:
            arrivals_s = poisson(rate, max(2, round(rate * asked.seconds)), np.random.default_rng(0))
            for number, due_s in enumerate(arrivals_s.tolist()):
                await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - start_s)))
                group.create_task(ask(number, due_s))
    request_s = (time.thread_time() - cpu_s) / len(answers)
    await engine.drain()
    mix = mix_of_exits(f"{threshold:g}", exits, len(rule.limits))
    return Observed(mix, _figures(answers, closed=clients > 0), clients, rate, request_s, profiles[0])


def _figures(answers: Sequence[tuple[float, float]], closed: bool) -> dict[str, float]:
    """Without the warm-up; throughput only where the clients left it to the engine."""
    due_s, done_s = np.array(sorted(answers)[int(WARM_UP_SHARE * len(answers)) :]).T
    p50_ms, p99_ms = 1e3 * np.quantile(done_s - due_s, [0.5, 0.99])
    throughput = {"throughput": float(len(due_s) / (due_s[-1] - due_s[0]))} if closed else {}
    return {**throughput, "p50_ms": float(p50_ms), "p99_ms": float(p99_ms)}
