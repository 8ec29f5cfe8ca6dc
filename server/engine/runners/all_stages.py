"""One batch through every stage, without early exits: to warm up, to measure and to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from offramp.server.engine.runners.runner import Runner, StepOutput

Pictures = Sequence[npt.NDArray[np.uint8]]


def run_all_stages(runner: Runner, pictures: Pictures) -> Iterator[StepOutput]:
    """Run the whole batch through every stage, and yield the output of each."""
    states: Sequence[object] = pictures
    for stage in range(1, runner.num_stages + 1):
        output = runner.run(stage, states)
        states = output.keep(range(len(pictures))) if stage < runner.num_stages else ()
        yield output


def stage_seconds(runner: Runner, pictures: Pictures, clock: Callable[[], float]) -> list[float]:
    """Seconds of each stage, with keeping the states of the whole batch. clock: monotonic seconds."""
    times, before_s = [], clock()
    for _ in run_all_stages(runner, pictures):
        after_s = clock()
        times.append(after_s - before_s)
        before_s = after_s
    return times


def black_pictures(size: int, number: int) -> Pictures:
    """Black pictures (size, size, 3), for work that takes the same time for all pictures."""
    return [np.zeros((size, size, 3), np.uint8)] * number
